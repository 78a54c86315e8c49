"""Parts of files: copied within the kernel where it can, shared by both files where the file system can.

copy_file_range shares blocks (as FICLONERANGE does) on XFS and btrfs by itself, provided that both
offsets lie at the beginning of a block: so a range is cut where that begins.
"""

import errno
import os

_BLOCK = 4096
_STEP = 64 * 1024 * 1024
"""At most so much in one call: nothing can interrupt it."""
_BUFFER = 1024 * 1024
_LACKING = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}
)


def copy_range(source: tuple[int, int], target: tuple[int, int], length: int) -> None:
    """Copy `length` bytes between (descriptor, offset) pairs; raises OSError, EIO for a short source.

    Two ranges of one file must not overlap.
    """
    (from_fd, at), (to_fd, to) = source, target
    head = -at % _BLOCK
    if (at - to) % _BLOCK == 0 and 0 < head < length:
        _copy(from_fd, at, to_fd, to, head)
        at, to, length = at + head, to + head, length - head
    _copy(from_fd, at, to_fd, to, length)


def _copy(from_fd: int, at: int, to_fd: int, to: int, length: int) -> None:
    while length > 0:
        try:
            done = os.copy_file_range(from_fd, to_fd, min(length, _STEP), at, to)
        except OSError as error:
            if error.errno not in _LACKING:
                raise
            done = 0
        if not done:
            _copy_slowly(from_fd, at, to_fd, to, length)
            return
        at, to, length = at + done, to + done, length - done


def _copy_slowly(from_fd: int, at: int, to_fd: int, to: int, length: int) -> None:
    while length > 0:
        data = os.pread(from_fd, min(length, _BUFFER), at)
        if not data:
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        write_at(to_fd, data, to)
        at, to, length = at + len(data), to + len(data), length - len(data)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of it: a disk that fills up gives a short write before the error that says so."""
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)
