"""Joint plans, case by case, as the interface tells them: members of a model, and what they come to."""

import os
from collections.abc import Iterator
from itertools import permutations

import pytest

from syncengine.agreed import Agreed, Sighting
from syncengine.attributes import Attributes, encode
from syncengine.changes import SetMetadata
from syncengine.conflict_names import ConflictNames
from syncengine.joint import JointRun, MemberFacts, SyncPlan
from syncengine.model import Compare, Conflict, Entry, Kind, Rule, RunOptions, What
from syncengine.plan_sync import plan_sync
from tests.engine.joint_model import STAMP, Member, World

SYNC = RunOptions(rule=Rule.SYNC)
EXCHANGE = RunOptions(rule=Rule.EXCHANGE)


def files(member: Member) -> dict[str, str]:
    """What a member has beside directories."""
    return {
        os.fsdecode(path): os.fsdecode(node.value)
        for path, node in sorted(member.tree.items())
        if node.kind is not Kind.DIRECTORY
    }


def directories(member: Member) -> set[str]:
    return {
        os.fsdecode(path)
        for path, node in member.tree.items()
        if path and node.kind is Kind.DIRECTORY
    }


def settled(world: World) -> SyncPlan:
    """Run, and check that all members are equal and another run does nothing."""
    plan = world.run()
    for one in world.members:
        assert world.picture(one) == world.picture(world.members[0])
    again = world.run()
    assert again.is_empty
    return plan


def world_of(count: int, options: RunOptions = SYNC, **tree: str) -> World:
    """Some members that agree on some files; a directory comes before what it holds."""
    world = World.of(count, options)
    first = world.members[0]
    for name, value in tree.items():
        path = os.fsencode(name.replace("__", "/"))
        if b"/" in path:
            first.make(path.rpartition(b"/")[0], Kind.DIRECTORY)
        first.write(path, os.fsencode(value))
    settled(world)
    return world


def copy(stem: str, worker: str, end: str = "") -> str:
    return f"{stem}.conflict-{STAMP}-{worker}{end}"


# Changes of one member


def test_what_one_member_changed_reaches_all() -> None:
    world = world_of(3, d__x="one", y="two", z="three")
    a, b, c = world.members
    b.write(b"d/x", b"newer")
    c.remove(b"y")
    a.write(b"d/new", b"n")
    settled(world)
    assert files(a) == {"d/x": "newer", "d/new": "n", "z": "three"}
    assert world.conflicts == []
    assert (a.trash, b.trash) == ([b"two"], [b"two"])


def test_the_same_change_on_two_sides_is_no_conflict() -> None:
    world = world_of(2, x="old", y="old")
    a, b = world.members
    for one in world.members:
        one.write(b"x", b"new")
        one.remove(b"y")
        one.write(b"z", b"both")
    settled(world)
    assert files(a) == {"x": "new", "z": "both"}
    assert world.conflicts == []
    assert a.tree[b"x"].mtime_ns == b.tree[b"x"].mtime_ns


@pytest.mark.parametrize("skew", [-100_000, 0, 100_000])
def test_clocks_hours_apart_decide_only_between_two_edits(skew: int) -> None:
    world = world_of(2, x="old", y="old")
    a, b = world.members
    b.skew = skew
    b.write(b"x", b"by b")
    a.remove(b"y")
    settled(world)
    assert files(a) == {"x": "by b"}
    b.write(b"x", b"b again")
    a.write(b"x", b"a too")
    settled(world)
    winner, loser = ("b again", "a too") if skew > 0 else ("a too", "b again")
    assert files(a) == {"x": winner, copy("x", "a" if skew > 0 else "b"): loser}


# Conflicts


def test_i7_the_newer_edit_keeps_the_name_and_the_others_become_copies() -> None:
    for order in permutations([b"1", b"2", b"3"]):
        world = world_of(3, SYNC, **{"x.tar.gz": "old"})
        for one, value in zip(world.members, order, strict=True):
            one.write(b"x.tar.gz", value, mtime_ns=int(value))
        assert settled(world).conflicts_total == 1
        shown = files(world.members[0])
        assert shown["x.tar.gz"] == "3"
        for one, value in zip(world.members, order, strict=True):
            if value != b"3":
                assert shown[copy("x.tar", one.name, ".gz")] == os.fsdecode(value)
        assert len(shown) == 3


