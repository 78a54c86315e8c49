"""Sightings as frames: how a member of a `sync` or `exchange` job lists itself with what it agreed to.

As in `listing`, a frame is a MessagePack array, here of sightings, and the decoder trusts nothing. An
agreed entry that is as what is there now travels as one bit.
"""

from collections.abc import Iterable, Iterator

import msgspec

from syncengine.agreed import Agreed, Agreement, Sighting
from syncengine.errors import MalformedFrame
from syncengine.listing import FRAME_BYTES, MAX_FRAME_BYTES, ListingOrder, check_entry
from syncengine.model import Entry
from syncengine.names import check_path, order_key

_OVERHEAD = 90
_MAX_INT64 = (1 << 63) - 1


class _Packed(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """One sighting; trailing fields that say nothing are left out."""

    now: Entry | None
    number: int = 0
    """Of the agreement; 0 where there is none."""
    is_same: bool = False
    """What was agreed to is what is there now."""
    agreed: Entry | None = None
    came_from: bytes = b""
    path: bytes = b""
    """Where neither `now` nor `agreed` tells it."""


def encode_sightings(sightings: Iterable[Sighting]) -> Iterator[bytes]:
    """Pack sightings into frames of about FRAME_BYTES, in their order."""
    encode = msgspec.msgpack.Encoder().encode
    batch: list[_Packed] = []
    held = 0
    for path, now, agreed, came_from in sightings:
        held += len(path) + len(came_from) + _OVERHEAD
        if now is not None:
            held += len(now.link) + len(now.attributes) + len(now.came_from)
        if agreed is None:
            batch.append(_Packed(now, came_from=came_from))
        elif now is not None and agreed.entry is now:
            batch.append(_Packed(now, agreed.number, is_same=True, came_from=came_from))
        else:
            entry = agreed.entry
            if entry is not None:
                held += len(path) + len(entry.link) + len(entry.attributes) + _OVERHEAD
            needed = path if now is None and entry is None else b""
            batch.append(_Packed(now, agreed.number, False, entry, came_from, needed))
        if held >= FRAME_BYTES - _OVERHEAD:
            yield encode(batch)
            batch.clear()
            held = 0
    if batch:
        yield encode(batch)


def decode_sightings(frames: Iterable[bytes]) -> Iterator[Sighting]:
    """Unpack the frames of a peer, lazily.

    Raises MalformedFrame for anything that no honest member sends: what is there now makes a listing
    in good form, and all paths, those of what is gone too, are in tree order.
    """
    decoder = msgspec.msgpack.Decoder(list[_Packed])
    order = ListingOrder()
    last: bytes | None = None
    for frame in frames:
        if len(frame) > MAX_FRAME_BYTES:
            raise MalformedFrame(f"a listing frame of {len(frame)} bytes")
        try:
            batch = decoder.decode(frame)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            raise MalformedFrame(f"no listing: {error}") from error
        for packed in batch:
            sighting = _checked(packed, order)
            key = order_key(sighting.path)
            if last is not None and key <= last:
                raise MalformedFrame(f"out of order: {sighting.path[:300]!r}")
            last = key
            yield sighting


def _checked(packed: _Packed, order: ListingOrder) -> Sighting:
    now, was = packed.now, packed.agreed
    if now is not None:
        order.check(now)
        path = now.path
    else:
        path = was.path if was is not None else packed.path
        check_path(path)
        if packed.is_same or not packed.number:
            raise MalformedFrame(f"a sighting of nothing at {path[:300]!r}")
    if was is not None:
        if was.path != path or packed.is_same or not packed.number:
            raise MalformedFrame(f"an agreement that is none at {path[:300]!r}")
        check_entry(was)
    if packed.came_from:
        check_path(packed.came_from)
        if now is None:
            raise MalformedFrame(f"a rename of nothing at {path[:300]!r}")
    if not 0 <= packed.number <= _MAX_INT64:
        raise MalformedFrame(f"impossible numbers at {path[:300]!r}")
    if not packed.number:
        return Sighting(path, now, None, packed.came_from)
    return Sighting(
        path, now, Agreed(packed.number, now if packed.is_same else was), packed.came_from
    )


def encode_agreements(agreements: Iterable[Agreement]) -> Iterator[bytes]:
    """Pack agreements into frames of about FRAME_BYTES."""
    encode = msgspec.msgpack.Encoder().encode
    batch: list[Agreement] = []
    held = 0
    for one in agreements:
        batch.append(one)
        held += 2 * len(one.path) + _OVERHEAD
        if one.entry is not None:
            held += len(one.entry.link) + len(one.entry.attributes)
        if held >= FRAME_BYTES - _OVERHEAD:
            yield encode(batch)
            batch.clear()
            held = 0
    if batch:
        yield encode(batch)


def decode_agreements(frame: bytes) -> list[Agreement]:
    """Unpack one frame of a peer; raises MalformedFrame."""
    if len(frame) > MAX_FRAME_BYTES:
        raise MalformedFrame(f"a frame of agreements of {len(frame)} bytes")
    try:
        batch = msgspec.msgpack.decode(frame, type=list[Agreement])
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise MalformedFrame(f"no agreements: {error}") from error
    for one in batch:
        check_path(one.path)
        if one.entry is not None:
            check_entry(one.entry)
            if one.entry.path != one.path or not one.number:
                raise MalformedFrame(f"an agreement of two minds at {one.path[:300]!r}")
        if not 0 <= one.number < _MAX_INT64:
            raise MalformedFrame(f"an impossible number at {one.path[:300]!r}")
    return batch


def encode_paths(paths: Iterable[bytes]) -> Iterator[bytes]:
    """Pack paths into frames of about FRAME_BYTES."""
    batch: list[bytes] = []
    held = 0
    for path in paths:
        batch.append(path)
        held += len(path) + 5
        if held >= FRAME_BYTES:
            yield msgspec.msgpack.encode(batch)
            batch.clear()
            held = 0
    if batch:
        yield msgspec.msgpack.encode(batch)


def decode_paths(frame: bytes) -> list[bytes]:
    """Unpack one frame of paths of a peer; raises MalformedFrame."""
    if len(frame) > MAX_FRAME_BYTES:
        raise MalformedFrame(f"a frame of paths of {len(frame)} bytes")
    try:
        paths = msgspec.msgpack.decode(frame, type=list[bytes])
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise MalformedFrame(f"no paths: {error}") from error
    for path in paths:
        check_path(path)
    return paths
