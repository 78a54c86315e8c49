"""Seeded trees, and equality of trees by two judges that are not the engine."""

import os
import random
import shutil
import stat
import subprocess
from pathlib import Path

T0 = 1_600_000_000_123_456_789


def put(path: Path, content: bytes | str, when: int | None = None, mode: int = 0o644) -> None:
    """Write a file with a time of its own; the directory's is left as it falls."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    if when is not None:
        os.utime(path, ns=(when, when))


def grow(root: Path, files: int, *, seed: int = 1, width: int = 40, size: int = 600) -> int:
    """Make many small files below `root`; return how many bytes they have."""
    dice = random.Random(seed)
    total = 0
    for number in range(files):
        content = dice.randbytes(dice.randrange(1, 2 * size))
        put(root / f"d{number % width:03}" / f"f{number:06}", content, T0 + dice.randrange(10**15))
        total += len(content)
    return total


def picture(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that a mirror carries: kinds, content, modes, times, links."""
    shown: dict[bytes, tuple[object, ...]] = {}
    at: list[tuple[bytes, int]] = [(b"", os.open(root, os.O_RDONLY | os.O_DIRECTORY))]
    while at:
        below, fd = at.pop()
        try:
            for name in map(os.fsencode, os.listdir(fd)):
                if name == b".baton":
                    continue
                path = below + b"/" + name if below else name
                status = os.lstat(name, dir_fd=fd)
                mode, mtime = status.st_mode, status.st_mtime_ns
                if stat.S_ISLNK(mode):
                    shown[path] = ("link", os.readlink(name, dir_fd=fd), mtime)
                elif stat.S_ISDIR(mode):
                    shown[path] = ("directory", mode, mtime)
                    # Relative to its parent: a path of 200 long names is longer than PATH_MAX.
                    at.append((path, os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)))
                elif stat.S_ISREG(mode):
                    with open(os.open(name, os.O_RDONLY, dir_fd=fd), "rb") as file:
                        shown[path] = ("file", mode, mtime, file.read())
                else:
                    shown[path] = ("special", mode)
        finally:
            os.close(fd)
    return shown


def rsync_says(source: Path, target: Path) -> str:
    """What rsync, as an independent oracle, would still change."""
    options = ("-ani", "--delete", "--checksum", "--exclude=.baton")
    return subprocess.run(
        ["rsync", *options, f"{source}/", f"{target}/"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def check_equal(source: Path, target: Path) -> None:
    """The target is as the source, top directory included, by our own eyes and by rsync's."""
    mine, theirs = picture(source), picture(target)
    differing = sorted(
        path for path in mine.keys() | theirs.keys() if mine.get(path) != theirs.get(path)
    )
    assert not differing, (len(differing), differing[:10])
    one, other = source.stat(), target.stat()
    assert (one.st_mode, one.st_mtime_ns) == (other.st_mode, other.st_mtime_ns)
    assert temporaries(target) == []
    if shutil.which("rsync"):
        assert rsync_says(source, target) == ""


def temporaries(root: Path) -> list[str]:
    """Temporary entries that were left anywhere below."""
    return [
        os.path.join(folder, name)
        for folder, folders, files in os.walk(root)
        for name in [*folders, *files]
        if name.startswith(".baton~")
    ]