def test_of_equal_times_the_member_listed_first_keeps_the_name() -> None:
    world = world_of(3, x="old")
    for one in world.members:
        one.write(b"x", b"from " + one.name.encode() * int(one.name == "b") + b"!", mtime_ns=5)
    plan = world.run()
    assert plan.conflicts_total == 1
    assert files(world.members[2]) == {"x": "from !", copy("x", "b"): "from b!"}


def test_newest_puts_the_other_version_into_the_trash_of_each_that_had_it() -> None:
    world = world_of(3, RunOptions(rule=Rule.SYNC, conflict=Conflict.NEWEST), x="old")
    a, b, c = world.members
    a.write(b"x", b"lost", mtime_ns=1)
    b.write(b"x", b"lost", mtime_ns=1)
    c.write(b"x", b"kept", mtime_ns=2)
    settled(world)
    assert files(a) == {"x": "kept"}
    assert (a.trash, b.trash, c.trash) == ([b"lost"], [b"lost"], [])


def test_suppress_changes_nothing_and_says_so_until_they_agree() -> None:
    world = world_of(2, RunOptions(rule=Rule.SYNC, conflict=Conflict.SUPPRESS), x="old", y="old")
    a, b = world.members
    a.write(b"x", b"by a")
    b.write(b"x", b"by b!")
    b.write(b"y", b"fine")
    for _ in range(2):
        assert world.run().conflicts_total == 1
        assert world.conflicts[0][0] == b"x"
        assert (files(a), files(b)) == ({"x": "by a", "y": "fine"}, {"x": "by b!", "y": "fine"})
    b.write(b"x", b"by a")
    assert world.run().conflicts_total == 0
    a.write(b"x", b"after all")
    settled(world)
    assert files(b) == {"x": "after all", "y": "fine"}


def test_an_edit_outlives_a_delete_and_is_counted() -> None:
    world = world_of(3, d__x="old", y="old")
    a, b, _ = world.members
    a.remove(b"d")
    b.write(b"d/x", b"edited")
    plan = settled(world)
    assert files(a) == {"d/x": "edited", "y": "old"}
    assert list(plan.conflicts()) == [
        (b"d/x", "deleted at a:r, changed at b:r: the change lives"),
    ]


def test_what_is_new_in_a_deleted_directory_keeps_it_and_nothing_else() -> None:
    world = world_of(2, d__x="old", d__y="old")
    a, b = world.members
    a.remove(b"d")
    b.write(b"d/new", b"new")
    settled(world)
    assert files(a) == {"d/new": "new"}
    assert b.trash == [b"old", b"old"]


def test_a_directory_keeps_the_name_and_the_file_becomes_a_copy() -> None:
    world = World.of(2, SYNC)
    a, b = world.members
    a.write(b"p", b"file")
    b.make(b"p", Kind.DIRECTORY)
    b.write(b"p/q", b"inside")
    plan = settled(world)
    assert files(a) == {"p/q": "inside", copy("p", "a"): "file"}
    assert plan.conflicts_total == 1


def test_a_directory_that_became_a_file_stays_one_where_something_lives_in_it() -> None:
    world = world_of(2, d__x="old", d__y="old")
    a, b = world.members
    a.remove(b"d")
    a.write(b"d", b"file")
    b.write(b"d/x", b"edited")
    settled(world)
    assert files(a) == {"d/x": "edited", copy("d", "a"): "file"}
    b.remove(b"d")
    b.write(b"d", b"now a file")
    settled(world)
    assert files(a) == {"d": "now a file", copy("d", "a"): "file"}
    assert directories(a) == set()


def test_attributes_merge_and_the_newest_ctime_wins_one() -> None:
    world = world_of(3, x="old")
    a, b, c = world.members
    a.chmod(b"x", 0o600)
    b.write(b"x", b"content")
    settled(world)
    assert [(one.tree[b"x"].mode, one.tree[b"x"].value) for one in world.members] == [
        (0o600, b"content")
    ] * 3
    b.chmod(b"x", 0o640)
    c.chmod(b"x", 0o660)
    a.chmod(b"", 0o700)
    settled(world)
    assert [one.tree[b"x"].mode for one in world.members] == [0o660] * 3
    assert [one.tree[b""].mode for one in world.members] == [0o700] * 3
    assert world.conflicts == []


