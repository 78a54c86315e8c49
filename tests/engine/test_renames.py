"""Renames among members of a joint job: recognized, done by name, and never at the cost of an edit."""

import functools
import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncengine.agreed import Graft
from syncengine.changes import Rename, WriteFile
from syncengine.conflict_names import ConflictNames, is_copy_of
from syncengine.joint import SyncPlan
from syncengine.model import Conflict, Entry, Kind, Rule, RunOptions
from syncengine.renames import GraftMap, Moves, followed, sequence
from syncengine.renames import choose as choose_all
from tests.engine.joint_model import STAMP, Member, World

SYNC = RunOptions(rule=Rule.SYNC)


def world_of(count: int, *paths: str) -> World:
    """Members that agree on some files; what ends with a slash is a directory."""
    world = World.of(count, SYNC)
    for path in paths:
        if path.endswith("/"):
            world.members[0].make(os.fsencode(path[:-1]), Kind.DIRECTORY)
        else:
            world.members[0].write(os.fsencode(path), b"<" + os.fsencode(path) + b">")
    world.run()
    return world


def files(member: Member) -> dict[str, str]:
    return {
        os.fsdecode(path): os.fsdecode(node.value)
        for path, node in sorted(member.tree.items())
        if node.kind is not Kind.DIRECTORY
    }


def settled(world: World) -> SyncPlan:
    plan = world.run()
    for one in world.members:
        assert world.picture(one) == world.picture(world.members[0])
    assert world.run().is_empty
    return plan


def renames(plan: SyncPlan) -> list[tuple[str, str]]:
    """What members other than the runner rename."""
    return [
        (os.fsdecode(change.path), os.fsdecode(change.to))
        for one in plan.plans
        for change in one
        if isinstance(change, Rename)
    ]


def sent(plan: SyncPlan) -> list[bytes]:
    return [
        change.path for one in plan.all_plans() for change in one if isinstance(change, WriteFile)
    ]


def test_a_directory_is_renamed_as_one_and_nothing_is_sent() -> None:
    world = world_of(2, "d/", *(f"d/{n}" for n in range(30)), "d/s/", "d/s/x")
    a, b = world.members
    a.rename(b"d", b"e")
    plan = settled(world)
    assert renames(plan) == [("d", "e")]
    assert sent(plan) == []
    assert plan.summaries[1].deletes == 0
    assert files(b)["e/s/x"] == "<d/s/x>"
    assert not b.trash
    assert not b.lost


def test_what_was_agreed_to_at_the_old_path_is_over_at_once() -> None:
    world = world_of(2, "d/", "d/x")
    world.members[0].rename(b"d", b"e")
    world.run()
    for one in world.members:
        assert [one.records[path].entry for path in (b"d", b"d/x")] == [None, None]
        assert one.records[b"e/x"].entry is not None


def test_any_member_may_have_renamed_and_the_runner_follows() -> None:
    world = world_of(3, "d/", "d/x", "y")
    a, _, c = world.members
    c.rename(b"d", b"e")
    c.rename(b"y", b"e/z")
    plan = settled(world)
    assert sent(plan) == []
    assert files(a) == {"e/x": "<d/x>", "e/z": "<y>"}


