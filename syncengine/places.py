"""Names in one directory changing places: the single steps that publishing is made of.

Every function takes a held directory's descriptor and a name in it, and follows no symlink.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from syncengine.kernel import RENAME_EXCHANGE, RENAME_NOREPLACE, Unsupported, renameat2

OPEN_ANY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
"""Flags to open what should be a file of ours but may have become anything."""


def look(fd: int, name: bytes) -> os.stat_result | None:
    """Return the status of a name, or None when there is nothing."""
    try:
        return os.lstat(name, dir_fd=fd)
    except FileNotFoundError:
        return None


def is_same(before: os.stat_result, after: os.stat_result) -> bool:
    """Say whether a rename moved the version that was looked at before.

    Not by ctime, which the rename itself sets.
    """
    return (
        before.st_ino == after.st_ino
        and before.st_dev == after.st_dev
        and before.st_size == after.st_size
        and before.st_mtime_ns == after.st_mtime_ns
        and stat.S_IFMT(before.st_mode) == stat.S_IFMT(after.st_mode)
    )


def put_new(fd: int, source: bytes, name: bytes) -> None:
    """Rename within a directory; raises FileExistsError rather than replace anything."""
    move_new(fd, source, fd, name)


def move_new(fd: int, source: bytes, to_fd: int, name: bytes) -> None:
    """Rename to another directory; raises FileExistsError rather than replace anything."""
    try:
        renameat2(fd, source, to_fd, name, RENAME_NOREPLACE)
    except Unsupported:
        _move_new_slowly(fd, source, to_fd, name)


def _move_new_slowly(fd: int, source: bytes, to_fd: int, name: bytes) -> None:
    """Do the same where the file system has no such rename (NFS, some FUSE)."""
    try:
        os.link(source, name, src_dir_fd=fd, dst_dir_fd=to_fd, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        # Directories and file systems without hard links.
        # RACE: an entry that appears between the look and the rename is lost if it is a file or an
        # empty directory. Nothing better exists there.
        if look(to_fd, name) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None
        os.rename(source, name, src_dir_fd=fd, dst_dir_fd=to_fd)
    else:
        os.unlink(source, dir_fd=fd)


def exchange(fd: int, temporary: bytes, name: bytes) -> None:
    """Let two names change places in one step; raises FileNotFoundError when one is missing."""
    try:
        renameat2(fd, temporary, fd, name, RENAME_EXCHANGE)
    except Unsupported:
        _exchange_slowly(fd, temporary, name)


def _exchange_slowly(fd: int, temporary: bytes, name: bytes) -> None:
    """Replace where the file system has no exchange, keeping the old version by a second name."""
    aside = temporary[:-4] + b"~old"
    try:
        os.link(name, aside, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    except OSError:
        # RACE: without hard links, an edit between the caller's look and this rename is lost.
        os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
        return
    # RACE: an edit by rename between the link and this rename is lost.
    os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
    os.rename(aside, temporary, src_dir_fd=fd, dst_dir_fd=fd)


@contextlib.contextmanager
def opened(fd: int, name: bytes, *, is_file: bool = True) -> Iterator[tuple[int, bool]]:
    """Open an entry for changes of its metadata; the second value is False for an O_PATH handle.

    That is what is left for a file whose mode forbids its own owner to read it, and what is right
    for a device: to open one may already do something.
    """
    handle = -1
    if is_file:
        with contextlib.suppress(PermissionError):
            handle = os.open(name, OPEN_ANY, dir_fd=fd)
    is_real = handle >= 0
    if not is_real:
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        yield handle, is_real
    finally:
        os.close(handle)


def set_mode(fd: int, mode: int, *, is_real: bool) -> None:
    """Set the mode of what is open; by the kernel's own name for it when it is an O_PATH handle."""
    if is_real:
        os.fchmod(fd, mode)
    else:
        os.chmod(b"/proc/self/fd/%d" % fd, mode)  # noqa: PTH101 - no path, but the open file itself