# Members that know less than others


def test_a_member_that_was_away_gets_what_it_missed_and_its_old_versions_do_not_win() -> None:
    world = world_of(3, x="old", y="old", z="old")
    a, b, c = world.members
    c.tree[b"x"].mtime_ns = a.tree[b"x"].mtime_ns
    a.write(b"x", b"new", mtime_ns=1)
    b.remove(b"y")
    world.run(a, b)
    c.write(b"z", b"by c, away")
    settled(world)
    assert files(a) == files(c) == {"x": "new", "z": "by c, away"}


def test_what_a_member_changed_while_away_conflicts_with_what_the_others_did() -> None:
    world = world_of(3, x="old", y="old")
    a, b, c = world.members
    a.write(b"x", b"by a", mtime_ns=10)
    a.remove(b"y")
    world.run(a, b)
    c.write(b"x", b"by c, later", mtime_ns=20)
    c.write(b"y", b"edited by c")
    settled(world)
    assert files(b) == {"x": "by c, later", "y": "edited by c", copy("x", "a"): "by a"}


def test_i3_when_all_agreements_are_lost_nothing_is_deleted_or_overwritten() -> None:
    world = world_of(2, x="old", y="old", z="old")
    a, b = world.members
    a.write(b"x", b"by a", mtime_ns=1)
    b.remove(b"y")
    for one in world.members:
        one.records.clear()
        one.is_new = True
    settled(world)
    assert files(b) == {"x": "old", copy("x", "a"): "by a", "y": "old", "z": "old"}


def test_i3_a_member_that_lost_its_agreements_loses_nothing_else() -> None:
    world = world_of(2, x="old", y="old", z="old")
    a, b = world.members
    b.write(b"x", b"by b")
    b.remove(b"y")
    a.records.clear()
    a.is_new = True
    settled(world)
    assert files(b) == {"x": "by b", copy("x", "a"): "old", "y": "old", "z": "old"}


def test_a_member_approved_as_older_loses_every_conflict_and_deletes_nothing() -> None:
    world = world_of(2, x="old", y="old", z="old")
    a, b = world.members
    b.tree.pop(b"z")
    b.write(b"x", b"from a backup", mtime_ns=10**9)
    b.is_older = True
    settled(world)
    assert files(a) == {"x": "old", copy("x", "b"): "from a backup", "y": "old", "z": "old"}


def test_i8_nothing_is_concluded_from_what_a_member_could_not_show() -> None:
    world = world_of(3, d__x="old", d__y="old", z="old")
    a, b, c = world.members
    b.hidden = {b"d"}
    b.tree[b"d/x"].value = b"unseen"
    c.remove(b"z")
    plan = world.run()
    assert files(a) == {"d/x": "old", "d/y": "old"}, "what others deleted goes"
    assert [(one.what, one.member) for one in plan.problems] == [
        (What.SKIPPED, "a:r"),
        (What.SKIPPED, "c:r"),
    ]
    assert a.records[b"d/x"].entry is not None
    for already in (True, False):
        silent = [one.path for one in plan.agreements(1, already=already) if one.entry is None]
        assert silent == ([] if already else [b"z"]), "nothing is agreed to for what was not seen"
    b.hidden = set()
    b.tree[b"d/x"].value = b"old"
    settled(world)
    assert files(b) == {"d/x": "old", "d/y": "old"}


def test_two_runs_of_one_number_do_not_make_two_versions_look_agreed() -> None:
    world = world_of(4, x="old")
    a, b, c, d = world.members
    number = world.number
    a.write(b"x", b"by a and b", mtime_ns=1)
    world.run(a, b)
    world.number = number
    c.write(b"x", b"by c", mtime_ns=2)
    world.run(c, d)
    settled(world)
    assert files(a) == {"x": "by c", copy("x", "a"): "by a and b"}


def test_records_of_what_all_agreed_to_delete_go_in_the_end() -> None:
    world = world_of(2, x="old", y="old")
    a, b = world.members
    a.remove(b"x")
    settled(world)
    world.run()
    assert set(a.records) == set(b.records) == {b"", b"y"}


def test_a_deletion_is_remembered_for_as_long_as_somebody_may_bring_the_file_back() -> None:
    world = world_of(3, x="old", y="old")
    a, b, c = world.members
    a.remove(b"x")
    for _ in range(3):
        world.run(a, b)
    settled(world)
    assert files(c) == {"y": "old"}


