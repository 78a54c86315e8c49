import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncengine.errors import MalformedFrame
from syncengine.listing import (
    FRAME_BYTES,
    MAX_FRAME_BYTES,
    ListingOrder,
    decode_entries,
    encode_entries,
)
from syncengine.model import Entry, Kind
from syncengine.names import is_reserved, order_key
from tests.engine.trees import entries_of, grow

TOP = Entry(b"", Kind.DIRECTORY, 0o755, 0, 0, seen=1)


def file(path: bytes, **other: int | bytes) -> Entry:
    return Entry(path, Kind.FILE, 0o644, 0, 0, seen=1)._replace(**other)  # type: ignore[arg-type]


def folder(path: bytes) -> Entry:
    return TOP._replace(path=path)


def link(path: bytes, to: bytes = b"to") -> Entry:
    return Entry(path, Kind.SYMLINK, 0, 0, 0, to, 1)


def decode(*entries: Entry) -> list[Entry]:
    return list(decode_entries([msgspec.msgpack.encode((entries, []))]))


def test_a_real_tree_goes_there_and_back(tmp_path: Path) -> None:
    grow(tmp_path, {"a/b": b"x", "a/c": "y", "a-": None, "a/d/e/f": b""})
    (tmp_path / os.fsdecode(b"\xff\x80")).write_bytes(b"")
    entries = entries_of(tmp_path)
    assert list(decode_entries(encode_entries(entries))) == entries


def test_frames_are_of_a_bounded_size() -> None:
    entries = [TOP, *(file(b"%08d" % n + b"x" * 200) for n in range(5_000))]
    frames = list(encode_entries(entries))
    assert len(frames) > 4
    assert max(map(len, frames)) <= FRAME_BYTES
    assert list(decode_entries(frames)) == entries
    assert list(encode_entries([])) == []


@pytest.mark.parametrize(
    "entries",
    [
        [file(b"a")],
        [file(b"")],
        [TOP, TOP],
        [TOP, file(b"..")],
        [TOP, file(b".")],
        [TOP, file(b"/a")],
        [TOP, file(b"a/")],
        [TOP, folder(b"a"), file(b"a//b")],
        [TOP, folder(b"a"), file(b"a/../b")],
        [TOP, file(b"a\0b")],
        [TOP, file(b"n" * 256)],
        [TOP, file(b".baton")],
        [TOP, file(b".baton~1")],
        [TOP, folder(b"a"), file(b"a/.baton~1")],
        [TOP, file(b"b"), file(b"a")],
        [TOP, file(b"a"), file(b"a")],
        [TOP, folder(b"a"), file(b"a-"), file(b"a/b")],
        [TOP, file(b"a/b")],
        [TOP, file(b"a"), file(b"a/b")],
        [TOP, link(b"a"), file(b"a/b")],
        [TOP, folder(b"a"), folder(b"b"), file(b"b/c/d")],
        [TOP, file(b"a", mode=-1)],
        [TOP, file(b"a", mode=0o10000)],
        [TOP, file(b"a", size=-1)],
        [TOP, file(b"a", size=1 << 63)],
        [TOP, file(b"a", mtime_ns=1 << 63)],
        [TOP, file(b"a", seen=0)],
        [TOP, file(b"a", seen=-1)],
        [TOP, file(b"a", link=b"x")],
        [TOP, file(b"a", digest=b"x")],
        [TOP, link(b"a", b"")],
        [TOP, link(b"a", b"x\0")],
        [TOP, link(b"a", b"x" * 5_000)],
        [TOP, folder(b"a")._replace(size=1)],
        [TOP, folder(b"a")._replace(digest=b"x" * 32)],
    ],
)
def test_i14_a1_what_no_scan_sends_is_refused(entries: list[Entry]) -> None:
    with pytest.raises(MalformedFrame):
        decode(*entries)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 50_000,
        b"\0" * (MAX_FRAME_BYTES + 1),
        msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode([[], []])[:-1],
        msgspec.msgpack.encode([[[b"", 9, 0, 0, 0, b"", 1, b""]], []]),
        msgspec.msgpack.encode([[["text", 2, 0, 0, 0, b"", 1, b""]], []]),
        msgspec.msgpack.encode([[[b"", 2, 1 << 64 - 1, 0, 0, b"", 1, b""]], []]),
        msgspec.msgpack.encode([[[b"", 2, 0, 0]], []]),
    ],
)
def test_i14_a14_nonsense_is_refused(frame: bytes) -> None:
    with pytest.raises(MalformedFrame):
        list(decode_entries([frame]))


