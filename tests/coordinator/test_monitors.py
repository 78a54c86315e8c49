"""Runs that follow changes: one at a time, open for as long as they may go on, healed by themselves."""

import asyncio
from datetime import timedelta

import pytest

from coordinator.ledger_proof import prove
from coordinator.memory_store import MemoryStore
from coordinator.present import exposure_of
from coordinator.records import RunRecord
from syncengine.model import Counts, Hold, HoldReason
from tests.coordinator.fake_workers import unreachable
from tests.coordinator.owners import OwnerNode, OwnerScene, in_owner_scene
from tests.coordinator.test_moving import pause
from tests.coordinator.worlds import JOB, START, until
from wire.orders import Outcome

REALTIME = {"realtime": {"settle": "20ms", "audit": "1h"}}
W2, W3 = "w2:data", "w3:data"
HOLD = Hold(HoldReason.MAX_DELETE, W2, "would delete 9 of 10 files")


async def followed(scene: OwnerScene) -> str:
    """Wait until the source follows changes and the owner has recorded it; return the run."""
    async with asyncio.timeout(30):
        while not (await scene.state()).followed:
            await asyncio.sleep(0.01)
    return (await scene.state()).last_run


async def exposure(scene: OwnerScene, node: OwnerNode) -> dict[str, float | None]:
    return exposure_of(node.catalog.jobs[JOB], await scene.state(), scene.world.wall())


async def only_run(scene: OwnerScene) -> RunRecord:
    ((_, record),) = await scene.runs()
    return record


async def check_ledger(scene: OwnerScene, node: OwnerNode) -> None:
    state, raw = await scene.ledger.whole(JOB)
    proof = prove(JOB, node.catalog.jobs[JOB], state, raw, scene.world.wall())
    assert proof.findings == ()


def test_one_run_begins_at_once_and_stays_open() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await followed(scene)
        scene.source.tell_monitored(counts=Counts(files_scanned=7, files_copied=3))
        await scene.sleep(200)
        record = await only_run(scene)
        assert (record.outcome, record.ended) == (Outcome.RUNNING, None)
        assert record.counts.files_copied == 3
        state = await scene.state()
        assert (state.phase, state.reason) == ("monitoring", "")
        assert state.last_success is not None
        assert await exposure(scene, node) == {W2: 0, W3: 0}
        assert [start.monitor and start.monitor.settle_s for start in scene.source.starts] == [0.02]
        await check_ledger(scene, node)

    in_owner_scene(test, trigger=REALTIME)


def test_what_a_worker_counts_anew_after_its_restart_is_added() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await followed(scene)
        scene.source.tell_monitored(counts=Counts(files_copied=3), audits=1, audit_found=2)
        scene.source.tell_monitored(counts=Counts(files_copied=5), audits=2, audit_found=2)
        await scene.sleep(20)
        scene.source.die()
        await scene.sleep(60)  # longer than any other run waits for its source
        scene.source.come_back()
        await until(lambda: scene.source.lives == 2)
        await scene.sleep(1)
        scene.source.tell_monitored(counts=Counts(files_copied=4), audits=1, audit_found=1)
        await scene.sleep(20)
        record = await only_run(scene)
        assert record.counts.files_copied == 9
        assert record.monitor is not None
        assert (record.monitor.audits, record.monitor.audit_found) == (3, 3)
        assert len(record.attempts) == 1

    in_owner_scene(test, trigger=REALTIME)


def test_the_next_owner_adopts_it() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await followed(scene)
        scene.source.tell_monitored(counts=Counts(files_copied=3))
        await scene.sleep(2)
        await node.die()
        second = scene.add("c2")
        await (await second.begin()).until_adopted()
        scene.source.tell_monitored(counts=Counts(files_copied=8))
        await scene.sleep(10)
        assert scene.source.lives == 1
        record = await only_run(scene)
        assert [attempt.owner for attempt in record.attempts] == ["c1", "c2"]
        assert record.counts.files_copied == 8
        assert (await scene.state()).last_run == run
        await check_ledger(scene, second)

    in_owner_scene(test, trigger=REALTIME)


def test_exposure_is_the_age_of_the_oldest_change_that_waits() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await followed(scene)
        scene.source.tell_monitored(0.2, 30.0)
        await scene.sleep(10)
        ages = await exposure(scene, node)
        assert ages[W2] == 0
        assert ages[W3] == pytest.approx(40, abs=1)
        scene.source.tell_monitored(0.0, 0.0)
        await scene.sleep(2)
        assert await exposure(scene, node) == {W2: 0, W3: 0}

    in_owner_scene(test, trigger=REALTIME)