# Exchange


def test_exchange_brings_back_what_was_deleted_unless_all_did() -> None:
    world = world_of(3, EXCHANGE, d__x="old", y="old", z="old")
    a, b, c = world.members
    a.remove(b"d")
    for one in world.members:
        one.remove(b"y")
    b.write(b"z", b"edited")
    settled(world)
    assert files(a) == {"d/x": "old", "z": "edited"}
    assert world.conflicts == []
    a.rename(b"z", b"w")
    settled(world)
    assert files(c) == {"d/x": "old", "z": "edited", "w": "edited"}


def test_exchange_brings_the_newest_version_back_even_from_a_member_that_was_away() -> None:
    world = world_of(3, EXCHANGE, x="old")
    a, b, c = world.members
    a.remove(b"x")
    b.remove(b"x")
    world.run(a, b)
    assert files(a) == {}
    settled(world)
    assert files(a) == files(c) == {"x": "old"}


# What is left alone


def sighted(path: str, kind: Kind, *, agreed: int = 0) -> Sighting:
    entry = Entry(os.fsencode(path), kind, 0o644, 5, 0, seen=7)
    return Sighting(entry.path, entry, Agreed(agreed, entry) if agreed else None)


def top(agreed: int = 1) -> Sighting:
    return sighted("", Kind.DIRECTORY, agreed=agreed)


def gone(path: str, kind: Kind = Kind.FILE) -> Sighting:
    was = sighted(path, kind, agreed=1)
    return was._replace(now=None)


def planned(*listings: list[Sighting], options: RunOptions = SYNC) -> SyncPlan:
    facts = tuple(
        MemberFacts(f"{name}:r", name, is_complete=lambda: True) for name in "abc"[: len(listings)]
    )
    return plan_sync(listings, options, JointRun(facts, 0, 2, STAMP))


@pytest.mark.parametrize("kind", [Kind.EXCLUDED, Kind.SPECIAL])
def test_what_is_left_alone_is_forgotten_with_all_that_is_below(kind: Kind) -> None:
    with planned(
        [top(), sighted("d", Kind.DIRECTORY, agreed=1), sighted("d/x", Kind.FILE, agreed=1)],
        [top(), sighted("d", kind, agreed=1), gone("d/x")],
    ) as plan:
        assert plan.is_empty
        for member in (0, 1):
            forgotten = {
                one.path for one in plan.agreements(member, already=True) if not one.number
            }
            assert forgotten == {b"d", b"d/x"}
        assert [one.path for one in plan.problems] == ([b"d"] if kind is Kind.SPECIAL else [])


def test_a_directory_that_holds_what_is_left_alone_is_not_removed() -> None:
    here = [
        top(),
        sighted("d", Kind.DIRECTORY, agreed=1),
        sighted("d/cache", Kind.EXCLUDED),
        sighted("d/x", Kind.FILE, agreed=1),
    ]
    with planned([top(), gone("d", Kind.DIRECTORY), gone("d/x")], here) as plan:
        assert [change.path for change in plan.plans[1].extras] == [b"d/x"]
        assert plan.summaries[1].deletes == 1
        absent = [one.path for one in plan.agreements(0, already=True)]
        assert absent == [b"d/x", b"d"]


# Names of conflict copies


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "a.conflict-S-w.txt"),
        ("a", "a.conflict-S-w"),
        (".profile", ".profile.conflict-S-w"),
        (".a.b", ".a.conflict-S-w.b"),
        ("a.tar.gz", "a.tar.conflict-S-w.gz"),
        ("a.", "a.conflict-S-w."),
        ("d/x.y", "d/x.conflict-S-w.y"),
        ("d.e/x", "d.e/x.conflict-S-w"),
        ("n" * 255, "n" * 242 + ".conflict-S-w"),
        ("é" * 127, "é" * 121 + ".conflict-S-w"),
        ("n" * 250 + ".txt", "n" * 238 + ".conflict-S-w.txt"),
    ],
)
def test_the_name_of_a_conflict_copy(name: str, expected: str) -> None:
    given = ConflictNames("S").give(name.encode(), "w")
    assert given == expected.encode()
    assert all(len(part) <= 255 for part in given.split(b"/"))


