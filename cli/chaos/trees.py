"""What lies in a tree and in a trash, read while others change it."""

import contextlib
import os
import time
from pathlib import Path

from cli.chaos.versions import version_of

_QUIET_S = 2.0
"""What came into a trash just now may be on its way yet."""


def files_below(top: Path) -> list[Path]:
    """Return the files of a tree, but those of Baton's own."""
    found = []
    with contextlib.suppress(OSError):
        for at, directories, files in os.walk(top):
            directories[:] = [name for name in directories if not name.startswith(".baton")]
            found += [Path(at) / name for name in files if not name.startswith(".baton")]
    return found


def entries_of(top: Path) -> dict[str, str]:
    """Return what a tree has: by path the version, or a kind in brackets."""
    entries: dict[str, str] = {}
    for at, directories, files in os.walk(top):
        directories[:] = [name for name in directories if not name.startswith(".baton")]
        for name in directories:
            entries[str((Path(at) / name).relative_to(top))] = "(directory)"
        for name in files:
            file = Path(at) / name
            content = file.read_bytes()
            entries[str(file.relative_to(top))] = version_of(content) or f"(torn, {len(content)})"
    return entries


def versions_below(top: Path) -> list[str]:
    """Return the versions of all files below a directory that may not be there."""
    found = []
    for file in top.rglob("*"):
        with contextlib.suppress(OSError):
            version = version_of(file.read_bytes())
            if version is not None:
                found.append(version)
    return sorted(found)


def empty_trash(trash: Path) -> dict[str, list[str]]:
    """Remove the versions of a root's trash, and return them by job. Blocks.

    Directories stay: somebody may be about to put more into them.
    """
    found: dict[str, list[str]] = {}
    before = time.time() - _QUIET_S
    for file in trash.glob("*/*/**/*"):
        with contextlib.suppress(OSError):
            status = file.lstat()
            if not file.is_file() or status.st_ctime > before:
                continue
            version = version_of(file.read_bytes())
            if version is not None:
                file.unlink()
                found.setdefault(file.relative_to(trash).parts[1], []).append(version)
    return found
