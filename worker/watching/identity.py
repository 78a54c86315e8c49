"""Whether a root is what was watched before, or what lies there while that is not mounted."""

import contextlib
import os
import stat
from pathlib import Path

from syncengine.errors import RootMissing
from syncengine.model import RESERVED_NAME
from worker.watching.store import Store

_NOTED = "root"


class RootIdentity:
    """What the store knows of the directory that its index is about."""

    def __init__(self, store: Store, path: Path) -> None:
        """Use the store; another path is another root, of which nothing is known."""
        self._store = store
        self._path = path

    def check(self, fd: int) -> None:
        """Raise RootMissing when this looks like an empty mount point rather than the root.

        Another directory, without the marker that the last one had, or empty when that had none. A
        root that was made anew on purpose is taken once it has its marker: runs see to that, after
        an approval.
        """
        noted = self._store.about(_NOTED)
        if noted is None or noted == _identity(fd):
            return
        had_marker = noted.endswith("marked")
        is_other = noted.split()[0] != _identity(fd).split()[0]
        if is_other and (not _is_marked(fd) if had_marker else not os.listdir(fd)):
            raise RootMissing(f"{self._path} is not the directory that was watched; is it mounted?")

    def note(self, fd: int) -> None:
        """Remember the directory as it is now."""
        if self._store.about(_NOTED) != _identity(fd):
            self._store.note(_NOTED, _identity(fd))


def _identity(fd: int) -> str:
    status = os.fstat(fd)
    return f"{status.st_ino} {'marked' if _is_marked(fd) else 'bare'}"


def _is_marked(fd: int) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(os.lstat(RESERVED_NAME, dir_fd=fd).st_mode)
    return False
