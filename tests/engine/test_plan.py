# Bytes, descriptors and bare system calls are what is tested.


import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncengine.changes import (
    Change,
    MakeDirectory,
    MakeSymlink,
    Remove,
    SetDirectory,
    SetMetadata,
    WriteFile,
)
from syncengine.guard import TIDE_S, Before, Scoped, Tide, judge
from syncengine.model import (
    Compare,
    Entry,
    Hold,
    HoldReason,
    Kind,
    RunOptions,
    Safety,
    What,
)
from syncengine.phases import Phase, Plan, Summary
from syncengine.plan import plan_mirror
from syncengine.spool import Spool

TOP = Entry(b"", Kind.DIRECTORY, 0o755, 0, 0, seen=1)


def e(path: str, kind: Kind = Kind.FILE, **other: int | bytes) -> Entry:
    entry = Entry(os.fsencode(path), kind, 0o644, 100, 0, seen=hash(path) & 0xFFFF | 1)
    if kind is Kind.SYMLINK:
        entry = entry._replace(link=b"to", mode=0)
    return entry._replace(**other)  # type: ignore[arg-type]


def d(path: str, **other: int | bytes) -> Entry:
    return e(path, Kind.DIRECTORY, **other)


def plan(
    source: Iterable[Entry],
    target: Iterable[Entry],
    options: RunOptions | None = None,
    *,
    complete: bool = True,
) -> Plan:
    return plan_mirror(
        [TOP, *source],
        [TOP, *target],
        options or RunOptions(),
        is_complete=lambda: complete,
        source_member="s",
        target_member="t",
    )


def brief(changes: Iterable[Change]) -> list[tuple[str, str]]:
    return [(type(change).__name__, os.fsdecode(change.path)) for change in changes]


def test_equal_listings_need_nothing() -> None:
    both = [d("a"), e("a/b"), e("c", Kind.SYMLINK), e("p", Kind.SPECIAL)]
    made = plan(both, both)
    assert made.is_empty
    assert list(made) == []
    assert made.summary == Summary(source_entries=4, target_entries=4)


def test_new_things_come_in_tree_order_and_directories_last_from_below() -> None:
    made = plan([d("a"), d("a/b"), e("a/b/c", size=7), e("d", Kind.SYMLINK)], [])
    assert brief(made) == [
        ("MakeDirectory", "a"),
        ("MakeDirectory", "a/b"),
        ("WriteFile", "a/b/c"),
        ("MakeSymlink", "d"),
        ("SetDirectory", "a/b"),
        ("SetDirectory", "a"),
        ("SetDirectory", ""),
    ]
    assert (made.summary.files, made.summary.bytes, made.summary.deletes) == (1, 7, 0)


def test_extras_go_from_below_and_only_their_directory_changes() -> None:
    made = plan([d("k"), e("k/x")], [d("g"), d("g/h"), e("g/h/i"), d("k"), e("k/x"), e("k/y")])
    assert brief(made) == [
        ("Remove", "g/h/i"),
        ("Remove", "g/h"),
        ("Remove", "g"),
        ("Remove", "k/y"),
        ("SetDirectory", "k"),
        ("SetDirectory", ""),
    ]
    assert made.summary.deletes == 4


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (e("a", size=1), e("a", size=2), [WriteFile(b"a", 1, 0o644, 100, 9, 8)]),
        (e("a", mtime_ns=5), e("a"), [WriteFile(b"a", 0, 0o644, 5, 9, 8)]),
        (e("a", mode=0o600), e("a"), [SetMetadata(b"a", Kind.FILE, 0o600, 100, 8)]),
        (e("a", mode=0o4755), e("a", mode=0o755), []),
        (e("a"), e("a", mode=0o4644), [SetMetadata(b"a", Kind.FILE, 0o644, 100, 8)]),
        (e("a", Kind.SYMLINK), e("a"), [MakeSymlink(b"a", b"to", 100, 8)]),
        (e("a"), e("a", Kind.SYMLINK), [WriteFile(b"a", 0, 0o644, 100, 9, 8)]),
        (
            e("a", Kind.SYMLINK, mtime_ns=5),
            e("a", Kind.SYMLINK),
            [SetMetadata(b"a", Kind.SYMLINK, 0, 5, 8)],
        ),
        (d("a", mode=0o2755), d("a"), [SetDirectory(b"a", 0o2755, 100, 8, True)]),
        (
            d("a"),
            e("a"),
            [Remove(b"a", Kind.FILE, 8, b"a"), MakeDirectory(b"a", 0o644)],
        ),
        (
            e("a"),
            d("a"),
            [Remove(b"a", Kind.DIRECTORY, 8, b"a"), WriteFile(b"a", 0, 0o644, 100, 9, 0)],
        ),
    ],
)
def test_each_difference_has_its_change(ours: Entry, theirs: Entry, expected: list[Change]) -> None:
    made = plan([ours._replace(seen=9)], [theirs._replace(seen=8)])
    own = [c for c in made if c.path and not (isinstance(c, SetDirectory) and not c.differs)]
    assert own == expected


