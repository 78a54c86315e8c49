"""I7: members stop and start while everybody writes, and no version is lost.

What a member agreed to may be overwritten when others have agreed to something newer without it. So
nothing may be agreed to that they need not know.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cli.chaos.history import Any, Changed
from cli.chaos.traffic import Writer
from cli.chaos.trees import entries_of, versions_below
from syncengine.model import Rule, RunOptions, Safety
from tests.faults.members import JOB, Members
from wire.orders import Outcome
from worker import n_way
from worker.joint_pass import Pass
from worker.member_tree import MemberTree
from worker.n_way import NWayRun
from worker.peer_listing import PeerFailed
from worker.run import Part

SYNC = RunOptions(rule=Rule.SYNC, safety=Safety(max_delete=None, max_delete_files=None))
ROUNDS = 6
RATE = 40.0

Hindrance = Callable[[Members, pytest.MonkeyPatch], None]


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[Members]:
    members = Members(tmp_path, ["a", "b", "c"], SYNC)
    await members.open()
    yield members
    await members.close()


def dies(_members: Members, patch: pytest.MonkeyPatch) -> None:
    """The runner dies before anybody gets anything."""

    async def gather(_run: NWayRun, _now: Pass, _opened: MemberTree) -> bool:
        raise OSError("dies here")

    patch.setattr(NWayRun, "_gather", gather)


def is_cut_off(_members: Members, patch: pytest.MonkeyPatch) -> None:
    """All others are gone when they are to get it."""

    async def push(_run: NWayRun, _now: Pass, _opened: MemberTree, part: Part) -> None:
        part.failed(PeerFailed("cut off"))

    patch.setattr(NWayRun, "_push", push)


def has_no_way(members: Members, patch: pytest.MonkeyPatch) -> None:
    """At all others a file lies just then where the directory is to be made."""
    honest = NWayRun._do

    async def edited(run: NWayRun, now: Pass, opened: MemberTree) -> None:
        for worker in (members.workers[0], members.workers[2]):
            (worker.root / "d").write_text("in the way")
        await honest(run, now, opened)

    patch.setattr(NWayRun, "_do", edited)
    patch.setattr(n_way, "PASSES", 1)


@pytest.mark.parametrize("by", ["edit", "delete"])
@pytest.mark.parametrize("hindrance", [dies, is_cut_off, has_no_way])
async def test_i7_what_only_one_member_agreed_to_is_not_taken_for_known(
    members: Members, monkeypatch: pytest.MonkeyPatch, hindrance: Hindrance, by: str
) -> None:
    a, b, _c = members.roots
    for name in ("d/f", "g", "h") if hindrance is not has_no_way else ("g", "h"):
        (a / name).parent.mkdir(exist_ok=True)
        (a / name).write_text("old")
    assert (await members.run()).outcome is Outcome.SUCCEEDED
    (b / "d").mkdir(exist_ok=True)
    (b / "d/f").write_text("of b alone")
    with monkeypatch.context() as patch:
        hindrance(members, patch)
        assert (await members.run(1)).outcome is Outcome.FAILED
    assert not (a / "d/f").exists() or (a / "d/f").read_text() == "old"
    await members.workers[1].stop()
    if (a / "d").is_file():
        (a / "d").unlink()
        (a / "d").mkdir()
    (a / "d/f").write_text("of a, who knew nothing of that of b")
    await members.run()
    if by == "delete":
        (a / "d/f").unlink()
        await members.run()
    await members.workers[1].start()
    assert (await members.run()).outcome is Outcome.SUCCEEDED
    for root in members.roots:
        found = {path.read_text() for path in (root / "d").glob("f*")}
        assert "of b alone" in found, found


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [0, 3])
async def test_i7_i10_members_stop_and_start_while_all_write(
    members: Members, tmp_path: Path, seed: int
) -> None:
    """Another runner each time, and nobody waits for a run to succeed."""
    began = time.monotonic()
    changes: list[Changed] = []

    def note(event: Any) -> None:
        assert isinstance(event, Changed)
        changes.append(event)

    writers = [
        Writer(
            JOB,
            worker.name,
            worker.root,
            tmp_path / f"scratch-{worker.name}",
            number=number,
            seed=seed,
            rate=RATE,
            note=note,
            now=lambda: time.monotonic() - began,
        )
        for number, worker in enumerate(members.workers)
    ]
    dice = random.Random(seed)
    for writer in writers:
        writer.start()
    for _ in range(ROUNDS):
        await members.run()
        away = dice.randrange(3)
        await members.workers[away].stop()
        for _ in range(2):
            await members.run((away + 1) % 3)
        await members.workers[away].start()
    await asyncio.gather(*(asyncio.to_thread(writer.stop) for writer in writers))
    for _ in range(6):
        ended = await members.run()
        if ended.outcome is Outcome.SUCCEEDED:
            break
    assert ended.outcome is Outcome.SUCCEEDED, ended.problems
    trees = [entries_of(root) for root in members.roots]
    assert trees[0] == trees[1] == trees[2]
    left = {version for tree in trees for version in tree.values()}
    for root in members.roots:
        left.update(versions_below(root / ".baton"))
    written = {one.version: one for one in changes if one.version}
    taken = {one.displaced for one in changes}
    lost = [one for version, one in written.items() if version not in taken | left]
    assert not lost, f"of {len(written)} versions"
