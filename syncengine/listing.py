"""Entries as frames: how a listing travels, and what is believed of one that arrives.

A frame is a MessagePack array of two: entries, and stretches with the places they have among these. The
decoder trusts nothing: types, ranges, names, the strictly increasing order, and that every entry lies
in a directory that was listed before it. Into a stretch it looks when that is taken apart.
"""

import re
from collections.abc import Callable, Iterable, Iterator

import msgspec

from syncengine.errors import MalformedFrame
from syncengine.model import Entry, Kind
from syncengine.names import MAX_PATH, check_name, check_path, order_key
from syncengine.stretches import STRETCH_FILES, Item, Stretch, from_bytes, to_bytes, unfolded

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
_plain_name = re.compile(rb"(?!\.)[^/\0]{1,255}\Z").match
"""Finds a name to which nothing can be said, among the many that do not begin with a dot."""

_NOTHING_MORE = (b"", 0, 1, 0, 0, b"")

MAX_ATTRIBUTES = 256 * 1024
"""What the packed attributes of one entry come to at most; ext4 keeps far less."""


class _PackedStretch(msgspec.Struct, array_like=True, gc=False):
    """A stretch of files, its columns as bytes."""

    place: int
    """How many of the frame's entries come before it."""
    below: bytes
    joined: bytes
    modes: bytes
    mtimes: bytes
    sizes: bytes
    seen: bytes
    attributes: list[bytes]
    """One for all, or one for each."""


_Frame = tuple[list[Entry], list[_PackedStretch]]


def encode_entries(items: Iterable[Item]) -> Iterator[bytes]:
    """Pack entries and stretches into frames of about FRAME_BYTES, in their order."""
    encode = msgspec.msgpack.Encoder().encode
    entries: list[Entry] = []
    stretches: list[_PackedStretch] = []
    held = 0
    for item in items:
        if isinstance(item, Stretch):
            packed = _packed(item, len(entries))
            size = _size(packed)
            if held + size > FRAME_BYTES and held:
                yield encode((entries, stretches))
                entries, stretches, held = [], [], 0
                packed.place = 0
            stretches.append(packed)
            held += size
        else:
            entries.append(item)
            held += len(item.path) + len(item.link) + len(item.attributes) + _ENTRY_OVERHEAD
            if item.came_from:
                held += len(item.came_from)
        if held >= FRAME_BYTES - _ENTRY_OVERHEAD:
            yield encode((entries, stretches))
            entries, stretches, held = [], [], 0
    if held:
        yield encode((entries, stretches))


def _packed(stretch: Stretch, place: int) -> _PackedStretch:
    attributes = stretch.attributes
    return _PackedStretch(
        place,
        stretch.below,
        stretch.joined,
        to_bytes(stretch.modes),
        to_bytes(stretch.mtimes),
        to_bytes(stretch.sizes),
        to_bytes(stretch.seen),
        [attributes] if isinstance(attributes, bytes) else attributes,
    )


def _size(stretch: _PackedStretch) -> int:
    columns = (
        stretch.below,
        stretch.joined,
        stretch.modes,
        stretch.mtimes,
        stretch.sizes,
        stretch.seen,
    )
    return sum(map(len, columns)) + sum(map(len, stretch.attributes)) + _ENTRY_OVERHEAD


def decode_items(frames: Iterable[bytes], *, is_trusted: bool = False) -> Iterator[Item]:
    """Unpack the frames of a peer, lazily; what was made here `is_trusted`, and not looked at.

    Raises MalformedFrame for anything that no honest scan sends. The first entry must be the top.
    What a stretch holds is looked at when it is taken apart, and raises then.
    """
    decoder = msgspec.msgpack.Decoder(_Frame)
    order = ListingOrder()
    for frame in frames:
        if len(frame) > MAX_FRAME_BYTES and not is_trusted:
            raise MalformedFrame(f"a listing frame of {len(frame)} bytes")
        try:
            entries, stretches = decoder.decode(frame)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            raise MalformedFrame(f"no listing: {error}") from error
        if is_trusted:
            yield from _in_place(entries, stretches, _unpacked_own)
            continue
        for item in _in_place(entries, stretches, _unpacked):
            if isinstance(item, Stretch):
                order.check_stretch(item)
            else:
                order.check(item)
            yield item


def _in_place(
    entries: list[Entry],
    stretches: list[_PackedStretch],
    unpacked: Callable[[_PackedStretch], Stretch],
) -> Iterator[Item]:
    """Yield what a frame holds, in its order; raises MalformedFrame."""
    done = 0
    for packed in stretches:
        if not done <= packed.place <= len(entries):
            raise MalformedFrame("a stretch that has no place among the entries")
        yield from entries[done : packed.place]
        done = packed.place
        yield unpacked(packed)
    yield from entries[done:] if done else entries


def decode_entries(frames: Iterable[bytes]) -> Iterator[Entry]:
    """Unpack the frames of a peer as `decode_items` does, stretches into their entries."""
    return unfolded(decode_items(frames))