def test_what_is_compared_depends_on_the_options() -> None:
    same, other = b"s" * 32, b"o" * 32
    times = RunOptions()
    sums = RunOptions(compare=Compare.CHECKSUM)
    older = e("a", mtime_ns=50)
    assert brief(plan([older], [e("a")], times)) == [("WriteFile", "a"), ("SetDirectory", "")]
    for ours, theirs, expected in (
        (e("a", digest=same), e("a", digest=same), []),
        (e("a", digest=same), e("a", digest=other), ["WriteFile", "SetDirectory"]),
        (e("a"), e("a"), ["WriteFile", "SetDirectory"]),
        (e("a", digest=same, mtime_ns=1), e("a", digest=same), ["SetMetadata"]),
    ):
        assert [name for name, _ in brief(plan([ours], [theirs], sums))] == expected
    timeless = RunOptions(keep_times=False)
    assert plan([older], [e("a")], timeless).is_empty
    assert not plan([e("a", mtime_ns=500)], [e("a")], timeless).is_empty
    modeless = RunOptions(keep_mode=False)
    assert plan([e("a", mode=0o600)], [e("a")], modeless).is_empty


def test_i8_nothing_is_deleted_after_an_incomplete_scan() -> None:
    source = [d("a"), e("a/b"), d("f"), e("f/g"), e("h")]
    target = [d("d"), e("d/x"), e("f"), d("h"), e("h/i")]
    made = plan(source, target, complete=False)
    assert not any(isinstance(change, Remove) for change in made)
    assert made.summary.deletes == 0
    assert [(p.path, p.what, p.member) for p in made.problems] == [(b"", What.SKIPPED, "t")]
    assert "5 deletes" in made.problems[0].detail
    written = {change.path for change in made if not isinstance(change, SetDirectory)}
    assert written == {b"a", b"a/b"}, "and nothing takes the place of what stays"
    assert made.digest != plan(source, target).digest


def test_special_files_are_named_and_keep_their_directories() -> None:
    special = Kind.SPECIAL
    made = plan(
        [e("p", special), e("q", special), d("r"), e("r/x")],
        [d("a"), d("a/b"), e("a/b/p", special), e("a/f"), d("q"), e("q/y"), e("r", special)],
    )
    assert brief(made) == [("Remove", "a/f")]
    assert sorted((p.path, p.member) for p in made.problems) == [
        (b"a/b/p", "t"),
        (b"p", "s"),
        (b"q", "s"),
        (b"r", "t"),
    ]
    assert {p.what for p in made.problems} == {What.SKIPPED}


def test_what_filters_hide_at_either_side_is_left_alone_and_keeps_its_directories() -> None:
    hidden = Kind.EXCLUDED
    made = plan(
        [e("p", hidden), e("q", hidden), d("r"), e("r/x"), e("s")],
        [
            *(d("a"), d("a/b"), e("a/b/p", hidden), e("a/f"), e("p"), d("q"), e("q/y")),
            *(e("r", hidden), d("s"), e("s/p", hidden)),
        ],
    )
    assert brief(made) == [("Remove", "a/f")]
    assert [(p.path, p.what) for p in made.problems] == [(b"s", What.SKIPPED)]
    summary = made.summary
    assert (summary.source_entries, summary.source_hidden) == (1, 4)
    assert (summary.target_entries, summary.target_hidden) == (4, 6)


