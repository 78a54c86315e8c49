"""Content-defined chunks: where a file is cut depends on what it holds, not on where that lies.

So an insertion moves the cuts behind it along, and all chunks but one or two stay what they were. A
chunk is known by its BLAKE3, 32 bytes; on the wire by the first 16 of them, which finds a chunk, and
the digest of the whole list, which proves all of them.
"""

import os
import struct
from array import array
from collections.abc import Iterator
from typing import NamedTuple, Self

from blake3 import blake3
from pyfastcdc import FastCDC

ID_BYTES = 32
WIRE_ID_BYTES = 16

LEAST_BITS = 14
MOST_BITS = 20
_CHUNKS_BITS = 15
"""A file is cut into about 2 ** 15 chunks, as long as these are not too small or too large."""
_MOST_BYTES = 2 * 1024 * 1024

_BUFFER_BYTES = 4 * 1024 * 1024
_LENGTH = struct.Struct("<I")


class Limits(NamedTuple):
    """How long chunks are, in bytes."""

    least: int
    average: int
    most: int


class Window(NamedTuple):
    """Some chunks in a row."""

    offset: int
    lengths: "array[int]"
    ids: bytes
    """32 bytes each."""


def bits_for(size: int) -> int:
    """Return the logarithm of the average chunk length that suits a file of `size` bytes."""
    return min(max((max(size, 1) - 1).bit_length() - _CHUNKS_BITS, LEAST_BITS), MOST_BITS)


def limits_of(bits: int) -> Limits:
    """Return the lengths that chunks of 2 ** bits bytes on average may have."""
    average = 1 << bits
    return Limits(average // 2, average, min(average * 4, _MOST_BYTES))


def lengths() -> "array[int]":
    """Return an empty list of chunk lengths: 4 bytes each, here and on the wire."""
    made = array("I")
    assert made.itemsize == _LENGTH.size
    return made


class Chunks:
    """The chunks of one version of a file, in their order."""

    __slots__ = ("bits", "ids", "lengths")

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.lengths = lengths()
        self.ids = bytearray()

    def add(self, window: Window) -> None:
        """Append a window."""
        self.lengths.extend(window.lengths)
        self.ids += window.ids

    def __len__(self) -> int:
        return len(self.lengths)

    def id(self, position: int) -> bytes:
        """Return the full id of a chunk."""
        at = position * ID_BYTES
        return bytes(self.ids[at : at + ID_BYTES])

    @property
    def size(self) -> int:
        """How many bytes all chunks have."""
        return sum(self.lengths)

    def digest(self) -> bytes:
        """Return what proves content and order of all chunks: BLAKE3 over lengths and full ids."""
        return blake3(self.lengths.tobytes()).update(self.ids).digest()

    def packed(self) -> bytes:
        """Return the list as bytes, to be kept."""
        return self.lengths.tobytes() + self.ids

    @classmethod
    def unpacked(cls, bits: int, raw: bytes) -> Self:
        """Return the list that `packed` made; raises ValueError for what is none."""
        count, rest = divmod(len(raw), ID_BYTES + _LENGTH.size)
        if rest:
            raise ValueError("no list of chunks")
        made = cls(bits)
        made.lengths.frombytes(raw[: count * _LENGTH.size])
        made.ids += raw[count * _LENGTH.size :]
        return made


def cut(fd: int, size: int, bits: int) -> Iterator[Window]:
    """Cut an open file of `size` bytes, reading it once; blocks on the disk, raises OSError.

    Ends early when the file turns out to be shorter. Nothing is held open between windows.
    """
    limits = limits_of(bits)
    chunker = FastCDC(
        limits.average, min_size=limits.least, max_size=limits.most, normalized_chunking=2
    )
    buffer = bytearray(min(_BUFFER_BYTES, size) + limits.most)
    view = memoryview(buffer)
    offset = held = 0
    while True:
        wanted = min(len(buffer) - held, size - offset - held)
        got = _fill(fd, view[held : held + wanted], offset + held)
        held += got
        at_end = got < wanted or offset + held >= size
        window = Window(offset, lengths(), b"")
        ids = []
        at = 0
        for chunk in chunker.cut_buf(view[:held]):
            end = at + chunk.length
            if end == held and not at_end:
                break  # it may go on beyond what was read
            window.lengths.append(chunk.length)
            ids.append(blake3(view[at:end]).digest())
            at = end
        if at:
            yield window._replace(ids=b"".join(ids))
        if at_end:
            return
        view[: held - at] = view[at:held]
        offset += at
        held -= at


def _fill(fd: int, room: memoryview, offset: int) -> int:
    got = 0
    while got < len(room):
        more = os.preadv(fd, [room[got:]], offset + got)
        if not more:
            break
        got += more
    return got


def cut_whole(fd: int, size: int, bits: int) -> Chunks:
    """Return all chunks of an open file; blocks on the disk, raises OSError."""
    chunks = Chunks(bits)
    for window in cut(fd, size, bits):
        chunks.add(window)
    return chunks
