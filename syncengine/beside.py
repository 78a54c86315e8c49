"""Listings of several members beside each other, path by path, in tree order. Pure."""

from collections.abc import Sequence

from syncengine.agreed import Sighting
from syncengine.model import Kind
from syncengine.names import order_key

_FILE = Kind.FILE


def first_of(heads: Sequence[Sighting | None]) -> tuple[bytes, int] | None:
    """Return the first path that any member shows next, and which members show it."""
    first: bytes | None = None
    first_key = b""
    members = 0
    for member, head in enumerate(heads):
        if head is None:
            continue
        path = head.path
        if path == first:
            members |= 1 << member
            continue
        key = order_key(path)
        if first is None or key < first_key:
            first, first_key, members = path, key, 1 << member
    return None if first is None else (first, members)


def all_as_agreed(sightings: Sequence[Sighting | None], *, keep_times: bool) -> bool:
    """Say whether a file is at all members as they agreed last: the common case.

    Such a path needs no place among the directories either.
    """
    number = size = mtime_ns = None
    for sighting in sightings:
        assert sighting is not None
        _, now, agreed, _ = sighting
        if now is None or agreed is None or now.kind is not _FILE or now.links != 1:
            return False
        was = agreed.entry
        if was is not now and (
            was is None or now[1:5] != was[1:5] or now.attributes != was.attributes
        ):
            return False
        if number is None:
            number, size, mtime_ns = agreed.number, now.size, now.mtime_ns
        elif (
            number != agreed.number or size != now.size or (mtime_ns != now.mtime_ns and keep_times)
        ):
            return False
    return True