def test_exposure_grows_from_when_nobody_knows_any_more() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await followed(scene)
        scene.source.tell_monitored(0.0, 20.0)
        await scene.sleep(150)
        scene.source.die()
        await scene.sleep(30)
        ages = await exposure(scene, node)
        assert ages[W2] == pytest.approx(30, abs=60)  # nothing is written for what does not change
        assert ages[W3] == pytest.approx(200, abs=1)
        state = await scene.state()
        assert state.phase == "monitoring"
        assert state.reason.startswith("worker w1 cannot be reached: ")
        assert (await only_run(scene)).ended is None
        scene.source.come_back()
        await until(lambda: scene.source.lives == 2)
        await scene.sleep(2)
        assert await exposure(scene, node) == {W2: 0, W3: 0}
        assert (await scene.state()).reason == ""

    in_owner_scene(test, trigger=REALTIME)


def test_what_it_meets_is_shown_and_does_not_end_it() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await followed(scene)
        away = (unreachable(W3, "connection refused"),)
        scene.source.tell_monitored(0.0, 3.0, problems=away, problems_total=1)
        await scene.sleep(5)
        assert (await scene.state()).reason == f"{W3}: connection refused"
        record = await only_run(scene)
        assert [(one.member, one.what) for one in record.problems] == [(W3, "unreachable")]
        scene.source.tell_monitored()
        await scene.sleep(5)
        record = await only_run(scene)
        assert (record.problems, record.ended) == ((), None)
        assert (await scene.state()).reason == ""

    in_owner_scene(test, trigger=REALTIME)


def test_a_hold_is_approved_while_it_goes_on() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await followed(scene)
        scene.source.tell_monitored(9.0, 0.0, holds=(HOLD,), plan=b"p" * 32)
        record = await scene.blocked(run)
        assert record.outcome is Outcome.BLOCKED
        assert (await scene.state()).phase == "blocked"
        await node.owner.approve(record.due)
        await until(lambda: scene.source.starts[-1].approved == b"p" * 32)
        scene.source.tell_monitored(9.0, 0.0, holds=(HOLD,), plan=b"p" * 32)  # not heard of it yet
        await scene.sleep(2)
        assert (await scene.state()).phase == "monitoring"
        scene.source.tell_monitored()
        await scene.sleep(2)
        record = await scene.run(run)
        assert (record.outcome, record.holds, record.plan) == (Outcome.RUNNING, (), "")
        assert scene.source.lives == 1

    in_owner_scene(test, trigger=REALTIME)


def test_an_approval_of_another_plan_is_void() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await followed(scene)
        scene.source.tell_monitored(9.0, 0.0, holds=(HOLD,), plan=b"p" * 32)
        await node.owner.approve((await scene.blocked(run)).due)
        scene.source.tell_monitored(9.0, 0.0, holds=(HOLD,), plan=b"q" * 32)
        await scene.sleep(2)
        record = await scene.run(run)
        assert record.outcome is Outcome.BLOCKED
        assert record.approved == ""
        assert "no longer match the approved plan" in record.reason

    in_owner_scene(test, trigger=REALTIME)


def test_a_held_monitor_is_adopted_as_it_is() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await followed(scene)
        scene.source.tell_monitored(9.0, 0.0, holds=(HOLD,), plan=b"p" * 32)
        await scene.blocked(run)
        await node.die()
        second = scene.add("c2")
        owner = await second.begin()
        await owner.until_adopted()
        scene.source.tell_monitored(9.0, 0.0, holds=(HOLD,), plan=b"p" * 32)
        record = await scene.blocked(run)
        assert len(await scene.runs()) == 1
        await owner.approve(record.due)
        await until(lambda: scene.source.starts[-1].approved == b"p" * 32)
        assert scene.source.lives == 1

    in_owner_scene(test, trigger=REALTIME)


def test_a_pause_ends_it_and_another_begins_afterwards() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await followed(scene)
        await pause(scene)
        ended = await scene.ended(run)
        assert ended.outcome is Outcome.CANCELLED
        assert ended.reason.startswith("paused by ")
        await scene.sleep(100)
        assert (await scene.state()).phase == "paused"
        assert len(await scene.runs()) == 1
        ages = await exposure(scene, node)
        assert ages == {W2: pytest.approx(100, abs=2), W3: pytest.approx(100, abs=2)}
        await pause(scene, on=False)
        assert await followed(scene) != run
        await check_ledger(scene, node)

    in_owner_scene(test, trigger=REALTIME)


