"""The frame that a sender is filling: records one after another, and what need not be said twice.

Knows what the receiver was told last (directory, attributes), nothing of where records come from.
"""

import msgspec

from syncengine import frames as wire
from syncengine.data_frames import HEADER_BYTES, LEAST_BYTES
from syncengine.names import MAX_PATH

SMALL_BYTES = 128 * 1024
"""Files up to this size travel whole, many to a frame."""

FRAME_BYTES = 2 * 1024 * 1024
"""What a frame comes to: each costs both sides about ten wake-ups of threads, and larger ones memory."""

_RECORD_BYTES = 90
"""What a record comes to beside its names and content, about."""

_LEAST_DATA = 512
"""A frame with less room than this is sent rather than filled up."""

_MAX_FRAME_BYTES = wire.MAX_FRAME_BYTES - SMALL_BYTES - 2 * MAX_PATH
"""Beyond this a frame with one more small file could be too large for the receiver."""


class Outgoing:
    """Packs records into frames of about `frame_bytes`; for one thread."""

    def __init__(self, frame_bytes: int) -> None:
        self.frame_bytes = min(max(frame_bytes, 2 * _LEAST_DATA), _MAX_FRAME_BYTES)
        self.part_bytes = max(self.frame_bytes - HEADER_BYTES, LEAST_BYTES)
        """Content of a large file that is read into its frame at once: it needs no second buffer."""
        self.held = 0
        """Bytes that the records of this frame come to, about."""
        self._records: list[wire.Record] = []
        self._encode = msgspec.msgpack.Encoder().encode
        self._at: bytes | None = None
        self._attributes = b""

    def add(self, record: wire.Record, size: int = 0) -> None:
        """Add a record whose names and content come to `size` bytes."""
        self._records.append(record)
        self.held += size + _RECORD_BYTES

    def take(self) -> bytes:
        """Return the frame, and begin another."""
        frame = self._encode(self._records)
        self._records.clear()
        self.held = 0
        return frame

    @property
    def has_records(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._records)

    @property
    def is_full(self) -> bool:
        """Whether it is time to take the frame."""
        return self.held >= self.frame_bytes

    @property
    def room(self) -> int:
        """How much content still goes into this frame; nothing when too little would."""
        left = self.frame_bytes - self.held
        return left if left >= _LEAST_DATA else 0

    def name(self, path: bytes) -> bytes:
        """Return the last component, having told the receiver the directory if it is another."""
        parent, _, name = path.rpartition(b"/")
        if parent != self._at:
            self.add(wire.Enter(parent), len(parent))
            self._at = parent
        return name

    def attributes(self, packed: bytes) -> None:
        """Tell the attributes of the entries that follow, if they are others than before."""
        if packed != self._attributes:
            self._attributes = packed
            self.add(wire.Attributes(packed), len(packed))

    def keep(self, keep: bytes) -> None:
        """Tell what becomes of what the next record displaces, if anything does."""
        if keep:
            self.add(wire.Keep(keep), len(keep))