def test_a_name_that_is_no_utf8_is_cut_where_it_must_be() -> None:
    given = ConflictNames("S").give(b"\x80" * 255, "w")
    assert given == b"\x80" * 242 + b".conflict-S-w"


def test_a_name_that_is_taken_on_any_member_gets_a_number() -> None:
    world = world_of(3, SYNC, **{"x.txt": "old"})
    a, b, c = world.members
    c.write(os.fsencode(copy("x", "a", ".txt")), b"taken")
    a.write(b"x.txt", b"loses", mtime_ns=1)
    b.write(b"x.txt", b"wins", mtime_ns=2)
    settled(world)
    assert files(a) == {
        "x.txt": "wins",
        copy("x", "a", ".txt"): "taken",
        copy("x", "a-2", ".txt"): "loses",
    }


def test_a_name_that_all_agreed_on_is_taken_as_well() -> None:
    """As when two runs of one second find a conflict at the same path."""
    world = world_of(2, x="one")
    a, b = world.members
    for time in (10, 20):
        a.write(b"x", b"by a, %d" % time, mtime_ns=time)
        b.write(b"x", b"by b, %d" % time, mtime_ns=time + 1)
        settled(world)
    assert files(b) == {
        "x": "by b, 20",
        copy("x", "a"): "by a, 10",
        copy("x", "a", "-2"): "by a, 20",
    }


# The whole


def test_the_digest_leaves_stamp_and_number_alone_but_nothing_else() -> None:
    def digest(stamp: str, number: int, value: int) -> bytes:
        listings = [
            [top(), sighted("x", Kind.FILE)],
            [top(), Sighting(b"x", Entry(b"x", Kind.FILE, 0o644, value, 3, seen=9))],
        ]
        facts = tuple(MemberFacts(f"{name}:r", name, is_complete=lambda: True) for name in "ab")
        with plan_sync(listings, SYNC, JointRun(facts, 0, number, stamp)) as plan:
            assert plan.conflicts_total == 1
            return plan.digest

    first = digest(STAMP, 2, 5)
    assert digest("20270102-030405", 9, 5) == first
    assert digest(STAMP, 2, 6) != first


def test_only_content_tells_two_files_of_one_size_apart() -> None:
    world = World.of(2, SYNC)
    a, b = world.members
    a.write(b"same", b"12345")
    b.write(b"same", b"12345")
    a.write(b"other", b"12345")
    b.write(b"other", b"54321")
    plan = world.run()
    assert [path for path, _ in plan.conflicts()] == [b"other"]
    assert files(a) == {"same": "12345", "other": "54321", copy("other", "a"): "12345"}
    assert a.tree[b"same"].mtime_ns == b.tree[b"same"].mtime_ns


def test_a_million_paths_need_no_more_memory_than_a_thousand() -> None:
    import tracemalloc

    def listing(number: int, member: int) -> Iterator[Sighting]:
        yield top()
        for n in range(number):
            entry = Entry(b"%08d" % n, Kind.FILE, 0o644, n + member * (n % 50 == 0), 1, seen=n + 1)
            yield Sighting(entry.path, entry, Agreed(1, entry._replace(mtime_ns=n)))

    def peak(number: int) -> int:
        facts = tuple(MemberFacts(f"{name}:r", name, is_complete=lambda: True) for name in "ab")
        run = JointRun(facts, 0, 2, STAMP)
        tracemalloc.start()
        try:
            with plan_sync([listing(number, 0), listing(number, 1)], SYNC, run) as plan:
                assert plan.summaries[0].files == number // 50
                return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(2_000), peak(20_000)
    assert large < small + 4_000_000


def test_checksums_decide_where_the_job_says_so() -> None:
    world = World.of(2, RunOptions(rule=Rule.SYNC, compare=Compare.CHECKSUM))
    a, b = world.members
    a.write(b"x", b"12345", mtime_ns=5)
    b.write(b"x", b"54321", mtime_ns=5)
    plan = world.run()
    assert plan.conflicts_total == 1
    settled(world)


def owned(user: bytes, **xattrs: bytes) -> bytes:
    packed = tuple(sorted((b"user." + os.fsencode(name), value) for name, value in xattrs.items()))
    return encode(Attributes(1000 + len(user), user, 1000, b"staff", packed))


