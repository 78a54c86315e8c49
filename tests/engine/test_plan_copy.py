"""Rules copy and move as plans: what is made, what is left alone, and what may be taken away."""

import os
from collections.abc import Iterable

import pytest

from syncengine.changes import Change, Remove, SetDirectory
from syncengine.model import CopyWhen, Entry, Kind, Rule, RunOptions, What
from syncengine.phases import Plan
from syncengine.plan_copy import plan_copy, plan_removals

TOP = Entry(b"", Kind.DIRECTORY, 0o755, 0, 0, seen=3)
SUM, OTHER = b"s" * 32, b"o" * 32


def e(path: str, kind: Kind = Kind.FILE, **other: int | bytes) -> Entry:
    entry = Entry(os.fsencode(path), kind, 0o644, 100, 0, seen=len(path) + 10)
    if kind is Kind.SYMLINK:
        entry = entry._replace(link=b"to", mode=0)
    return entry._replace(**other)  # type: ignore[arg-type]


def d(path: str) -> Entry:
    return e(path, Kind.DIRECTORY)


def planned(
    source: Iterable[Entry],
    target: Iterable[Entry],
    when: CopyWhen = CopyWhen.DIFFERING,
    rule: Rule = Rule.COPY,
) -> Plan:
    return plan_copy(
        [TOP, *source],
        [TOP, *target],
        RunOptions(rule=rule, copy_when=when),
        is_complete=lambda: True,
        source_member="s",
        target_member="t",
    )


def brief(changes: Iterable[Change]) -> list[tuple[str, str]]:
    return [
        (type(change).__name__, os.fsdecode(change.path))
        for change in changes
        if not isinstance(change, SetDirectory)
    ]


def test_nothing_is_ever_removed() -> None:
    made = planned([e("a"), d("d"), e("d/x")], [d("d"), e("d/old"), d("gone"), e("gone/y"), e("z")])
    assert brief(made) == [("WriteFile", "a"), ("WriteFile", "d/x")]
    assert made.summary.deletes == 0
    assert made.problems == []


def test_what_is_in_the_way_is_an_error_and_the_rest_is_done() -> None:
    made = planned(
        [d("d"), e("d/x"), e("f"), e("other")],
        [e("d"), d("f"), e("f/y")],
    )
    assert brief(made) == [("WriteFile", "other")]
    assert [(p.path, p.member, p.what) for p in made.problems] == [
        (b"d", "t", What.NOT_WRITTEN),
        (b"f", "t", What.NOT_WRITTEN),
    ]
    assert all(problem.what.fails for problem in made.problems)


@pytest.mark.parametrize(
    ("ours", "theirs", "differing", "newer", "always"),
    [
        (e("a"), e("a"), [], [], ["WriteFile"]),
        (e("a", size=1), e("a", size=2), ["WriteFile"], [], ["WriteFile"]),
        (e("a", mtime_ns=101), e("a"), ["WriteFile"], ["WriteFile"], ["WriteFile"]),
        (e("a", mtime_ns=99), e("a"), ["WriteFile"], [], ["WriteFile"]),
        (e("a", mode=0o600), e("a"), ["SetMetadata"], ["SetMetadata"], ["WriteFile"]),
        (e("a", mode=0o600, mtime_ns=99), e("a"), ["WriteFile"], [], ["WriteFile"]),
        (e("a"), e("a", Kind.SYMLINK, mtime_ns=500), *(3 * [["WriteFile"]])),
        (e("a", Kind.SYMLINK, mtime_ns=5), e("a"), ["MakeSymlink"], [], ["MakeSymlink"]),
        (e("a", Kind.SYMLINK), e("a", Kind.SYMLINK), [], [], []),
        (
            *(e("a", Kind.SYMLINK, mtime_ns=5), e("a", Kind.SYMLINK, link=b"old")),
            *(3 * [["MakeSymlink"]]),
        ),
    ],
)
def test_when_what_is_there_is_replaced(
    ours: Entry, theirs: Entry, differing: list[str], newer: list[str], always: list[str]
) -> None:
    for when, expected in zip(
        (CopyWhen.DIFFERING, CopyWhen.NEWER, CopyWhen.ALWAYS),
        (differing, newer, always),
        strict=True,
    ):
        assert [name for name, _ in brief(planned([ours], [theirs], when))] == expected, when


def test_move_replaces_what_differs_whatever_copy_when_says() -> None:
    made = planned([e("a", mtime_ns=99)], [e("a")], CopyWhen.NEWER, Rule.MOVE)
    assert brief(made) == [("WriteFile", "a")]


def test_what_filters_hide_is_left_alone() -> None:
    made = planned(
        [e("a", Kind.EXCLUDED), e("b"), d("c"), e("c/x")],
        [e("a"), e("b", Kind.EXCLUDED), e("c", Kind.EXCLUDED)],
    )
    assert brief(made) == []
    assert made.problems == []


def removed(source: list[Entry], *targets: list[Entry]) -> list[str]:
    plan = plan_removals(
        [TOP, *source], [[TOP, *target] for target in targets], RunOptions(rule=Rule.MOVE)
    )
    assert all(isinstance(change, Remove) for change in plan)
    return [os.fsdecode(change.path) for change in plan]


def test_only_what_every_target_has_beyond_doubt_is_taken_away() -> None:
    source = [
        *(d("d"), e("d/all", digest=SUM), e("d/one", digest=SUM), e("differs", digest=SUM)),
        *(e("link", Kind.SYMLINK), e("link2", Kind.SYMLINK), e("s", Kind.SPECIAL)),
        *(e("unread"), e("x", Kind.EXCLUDED)),
    ]
    full = [
        *(d("d"), e("d/all", digest=SUM), e("d/one", digest=SUM), e("differs", digest=SUM)),
        *(e("extra"), e("link", Kind.SYMLINK), e("link2", Kind.SYMLINK), e("s", Kind.SPECIAL)),
        e("unread", digest=SUM),
    ]
    less = [
        *(d("d"), e("d/all", digest=SUM), e("differs", digest=OTHER)),
        *(e("link", Kind.SYMLINK), e("link2", Kind.SYMLINK, link=b"else"), e("unread")),
    ]
    assert removed(source, full) == ["d/all", "d/one", "differs", "link", "link2"]
    assert removed(source, full, less) == ["d/all", "link"]
    assert removed(source, less, full) == ["d/all", "link"]
    assert removed(source) == [], "nobody has it"
    assert removed(source, []) == []


def test_a_removal_names_the_version_that_was_verified() -> None:
    plan = plan_removals(
        [TOP, e("a", digest=SUM, seen=77)], [[TOP, e("a", digest=SUM)]], RunOptions(rule=Rule.MOVE)
    )
    (change,) = plan
    assert isinstance(change, Remove)
    assert change.seen == 77