def test_order_and_places_hold_across_frames() -> None:
    frames = [
        msgspec.msgpack.encode(([e], [])) for e in (TOP, folder(b"a"), file(b"a/b"), file(b"c"))
    ]
    assert len(list(decode_entries(frames))) == 4
    with pytest.raises(MalformedFrame):
        list(decode_entries([*frames, frames[1]]))


NAMES = st.binary(min_size=1, max_size=6).map(lambda b: b.replace(b"/", b"_").replace(b"\0", b"_"))


@given(st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=30), st.integers(0, 2**63 - 1))
def test_any_listing_goes_there_and_back(paths: list[list[bytes]], number: int) -> None:
    folders = {b"/".join(p[:n]) for p in paths for n in range(len(p))} - {b""}
    files = {b"/".join(p) for p in paths} - folders
    entries = [folder(p) for p in folders]
    entries += [file(p, size=number, mtime_ns=-number, seen=number + 1) for p in files]
    entries.sort(key=lambda e: order_key(e.path))
    names = {name for e in entries for name in e.path.split(b"/")}
    if any(name in {b".", b".."} or is_reserved(name) for name in names):
        with pytest.raises(MalformedFrame):
            decode(TOP, *entries)
    else:
        assert decode(TOP, *entries) == [TOP, *entries]


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_i14_any_bytes_are_entries_or_refused(frame: bytes) -> None:
    try:
        entries = list(decode_entries([frame]))
    except MalformedFrame:
        return
    assert not entries or entries[0].path == b""


class _Thorough(ListingOrder):
    """Takes no short cut."""

    def _is_next_file(self, entry: Entry) -> bool:
        return False


ODD_NAMES = [b"a", b"a-", b"b", b"..", b".", b".x", b".baton", b".baton~1", b"x" * 255, b"x" * 256]
ODD_NAMES += [b"", b"\0", b"a\0", b"\n", b"a\n", b"\xff", b"c"]
ODD_NUMBERS = [0, 1, -1, 0o7777, 0o10000, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63), 5]


@st.composite
def odd_entries(draw: st.DrawFn) -> list[Entry]:
    entries = [TOP]
    parents = [b"", b"a/", b"a/b/", b"b/", b"c/"]
    for _ in range(draw(st.integers(1, 8))):
        path = draw(st.sampled_from(parents)) + draw(st.sampled_from(ODD_NAMES))
        entry = folder(path) if draw(st.integers(0, 3)) == 0 else file(path)
        if draw(st.integers(0, 5)) == 0:
            field = draw(
                st.sampled_from(["mode", "mtime_ns", "size", "seen", "inode", "links", "ctime_ns"])
            )
            number: Any = draw(st.sampled_from(ODD_NUMBERS))
            entry = entry._replace(**{field: number})
        if draw(st.integers(0, 7)) == 0:
            field = draw(st.sampled_from(["link", "digest", "attributes", "came_from"]))
            content: Any = draw(st.sampled_from([b"..", b"x", b"x" * 32]))
            entry = entry._replace(**{field: content})
        entries.append(entry)
    if draw(st.booleans()):
        entries.sort(key=lambda entry: order_key(entry.path))
    return entries


@settings(max_examples=800, deadline=None)
@given(odd_entries())
def test_the_short_cut_for_files_believes_nothing_that_the_long_way_does_not(
    entries: list[Entry],
) -> None:
    quick, thorough = ListingOrder(), _Thorough()
    for entry in entries:
        refused = []
        for order in (quick, thorough):
            try:
                order.check(entry)
            except MalformedFrame as error:
                refused.append(str(error))
        assert refused[:1] == refused[1:]
        if refused:
            return
