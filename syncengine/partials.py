"""Partial content: what had arrived of a large file when a push ended, kept for the next one.

It lies in `.baton/partial/` of the root from its first byte on, so nothing has to be done to keep it
when the worker is killed. Its name says of which path, and of which version of the source; what it
holds is believed by nobody before a digest proved it. A log beside it names the chunks that arrived,
where they did not arrive in order.
"""

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

from syncengine.chunks import ID_BYTES
from syncengine.directories import OPEN_DIRECTORY, Held
from syncengine.operations import Temporaries
from syncengine.ranges import copy_range
from syncengine.reserved import open_reserved
from syncengine.tree import Tree

PARTIAL = b"partial"
"""The directory in `.baton`."""

KEEP_S = 7 * 86_400
MOST = 16
"""So many are kept at most: the oldest make room."""

LEAST_BYTES = 1024 * 1024
"""What is smaller is not worth keeping."""

_DEFAULT_ACL = "system.posix_acl_default"
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_NEW = _FLAGS | os.O_CREAT | os.O_EXCL
_LOG = struct.Struct(f"<QI{ID_BYTES}s")
_LOG_ENDING = b".log"


class Arrived(NamedTuple):
    """A chunk that a log names."""

    offset: int
    length: int
    id: bytes


@dataclass(slots=True)
class Partial:
    """One file on its way; `directory` is where it lies, as `name`."""

    directory: int
    name: bytes
    fd: int
    is_kept: bool
    """Whether the next push may find it."""
    log: int = -1
    noted_bytes: int = 0

    def note(self, offset: int, length: int, id_: bytes) -> None:
        """Write down that a chunk has been written."""
        if self.log >= 0:
            self.noted_bytes += length
            os.write(self.log, _LOG.pack(offset, length, id_))

    def close(self) -> None:
        """Close the descriptors; harmless when closed."""
        for fd in (self.fd, self.log, self.directory):
            if fd >= 0:
                os.close(fd)
        self.fd = self.log = self.directory = -1


