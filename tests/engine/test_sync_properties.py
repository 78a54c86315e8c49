"""Random edits on all members of a joint job, against a simple model (I7, I8, I10, I11).

The oracle knows nothing of how the planner decides: what a member wrote and nobody else has seen must
be somewhere afterwards; what disappears must have been deleted or replaced by somebody; all members
are equal then, and one more run does nothing.
"""

import copy
import random
from collections.abc import Sequence

from hypothesis import event, given, settings
from hypothesis import strategies as st

from syncengine.model import Compare, Conflict, Entry, Kind, Rule, RunOptions
from tests.engine.joint_model import Member, World

PATHS = [b"a", b"b", b"a/a", b"a/b", b"b/a", b"b/b", b"a/a/a", b"a/b/c", b"b/a/a"]
OPS = st.tuples(
    st.sampled_from(
        [
            "write",
            "write",
            "write",
            "remove",
            "remove",
            "mkdir",
            "link",
            "chmod",
            "rename",
            "old",
            "dir",
            "hard",
        ]
    ),
    st.integers(0, 2),
    st.sampled_from(PATHS),
    st.sampled_from(PATHS),
)
ROUNDS = st.lists(
    st.tuples(
        st.lists(OPS, max_size=8),
        st.integers(0, 7),
        st.integers(0, 2),
        st.sampled_from(["", "", "", "lost", "hidden", "all-lost"]),
    ),
    min_size=1,
    max_size=4,
)


class Values:
    """Gives out values of one length, so that only times and content tell them apart."""

    def __init__(self) -> None:
        self.number = 0

    def new(self) -> bytes:
        self.number += 1
        return b"v%05d" % self.number


def edit(world: World, ops: Sequence[tuple[str, int, bytes, bytes]], values: Values) -> None:
    for op, number, path, other in ops:
        member = world.members[number % len(world.members)]
        node = member.tree.get(path)
        match op:
            case "write":
                member.write(path, values.new())
            case "old":
                # The same time at all members; of the same size too, nothing would tell them apart.
                member.write(path, values.new() + b"+" * values.number, mtime_ns=7)
            case "remove":
                member.remove(path)
            case "mkdir":
                member.make(path, Kind.DIRECTORY)
            case "link":
                member.make(path, Kind.SYMLINK, values.new())
            case "chmod":
                member.chmod(path, 0o600 if node and node.mode != 0o600 else 0o640)
            case "rename":
                member.rename(path, other)
            case "hard":
                member.link(path, other)
            case "dir":
                # A file becomes a directory, or the other way round.
                member.remove(path)
                if node is not None and node.kind is Kind.DIRECTORY:
                    member.write(path, values.new())
                else:
                    member.make(path, Kind.DIRECTORY)


def unseen_by_others(member: Member) -> set[bytes]:
    """Values that only this member can vouch for: they are not what it agreed to."""
    found = set()
    # What was only renamed is what it agreed to: an edit elsewhere may follow it and take its place.
    agreed_to = {
        one.entry[1:2] + one.entry[3:6] + (one.entry.inode,)
        for one in member.records.values()
        if one.entry is not None
    }
    for path, node in member.tree.items():
        mine = node.entry(path)
        if mine[1:2] + mine[3:6] + (mine.inode,) in agreed_to:
            continue
        agreed = member.records.get(path)
        was = agreed.entry if agreed is not None else None
        if node.kind is Kind.DIRECTORY:
            continue
        if was is None or not same(was, node.entry(path)):
            found.add(node.value)
    return found


def same(one: Entry, other: Entry) -> bool:
    return one[1:2] + one[3:6] == other[1:2] + other[3:6]


def everything(world: World) -> set[bytes]:
    held: set[bytes] = set()
    for member in world.members:
        held.update(node.value for node in member.tree.values())
        held.update(member.trash)
    return held


def deleted_by_somebody(members: Sequence[Member], path: bytes) -> bool:
    """Whether a member agreed to what is at the path, and has it no more (or not as it was)."""
    for member in members:
        agreed = member.records.get(path)
        node = member.tree.get(path)
        if agreed is None:
            continue
        if agreed.entry is None:
            return True
        if node is None or not same(agreed.entry, node.entry(path)):
            return True
    return False


