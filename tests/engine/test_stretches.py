"""Stretches stand for their entries: in a scan, on the wire, and in a plan."""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncengine.attributes import Attributes, encode
from syncengine.details import Details
from syncengine.errors import MalformedFrame
from syncengine.filters import Filters
from syncengine.listing import decode_entries, decode_items, encode_entries
from syncengine.model import Compare, CopyWhen, Entry, Kind, Limits, Problem, Rule, RunOptions
from syncengine.names import order_key
from syncengine.phases import Plan
from syncengine.plan import plan_mirror
from syncengine.plan_copy import plan_copy
from syncengine.scan import scan, scan_stretches
from syncengine.stretches import STRETCH_FILES, Item, Stretch, to_bytes, unfolded
from syncengine.tree import Tree
from tests.engine.trees import grow

TOP = Entry(b"", Kind.DIRECTORY, 0o755, 0, 0, seen=1)
EVERYTHING = RunOptions(keep_owner=True, keep_xattrs=True, keep_acls=True, keep_hardlinks=True)


def stretch_of(entries: list[Entry]) -> Stretch:
    """Make the stretch of files that lie in one directory."""
    below = entries[0].path[: entries[0].path.rfind(b"/") + 1]
    names = [entry.path[len(below) :] for entry in entries]
    columns = (
        array("H", [entry.mode for entry in entries]),
        array("q", [entry.mtime_ns for entry in entries]),
        array("q", [entry.size for entry in entries]),
    )
    packed = [entry.attributes for entry in entries]
    attributes: bytes | list[bytes] = packed[0] if len(set(packed)) == 1 else packed
    seen = array("Q", [entry.seen for entry in entries])
    return Stretch(below, b"/".join(names), columns, attributes, seen=seen)


def folded(entries: list[Entry], longest: int) -> Iterator[Item]:
    """Put files beside each other into stretches, in the way that a scan does."""
    held: list[Entry] = []
    for entry in [*entries, None]:
        fits = (
            entry is not None
            and entry.kind is Kind.FILE
            and (not held or held[-1].path.rpartition(b"/")[0] == entry.path.rpartition(b"/")[0])
        )
        if held and (not fits or len(held) == longest):
            yield stretch_of(held)
            held = []
        if entry is not None and fits:
            held.append(entry)
        elif entry is not None and entry.kind is Kind.FILE:
            held = [entry]
        elif entry is not None:
            yield entry


# In a scan


def both_scans(top: Path, filters: tuple[str, ...] = ()) -> tuple[list[Entry], list[Item]]:
    problems: list[Problem] = []
    details = Details.of(EVERYTHING)
    with Tree.open(os.fsencode(top), read_only=True) as tree:
        entries = list(
            scan(
                tree,
                problems=problems,
                member="m",
                details=details,
                filters=Filters(filters, Limits(), now_ns=0),
            )
        )
        others: list[Problem] = []
        items = list(
            scan_stretches(
                tree,
                problems=others,
                member="m",
                details=details,
                filters=Filters(filters, Limits(), now_ns=0),
            )
        )
    assert problems == others
    return entries, items


def test_a_scan_with_runs_tells_the_same(tmp_path: Path) -> None:
    files = {f"many/{n:05}": b"" for n in range(2 * STRETCH_FILES + 1)}
    grow(
        tmp_path, {**files, "a/b": b"x", "a/c": "b", "a/d": b"", "a/d.": None, "a-": b"", "z": b""}
    )
    (tmp_path / os.fsdecode(b"\xff\x80")).write_bytes(b"")
    os.link(tmp_path / "a/b", tmp_path / "a/linked")
    os.setxattr(tmp_path / "a/d", "user.one", b"1")
    (tmp_path / "z").chmod(0o4755)
    os.mkfifo(tmp_path / "y")
    entries, items = both_scans(tmp_path)
    assert list(unfolded(items)) == entries
    stretches = [item for item in items if isinstance(item, Stretch)]
    assert [stretch.count for stretch in stretches if stretch.below == b"many/"] == [
        STRETCH_FILES,
        STRETCH_FILES,
        1,
    ]
    assert list(decode_entries(encode_entries(items))) == entries
    assert [
        item.count for item in decode_items(encode_entries(items)) if isinstance(item, Stretch)
    ] == [stretch.count for stretch in stretches]


def test_filters_hide_the_same(tmp_path: Path) -> None:
    grow(tmp_path, {"a/b.tmp": b"x", "a/c": b"", "d/e": b"", "d/f": b"", "g.tmp": b"", "h": b""})
    entries, items = both_scans(tmp_path, ("*.tmp",))
    assert list(unfolded(items)) == entries
    assert [item.path for item in items if isinstance(item, Stretch)] == [b"d/e"]


def test_what_vanishes_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, {f"{n}": b"" for n in range(9)})
    real, gone = os.listdir, ["10", "42"]
    monkeypatch.setattr(os, "listdir", lambda fd: real(fd) + (gone if isinstance(fd, int) else []))
    entries, items = both_scans(tmp_path)
    assert list(unfolded(items)) == entries
    assert len(entries) == 10


