"""Passes of sync and exchange over a part of the trees come to what whole runs come to."""

import os
import random
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from syncengine.model import HoldReason, Rule, RunOptions, Safety, What
from syncengine.scope import Scope
from tests.faults.members import Members
from tests.worker.test_passes import NO_LIMITS, Writer, picture, shallow
from wire.orders import Outcome
from worker.n_way_pass import NWayPasses

SYNC = RunOptions(rule=Rule.SYNC, safety=NO_LIMITS)


class Three:
    """Three real workers, and the passes among them that the first carries out."""

    def __init__(self, members: Members, passes: NWayPasses) -> None:
        self.members, self.passes = members, passes
        self.roots = members.roots

    async def over(self, scope: Scope) -> None:
        """Pass until all is equal."""
        for _ in range(4):
            done = await self.passes.pass_over(scope)
            scope = Scope()
            for one in done:
                scope |= one.unequal
            if scope.is_empty:
                return
        raise AssertionError(done)

    def are_equal(self) -> bool:
        first, *others = map(picture, self.roots)
        return all(one == first for one in others)


@pytest.fixture
async def three(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Three]:
    members = Members(tmp_path, ["a", "b", "c"], getattr(request, "param", SYNC))
    await members.open()
    passes = await members.joint_passes()
    yield Three(members, passes)
    await passes.close()
    await members.close()


def write(root: Path, path: str, content: str = "") -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content or f"<{path}>")


async def test_a_change_at_any_member_goes_to_all(three: Three) -> None:
    a, b, c = three.roots
    for number in range(20):
        write(a, f"d/f{number}")
    await three.over(Scope.whole())
    write(b, "d/f3", "from b")
    write(c, "new/x", "from c")
    (c / "d/f4").unlink()
    write(a, "d/f9", "not told")
    done = await three.passes.pass_over(shallow("d/f3", "new", "d/f4"))
    assert all(one.is_equal for one in done)
    assert done[0].counts.files_scanned <= 6
    for root in three.roots:
        assert (root / "d/f3").read_text() == "from b"
        assert (root / "new/x").read_text() == "from c"
        assert not (root / "d/f4").exists()
    assert (b / "d/f9").read_text() == "<d/f9>"
    again = await three.passes.pass_over(shallow("d/f3", "new", "d/f4", "gone/x"))
    assert [(one.is_equal, one.changes) for one in again] == [(True, 0)] * 3


async def test_own_writes_are_no_changes(three: Three) -> None:
    """What a pass wrote is as agreed at every member: nothing goes back."""
    a, b, c = three.roots
    write(a, "f", "one")
    await three.over(shallow("f"))
    for _ in range(3):
        done = await three.passes.pass_over(shallow("f"))
        assert [one.changes for one in done] == [0, 0, 0]
    write(c, "f", "two")
    await three.over(shallow("f"))
    assert (a / "f").read_text() == (b / "f").read_text() == "two"


async def test_a_conflict_in_a_scope_is_decided_by_the_rule(three: Three) -> None:
    a, b, c = three.roots
    write(a, "d/f", "old")
    await three.over(Scope.whole())
    for round_ in range(2):
        write(a, "d/f", f"from a {round_}")
        write(b, "d/f", f"from b {round_}!")
        await three.over(shallow("d/f"))
        assert three.are_equal()
        kept = [place.read_text() for place in sorted((c / "d").iterdir())]
        assert len(kept) == 2 + round_, kept
        assert {f"from a {round_}", f"from b {round_}!"} <= set(kept)


async def test_what_one_member_lacks_is_looked_at_whole(three: Three) -> None:
    a, b, c = three.roots
    for path in ("d/x", "d/y", "d/e/z", "k"):
        write(a, path)
    await three.over(Scope.whole())
    shutil.rmtree(c / "d")
    write(a, "d/x", "edited")
    await three.over(shallow("d/x"))
    # The edit lives; what was only deleted goes, wherever in the directory it lay.
    assert three.are_equal()
    assert [place.name for place in (b / "d").iterdir()] == ["x"]
    for root in (a, b):
        shutil.rmtree(root / "d")
    await three.over(shallow("d/x"))
    assert not (c / "d").exists()


