"""Sightings, agreements and paths on the wire: they come back as they were, and lies are refused."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncengine.agreed import Agreed, Agreement, Sighting
from syncengine.errors import MalformedFrame
from syncengine.model import Entry, Kind
from syncengine.sightings import (
    decode_agreements,
    decode_paths,
    decode_sightings,
    encode_agreements,
    encode_paths,
    encode_sightings,
)

TOP = Entry(b"", Kind.DIRECTORY, 0o755, 1, 0, seen=1)


def file(path: bytes, size: int = 3) -> Entry:
    return Entry(path, Kind.FILE, 0o644, 5, size, seen=9, inode=4)


A = file(b"a")
LISTING = [
    Sighting(b"", TOP, Agreed(3, TOP)),
    Sighting(b"a", A, Agreed(3, A)),
    Sighting(b"b", file(b"b"), Agreed(3, file(b"b", 4))),
    Sighting(b"c", file(b"c"), None, b"was/c"),
    Sighting(b"d", None, Agreed(2, file(b"d"))),
    Sighting(b"e", None, Agreed(1, None)),
    Sighting(b"f", file(b"f"), Agreed(1, None)),
    Sighting(b"gone/below", None, Agreed(2, file(b"gone/below"))),
]


def test_a_listing_comes_back_as_it_was() -> None:
    assert list(decode_sightings(encode_sightings(LISTING))) == LISTING


def test_long_listings_come_in_frames_that_are_accepted() -> None:
    attributes = b"x" * 200_000
    many = [LISTING[0]]
    for number in range(50):
        path = b"f%02d" % number
        now = file(path)._replace(attributes=attributes)
        many.append(Sighting(path, now, Agreed(2, file(path, 9)._replace(attributes=attributes))))
    frames = list(encode_sightings(many))
    assert len(frames) > 10
    assert list(decode_sightings(frames)) == many


def packed(**what: Any) -> bytes:
    return msgspec.msgpack.encode([[TOP], [*what.values()]])


LIES = {
    "out of order": [[TOP], [file(b"b")], [file(b"a")]],
    "the same twice": [[TOP], [A], [None, 3, False, A]],
    "gone out of order": [[TOP], [file(b"b")], [None, 3, False, file(b"a")]],
    "no top": [[A]],
    "in no listed directory": [[TOP], [file(b"no/a")]],
    "a forbidden path": [[TOP], [None, 3, False, None, b"", b"../up"]],
    "a forbidden agreed path": [[TOP], [None, 3, False, file(b"../up")]],
    "an agreement for another path": [[TOP], [A, 3, False, file(b"b")]],
    "an agreement without a number": [[TOP], [A, 0, False, A]],
    "a negative number": [[TOP], [A, -1]],
    "nothing at all": [[TOP], [None]],
    "the same as nothing": [[TOP], [None, 3, True, None, b"", b"a"]],
    "came from outside": [[TOP], [A, 0, False, None, b"../out"]],
    "a rename of nothing": [[TOP], [None, 3, False, A, b"b"]],
    "impossible numbers": [[TOP], [A._replace(size=-1)]],
    "impossible agreed numbers": [[TOP], [A, 3, False, A._replace(mode=0o77777)]],
}


@pytest.mark.parametrize("lie", LIES)
def test_i14_a_listing_that_lies_is_refused(lie: str) -> None:
    with pytest.raises(MalformedFrame):
        list(decode_sightings([msgspec.msgpack.encode(LIES[lie])]))


@given(st.binary(max_size=60))
def test_noise_is_refused(noise: bytes) -> None:
    for decode in (lambda raw: list(decode_sightings([raw])), decode_agreements, decode_paths):
        try:
            decode(noise)
        except MalformedFrame:
            continue


def test_agreements_come_back_as_they_were() -> None:
    told = [Agreement(b"a", 3, A), Agreement(b"gone", 3), Agreement(b"forgotten", 0)]
    assert [one for frame in encode_agreements(told) for one in decode_agreements(frame)] == told


@pytest.mark.parametrize(
    "lie",
    [
        [b"../up", 3, None],
        [b"a", 3, file(b"b")],
        [b"a", 0, A],
        [b"a", -1, None],
        [b"a", 3, A._replace(seen=-1)],
        [b".baton/root.json", 3, None],
    ],
)
def test_i14_agreements_that_lie_are_refused(lie: list[Any]) -> None:
    with pytest.raises(MalformedFrame):
        decode_agreements(msgspec.msgpack.encode([lie]))


def test_paths_come_back_and_forbidden_ones_are_refused() -> None:
    paths = [b"a", b"b/c", b"\xff"]
    assert [one for frame in encode_paths(paths) for one in decode_paths(frame)] == paths
    with pytest.raises(MalformedFrame):
        decode_paths(msgspec.msgpack.encode([b"a/../b"]))


def test_frames_beyond_the_limit_are_refused() -> None:
    huge = b"\xc6" + (2**21).to_bytes(4, "big") + bytes(2**21)
    for decode in (lambda raw: list(decode_sightings([raw])), decode_agreements, decode_paths):
        with pytest.raises(MalformedFrame):
            decode(huge)