def test_a_time_that_no_column_holds_makes_entries(tmp_path: Path) -> None:
    grow(tmp_path, {"a": b"", "b": b"", "c": b""})
    later = 14_000_000_000 * 10**9  # in the year 2413
    os.utime(tmp_path / "b", ns=(later, later))
    if (tmp_path / "b").stat().st_mtime_ns != later:
        later = (tmp_path / "b").stat().st_mtime_ns  # the file system cuts it off
    entries, items = both_scans(tmp_path)
    assert list(unfolded(items)) == entries
    assert entries[2].mtime_ns == later
    assert any(isinstance(item, Stretch) for item in items) == (later < 1 << 63)


# Beside another

FILES = st.lists(
    st.tuples(
        st.integers(0, 25),
        st.sampled_from([0o644, 0o600]),
        st.integers(0, 1),
        st.integers(0, 1),
        st.sampled_from([b"", encode(Attributes(uid=1000, gid=7))]),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda file: file[0],
)


def as_files(chosen: list[tuple[int, int, int, int, bytes]]) -> list[Entry]:
    return [
        Entry(b"d/%02d" % n, Kind.FILE, mode, mtime, size, b"", n + 1, b"", attributes)
        for n, mode, mtime, size, attributes in sorted(chosen)
    ]


@settings(max_examples=300)
@given(ours=FILES, theirs=FILES, is_near=st.booleans(), data=st.data())
def test_alike_counts_what_is_alike(
    ours: list[tuple[int, int, int, int, bytes]],
    theirs: list[tuple[int, int, int, int, bytes]],
    is_near: bool,
    data: st.DataObject,
) -> None:
    mine = as_files(ours)
    other = as_files(theirs)
    if is_near:
        cut = data.draw(st.integers(0, len(mine)))
        other = [
            *mine[:cut],
            *(entry for entry in other if entry.path > mine[cut - 1].path),
        ] or mine
    start = data.draw(st.integers(0, len(mine) - 1))
    at = data.draw(st.integers(0, len(other) - 1))
    expected = 0
    for one, two in zip(mine[start:], other[at:], strict=False):
        # Nothing is known of the attributes of some, and that is equal to anything.
        known = {one.attributes, two.attributes}
        if one[:5] != two[:5] or (len(known) > 1 and b"" not in known):
            break
        expected += 1
    assert stretch_of(mine).alike(start, stretch_of(other), at) == expected


def test_runs_of_other_directories_are_not_alike() -> None:
    here, there = as_files([(1, 0o644, 0, 0, b"")]), Entry(b"e/01", Kind.FILE, 0o644, 0, 0, seen=2)
    assert stretch_of(here).alike(0, stretch_of([there]), 0) == 0


# In a plan

TREES = st.dictionaries(
    st.lists(st.sampled_from([b"a", b"b", b"b.", b"c"]), min_size=1, max_size=3).map(tuple),
    st.tuples(
        st.sampled_from([Kind.FILE, Kind.FILE, Kind.FILE, Kind.SYMLINK, Kind.EXCLUDED]),
        st.sampled_from([0o644, 0o600]),
        st.integers(1, 3),
        st.integers(0, 1),
    ),
    max_size=14,
)


def as_entries(tree: dict[tuple[bytes, ...], tuple[Kind, int, int, int]]) -> list[Entry]:
    folders = {path[:n] for path in tree for n in range(1, len(path))}
    entries = [Entry(b"/".join(one), Kind.DIRECTORY, 0o755, 7, 0, seen=9) for one in folders]
    for path, (kind, mode, mtime_ns, size) in tree.items():
        if path in folders:
            continue
        if kind is Kind.FILE:
            entry = Entry(b"/".join(path), kind, mode, mtime_ns, size, seen=5)
        elif kind is Kind.SYMLINK:
            entry = Entry(b"/".join(path), kind, 0, mtime_ns, 0, b"to", 5)
        else:
            entry = Entry(b"/".join(path), kind, 0, 0, 0, seen=5)
        entries.append(entry)
    return [TOP, *sorted(entries, key=lambda entry: order_key(entry.path))]


OPTIONS = (
    RunOptions(),
    RunOptions(keep_times=False),
    RunOptions(keep_mode=False),
    RunOptions(compare=Compare.CHECKSUM),
    RunOptions(rule=Rule.COPY),
    RunOptions(rule=Rule.COPY, copy_when=CopyWhen.NEWER),
    RunOptions(rule=Rule.COPY, copy_when=CopyWhen.ALWAYS),
)


def shown(plan: Plan) -> object:
    with plan:
        return list(plan), plan.summary, plan.problems, plan.digest


@settings(max_examples=400)
@given(
    ours=TREES,
    changed=TREES,
    keeps=st.booleans(),
    options=st.sampled_from(OPTIONS),
    longest=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_a_plan_of_runs_is_the_plan_of_their_entries(
    ours: dict[tuple[bytes, ...], tuple[Kind, int, int, int]],
    changed: dict[tuple[bytes, ...], tuple[Kind, int, int, int]],
    keeps: bool,
    options: RunOptions,
    longest: tuple[int, int],
) -> None:
    mine, other = as_entries(ours), as_entries({**ours, **changed} if keeps else changed)
    make = plan_mirror if options.rule is Rule.MIRROR else plan_copy
    expected = shown(make(mine, other, options, is_complete=lambda: True))
    stretches = folded(mine, longest[0]), folded(other, longest[1])
    assert shown(make(*stretches, options, is_complete=lambda: True)) == expected
    sent = decode_items(encode_entries(folded(other, longest[1])))
    assert shown(make(iter(mine), sent, options, is_complete=lambda: True)) == expected


def test_files_that_are_alike_become_no_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [TOP, *(Entry(b"%04d" % n, Kind.FILE, 0o644, 1, 2, seen=3) for n in range(3_000))]
    changed = [*entries[:1_500], entries[1_500]._replace(size=3), *entries[1_501:]]
    made: list[bytes] = []
    real = Stretch.at
    monkeypatch.setattr(Stretch, "at", lambda stretch, n: made.append(b"") or real(stretch, n))  # type: ignore[func-returns-value]
    monkeypatch.setattr(Stretch, "entries", None)
    with plan_mirror(
        folded(changed, STRETCH_FILES), folded(entries, 700), RunOptions(), is_complete=lambda: True
    ) as plan:
        assert len(plan) == 2
        assert plan.summary.source_entries == plan.summary.target_entries == 3_000
    assert len(made) == 2


# From a peer

GOOD: dict[str, object] = {
    "place": 1,
    "below": b"",
    "joined": b"a/b",
    "modes": to_bytes(array("H", [0o644, 0o600])),
    "mtimes": to_bytes(array("q", [-1, 1])),
    "sizes": to_bytes(array("q", [0, 1])),
    "seen": to_bytes(array("Q", [1, (1 << 64) - 1])),
    "attributes": [b""],
}


def received(**other: object) -> list[Entry]:
    frame = msgspec.msgpack.encode(([TOP], [list((GOOD | other).values())]))
    return list(decode_entries([frame]))


@pytest.mark.parametrize(
    "other",
    [
        {"place": 0},
        {"place": 2},
        {"place": -1},
        {"below": b"a/"},
        {"below": b"/"},
        {"below": b"../"},
        {"joined": b"b/a"},
        {"joined": b"a/a"},
        {"joined": b"a/"},
        {"joined": b"/a"},
        {"joined": b"./b"},
        {"joined": b"../b"},
        {"joined": b".baton/b"},
        {"joined": b".baton~1/b"},
        {"joined": b"a/b\0"},
        {"joined": b"a/" + b"b" * 256},
        {"joined": b"a"},
        {"joined": b"a/b/c"},
        {"joined": b""},
        {"modes": b""},
        {"modes": to_bytes(array("H", [0o644]))},
        {"modes": to_bytes(array("H", [0o644, 0o4644]))},
        {"modes": to_bytes(array("H", [0o644, 0o100644]))},
        {"modes": bytes(5)},
        {"modes": bytes(2 * STRETCH_FILES + 2)},
        {"mtimes": bytes(8)},
        {"mtimes": bytes(17)},
        {"sizes": to_bytes(array("q", [0, -1]))},
        {"sizes": bytes(24)},
        {"seen": to_bytes(array("Q", [1, 0]))},
        {"seen": bytes(8)},
        {"attributes": []},
        {"attributes": [b"", b"", b""]},
        {"attributes": [b"x" * 300_000]},
    ],
)
def test_i14_a_run_that_no_scan_sends_is_refused(other: dict[str, object]) -> None:
    assert [entry.path for entry in received()] == [b"", b"a", b"b"]
    with pytest.raises(MalformedFrame):
        received(**other)
    # Nor does a merge get past it. (What is alike is not taken apart, and its `seen` not used.)
    frame = msgspec.msgpack.encode(([TOP], [list((GOOD | other).values())]))
    alike = [TOP, *stretch_of(received()[1:]).entries()]
    for ours in ([TOP],) if "seen" in other else ([TOP], alike):
        with pytest.raises(MalformedFrame):
            plan_mirror(
                folded(ours, 9), decode_items([frame]), RunOptions(), is_complete=lambda: True
            )


def test_i14_runs_are_in_order_too() -> None:
    stretch = list(GOOD.values())
    folder = Entry(b"b", Kind.DIRECTORY, 0o755, 0, 0, seen=1)
    for frame in (([TOP], [stretch, stretch]), ([TOP, folder], [[2, *stretch[1:]]])):
        with pytest.raises(MalformedFrame):
            list(decode_entries([msgspec.msgpack.encode(frame)]))
    with pytest.raises(MalformedFrame, match="top"):
        list(decode_entries([msgspec.msgpack.encode(([], [[0, *stretch[1:]]]))]))
