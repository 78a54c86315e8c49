"""A large file as the sender offers it: its chunks, and the ones that turn out to be missing."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from blake3 import blake3

from syncengine import frames as wire
from syncengine.chunk_index import RootChunks
from syncengine.chunks import ID_BYTES, WIRE_ID_BYTES, Chunks, Window, cut, lengths
from syncengine.errors import MalformedFrame
from syncengine.incoming import head_of
from syncengine.scan import fingerprint
from syncengine.shared_reads import SharedReads

_WINDOW_CHUNKS = 1024


class SourceChanged(Exception):
    """The file is not what was offered."""


class Known(NamedTuple):
    """Where the chunks of a file may be known, and under which name."""

    cache: RootChunks | None
    path: bytes

    def chunks(self, status: os.stat_result, bits: int) -> Chunks | None:
        """Return the chunks of this very version, if they are known."""
        if self.cache is None:
            return None
        return self.cache.chunks(self.path, status, bits)

    def remember(self, status: os.stat_result, head: bytes, chunks: Chunks) -> None:
        """Note the chunks of this version."""
        if self.cache is not None:
            self.cache.remember(self.path, status, head=head, chunks=chunks)


class Offering:
    """One file on offer; it stays open. For one thread, every method blocks on the disk."""

    def __init__(self, number: int, fd: int, bits: int, known: Known, reads: SharedReads) -> None:
        self.number = number
        self.fd = fd
        self.status = os.fstat(fd)
        self._known = known
        self._reads = reads
        self._bits = bits
        self._chunks = Chunks(bits)
        self._offsets: dict[int, int] = {}
        """Window's first position -> offset."""
        self._windows: list[tuple[int, int]] = []
        """First position and count of each window that was not answered yet."""
        self._is_offered = False
        self._offered_bytes = 0

    def offers(self) -> Iterator[wire.Offer]:
        """Yield the records that offer it, reading it once if nobody knows its chunks."""
        known = self._known.chunks(self.status, self._bits)
        size = self.status.st_size
        for window in _split(known) if known is not None else self._cut(size):
            first = len(self._chunks)
            self._windows.append((first, len(window.lengths)))
            self._offsets[first] = window.offset
            self._chunks.add(window)
            self._offered_bytes += sum(window.lengths)
            ids = window.ids
            shorts = [ids[at : at + WIRE_ID_BYTES] for at in range(0, len(ids), ID_BYTES)]
            yield wire.Offer(self.number, window.lengths.tobytes(), b"".join(shorts))
        self._is_offered = True
        if self._offered_bytes != self.status.st_size or self._has_changed():
            raise SourceChanged
        if known is None:
            self._known.remember(self.status, head_of(self.fd, size), self._chunks)

    def _cut(self, size: int) -> Iterator[Window]:
        if not self._reads.is_shared:
            return cut(self.fd, size, self._bits)
        mark = fingerprint(self.status)
        return self._reads.windows(self._known.path, mark, self.fd, size, self._bits)

    @property
    def unanswered(self) -> int:
        """How many windows were not answered yet."""
        return len(self._windows)

    def pieces(self, bitmap: bytes) -> Iterator[wire.Piece]:
        """Yield the chunks that an answer asks for, read again.

        Raises SourceChanged, and MalformedFrame for an answer to no offer.
        """
        if not self._windows:
            raise MalformedFrame("an answer to no offer")
        first, count = self._windows.pop(0)
        if len(bitmap) != (count + 7) // 8:
            raise MalformedFrame("an answer to another offer")
        offset = self._offsets.pop(first)
        for number in range(count):
            position = first + number
            length = self._chunks.lengths[position]
            if bitmap[number >> 3] & 1 << (number & 7):
                data = os.pread(self.fd, length, offset)
                if len(data) != length or blake3(data).digest() != self._chunks.id(position):
                    raise SourceChanged
                yield wire.Piece(self.number, position, memoryview(data))
            offset += length

    @property
    def is_done(self) -> bool:
        """Whether all of it was offered, and everything that was missing has been given."""
        return self._is_offered and not self._windows

    def digest(self) -> bytes:
        """Return the digest of what was offered; raises SourceChanged."""
        if self._has_changed():
            raise SourceChanged
        return self._chunks.digest()

    def _has_changed(self) -> bool:
        return fingerprint(os.fstat(self.fd)) != fingerprint(self.status)

    def close(self) -> None:
        """Close the file; harmless when closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _split(chunks: Chunks) -> Iterator[Window]:
    offset = 0
    for at in range(0, len(chunks), _WINDOW_CHUNKS):
        part = lengths()
        part.extend(chunks.lengths[at : at + _WINDOW_CHUNKS])
        ids = bytes(chunks.ids[at * ID_BYTES : (at + _WINDOW_CHUNKS) * ID_BYTES])
        yield Window(offset, part, ids)
        offset += sum(part)
