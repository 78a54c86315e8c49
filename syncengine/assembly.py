"""A new version of a large file, put together at the target from what is there and what is missing.

The sender offers the chunks of its version, window by window; what is found in the version to be
replaced, in what is left of an earlier push, or in another file that the index knows, is taken from
there; the rest is asked for. That the result is what the sender has is proved by the digest of the
list of full chunk ids: each chunk of it was hashed here, when it arrived, when it was read from
another file, or when the version to be replaced was cut, which must not have changed since.
"""

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blake3 import blake3

from syncengine.chunks import ID_BYTES, WIRE_ID_BYTES, Chunks, Window, lengths, limits_of
from syncengine.errors import MalformedFrame
from syncengine.holes import data_ranges, is_zero
from syncengine.partials import Arrived, Partial
from syncengine.ranges import copy_range, write_at

MOST_CHUNKS = 1 << 22
"""A file of more chunks is not put together: what they come to in memory is bounded."""

_CHANGED = "it changed while its content was used for the new version"


class AssemblyFailed(Exception):
    """The pieces do not make what the sender has; the file must be sent anew."""


class Holder:
    """A local file some of whose chunks are known."""

    def __init__(self, fd: int, *, is_proved: bool) -> None:
        self.fd = fd
        self.is_proved = is_proved
        """Whether what its list says needs no other look; else it is hashed when it is read."""
        self._at: dict[bytes, int] = {}
        self._offsets = array("Q")
        self._lengths: Sequence[int] = ()
        self._ids: bytes | bytearray = b""

    def __len__(self) -> int:
        return len(self._offsets)

    def know(self, chunks: Chunks) -> None:
        """Take the whole list of its chunks."""
        offset = 0
        self._ids, self._lengths = chunks.ids, chunks.lengths
        for position, length in enumerate(chunks.lengths):
            self._offsets.append(offset)
            at = position * ID_BYTES
            self._at[bytes(chunks.ids[at : at + WIRE_ID_BYTES])] = position
            offset += length

    def know_arrived(self, arrived: Sequence[Arrived]) -> None:
        """Take what a log says."""
        self._ids = b"".join([one.id for one in arrived])
        self._lengths = [one.length for one in arrived]
        for position, one in enumerate(arrived):
            self._offsets.append(one.offset)
            self._at[one.id[:WIRE_ID_BYTES]] = position

    def has(self, short: bytes) -> bool:
        """Say whether there is a chunk of this id."""
        return short in self._at

    def find(self, short: bytes, length: int) -> tuple[int, bytes] | None:
        """Return offset and full id of a chunk, if it is here."""
        position = self._at.get(short)
        if position is None or self._lengths[position] != length:
            return None
        at = position * ID_BYTES
        return self._offsets[position], bytes(self._ids[at : at + ID_BYTES])

    def close(self) -> None:
        """Close the file; harmless when closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(slots=True)
class _Run:
    """Neighbouring chunks that lie next to each other in a local file too."""

    fd: int
    at: int
    to: int
    length: int


class Assembly:
    """One file being put together; for one thread, every method blocks on the disk.

    `is_unchanged` says at the end whether the version to be replaced is still the one that was cut.
    """

    def __init__(
        self,
        partial: Partial,
        size: int,
        bits: int,
        holders: Sequence[Holder],
        find_more: Callable[[Sequence[bytes]], Sequence[Holder]],
        is_unchanged: Callable[[], bool],
    ) -> None:
        self.partial = partial
        self.size = size
        self.is_sparse = False
        """Whether zeros become holes."""
        self.in_place = -1
        """The file whose content stays where it is, for a change in place; -1 for a new file."""
        self._staying: list[_Run] = []
        self._limits = limits_of(bits)
        self._holders = list(holders)
        self._find_more = find_more
        self._is_unchanged = is_unchanged
        self._chunks = Chunks(bits)
        self._offset = 0
        self._missing: dict[int, tuple[int, bytes]] = {}
        """Position -> offset and id of a chunk that was asked for."""
        self._repeats: dict[bytes, list[tuple[int, int]]] = {}
        """Id of one asked for -> position and offset of the others like it."""
        self._received: dict[bytes, int] = {}
        """Id of one that came -> where it lies."""

    def offer(self, window_lengths: bytes, short_ids: bytes) -> bytes:
        """Take the next chunks, carry over what is here, and return a bitmap of what is missing.

        Raises MalformedFrame, AssemblyFailed and OSError.
        """
        sizes = lengths()
        if len(window_lengths) % sizes.itemsize:
            raise MalformedFrame("an offer cut short")
        sizes.frombytes(window_lengths)
        self._check(sizes, short_ids)
        shorts = [
            short_ids[at : at + WIRE_ID_BYTES] for at in range(0, len(short_ids), WIRE_ID_BYTES)
        ]
        self._look_further(shorts)
        bitmap = bytearray((len(sizes) + 7) // 8)
        found = bytearray()
        runs: list[_Run] = []
        first = len(self._chunks)
        offset = self._offset
        for number, (length, short) in enumerate(zip(sizes, shorts, strict=True)):
            id_ = self._found(short, length, offset, runs)
            if id_ is None:
                id_ = short + bytes(ID_BYTES - WIRE_ID_BYTES)
                position = first + number
                repeats = self._repeats.get(short)
                if repeats is None:
                    self._repeats[short] = []
                    self._missing[position] = (offset, short)
                    bitmap[number >> 3] |= 1 << (number & 7)
                else:
                    repeats.append((position, offset))
            found += id_
            offset += length
        self._chunks.add(Window(self._offset, sizes, bytes(found)))
        self._offset = offset
        try:
            for run in runs:
                if run.fd == self.in_place and run.at == run.to:
                    self._staying.append(run)
                else:
                    self._copy(run)
        except OSError as error:
            if self._is_unchanged():
                raise
            raise AssemblyFailed(_CHANGED) from error
        return bytes(bitmap)

    def _copy(self, run: _Run) -> None:
        """Copy chunks from a local file, of which a sparse one need not have holes in all places."""
        if not self.is_sparse:
            copy_range((run.fd, run.at), (self.partial.fd, run.to), run.length)
            return
        for begins, ends in data_ranges(run.fd, run.at, run.at + run.length):
            to = run.to + begins - run.at
            copy_range((run.fd, begins), (self.partial.fd, to), ends - begins)

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        # What is put together is new: where nothing was written, there are zeros.
        if not (self.is_sparse and is_zero(data)):
            write_at(self.partial.fd, data, offset)

    def _check(self, sizes: "array[int]", short_ids: bytes) -> None:
        count = len(sizes)
        least, _, most = self._limits
        if not count or len(short_ids) != count * WIRE_ID_BYTES:
            raise MalformedFrame("an offer of nothing, or cut short")
        if len(self._chunks) + count > MOST_CHUNKS:
            raise MalformedFrame("too many chunks")
        left = self.size - self._offset - sum(sizes)
        if left < 0 or max(sizes) > most:
            raise MalformedFrame("chunks beyond the end, or too long")
        # Only the last chunk of a file may be shorter: else 20 bytes could stand for one.
        if min(sizes[:-1], default=most) < least or (left and sizes[-1] < least) or not sizes[-1]:
            raise MalformedFrame("chunks too short")

    def _look_further(self, shorts: list[bytes]) -> None:
        strange = [s for s in shorts if not any(holder.has(s) for holder in self._holders)]
        if strange:
            self._holders += self._find_more(strange)

    def _found(self, short: bytes, length: int, offset: int, runs: list[_Run]) -> bytes | None:
        """Carry over a chunk that is here, at once or by a run; None when it is not."""
        for holder in self._holders:
            found = holder.find(short, length)
            if found is None:
                continue
            at, id_ = found
            if holder.is_proved:
                last = runs[-1] if runs else None
                if (
                    last is not None
                    and last.fd == holder.fd
                    and last.at + last.length == at
                    and last.to + last.length == offset
                ):
                    last.length += length
                else:
                    runs.append(_Run(holder.fd, at, offset, length))
                return id_
            data = _read(holder.fd, length, at)
            if data is not None and blake3(data).digest() == id_:
                self._write(data, offset)
                return id_
        here = self._received.get(short)
        if here is not None:
            data = _read(self.partial.fd, length, here)
            if data is not None and blake3(data).digest()[:WIRE_ID_BYTES] == short:
                self._write(data, offset)
                return blake3(data).digest()
        return None

    def piece(self, position: int, content: memoryview) -> None:
        """Take a chunk that was asked for; raises MalformedFrame for any other, and OSError."""
        offset, short = self._missing.pop(position, (0, b""))
        id_ = blake3(content).digest()
        if not short or id_[:WIRE_ID_BYTES] != short or len(content) != self._length(position):
            raise MalformedFrame("a chunk that nobody asked for, or another one")
        repeats = self._repeats.pop(short)
        self._write(content, offset)
        self.partial.note(offset, len(content), id_)
        self._received[short] = offset
        self._set_id(position, id_)
        for other, where in repeats:
            if self._length(other) != len(content):
                raise MalformedFrame("two lengths of one chunk")
            self._write(content, where)
            self._set_id(other, id_)

    def _length(self, position: int) -> int:
        return self._chunks.lengths[position]

    def _set_id(self, position: int, id_: bytes) -> None:
        at = position * ID_BYTES
        self._chunks.ids[at : at + ID_BYTES] = id_

    def changes(self) -> list[tuple[int, int]]:
        """Return offset and length of what does not stay where it is, after the last offer."""
        found: list[tuple[int, int]] = []
        at = 0
        for run in sorted(self._staying, key=lambda run: run.at):
            if run.at > at:
                found.append((at, run.at - at))
            at = run.at + run.length
        if self.size > at:
            found.append((at, self.size - at))
        return found

    def leave(self) -> None:
        """Make it a new file after all: what would have stayed is copied. Raises OSError."""
        self.in_place = -1
        for run in self._staying:
            self._copy(run)
        self._staying.clear()

    def finish(self, digest: bytes) -> Chunks:
        """Return the list of a file that is complete; raises MalformedFrame and AssemblyFailed.

        AssemblyFailed is nobody's fault: the version to be replaced changed while it was used, or
        was not what the index knew. Then, nothing may be believed of it again.
        """
        if self._missing or self._offset != self.size:
            raise MalformedFrame("the end of a file that is not complete")
        if not self._is_unchanged():
            raise AssemblyFailed(_CHANGED)
        if self._chunks.digest() != digest:
            raise AssemblyFailed("its content and what was sent do not make what the source has")
        return self._chunks

    def close(self) -> None:
        """Close the files that chunks were taken from; the partial is the caller's."""
        for holder in self._holders:
            holder.close()
        self._holders.clear()


def _read(fd: int, length: int, offset: int) -> bytes | None:
    try:
        data = os.pread(fd, length, offset)
    except OSError:
        return None
    return data if len(data) == length else None
