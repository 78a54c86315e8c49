"""Change large files in place, for jobs that ask for it: with a record that undoes it.

What is to change has arrived, was proved and lies beside the file before the first byte is touched;
what it replaces is written down, durably, before that too. A reader may see a mix of both versions for
the moment that the change takes; after a crash in it, the record brings the old version back at the
worker's next start or scan.
"""

import contextlib
import os
import stat
import struct
from collections.abc import Iterator, Sequence

import msgspec
from blake3 import blake3

from syncengine.directories import OPEN_DIRECTORY
from syncengine.errors import MalformedFrame, TargetChanged
from syncengine.failpoints import Step, reach
from syncengine.kernel import file_handle
from syncengine.names import check_path, join
from syncengine.ranges import copy_range, write_at
from syncengine.reserved import open_reserved
from syncengine.tree import Tree

UNDO = b"undo"
"""The directory in `.baton` that holds the records."""

Ranges = Sequence[tuple[int, int]]
"""Offset and length of each part of a file that changes."""

_LENGTH = struct.Struct(">Q")
_STEP = 1024 * 1024
_DIGEST_BYTES = 32
PATCHED = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Flags to open a file that is to be changed."""
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class _Header(msgspec.Struct, array_like=True):
    """What a record says before the old bytes."""

    path: bytes
    """From the root."""
    handle: bytes
    """The kernel's, of the very file."""
    size: int
    mtime_ns: int
    ranges: list[tuple[int, int]]


def patch(tree: Tree, path: bytes, fds: tuple[int, int], ranges: Ranges) -> None:
    """Change a file in place, durably: `fds` are what it is to be, and the file itself.

    The first holds the ranges at their offsets; its size and its time become those of the file. Raises
    OSError, having put back what it could; TargetChanged when the file changed meanwhile.
    """
    new, old = fds
    size = os.fstat(new).st_size
    before = os.fstat(old)
    name = os.urandom(12).hex().encode()
    directory = _directory(tree, create=True)
    assert directory is not None
    try:
        try:
            _write_record(directory, name, join(tree.sub, path), old, ranges, size)
            _check_unchanged(before, os.fstat(old))
        except BaseException:
            os.unlink(name, dir_fd=directory)
            raise
        # RACE: what somebody else writes to the file from here on is mixed with the new version.
        try:
            reach(Step.BEFORE_PATCH)
            for offset, length in ranges:
                copy_range((new, offset), (old, offset), length)
            os.ftruncate(old, size)
            os.utime(old, ns=(before.st_atime_ns, os.fstat(new).st_mtime_ns))
            os.fsync(old)
            reach(Step.AFTER_PATCH)
        except OSError:
            _undo(tree, directory, name)
            raise
        os.unlink(name, dir_fd=directory)
        os.fsync(directory)
    finally:
        os.close(directory)


def _check_unchanged(before: os.stat_result, after: os.stat_result) -> None:
    if before.st_ctime_ns != after.st_ctime_ns:
        raise TargetChanged("it changed while the change of it was prepared")


def undo_all(tree: Tree) -> None:
    """Bring back the old version of every file below the top that a crash left half changed.

    For the one writer of a target, before it scans. What cannot be brought back now is tried again.
    """
    with contextlib.suppress(OSError):
        directory = _directory(tree, create=False)
        if directory is None:
            return
        try:
            for listed in os.listdir(directory):  # noqa: PTH208 - by descriptor
                with contextlib.suppress(OSError):
                    _undo(tree, directory, os.fsencode(listed))
        finally:
            os.close(directory)


def _directory(tree: Tree, *, create: bool) -> int | None:
    baton = open_reserved(tree, create=create)
    if baton is None:
        return None
    try:
        with contextlib.suppress(FileNotFoundError):
            return os.open(UNDO, OPEN_DIRECTORY, dir_fd=baton)
        if not create:
            return None
        with contextlib.suppress(FileExistsError):
            os.mkdir(UNDO, 0o700, dir_fd=baton)
        os.fsync(baton)
        return os.open(UNDO, OPEN_DIRECTORY, dir_fd=baton)
    finally:
        os.close(baton)


def _saved(ranges: Ranges, old_size: int, new_size: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of the old version that the new one takes the place of."""
    for offset, length in ranges:
        end = min(offset + length, old_size, new_size)
        if offset < end:
            yield offset, end - offset
    if new_size < old_size:
        yield new_size, old_size - new_size


def _write_record(
    directory: int, name: bytes, path: bytes, old: int, ranges: Ranges, new_size: int
) -> None:
    status = os.fstat(old)
    saved = list(_saved(ranges, status.st_size, new_size))
    header = msgspec.msgpack.encode(
        _Header(path, file_handle(old), status.st_size, status.st_mtime_ns, saved)
    )
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
    record = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        hasher = blake3()
        at = 0
        for data in (_LENGTH.pack(len(header)), header, *_parts(old, saved)):
            hasher.update(data)
            write_at(record, data, at)
            at += len(data)
        write_at(record, hasher.digest(), at)
        os.fsync(record)
    finally:
        os.close(record)
    os.fsync(directory)


def _parts(fd: int, ranges: Ranges) -> Iterator[bytes]:
    for offset, length in ranges:
        at, end = offset, offset + length
        while at < end:
            data = os.pread(fd, min(_STEP, end - at), at)
            if not data:
                raise TargetChanged("it became shorter while the change of it was prepared")
            yield data
            at += len(data)


def _undo(tree: Tree, directory: int, name: bytes) -> None:
    """Carry out one record that is whole, and remove it; one below another top is left alone."""
    record = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=directory)
    try:
        found = _read_header(record)
        if found is not None:
            header, at = found
            if tree.sub and not header.path.startswith(tree.sub + b"/"):
                return
            path = header.path[len(tree.sub) + 1 :] if tree.sub else header.path
            _put_back(tree, path, header, (record, at))
    finally:
        os.close(record)
    # CRASH: a record that is not whole was being written: nothing had been touched yet.
    os.unlink(name, dir_fd=directory)


def _read_header(record: int) -> tuple[_Header, int] | None:
    """Return what a record says, and where the old bytes begin; None when it is not whole."""
    size = os.fstat(record).st_size - _DIGEST_BYTES
    if size < _LENGTH.size:
        return None
    hasher = blake3()
    for data in _parts(record, [(0, size)]):
        hasher.update(data)
    if hasher.digest() != os.pread(record, _DIGEST_BYTES, size):
        return None
    (length,) = _LENGTH.unpack(os.pread(record, _LENGTH.size, 0))
    try:
        header = msgspec.msgpack.decode(os.pread(record, length, _LENGTH.size), type=_Header)
        check_path(header.path)
    except (msgspec.MsgspecError, MalformedFrame):
        return None
    return header, _LENGTH.size + length


def _put_back(tree: Tree, path: bytes, header: _Header, saved: tuple[int, int]) -> None:
    parent, _, name = path.rpartition(b"/")
    record, at = saved
    with contextlib.closing(tree.directories()) as directories:
        try:
            fd = os.open(name, PATCHED, dir_fd=directories.fd(parent))
        except (FileNotFoundError, NotADirectoryError):
            return
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or file_handle(fd) != header.handle:
            return  # somebody put another file here since
        for offset, length in header.ranges:
            copy_range((record, at), (fd, offset), length)
            at += length
        os.ftruncate(fd, header.size)
        os.utime(fd, ns=(status.st_atime_ns, header.mtime_ns))
        os.fsync(fd)
    finally:
        os.close(fd)