def test_another_definition_ends_it_and_another_begins() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await followed(scene)
        await scene.define(2, trigger={"realtime": {"settle": "90ms", "audit": "1h"}})
        ended = await scene.ended(run)
        assert ended.reason == "the job was changed"
        await until(lambda: scene.source.lives == 2)
        monitor = scene.source.starts[-1].monitor
        assert monitor is not None
        assert monitor.settle_s == 0.09
        await scene.sleep(1)
        await check_ledger(scene, node)

    in_owner_scene(test, trigger=REALTIME)


def test_another_trigger_ends_it() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await followed(scene)
        await scene.define(2, trigger={"manual": True})
        await scene.ended(run)
        await scene.sleep(60)
        assert len(await scene.runs()) == 1
        assert (await scene.state()).phase == "idle"

    in_owner_scene(test, trigger=REALTIME)


def test_it_goes_on_within_windows_only() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        first = await followed(scene)
        await scene.sleep(110)
        ended = await scene.ended(first)
        assert ended.reason == "outside the job's windows"
        assert ended.ended is not None
        assert ended.ended - START == pytest.approx(timedelta(minutes=2), abs=timedelta(seconds=1))
        await scene.sleep(60)
        state = await scene.state()
        assert state.phase == "waiting"
        assert "they open at 2026-03-01 12:05" in state.reason
        assert len(await scene.runs()) == 1
        await scene.sleep(130)
        assert len(await scene.runs()) == 2
        await check_ledger(scene, node)

    windows = [{"from": "11:00", "to": "12:02"}, {"from": "12:05", "to": "12:30"}]
    in_owner_scene(test, trigger=REALTIME, windows=windows)


def test_running_it_is_to_ask_for_an_audit() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await followed(scene)
        assert await node.owner.request_run() == run
        await until(lambda: _asked(scene) == 1)
        await node.die()
        second = scene.add("c2")
        owner = await second.begin()
        await owner.until_adopted()
        assert await owner.request_run() == run
        await until(lambda: _asked(scene) == 2)
        scene.source.tell_monitored(audits=2, audits_answered=2)
        await scene.sleep(8)
        kept = (await scene.run(run)).monitor
        assert kept is not None
        assert (kept.asked, kept.answered) == (2, 2)
        assert scene.source.lives == 1

    in_owner_scene(test, trigger=REALTIME)


async def _lives(scene: OwnerScene, lives: int) -> None:
    await until(lambda: scene.source.lives == lives, within_s=400)


def _asked(scene: OwnerScene) -> int:
    monitor = scene.source.starts[-1].monitor
    return -1 if monitor is None else monitor.audits_asked


def test_a_preview_interrupts_it_and_the_same_run_goes_on() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await followed(scene)
        changes: list[object] = []
        ended = await node.owner.preview(changes.extend)
        assert ended.outcome is Outcome.SUCCEEDED
        assert changes
        await until(lambda: scene.source.lives == 2)
        await scene.sleep(1)
        record = await scene.run(run)
        assert record.ended is None
        assert [one.why_ended for one in record.attempts] == ["the job is being previewed", ""]
        assert scene.starts[-1] == run

    in_owner_scene(test, trigger=REALTIME)


def test_one_that_breaks_goes_on_after_a_while() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await followed(scene)
        for lives in range(2, 7):
            worker_run = scene.source.run
            assert worker_run is not None
            failed = scene.source._result(JOB, run, Outcome.FAILED)
            scene.source._end(worker_run, failed)
            await _lives(scene, lives)
            await scene.sleep(1)
        assert len(await scene.runs()) == 1
        assert len((await scene.run(run)).attempts) == 6

    in_owner_scene(test, trigger=REALTIME)


def test_cancelled_it_is_followed_by_another() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await followed(scene)
        await node.owner.cancel((await only_run(scene)).due)
        assert (await scene.ended(run)).reason == "cancelled by an operator"
        await until(lambda: scene.source.lives == 2)

    in_owner_scene(test, trigger=REALTIME)


def test_a_storm_of_reports_is_written_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    txn = MemoryStore.txn

    async def counting(self: MemoryStore, *arguments: object, **more: object) -> object:
        nonlocal written
        written += 1
        return await txn(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryStore, "txn", counting)

    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await followed(scene)
        await scene.sleep(10)
        before = written
        for number in range(1_000):
            scene.source.tell_monitored(0.05, 0.1, counts=Counts(files_copied=number))
            await scene.sleep(0.05)
        assert written - before <= 12  # in 50 seconds

    in_owner_scene(test, trigger=REALTIME)
