"""Holes of sparse files: found at the source, left at the target. To digests they are zeros."""

import errno
import os
from collections.abc import Iterator

from blake3 import blake3

HOLE_BYTES = 64 * 1024 * 1024
"""The longest hole in one record: what a receiver digests for it takes a moment only."""

_BLOCK = 512
_ZEROS = memoryview(bytes(1024 * 1024))


def is_sparse(status: os.stat_result) -> bool:
    """Say whether a file has, or may have, holes: fewer blocks than its size needs."""
    return status.st_blocks * _BLOCK < status.st_size


def next_data(fd: int, offset: int, end: int) -> tuple[int, int]:
    """Return where the next data before `end` begins and ends; both `end` when there is none.

    Moves the file's position. Raises OSError.
    """
    try:
        begins = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end, end
        if error.errno == errno.EINVAL:
            return offset, end  # a file system that does not know
        raise
    if begins >= end:
        return end, end
    return begins, min(os.lseek(fd, begins, os.SEEK_HOLE), end)


def data_ranges(fd: int, offset: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield where data begins and ends, between two offsets; raises OSError."""
    while offset < end:
        begins, ends = next_data(fd, offset, end)
        if begins < ends:
            yield begins, ends
        offset = ends


def digest_zeros(hasher: blake3, length: int) -> None:
    """Let a hasher see `length` zeros."""
    while length > 0:
        step = min(length, len(_ZEROS))
        hasher.update(_ZEROS[:step])
        length -= step


def is_zero(data: bytes | memoryview) -> bool:
    """Say whether there is nothing but zeros."""
    view = memoryview(data)
    return all(
        view[at : at + len(_ZEROS)] == _ZEROS[: min(len(_ZEROS), len(view) - at)]
        for at in range(0, len(view), len(_ZEROS))
    )
