"""The large files of a push, as the target sees them: what is kept of them, what can be used for them.

For each one the sender asks first, and goes on with other files meanwhile. The answer is how much of
its beginning lies here already, or that its chunks shall be offered. Nothing that lies here is used
for a file but the version that it replaces, what is left of an earlier push of it, and files below
the same top, so that nobody gets content from elsewhere by knowing its digest (A8).
"""

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from syncengine import frames as wire
from syncengine.assembly import Assembly, Holder
from syncengine.chunk_index import status_key
from syncengine.chunks import LEAST_BITS, MOST_BITS, Chunks, cut_whole
from syncengine.directories import Directories, Held
from syncengine.errors import MalformedFrame
from syncengine.inplace import PATCHED
from syncengine.kernel import file_handle
from syncengine.model import Compare, Often, RunOptions
from syncengine.names import join
from syncengine.partials import Partials
from syncengine.places import look
from syncengine.scan import OPEN_FILE, fingerprint
from syncengine.staging import PartFile
from syncengine.tree import Tree

HEAD_BYTES = 64 * 1024
"""So much of a file's beginning is digested to find others like it."""

INDEXED_BYTES = 1024 * 1024
"""Smaller files are not remembered: sending them again costs as much as knowing them."""

_MOST_ASKED = 256
_MOST_AT_ONCE = 16
_MOST_HOLDERS = 8
_LEAST_BASIS = 64 * 1024
_LEAST_SHARE = 16
"""A version to be replaced that is so many times smaller than the new one is not worth cutting."""
_FRUITLESS = 4
"""After so many windows without a file that helps, none is looked for."""
_HASH_BYTES = 1024 * 1024
_MAX_INT64 = (1 << 63) - 1


@dataclass(slots=True)
class _Asked:
    """One file that the sender asked about."""

    parent: bytes
    record: wire.Ask
    have: int
    assembly: Assembly | None = None
    basis: Holder | None = None
    used: set[bytes] = field(default_factory=set)
    """Paths whose content was used, or looked at in vain."""
    fruitless: int = 0

    @property
    def path(self) -> bytes:
        return join(self.parent, self.record.name)


@dataclass(slots=True)
class _Fresh:
    """A file that will be remembered once it is published."""

    parent: bytes
    name: bytes
    inode: int
    head: bytes
    chunks: Chunks | None


