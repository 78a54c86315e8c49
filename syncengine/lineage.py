"""Where a tree lies on its machine: to see that two members of a job are not the same directory.

A lineage names the directory, then each one above it, by machine, device and inode, so that symlinks
and bind mounts of the same directory show. What cannot be seen so: a directory inside another one
that is mounted elsewhere by itself, and what two machines share over a network.
"""

import contextlib
import functools
import os
from pathlib import Path

from syncengine.directories import OPEN_DIRECTORY

Lineage = tuple[str, ...]
"""The directory itself (empty when it is not there yet), then those above it; empty if unknown."""

MOST = 4_096
"""Directories of a lineage, and characters of each name."""

_ABOVE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


@functools.cache
def _machine() -> str:
    """Name this very boot: containers of one machine have it in common."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def lineage_of(root_fd: int, sub: bytes) -> Lineage:
    """Return the lineage of `sub` below an open root, which need not be there; blocks on the disk."""
    with contextlib.suppress(OSError):
        return _lineage_of(root_fd, sub)
    return ()


def _lineage_of(root_fd: int, sub: bytes) -> Lineage:
    machine = _machine()
    fd, found = os.dup(root_fd), []
    try:
        for name in sub.split(b"/") if sub else ():
            try:
                below = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                found.append("")
                break
            os.close(fd)
            fd = below
        last = (-1, -1)
        while len(found) < MOST:
            status = os.fstat(fd)
            here = (status.st_dev, status.st_ino)
            if here == last:
                break
            found.append(f"{machine}:{here[0]:x}:{here[1]:x}")
            last = here
            try:
                above = os.open("..", _ABOVE, dir_fd=fd)
            except PermissionError:
                break
            os.close(fd)
            fd = above
    finally:
        os.close(fd)
    return tuple(found)


def is_shared(one: Lineage, other: Lineage) -> bool:
    """Say whether two trees are the same directory, or one lies in the other."""
    return bool((one and one[0] and one[0] in other) or (other and other[0] and other[0] in one))
