"""Entries as frames: how a listing travels, and what is believed of one that arrives.

A frame is a MessagePack array of entries. The decoder trusts nothing: types, ranges, names, the
strictly increasing order, and that every entry lies in a directory that was listed before it.
"""

from collections.abc import Iterable, Iterator

import msgspec

from syncengine.errors import MalformedFrame
from syncengine.model import Entry, Kind
from syncengine.names import MAX_PATH, check_name

FRAME_BYTES = 256 * 1024
"""What a frame of a listing comes to, about."""

MAX_FRAME_BYTES = 1024 * 1024
"""What a decoder accepts at most."""

_MAX_LINK = 4_095
_ENTRY_OVERHEAD = 80
_DIGEST_BYTES = 32
_MAX_INT64 = (1 << 63) - 1
_MAX_UINT64 = (1 << 64) - 1
_FILE = Kind.FILE


def encode_entries(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Pack entries into frames of about FRAME_BYTES, in their order."""
    encode = msgspec.msgpack.Encoder().encode
    batch: list[Entry] = []
    held = 0
    for entry in entries:
        batch.append(entry)
        held += len(entry.path) + len(entry.link) + _ENTRY_OVERHEAD
        if held >= FRAME_BYTES - _ENTRY_OVERHEAD:
            yield encode(batch)
            batch.clear()
            held = 0
    if batch:
        yield encode(batch)


def decode_entries(frames: Iterable[bytes]) -> Iterator[Entry]:
    """Unpack the frames of a peer, lazily.

    Raises MalformedFrame for anything that no honest scan sends. The first entry must be the top.
    """
    decoder = msgspec.msgpack.Decoder(list[Entry])
    order = _Order()
    for frame in frames:
        if len(frame) > MAX_FRAME_BYTES:
            raise MalformedFrame(f"a listing frame of {len(frame)} bytes")
        try:
            entries = decoder.decode(frame)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            raise MalformedFrame(f"no listing: {error}") from error
        for entry in entries:
            order.check(entry)
            yield entry


class _Order:
    """The state of a listing so far: the directories open at this point, and the last key."""

    def __init__(self) -> None:
        self._open: list[bytes] = []
        self._below = b""
        """The directory that the last entry lies in, or is: its path with a slash after it."""
        self._key: bytes | None = None

    def check(self, entry: Entry) -> None:
        path, kind, mode, mtime_ns, size, link, seen, digest = entry
        if (
            not 0 <= mode <= 0o7777
            or not 0 <= size <= _MAX_INT64
            or not -_MAX_INT64 <= mtime_ns <= _MAX_INT64
            or not 0 < seen <= _MAX_UINT64
        ):
            raise MalformedFrame(f"impossible numbers at {path[:300]!r}")
        if kind is not _FILE or link or digest:
            _check_kind(entry)
        last = self._key
        if last is None:
            if path or kind is not Kind.DIRECTORY:
                raise MalformedFrame("a listing must begin with its top")
            self._key = b""
            return
        below = self._below
        if not path.startswith(below) or b"/" in path[len(below) :]:
            below = self._leave_for(path)
        check_name(path[len(below) :])
        key = path.replace(b"/", b"\0")
        if key <= last or len(path) > MAX_PATH:
            raise MalformedFrame(f"out of order, or too long: {path[:300]!r}")
        self._key = key
        if kind is Kind.DIRECTORY:
            self._open.append(below)
            self._below = path + b"/"

    def _leave_for(self, path: bytes) -> bytes:
        """Go back to the directory that holds `path`; it must be one that is open."""
        parent = path[: path.rfind(b"/") + 1]
        while self._below != parent:
            if not self._open:
                raise MalformedFrame(f"not in a listed directory: {path[:300]!r}")
            self._below = self._open.pop()
        return parent


def _check_kind(entry: Entry) -> None:
    """Check what only some kinds have."""
    shown = entry.path[:300]
    if entry.size and entry.kind is not Kind.FILE:
        raise MalformedFrame(f"a size of what has none, at {shown!r}")
    if entry.kind is Kind.SYMLINK:
        link = entry.link
        if not link or len(link) > _MAX_LINK or b"\0" in link or entry.digest:
            raise MalformedFrame(f"an impossible link at {shown!r}")
    elif entry.link or (
        entry.digest and (entry.kind is not Kind.FILE or len(entry.digest) != _DIGEST_BYTES)
    ):
        raise MalformedFrame(f"what only another kind has, at {shown!r}")