async def test_a_rename_of_a_directory_is_one(three: Three) -> None:
    a, b, c = three.roots
    for number in range(30):
        write(a, f"d/{number}", "x" * 500)
    await three.over(Scope.whole())
    inode = (c / "d/7").stat().st_ino
    (b / "d").rename(b / "e")
    await three.over(Scope(deep=[b"e"], shallow=[b"d"]))
    assert three.are_equal()
    assert (c / "e/7").stat().st_ino == inode
    assert not (a / "d").exists()


@pytest.mark.parametrize("three", [replace(SYNC, rule=Rule.EXCHANGE)], indirect=True)
async def test_an_exchange_brings_back_what_a_scope_names(three: Three) -> None:
    a, b, _ = three.roots
    write(a, "d/f")
    write(a, "d/g")
    await three.over(Scope.whole())
    (b / "d/f").unlink()
    (b / "d/g").unlink()
    await three.over(shallow("d/f"))
    assert (b / "d/f").exists()
    assert not (b / "d/g").exists()


async def test_a_member_that_is_away_is_passed_over_again(three: Three) -> None:
    a, b, c = three.roots
    write(a, "f", "one")
    await three.over(Scope.whole())
    await three.members.workers[2].stop()
    write(a, "f", "two")
    done = await three.passes.pass_over(shallow("f"))
    assert [(one.is_equal, one.is_away) for one in done] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert done[2].unequal == shallow("f")
    assert What.UNREACHABLE in [problem.what for problem in done[2].problems]
    assert (b / "f").read_text() == "two"
    await three.members.workers[2].start()
    passes = await three.members.joint_passes()
    done = await passes.pass_over(shallow("f"))
    assert all(one.is_equal for one in done)
    assert (c / "f").read_text() == "two"
    await passes.close()


async def test_i8_a_scope_that_empties_a_member_is_held(three: Three) -> None:
    a, b, _ = three.roots
    write(a, "only")
    await three.over(Scope.whole())
    (b / "only").unlink()
    held = await three.passes.pass_over(shallow("only"))
    assert {hold.reason for one in held for hold in one.holds} == {HoldReason.EMPTIED}
    assert all(one.unequal == shallow("only") for one in held)
    assert (a / "only").exists()
    done = await three.passes.pass_over(shallow("only"), approved=held[0].digest)
    assert all(one.is_equal for one in done)
    assert not (a / "only").exists()


async def test_i8_a_scope_is_judged_against_the_whole_of_a_member(three: Three) -> None:
    three.members.options = replace(SYNC, safety=Safety(max_delete=0.5))
    passes = await three.members.joint_passes()
    a, b, c = three.roots
    for number in range(10):
        write(a, f"f{number}")
    assert all(one.is_equal for one in await passes.pass_over(Scope.whole()))
    for number in range(5):
        (b / f"f{number}").unlink()
        assert all(one.is_equal for one in await passes.pass_over(shallow(f"f{number}")))
    (b / "f5").unlink()
    held = await passes.pass_over(shallow("f5"))
    assert {hold.reason for one in held for hold in one.holds} == {HoldReason.MAX_DELETE}
    assert (c / "f5").exists()
    await passes.close()


@pytest.mark.parametrize("seed", range(3))
async def test_i10_scoped_passes_make_all_members_equal(three: Three, seed: int) -> None:
    """After any changes anywhere, passes over just the paths told leave nothing to find."""
    chance = random.Random(seed)
    writers = [Writer(root, 10 * seed + n, links=False) for n, root in enumerate(three.roots)]
    for _ in range(40):
        writers[0].change()
    writers[0].taken()
    await three.over(Scope.whole())
    assert three.are_equal()
    for number in range(15):
        scope = Scope()
        for writer in writers:
            for _ in range(chance.randrange(0, 6)):
                writer.change()
            scope |= writer.taken()[0]
        if not all(len(os.listdir(root)) > 1 for root in three.roots):
            break  # that is held, and another test
        await three.over(scope)
        assert three.are_equal(), (number, scope)
    audit = await three.passes.pass_over(Scope.whole())
    assert [(one.is_equal, one.changes) for one in audit] == [(True, 0)] * 3
    ended = await three.members.run()
    assert ended.outcome is Outcome.SUCCEEDED
    assert (ended.counts.files_copied, ended.counts.files_deleted) == (0, 0)