def test_each_extended_attribute_merges_by_itself() -> None:
    base = Entry(b"x", Kind.FILE, 0o644, 5, 3, seen=7, attributes=owned(b"ann", k=b"0", other=b"0"))
    ours = base._replace(attributes=owned(b"ann", k=b"1", other=b"0"), ctime_ns=1)
    theirs = base._replace(attributes=owned(b"robert", k=b"2", other=b"2"), ctime_ns=2)
    record = Agreed(1, base)
    with planned(
        [top(), Sighting(b"x", ours, record)], [top(), Sighting(b"x", theirs, record)]
    ) as plan:
        (change,) = plan.local
        assert isinstance(change, SetMetadata)
        assert change.attributes == owned(b"robert", k=b"2", other=b"2")
        assert plan.plans[1].is_empty
    alone = base._replace(attributes=owned(b"ann", k=b"0", other=b"3"), ctime_ns=3)
    with planned(
        [top(), Sighting(b"x", ours, record)], [top(), Sighting(b"x", alone, record)]
    ) as plan:
        for changes in (plan.local, plan.plans[1]):
            (change,) = changes
            assert isinstance(change, SetMetadata)
            assert change.attributes == owned(b"ann", k=b"1", other=b"3")


# Hard links


LINKED = RunOptions(rule=Rule.SYNC, keep_hardlinks=True)


def test_names_of_one_file_are_names_of_one_file_everywhere() -> None:
    world = world_of(3, LINKED, x="one", z="other")
    a, b, c = world.members
    b.link(b"y", b"x")
    b.link(b"a-first", b"z")
    c.write(b"new", b"fresh")
    c.link(b"new2", b"new")
    plan = settled(world)
    assert files(a) == {
        "x": "one",
        "y": "one",
        "z": "other",
        "a-first": "other",
        "new": "fresh",
        "new2": "fresh",
    }
    assert a.tree[b"x"] is a.tree[b"y"]
    assert a.tree[b"new"] is a.tree[b"new2"]
    assert plan.summaries[0].files == 2, "the content of a first name is all that is sent"

    a.write(b"x", b"changed")
    settled(world)
    assert files(c)["y"] == "changed"
    assert c.tree[b"x"] is c.tree[b"y"]


def test_a_name_that_got_a_file_of_its_own_is_split_off_everywhere() -> None:
    world = world_of(2, LINKED, x="one")
    a, b = world.members
    a.link(b"y", b"x")
    settled(world)
    b.remove(b"y")
    b.write(b"y", b"mine now")
    settled(world)
    assert files(a) == {"x": "one", "y": "mine now"}


def test_a_link_to_what_loses_a_conflict_does_not_spread_the_wrong_content() -> None:
    world = world_of(2, LINKED, x="one")
    a, b = world.members
    a.write(b"x", b"by a, newer", mtime_ns=10**6)
    a.link(b"y", b"x")
    b.write(b"x", b"by b", mtime_ns=1)
    settled(world)
    assert files(b) == {"x": "by a, newer", "y": "by a, newer", copy("x", "b"): "by b"}


def test_conflict_copies_of_one_file_are_one_file_everywhere() -> None:
    world = world_of(3, LINKED, x="one", y="two", z="three")
    _, b, c = world.members
    for path in (b"x", b"y"):
        b.remove(path)
        c.write(path, b"by c", mtime_ns=20)
    b.write(b"x", b"by b", mtime_ns=10)
    b.link(b"y", b"x")
    plan = settled(world)
    for one in world.members:
        assert files(one)[copy("y", "b")] == "by b"
        assert one.tree[os.fsencode(copy("x", "b"))] is one.tree[os.fsencode(copy("y", "b"))]
    assert plan.summaries[0].files == 3, "x and y of c, and one content for both copies"


def test_a_conflict_copy_is_linked_to_what_kept_its_name() -> None:
    """Whichever of the two comes first."""
    world = world_of(2, LINKED, m="one", a="two", z="three")
    a, b = world.members
    b.write(b"m", b"by b", mtime_ns=10)
    for path in (b"a", b"z"):
        b.remove(path)
        b.link(path, b"m")
        a.write(path, b"by a", mtime_ns=20)
    settled(world)
    for one in world.members:
        for path in (b"a", b"z"):
            assert one.tree[os.fsencode(copy(os.fsdecode(path), "b"))] is one.tree[b"m"]