def test_a_tree_that_filters_hide_whole_is_not_an_emptied_one() -> None:
    made = plan([e("p", Kind.EXCLUDED)], [e("p", Kind.EXCLUDED)])
    sides = {"source_member": "s", "target_member": "t", "before": Before(5, 5)}
    assert judge(made.summary, Safety(), **sides) == []  # type: ignore[arg-type]
    held = judge(plan([], []).summary, Safety(), **sides)  # type: ignore[arg-type]
    assert {hold.reason for hold in held} == {HoldReason.EMPTIED}


def test_the_digest_is_that_of_the_changes() -> None:
    source, target = [e("a"), d("b")], [e("c"), e("x", size=4)]
    first = plan(source, target)
    assert len(first.digest) == 32
    assert plan(source, target).digest == first.digest
    assert plan(source, target[1:]).digest != first.digest
    edited = [target[0]._replace(seen=4242), target[1]]
    assert plan(source, edited).digest != first.digest, "approving it would delete an edit"


def test_a_plan_of_many_changes_waits_on_disk_and_reads_the_same_again(tmp_path: Path) -> None:
    number = 60_000

    def entries() -> Iterator[Entry]:
        yield TOP
        for n in range(number):
            yield e(f"{n:06}", link=b"x" * 90, kind=Kind.SYMLINK)

    with plan_mirror(
        entries(),
        [TOP],
        RunOptions(),
        is_complete=lambda: True,
        spool_folder=str(tmp_path),
    ) as made:
        assert len(made) == number + 1
        first = [change.path for change in made.phase(Phase.MAKE)]
        assert first == sorted(first)
        assert len(first) == number
        assert [change.path for change in made.phase(Phase.MAKE)] == first
        assert made.changes._file is not None
        assert os.listdir(tmp_path) == [], "unlinked: nothing stays if we are killed"


def test_two_readers_of_a_spool_do_not_disturb_each_other() -> None:
    spool = Spool()
    for n in range(5_000):
        spool.append(MakeDirectory(b"%d" % n, 0))
    spool.seal()
    assert all(a == b for a, b in zip(spool, spool, strict=True))
    assert len(spool) == 5_000


def test_a_listing_that_breaks_off_breaks_the_plan() -> None:
    def broken() -> Iterator[Entry]:
        yield TOP
        raise ConnectionError

    with pytest.raises(ConnectionError):
        plan_mirror(broken(), [TOP], RunOptions(), is_complete=lambda: True)


def holds(summary: Summary, safety: Safety, before: Before | None = None) -> list[HoldReason]:
    found = judge(
        summary,
        safety,
        source_member="s",
        target_member="t",
        before=before or Before(),
    )
    return [hold.reason for hold in found]


@pytest.mark.parametrize(
    ("deletes", "covered", "share", "expected"),
    [
        (0, 0, 0.5, []),
        (50, 100, 0.5, []),
        (51, 100, 0.5, [HoldReason.MAX_DELETE]),
        (100, 100, 1.0, []),
        (100, 100, None, []),
        (1, 100, 0.0, [HoldReason.MAX_DELETE]),
    ],
)
def test_i8_max_delete_is_a_share_of_what_is_covered(
    deletes: int, covered: int, share: float | None, expected: list[HoldReason]
) -> None:
    summary = Summary(source_entries=1, target_entries=covered, deletes=deletes)
    assert holds(summary, Safety(max_delete=share)) == expected


def test_i8_max_delete_files_is_a_number() -> None:
    summary = Summary(source_entries=9, target_entries=100, deletes=11)
    limit = Safety(max_delete=None, max_delete_files=10)
    assert holds(summary, limit) == [HoldReason.MAX_DELETE_FILES]
    assert holds(summary, replace(limit, max_delete_files=11)) == []
    assert holds(summary, replace(limit, max_delete_files=None)) == []