class Partials:
    """The partial content of one root. Every method blocks on the disk; for one thread."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._temporaries = Temporaries()

    def _open(self, *, create: bool) -> int | None:
        """Return a new descriptor of the directory, or None where there is none; OSError."""
        baton = open_reserved(self._tree, create=create)
        if baton is None:
            return None
        try:
            with contextlib.suppress(FileNotFoundError):
                return os.open(PARTIAL, OPEN_DIRECTORY, dir_fd=baton)
            if not create:
                return None
            with contextlib.suppress(FileExistsError):
                os.mkdir(PARTIAL, 0o700, dir_fd=baton)
            return os.open(PARTIAL, OPEN_DIRECTORY, dir_fd=baton)
        finally:
            os.close(baton)

    def _key(self, path: bytes) -> bytes:
        return blake3(self._tree.sub + b"\0" + path).hexdigest(16).encode()

    def _name(self, path: bytes, mark: int, size: int) -> bytes:
        return self._key(path) + b"-%x-%x" % (mark, size)

    def length(self, path: bytes, mark: int, size: int) -> int:
        """Return how many bytes are kept of the beginning of a version of a file; 0 for none."""
        try:
            directory = self._open(create=False)
            if directory is None:
                return 0
            try:
                status = os.lstat(self._name(path, mark, size), dir_fd=directory)
            finally:
                os.close(directory)
        except OSError:
            return 0
        if not stat.S_ISREG(status.st_mode) or not LEAST_BYTES <= status.st_size <= size:
            return 0
        return status.st_size

    def resume(self, path: bytes, mark: int, size: int) -> Partial:
        """Open what `length` spoke of; raises OSError."""
        directory = self._open(create=False)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, "nothing is kept any more")
        name = self._name(path, mark, size)
        try:
            return Partial(directory, name, os.open(name, _FLAGS, dir_fd=directory), is_kept=True)
        except BaseException:
            os.close(directory)
            raise

    def begin(
        self, held: Held, path: bytes, mark: int, size: int, *, with_log: bool = False
    ) -> Partial:
        """Make an empty one for a file in the directory `held`; older ones for the path go.

        Where the file could not be renamed from here, or would miss what it inherits from its
        directory, it lies in that directory, and nothing is kept of it. Raises OSError.
        """
        if not self._can_be_moved(held):
            name = self._temporaries.staged()
            fd = os.open(name, _NEW, 0o600, dir_fd=held.fd)
            return Partial(os.dup(held.fd), name, fd, is_kept=False)
        directory = self._open(create=True)
        assert directory is not None
        made = Partial(directory, self._name(path, mark, size), -1, is_kept=True)
        if with_log:
            made.name += b"-c%x" % int(self._tree.wall() * 1e9)
        try:
            if not with_log:
                self._remove(directory, made.name)
            made.fd = os.open(made.name, _NEW, 0o600, dir_fd=directory)
            if with_log:
                flags = (_NEW & ~os.O_RDWR) | os.O_WRONLY | os.O_APPEND
                made.log = os.open(made.name + _LOG_ENDING, flags, 0o600, dir_fd=directory)
        except BaseException:
            made.close()
            raise
        return made

    def _can_be_moved(self, held: Held) -> bool:
        status = os.fstat(held.fd)
        if status.st_dev != self._tree.root_id[0] or status.st_mode & stat.S_ISGID:
            return False
        try:
            os.getxattr(held.fd, _DEFAULT_ACL)
        except OSError:
            return True
        return False

    def put(self, partial: Partial, held: Held, name: bytes) -> None:
        """Move a complete one to its directory, under a name that is free; raises OSError.

        The descriptor `fd` stays open; where it had to be copied it is another one.
        """
        try:
            os.rename(partial.name, name, src_dir_fd=partial.directory, dst_dir_fd=held.fd)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # A mount of the same file system, or another project's quota.
            copy = os.open(name, _NEW, 0o600, dir_fd=held.fd)
            size = os.fstat(partial.fd).st_size
            try:
                copy_range((partial.fd, 0), (copy, 0), size)
            except BaseException:
                os.close(copy)
                os.unlink(name, dir_fd=held.fd)
                raise
            os.unlink(partial.name, dir_fd=partial.directory)
            os.close(partial.fd)
            partial.fd = copy
        if partial.log >= 0:
            self._remove(partial.directory, partial.name + _LOG_ENDING)

    def drop(self, partial: Partial) -> None:
        """Remove one that is of no use; what cannot be removed expires."""
        with contextlib.suppress(OSError):
            self._remove(partial.directory, partial.name)
            self._remove(partial.directory, partial.name + _LOG_ENDING)
        partial.close()

    def keep(self, partial: Partial) -> None:
        """Leave one to the next push, if it is worth that."""
        # What came from other local files will be found there again.
        size = partial.noted_bytes if partial.log >= 0 else os.fstat(partial.fd).st_size
        if not partial.is_kept or size < LEAST_BYTES:
            self.drop(partial)
            return
        partial.close()
        self.expire()

    def has_pieces(self, path: bytes) -> bool:
        """Say whether something in chunks is kept of a path."""
        try:
            directory = self._open(create=False)
            if directory is None:
                return False
            try:
                key = self._key(path)
                return any(
                    name.startswith(key) and name.endswith(_LOG_ENDING)
                    for name in self._names(directory)
                )
            finally:
                os.close(directory)
        except OSError:
            return False

    def in_pieces(self, path: bytes) -> Iterator[tuple[int, list[Arrived]]]:
        """Yield an open descriptor and the log of each one of this path that came in chunks.

        The descriptor is the caller's to close. Nothing that a log says is proved.
        """
        try:
            directory = self._open(create=False)
        except OSError:
            return
        if directory is None:
            return
        try:
            for name in self._names(directory):
                if name.startswith(self._key(path)) and name.endswith(_LOG_ENDING):
                    with contextlib.suppress(OSError):
                        yield _opened(directory, name)
        finally:
            os.close(directory)

    def forget(self, path: bytes, *, but: bytes = b"") -> None:
        """Remove what is kept of a path, which is complete by now."""
        with contextlib.suppress(OSError):
            directory = self._open(create=False)
            if directory is None:
                return
            try:
                for name in self._names(directory):
                    is_other = not but or not name.startswith(but)
                    if name.startswith(self._key(path)) and is_other:
                        self._remove(directory, name)
            finally:
                os.close(directory)

    def expire(self) -> None:
        """Remove what is too old, too much, or more than there is free space."""
        with contextlib.suppress(OSError):
            directory = self._open(create=False)
            if directory is None:
                return
            try:
                self._expire(directory, self._tree.wall())
            finally:
                os.close(directory)

    def _expire(self, directory: int, now: float) -> None:
        found = []
        for name in self._names(directory):
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(name, dir_fd=directory)
                found.append((status.st_mtime, status.st_blocks * 512, name))
        found.sort(reverse=True)
        room = self._tree.free_bytes()
        data = held = 0
        for modified, size, name in found:
            data += not name.endswith(_LOG_ENDING)
            held += size
            if not now - KEEP_S <= modified <= now + KEEP_S or data > MOST or held > room:
                self._remove(directory, name)

    def clear(self) -> None:
        """Remove everything: the disk is full, and it can be sent again."""
        with contextlib.suppress(OSError):
            directory = self._open(create=False)
            if directory is None:
                return
            try:
                for name in self._names(directory):
                    self._remove(directory, name)
            finally:
                os.close(directory)

    def _names(self, directory: int) -> list[bytes]:
        return [os.fsencode(name) for name in os.listdir(directory)]

    def _remove(self, directory: int, name: bytes) -> None:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(name, dir_fd=directory)


def _opened(directory: int, log_name: bytes) -> tuple[int, list[Arrived]]:
    log = os.open(log_name, _FLAGS, dir_fd=directory)
    try:
        raw = os.pread(log, min(os.fstat(log).st_size, 1 << 26), 0)
    finally:
        os.close(log)
    whole = len(raw) - len(raw) % _LOG.size
    arrived = [Arrived(*one) for one in _LOG.iter_unpack(raw[:whole])]
    return os.open(log_name.removesuffix(_LOG_ENDING), _FLAGS, dir_fd=directory), arrived