def _unpacked(packed: _PackedStretch) -> Stretch:
    modes, seen = from_bytes("H", packed.modes), from_bytes("Q", packed.seen)
    mtimes, sizes = from_bytes("q", packed.mtimes), from_bytes("q", packed.sizes)
    attributes, count = packed.attributes, len(modes)
    if (
        not 0 < count <= STRETCH_FILES
        or {len(mtimes), len(sizes), len(seen), packed.joined.count(b"/") + 1} != {count}
        or len(attributes) not in {1, count}
    ):
        raise MalformedFrame(f"a stretch of {count} files with other columns")
    if max(map(len, attributes)) > MAX_ATTRIBUTES:
        raise MalformedFrame("more attributes than an entry can have")
    return Stretch(
        packed.below,
        packed.joined,
        (modes, mtimes, sizes),
        attributes[0] if len(attributes) == 1 else attributes,
        seen=seen,
    )


def _unpacked_own(packed: _PackedStretch) -> Stretch:
    attributes = packed.attributes
    return Stretch(
        packed.below,
        packed.joined,
        (
            from_bytes("H", packed.modes),
            from_bytes("q", packed.mtimes),
            from_bytes("q", packed.sizes),
        ),
        attributes[0] if len(attributes) == 1 else attributes,
        seen=from_bytes("Q", packed.seen),
        names=packed.joined.split(b"/"),
    )


class ListingOrder:
    """The state of a listing so far: the directories open at this point, and the last path."""

    def __init__(self) -> None:
        self._open: list[bytes] = []
        self._below = b""
        """The directory that the last entry lies in, or is: its path with a slash after it."""
        self._at = 0
        """Its length: where the names of what lies there begin."""
        self._last: bytes | None = None

    def check(self, entry: Entry) -> None:
        """Take the next entry; raises MalformedFrame."""
        if not self._is_next_file(entry):
            self._check(entry)

    def check_stretch(self, stretch: Stretch) -> None:
        """Take the next stretch; raises MalformedFrame."""
        first, last = stretch.path, stretch.last_path
        if self._last is None:
            raise MalformedFrame("a listing must begin with its top")
        if self._below != stretch.below:
            self._leave_for(first)
        if (
            self._below != stretch.below
            or order_key(first) <= order_key(self._last)
            or len(last) > MAX_PATH
        ):
            raise MalformedFrame(f"a stretch out of order, or elsewhere: {first[:300]!r}")
        self._last = last
        self._at = len(self._below)

    def _is_next_file(self, entry: Entry) -> bool:
        """Say whether this is a file, right in all, beside or right below the last: the common case.

        Whatever is unusual is left to `_check`, which knows what is wrong with it, if anything.
        """
        (
            path,
            kind,
            mode,
            mtime_ns,
            size,
            link,
            seen,
            digest,
            attributes,
            inode,
            links,
            device,
            ctime_ns,
            came_from,
        ) = entry
        last = self._last
        if (
            last is None
            or kind is not _FILE
            or not path.startswith(self._below)
            or not _plain_name(path, self._at)
            # Within one directory, paths are in the order of their names.
            or path <= last
            or len(path) > MAX_PATH
            # A negative number is still one after any shift.
            or mode >> 12
            or (size | mtime_ns | ctime_ns) >> 63
            or not seen
            or (seen | inode) >> 64
            or links != 1
            or link
            or digest
            or device
            or came_from
            or len(attributes) > MAX_ATTRIBUTES
        ):
            return False
        self._last = path
        return True

    def _check(self, entry: Entry) -> None:
        check_entry(entry)
        path, kind = entry.path, entry.kind
        last = self._last
        if last is None:
            if path or kind is not Kind.DIRECTORY:
                raise MalformedFrame("a listing must begin with its top")
            self._last = b""
            return
        below = self._below
        if not path.startswith(below) or b"/" in path[len(below) :]:
            below = self._leave_for(path)
        check_name(path[len(below) :])
        if order_key(path) <= order_key(last) or len(path) > MAX_PATH:
            raise MalformedFrame(f"out of order, or too long: {path[:300]!r}")
        self._last = path
        if kind is Kind.DIRECTORY:
            self._open.append(below)
            self._below = path + b"/"
        self._at = len(self._below)

    def _leave_for(self, path: bytes) -> bytes:
        """Go back to the directory that holds `path`; it must be one that is open."""
        parent = path[: path.rfind(b"/") + 1]
        while self._below != parent:
            if not self._open:
                raise MalformedFrame(f"not in a listed directory: {path[:300]!r}")
            self._below = self._open.pop()
        return parent


def check_entry(entry: Entry) -> None:
    """Check the numbers of an entry, and what only some kinds have; raises MalformedFrame."""
    _, kind, mode, mtime_ns, size, link, seen, digest = entry[:8]
    if (
        not 0 <= mode <= 0o7777
        or not 0 <= size <= _MAX_INT64
        or not -_MAX_INT64 <= mtime_ns <= _MAX_INT64
        or not 0 < seen <= _MAX_UINT64
    ):
        raise MalformedFrame(f"impossible numbers at {entry.path[:300]!r}")
    if kind is not _FILE or link or digest:
        _check_kind(entry)
    if entry[8:] != _NOTHING_MORE:
        _check_rest(entry)


def _check_rest(entry: Entry) -> None:
    """Check what only some jobs ask for."""
    if (
        len(entry.attributes) > MAX_ATTRIBUTES
        or not 0 <= entry.inode <= _MAX_UINT64
        or not (1 if entry.path else 0) <= entry.links <= _MAX_INT64
        or not 0 <= entry.device <= _MAX_UINT64
        or not -_MAX_INT64 <= entry.ctime_ns <= _MAX_INT64
    ):
        raise MalformedFrame(f"impossible numbers at {entry.path[:300]!r}")
    check_path(entry.came_from)


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