CASES: dict[str, tuple[list[str], Callable[[Member], object], dict[str, str]]] = {
    "chain": (
        ["a", "b"],
        lambda m: (m.rename(b"b", b"c"), m.rename(b"a", b"b")),
        {"b": "<a>", "c": "<b>"},
    ),
    "swap": (
        ["a", "b"],
        lambda m: (m.rename(b"a", b"t"), m.rename(b"b", b"a"), m.rename(b"t", b"b")),
        {"a": "<b>", "b": "<a>"},
    ),
    "ring of directories": (
        ["a/", "a/x", "b/", "b/x", "c/", "c/x"],
        lambda m: (
            m.rename(b"a", b"t"),
            m.rename(b"c", b"a"),
            m.rename(b"b", b"c"),
            m.rename(b"t", b"b"),
        ),
        {"a/x": "<c/x>", "b/x": "<a/x>", "c/x": "<b/x>"},
    ),
    "into a new directory": (
        ["a", "d/", "d/x"],
        lambda m: (
            m.make(b"n", Kind.DIRECTORY),
            m.make(b"n/m", Kind.DIRECTORY),
            m.rename(b"a", b"n/m/a"),
            m.rename(b"d", b"n/d"),
        ),
        {"n/m/a": "<a>", "n/d/x": "<d/x>"},
    ),
    "within a renamed directory": (
        ["d/", "d/x", "d/y"],
        lambda m: (m.rename(b"d", b"e"), m.rename(b"e/x", b"e/z")),
        {"e/z": "<d/x>", "e/y": "<d/y>"},
    ),
    "out of a renamed directory": (
        ["d/", "d/x", "d/y"],
        lambda m: (m.rename(b"d/x", b"x"), m.rename(b"d", b"e")),
        {"x": "<d/x>", "e/y": "<d/y>"},
    ),
    "parent and child change places": (
        ["p/", "p/c/", "p/c/x", "p/y"],
        lambda m: (m.rename(b"p/c", b"t"), m.rename(b"p", b"t/p"), m.rename(b"t", b"p")),
        {"p/x": "<p/c/x>", "p/p/y": "<p/y>"},
    ),
    "to a name inside itself": (
        ["d/", "d/x"],
        lambda m: (m.rename(b"d", b"t"), m.make(b"d", Kind.DIRECTORY), m.rename(b"t", b"d/t")),
        {"d/t/x": "<d/x>"},
    ),
    "something new at the old name": (
        ["d/", "d/x"],
        lambda m: (m.rename(b"d", b"e"), m.make(b"d", Kind.DIRECTORY), m.write(b"d/x", b"new")),
        {"e/x": "<d/x>", "d/x": "new"},
    ),
    "over another file": (
        ["a", "b"],
        lambda m: (m.remove(b"b"), m.rename(b"a", b"b")),
        {"b": "<a>"},
    ),
}