class Incoming:
    """What one push has been asked about; for one thread, every method blocks on the disk."""

    def __init__(
        self,
        tree: Tree,
        directories: Directories,
        options: RunOptions,
    ) -> None:
        self.partials = Partials(tree)
        self._tree = tree
        self._directories = directories
        self._options = options
        self._index = tree.chunks
        self._asked: dict[int, _Asked] = {}
        self._failed: set[int] = set()
        self._fresh: list[_Fresh] = []

    # What the sender says

    def ask(self, parent: bytes, held: Held, record: wire.Ask) -> int:
        """Return how many bytes of the beginning are here, or OFFER; raises OSError."""
        if record.number in self._asked or len(self._asked) >= _MOST_ASKED:
            raise MalformedFrame("too many questions at once, or one twice")
        if not LEAST_BITS <= record.bits <= MOST_BITS or not 0 <= record.size <= _MAX_INT64:
            raise MalformedFrame("an impossible question")
        if held.hidden_in is not None and record.seen:
            raise FileNotFoundError("the directory is new, so nothing was here")
        asked = _Asked(parent, record, 0)
        path = asked.path
        if record.offers and self._is_offer_worth(held, path, record):
            asked.have = wire.OFFER
        else:
            asked.have = self.partials.length(path, record.mark, record.size)
        self._asked[record.number] = asked
        return asked.have

    def _is_offer_worth(self, held: Held, path: bytes, record: wire.Ask) -> bool:
        if record.seen:
            there = look(held.fd, record.name)
            if (
                there is not None
                and stat.S_ISREG(there.st_mode)
                and there.st_size >= max(_LEAST_BASIS, record.size // _LEAST_SHARE)
            ):
                return True
        if self.partials.has_pieces(path):
            return True
        if self._index is None:
            return False
        if record.offers == wire.Offers.ALWAYS:
            return True
        below = self._tree.sub
        return bool(self._index.alike(below, record.size, record.head))

    def open_part(
        self, held: Held, parent: bytes, record: wire.OpenFile
    ) -> tuple[PartFile, blake3]:
        """Begin, or go on with, a file that comes as a stream; raises OSError.

        The hasher has seen what was here already.
        """
        asked = self._asked.pop(record.number, None)
        if asked is None or asked.parent != parent or asked.record.name != record.name:
            raise MalformedFrame("a file that nobody asked about")
        question = asked.record
        same = (question.seen, question.size) == (record.seen, record.size)
        if not same or not 0 <= record.have <= max(asked.have, 0):
            raise MalformedFrame("another file than the one asked about")
        hasher = blake3()
        if record.have:
            partial = self.partials.resume(asked.path, question.mark, question.size)
            try:
                os.ftruncate(partial.fd, record.have)
                _hash(partial.fd, record.have, hasher)
                os.lseek(partial.fd, record.have, os.SEEK_SET)
            except BaseException:
                self.partials.drop(partial)
                raise
        else:
            self.partials.forget(asked.path)
            partial = self.partials.begin(held, asked.path, question.mark, question.size)
        part = PartFile(parent, record.name, b"", partial.fd)
        part.seen, part.partial, part.head = record.seen, partial, question.head
        return part, hasher

    def offer(self, record: wire.Offer) -> bytes | None:
        """Take an offer; the bitmap of what is missing, or None for a file that has failed.

        Raises AssemblyFailed and OSError; the caller ends the file then, by `end`.
        """
        asked = self._offered(record.number)
        if asked is None:
            return None
        if asked.assembly is None:
            if sum(one.assembly is not None for one in self._asked.values()) >= _MOST_AT_ONCE:
                raise MalformedFrame("too many files on offer at once")
            asked.assembly = self._assembly(asked)
        return asked.assembly.offer(record.lengths, record.ids)

    def piece(self, record: wire.Piece) -> None:
        """Take a chunk that was asked for; raises OSError."""
        asked = self._offered(record.number)
        if asked is not None:
            if asked.assembly is None:
                raise MalformedFrame("a chunk of a file that was never offered")
            asked.assembly.piece(record.position, record.content)

    def whole(self, record: wire.Whole, *, is_kept: bool) -> PartFile | None:
        """Return a file that is complete, or None for one that failed before.

        `is_kept` says that the version to be replaced is to be kept, so that it cannot be changed.
        Raises AssemblyFailed and OSError.
        """
        asked = self._offered(record.number)
        if asked is None:
            return None
        if asked.assembly is None:
            raise MalformedFrame("the end of a file that was never offered")
        chunks = asked.assembly.finish(record.digest)
        partial = asked.assembly.partial
        ranges, inode = None, 0
        if asked.assembly.in_place >= 0:
            ranges = asked.assembly.changes()
            if is_kept or sum(length for _, length in ranges) > asked.record.size // 2:
                asked.assembly.leave()
                ranges = None
            else:
                inode = os.fstat(asked.assembly.in_place).st_ino
        os.ftruncate(partial.fd, asked.record.size)
        asked.assembly.close()
        del self._asked[record.number]
        part = PartFile(asked.parent, asked.record.name, b"", partial.fd)
        part.seen, part.partial = asked.record.seen, partial
        part.head, part.chunks = asked.record.head, chunks
        part.ranges, part.inode = ranges, inode
        return part

    def where(self, number: int) -> tuple[bytes, bytes]:
        """Return directory and name of a file that was asked about."""
        asked = self._asked[number]
        return asked.parent, asked.record.name

    def end(self, number: int, *, distrust: bool = False) -> None:
        """Give up a file; with `distrust`, what was known of its sources is forgotten too."""
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        if distrust and self._index is not None:
            for path in (asked.path, *asked.used):
                self._index.forget(join(self._tree.sub, path))
        if asked.assembly is not None:
            asked.assembly.close()
            self.partials.drop(asked.assembly.partial)
        # The sender may not know yet: what it still says of this number is let pass.
        self._failed.add(number)

    # What is used

    def _offered(self, number: int) -> _Asked | None:
        asked = self._asked.get(number)
        if asked is None and number not in self._failed:
            raise MalformedFrame("chunks of a file that nobody asked about")
        if asked is not None and asked.have != wire.OFFER:
            raise MalformedFrame("chunks of a file that comes as a stream")
        return asked

    def _assembly(self, asked: _Asked) -> Assembly:
        record = asked.record
        held = self._directories.get(asked.parent)
        holders: list[Holder] = []
        try:
            asked.basis = self._basis(asked, held)
            if asked.basis is not None:
                holders.append(asked.basis)
            for fd, arrived in self.partials.in_pieces(asked.path):
                holders.append(Holder(fd, is_proved=False))
                holders[-1].know_arrived(arrived)
            if self._index is not None:
                below = self._tree.sub
                alike = self._index.alike(below, record.size, record.head)
                holders += self._others(asked, alike, is_alike=True)
            partial = self.partials.begin(held, asked.path, record.mark, record.size, with_log=True)
        except BaseException:
            for holder in holders:
                holder.close()
            raise

        def find_more(shorts: Sequence[bytes]) -> list[Holder]:
            return self._find_more(asked, shorts)

        def is_unchanged() -> bool:
            basis = asked.basis
            return basis is None or fingerprint(os.fstat(basis.fd)) == record.seen

        assembly = Assembly(partial, record.size, record.bits, holders, find_more, is_unchanged)
        assembly.is_sparse = record.is_sparse
        if asked.basis is not None and self._may_be_patched(held, asked):
            assembly.in_place = asked.basis.fd
        return assembly

    def _basis(self, asked: _Asked, held: Held) -> Holder | None:
        """Return the version to be replaced, cut, if it still is what the plan saw."""
        record = asked.record
        if not record.seen:
            return None
        try:
            fd = os.open(record.name, OPEN_FILE, dir_fd=held.fd)
        except OSError:
            return None
        holder = Holder(fd, is_proved=True)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or fingerprint(status) != record.seen:
                holder.close()
                return None
            holder.know(self._chunks(asked.path, fd, status, record.bits))
        except BaseException:
            holder.close()
            raise
        return holder

    def _may_be_patched(self, held: Held, asked: _Asked) -> bool:
        """Say whether the version to be replaced may be changed in place: it must be ours alone."""
        options, record, basis = self._options, asked.record, asked.basis
        if options.delta is not Often.INPLACE or options.safety.keep_replaced or record.is_sparse:
            return False
        assert basis is not None
        try:
            file_handle(basis.fd)
            os.close(os.open(record.name, PATCHED, dir_fd=held.fd))
        except OSError:
            return False
        return os.fstat(basis.fd).st_nlink == 1

    def _chunks(self, path: bytes, fd: int, status: os.stat_result, bits: int) -> Chunks:
        """Return the chunks of an open file, from the index or by reading it."""
        index = self._index
        if index is None:
            return cut_whole(fd, status.st_size, bits)
        known_as = join(self._tree.sub, path)
        found = None
        if self._options.compare is not Compare.CHECKSUM:
            found = index.chunks(known_as, status, bits)
        if found is None:
            found = cut_whole(fd, status.st_size, bits)
            if status_key(os.fstat(fd)) == status_key(status):
                index.remember(known_as, status, head=head_of(fd, status.st_size), chunks=found)
        return found

    def _find_more(self, asked: _Asked, shorts: Sequence[bytes]) -> list[Holder]:
        if self._index is None or asked.fruitless >= _FRUITLESS:
            return []
        paths = self._index.holders(self._tree.sub, shorts)
        found = self._others(asked, paths)
        asked.fruitless = 0 if found else asked.fruitless + 1
        return found

    def _others(
        self, asked: _Asked, paths: Sequence[bytes], *, is_alike: bool = False
    ) -> list[Holder]:
        """Open other files whose chunks are known, or which are so alike that it pays to cut them."""
        assert self._index is not None
        found: list[Holder] = []
        bits = asked.record.bits
        for known_as in paths:
            path = known_as[len(self._tree.sub) + 1 :] if self._tree.sub else known_as
            if path == asked.path or path in asked.used or len(asked.used) >= _MOST_HOLDERS:
                continue
            asked.used.add(path)
            parent, _, name = path.rpartition(b"/")
            try:
                fd = os.open(name, OPEN_FILE, dir_fd=self._directories.fd(parent))
            except OSError:
                self._index.forget(known_as)
                continue
            holder = Holder(fd, is_proved=False)
            try:
                status = os.fstat(fd)
                chunks = self._index.chunks(known_as, status, bits)
                is_file = stat.S_ISREG(status.st_mode)
                if chunks is None and is_file and is_alike and status.st_size == asked.record.size:
                    chunks = self._chunks(path, fd, status, bits)
            except OSError:
                chunks = None
            except BaseException:
                holder.close()
                raise
            if chunks is None:
                holder.close()
            else:
                holder.know(chunks)
                found.append(holder)
        return found

    # What becomes of it

    def done(self, part: PartFile, inode: int) -> None:
        """Note a file that is whole and will be published."""
        self.partials.forget(join(part.parent, part.name))
        if self._index is not None and part.head:
            fresh = _Fresh(part.parent, part.name, inode, part.head, part.chunks)
            self._fresh.append(fresh)

    def published(self) -> None:
        """Remember the files noted since the last call, as far as they are in their places."""
        fresh, self._fresh = self._fresh, []
        for one in fresh:
            with contextlib.suppress(OSError):
                status = look(self._directories.fd(one.parent), one.name)
                if status is not None and status.st_ino == one.inode:
                    assert self._index is not None
                    path = join(self._tree.sub, join(one.parent, one.name))
                    self._index.remember(path, status, head=one.head, chunks=one.chunks)

    def close(self) -> None:
        """Keep what can be gone on with, and let go of everything."""
        for asked in self._asked.values():
            if asked.assembly is not None:
                asked.assembly.close()
                self.partials.keep(asked.assembly.partial)
        self._asked.clear()


def head_of(fd: int, size: int) -> bytes:
    """Return the digest of a file's beginning, 16 bytes; empty for a file that is not remembered."""
    if size < INDEXED_BYTES:
        return b""
    return blake3(os.pread(fd, HEAD_BYTES, 0)).digest(16)


def _hash(fd: int, length: int, hasher: blake3) -> None:
    at = 0
    while at < length:
        data = os.pread(fd, min(_HASH_BYTES, length - at), at)
        if not data:
            raise OSError("what was kept has become shorter")
        hasher.update(data)
        at += len(data)