def check_run(world: World, reached: list[Member], runner: int) -> None:
    before = {one.name: dict(one.tree) for one in reached}
    precious = set().union(*(unseen_by_others(one) for one in reached))
    gone_by_hand = {
        path: deleted_by_somebody(reached, path) for one in reached for path in one.tree
    }
    world.run(*reached, runner=runner)
    lost = precious - everything(world)
    assert not lost, f"I7: {lost} are nowhere"
    for one in reached:
        for path, node in before[one.name].items():
            if path not in one.tree and node.kind is not Kind.DIRECTORY:
                assert gone_by_hand[path], f"I11: nobody deleted {path!r} of {one.name}"


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(2, 3),
    rounds=ROUNDS,
    rule=st.sampled_from([Rule.SYNC, Rule.SYNC, Rule.EXCHANGE]),
    policy=st.sampled_from([Conflict.KEEP_BOTH, Conflict.NEWEST]),
    compare=st.sampled_from(list(Compare)),
    skew=st.sampled_from([0, 0, -10_000, 10_000]),
    links=st.booleans(),
)
def test_i7_i10_i11_members_become_equal_and_lose_nothing(
    count: int,
    rounds: list[tuple[list[tuple[str, int, bytes, bytes]], int, int, str]],
    rule: Rule,
    policy: Conflict,
    compare: Compare,
    skew: int,
    links: bool,
) -> None:
    options = RunOptions(rule=rule, conflict=policy, compare=compare, keep_hardlinks=links)
    world = World.of(count, options)
    world.members[1].skew = skew
    values = Values()
    for ops, away, runner, mishap in rounds:
        edit(world, ops, values)
        reached = [one for number, one in enumerate(world.members) if not away >> number & 1]
        if len(reached) < 2:
            reached = world.members
        if mishap == "lost":
            reached[0].records.clear()
            reached[0].is_new = True
        elif mishap == "all-lost":
            for one in world.members:
                one.records.clear()
                one.is_new = True
        check_run(world, reached, runner % len(reached))
        for one in reached:
            one.is_new = False
            assert world.picture(one) == world.picture(reached[0]), "I10: not equal"
        event(f"conflicts {min(len(world.conflicts), 3)}")
        again = world.run(*reached, runner=(runner + 1) % len(reached))
        assert again.is_empty, f"I10: {[list(plan) for plan in again.all_plans()]}"
        assert again.conflicts_total == 0
    # All are there again.
    check_run(world, world.members, 0)
    for one in world.members:
        assert world.picture(one) == world.picture(world.members[0])
    assert world.run().is_empty
    third = world.run()
    assert third.is_empty
    for number in range(count):
        for already in (True, False):
            assert not list(third.agreements(number, already=already)), "nothing is agreed to twice"


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 3), rounds=ROUNDS)
def test_i7_a_suppressed_conflict_loses_nothing_and_stands_still(
    count: int, rounds: list[tuple[list[tuple[str, int, bytes, bytes]], int, int, str]]
) -> None:
    world = World.of(count, RunOptions(rule=Rule.SYNC, conflict=Conflict.SUPPRESS))
    values = Values()
    for ops, _, runner, _ in rounds:
        edit(world, ops, values)
        check_run(world, world.members, runner % count)
        assert world.run().is_empty


@settings(max_examples=30, deadline=None)
@given(rounds=ROUNDS, seed=st.integers(0, 99))
def test_i11_the_order_of_independent_changes_is_of_no_importance(
    rounds: list[tuple[list[tuple[str, int, bytes, bytes]], int, int, str]], seed: int
) -> None:
    """Each directory's own changes of one phase, in any order, come to the same tree."""
    world, values = World.of(3, RunOptions(rule=Rule.SYNC)), Values()
    edit(world, rounds[0][0], values)
    world.run()
    edit(world, [op for ops, _, _, _ in rounds for op in ops], values)
    shuffled = copy.deepcopy(world)
    shuffled.shuffle = random.Random(seed)
    for one in (world, shuffled):
        one.run()
    for ours, theirs in zip(world.members, shuffled.members, strict=True):
        assert world.picture(ours) == shuffled.picture(theirs)