SENT_AGAIN = {
    "swap",
    "ring of directories",
    "over another file",
    "to a name inside itself",
    "something new at the old name",
    "parent and child change places",
}
"""Where others cannot rename, or have something new to get."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("renamer", [0, 1])
def test_all_sorts_of_renames_arrive(name: str, renamer: int) -> None:
    before, act, after = CASES[name]
    world = world_of(3, *before)
    act(world.members[renamer])
    plan = settled(world)
    assert files(world.members[2]) == after
    assert plan.conflicts_total == 0
    if name not in SENT_AGAIN:
        assert sent(plan) == [], "nothing is sent again"
        assert all(not one.lost and not one.trash for one in world.members)


def test_an_edit_follows_the_rename() -> None:
    world = world_of(3, "d/", "d/x", "d/y", "f")
    a, b, c = world.members
    a.rename(b"d", b"e")
    b.write(b"d/x", b"edited by b")
    b.write(b"d/new", b"new")
    c.remove(b"d/y")
    a.rename(b"f", b"g")
    c.write(b"f", b"edited by c")
    plan = settled(world)
    assert files(a) == {"e/x": "edited by b", "e/new": "new", "g": "edited by c"}
    assert plan.conflicts_total == 0


def test_two_edits_of_a_renamed_file_conflict_under_the_new_name() -> None:
    world = world_of(2, "d/", "d/x")
    a, b = world.members
    a.rename(b"d", b"e")
    a.write(b"e/x", b"by a", mtime_ns=1)
    b.write(b"d/x", b"by b", mtime_ns=2)
    settled(world)
    assert files(a) == {"e/x": "by b", f"e/x.conflict-{STAMP}-a": "by a"}


def test_two_renames_of_one_thing_both_live() -> None:
    world = world_of(3, "a")
    one, two, _ = world.members
    one.rename(b"a", b"b")
    two.rename(b"a", b"c")
    settled(world)
    assert files(one) == {"b": "<a>", "c": "<a>"}


def test_two_things_renamed_to_one_name_both_live() -> None:
    world = world_of(2, "a", "b")
    one, two = world.members
    one.rename(b"a", b"c")
    two.rename(b"b", b"c")
    settled(world)
    assert sorted(files(one).values()) == ["<a>", "<b>"]


def test_a_rename_outlives_a_delete() -> None:
    world = world_of(3, "a", "d/", "d/x")
    one, two, _ = world.members
    one.rename(b"a", b"b")
    two.remove(b"a")
    two.rename(b"d", b"e")
    one.remove(b"d")
    settled(world)
    assert files(one) == {"b": "<a>", "e/x": "<d/x>"}


def test_a_place_that_is_taken_elsewhere_makes_a_conflict_and_loses_nothing() -> None:
    world = world_of(3, "a")
    one, two, three = world.members
    one.rename(b"a", b"b")
    two.write(b"b", b"two's own", mtime_ns=1)
    settled(world)
    assert "<a>" in files(three).values()
    assert "two's own" in files(three).values()


def test_a_member_that_was_away_during_a_rename_follows_it_in_the_end() -> None:
    world = world_of(3, "d/", "d/x", "d/y")
    a, b, c = world.members
    a.rename(b"d", b"e")
    world.run(a, b)
    c.write(b"d/y", b"edited, away")
    settled(world)
    assert files(a) == {"e/x": "<d/x>", "e/y": "<d/y>", "d/y": "edited, away"}


def test_exchange_keeps_both_names() -> None:
    world = World.of(2, RunOptions(rule=Rule.EXCHANGE))
    a, b = world.members
    a.write(b"x", b"1")
    world.run()
    a.rename(b"x", b"y")
    settled(world)
    assert files(b) == {"x": "1", "y": "1"}


def test_a_file_in_the_way_of_the_new_directory_does_not_stop_the_rename_for_good() -> None:
    world = World.of(3, RunOptions(rule=Rule.SYNC, conflict=Conflict.NEWEST))
    a, b, c = world.members
    a.write(b"x", b"1")
    world.run()
    a.make(b"d", Kind.DIRECTORY)
    a.rename(b"x", b"d/x")
    b.write(b"d", b"b's file")
    settled(world)
    assert "1" in files(c).values()
    assert "b's file" in files(c).values()


def test_i7_a_conflict_copy_of_a_run_that_died_is_no_rename() -> None:
    world = world_of(3, "f.txt")
    a, b, c = world.members
    b.write(b"f.txt", b"theirs")
    world.run(a, b)  # c is away: the others agree without it
    c.write(b"f.txt", b"mine")
    world.run(dies_before=c)
    assert "theirs" in files(b).values(), "set aside, and nobody has agreed to it"
    c.write(b"f.txt", b"mine, edited")
    world.run(b, c)
    assert {"theirs", "mine, edited"} <= set(files(b).values()), files(b)
    settled(world)
    for one in world.members:
        assert {"theirs", "mine, edited"} <= set(files(one).values()), files(one)


@pytest.mark.parametrize(
    ("path", "original", "is_copy"),
    [
        ("d/f.conflict-20260102-030405-nas1.txt", "d/f.txt", True),
        ("d/f.conflict-20260102-030405-nas1-2.txt", "d/f.txt", True),
        ("f.conflict-20260102-030405-nas1", "f", True),
        (".f.conflict-20260102-030405-nas1", ".f", True),
        ("f.conflict-20260102-030405-a.conflict-20260102-030406-b.t", "f.t", False),
        (
            "f.conflict-20260102-030405-a.conflict-20260102-030406-b.t",
            "f.conflict-20260102-030405-a.t",
            True,
        ),
        ("e/f.conflict-20260102-030405-nas1.txt", "d/f.txt", False),
        ("f.conflict-20260102-030405-nas1.txt", "g.txt", False),
        ("f.conflict-mine.txt", "f.txt", False),
    ],
)
def test_what_looks_like_a_conflict_copy(path: str, original: str, *, is_copy: bool) -> None:
    assert is_copy_of(os.fsencode(path), os.fsencode(original)) is is_copy


def test_every_name_that_is_given_to_a_copy_is_known_as_one() -> None:
    for original in ("f", "a/f.txt", "é" * 127, "f." + "x" * 253, "x" * 255, "x" * 250 + ".txt"):
        names = ConflictNames(STAMP)
        for _ in range(3):
            path = os.fsencode(original)
            assert is_copy_of(names.give(path, "nas1"), path), original


# The pure parts


def test_only_the_topmost_of_a_renamed_tree_counts() -> None:
    moves = Moves()
    entry = Entry(b"", Kind.DIRECTORY, 0, 0, 0)
    for path, came_from in (
        (b"e", b"d"),
        (b"e/s", b"d/s"),
        (b"e/s/x", b"d/s/x"),
        (b"e/z", b"d/y"),
        (b"f", b""),
        (b"g", b"h"),
    ):
        moves.note(path, entry._replace(path=path), came_from)
    assert moves.found == [Graft(b"d", b"e"), Graft(b"d/y", b"e/z"), Graft(b"h", b"g")]


def test_what_two_members_renamed_alike_is_one_graft_and_differently_none() -> None:
    choose = functools.partial(choose_all, with_rings=False)
    assert choose([[Graft(b"a", b"b")], [Graft(b"a", b"b")]]) == (Graft(b"a", b"b"),)
    assert choose([[Graft(b"a", b"b")], [Graft(b"a", b"c"), Graft(b"d", b"e")]]) == (
        Graft(b"d", b"e"),
    )
    assert choose([[Graft(b"a", b"c")], [Graft(b"b", b"c")]]) == ()
    ring = [Graft(b"a", b"b"), Graft(b"b", b"c"), Graft(b"c", b"a")]
    assert choose([[*ring, Graft(b"x", b"y")]]) == (Graft(b"x", b"y"),)
    assert set(choose_all([ring], with_rings=True)) == set(ring)


def test_each_record_is_shown_at_one_path() -> None:
    places = GraftMap([Graft(b"d", b"e"), Graft(b"d/x", b"e/y"), Graft(b"q", b"r")])
    paths = [b"d", b"d/x", b"d/y", b"d/z", b"e", b"e/k", b"q", b"r/s", b"other"]
    assert [places.shown(path) for path in paths] == [
        b"e",
        b"e/y",
        None,
        b"e/z",
        None,
        None,
        b"r",
        None,
        b"other",
    ]


def test_a_ring_goes_by_a_name_of_its_own() -> None:
    entries = [
        Entry(b"b", Kind.FILE, 0, 0, 0, seen=1, came_from=b"a"),
        Entry(b"a", Kind.FILE, 0, 0, 0, seen=2, came_from=b"b"),
    ]
    assert [(change.path, change.to) for change in sequence(entries, "S")] == [
        (b"a", b"a.renamed-S-1"),
        (b"b", b"a"),
        (b"a.renamed-S-1", b"b"),
    ]


MOVES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 40), st.sampled_from(b"abcd")), max_size=8
)


@given(MOVES)
def test_renames_that_follow_each_other_are_said_at_once(steps: list[tuple[int, int, int]]) -> None:
    """Whatever was renamed into whatever, each thing is found where it lay in the beginning."""
    lay = {path: path for path in (b"a", b"a/a", b"a/b", b"a/b/c", b"b", b"b/a", b"c", b"d")}
    directories = {b"", b"a", b"a/b", b"b"}
    hints: list[Graft] = []
    for what, where, name in steps:
        path = sorted(lay)[what % len(lay)]
        parent = sorted(directories)[where % len(directories)]
        to = bytes(filter(None, [*parent, *(b"/" if parent else b""), name]))
        if to in lay or (to + b"/").startswith(path + b"/"):
            continue
        hints.append(Graft(path, to))

        def moved(at: bytes, path: bytes = path, to: bytes = to) -> bytes:
            return to + at[len(path) :] if (at + b"/").startswith(path + b"/") else at

        lay = {moved(at): was for at, was in lay.items()}
        directories = set(map(moved, directories))
    places = GraftMap(followed(hints))
    assert {was: places.shown(was) for was in lay.values()} == {was: at for at, was in lay.items()}


def test_hints_that_make_no_sense_are_left_out() -> None:
    """What came back is no rename, nor is a thing put into itself."""
    assert followed([Graft(b"a", b"b"), Graft(b"b", b"a")]) == ()
    assert followed([Graft(b"a", b"a/b"), Graft(b"", b"x"), Graft(b"x", b"x")]) == ()
    assert followed([Graft(b"a", b"x"), Graft(b"b", b"x")]) == (Graft(b"b", b"x"),)