def test_i8_an_emptied_tree_holds_whatever_the_limits() -> None:
    off = Safety(max_delete=None, max_delete_files=None)
    empty_source = Summary(source_entries=0, target_entries=10, deletes=10)
    empty_target = Summary(source_entries=10, target_entries=0)
    assert holds(empty_source, off, Before(10, 10)) == [HoldReason.EMPTIED]
    assert holds(empty_target, off, Before(10, 10)) == [HoldReason.EMPTIED]
    assert holds(empty_source, off, Before(0, 10)) == []
    assert holds(empty_target, off, Before()) == []


def test_a_partial_plan_is_measured_against_all_that_is_covered() -> None:
    summary = Summary(source_entries=0, target_entries=3, deletes=3)
    for covered, expected in ((100, []), (5, [HoldReason.MAX_DELETE])):
        found = judge(
            summary,
            Safety(),
            source_member="s",
            target_member="t",
            before=Before(5, 5),
            scoped=Scoped(covered, source_is_empty=False, target_is_empty=False),
        )
        assert [hold.reason for hold in found] == expected


def test_i8_a_scope_that_empties_a_tree_is_held() -> None:
    off = Safety(max_delete=None, max_delete_files=None)
    summary = Summary(source_entries=0, target_entries=1, deletes=1)
    for source, target, expected in (
        (False, False, []),
        (True, False, [("s", HoldReason.EMPTIED)]),
        (False, True, [("t", HoldReason.EMPTIED)]),
    ):
        found = judge(
            summary,
            off,
            source_member="s",
            target_member="t",
            before=Before(5, 5),
            scoped=Scoped(5, source_is_empty=source, target_is_empty=target),
        )
        assert [(hold.member, hold.reason) for hold in found] == expected


def test_i8_many_small_deletes_are_judged_as_one() -> None:
    tide, safety = Tide(), Safety(max_delete=0.5, max_delete_files=None)
    tide.note(0.0, 100)
    entries = 100
    for second in range(1, 51):
        assert tide.judge(second, entries - 1, safety, member="t") == []
        entries -= 1
        tide.note(second, entries)
    (held,) = tide.judge(51.0, entries - 1, safety, member="t")
    assert (held.reason, held.member) == (HoldReason.MAX_DELETE, "t")
    files = Safety(max_delete=None, max_delete_files=50)
    (held,) = tide.judge(51.0, entries - 1, files, member="t")
    assert held.reason is HoldReason.MAX_DELETE_FILES
    # What is so much later is another matter; and so is what somebody approved of.
    assert tide.judge(TIDE_S + 30.0, entries - 1, safety, member="t") == []
    tide.accept(40)
    assert tide.judge(TIDE_S + 30.0, 20, safety, member="t") == []
    assert tide.judge(TIDE_S + 30.0, 19, safety, member="t")


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 50)), max_size=30))
def test_i8_the_most_entries_of_the_last_minutes_count(steps: list[tuple[int, int]]) -> None:
    """Against a memory of everything."""
    tide, safety = Tide(), Safety(max_delete=None, max_delete_files=0)
    now, history = 0.0, [(-1e9, 0)]
    for wait, entries in steps:
        now += wait
        start = now - TIDE_S
        at_start = next(n for t, n in reversed(history) if t <= start)
        most = max([at_start, *(n for t, n in history if t > start)])
        assert bool(tide.judge(now, entries, safety, member="t")) == (entries < most)
        tide.note(now, entries)
        history.append((now, entries))


def test_files_that_come_and_go_are_no_ebb() -> None:
    tide = Tide()
    for second in range(1000):
        assert tide.judge(second, 10, Safety(max_delete=0.1), member="t") == []
        tide.note(second, 11 - second % 2)


def test_what_the_markers_say_is_part_of_the_judgement() -> None:
    marker = Hold(HoldReason.MARKER_FOREIGN, "t", "not ours")
    found = judge(
        Summary(),
        Safety(),
        source_member="s",
        target_member="t",
        before=Before(),
        marker_holds=[marker],
    )
    assert found == [marker]
