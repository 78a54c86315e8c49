"""Attempts at one run: tried again after failures, across owners, and stopped to go on later."""

import itertools
from datetime import datetime, timedelta

import pytest

from coordinator.job_owner import RequestRefused
from coordinator.keys import parse_instant
from coordinator.records import RunRecord
from syncengine.model import Problem, What
from tests.coordinator.owners import OwnerNode, OwnerScene, in_owner_scene, running
from tests.coordinator.test_scheduled import at, history, until_wall
from tests.coordinator.worlds import START, until
from wire.orders import CancelRun, Outcome

S, M, K, F = Outcome.SUCCEEDED, Outcome.MISSED, Outcome.SKIPPED, Outcome.FAILED
FULL = (Problem(b"f", "w3:data", What.NO_SPACE, "disk full"),)
RETRIES = {"attempts": 3, "delay": "10s", "backoff": 2}


async def record_at(scene: OwnerScene, seconds: float) -> RunRecord:
    return dict(await scene.runs())[at(seconds)]


def gaps(record: RunRecord) -> list[float]:
    """How long it waited between attempts, in seconds."""
    pairs = itertools.pairwise(record.attempts)
    return [round((b.started - (a.ended or START)).total_seconds(), 1) for a, b in pairs]


def test_a_failed_run_is_tried_again_under_its_id_until_it_succeeds() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.problems = FULL
        await until_wall(scene, 305)
        waiting = await record_at(scene, 300)
        assert (waiting.outcome, waiting.is_parked, waiting.failures) == (Outcome.RUNNING, True, 1)
        assert "attempt 1 of 3 failed" in waiting.reason
        assert "disk full" in waiting.reason
        state = await scene.state()
        assert (state.phase, state.reason) == ("waiting", waiting.reason)
        scene.source.problems = ()
        await until_wall(scene, 320)
        record = await record_at(scene, 300)
        assert record.outcome is S
        assert [one.why_ended for one in record.attempts] == ["w3:data: f: disk full", "succeeded"]
        assert gaps(record) == [10.0]
        assert [start.run for start in scene.source.starts] == ["2026-03-01T12:05:00.000000Z"] * 2
        assert (await scene.state()).last_success == record.attempts[1].started

    in_owner_scene(test, trigger={"every": "300s"}, retries=RETRIES)


def test_attempts_end_with_backoff_and_the_run_is_failed() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.problems = FULL
        await until_wall(scene, 400)
        record = await record_at(scene, 300)
        assert (record.outcome, record.failures) == (F, 3)
        assert gaps(record) == [10.0, 20.0]
        assert record.reason == "w3:data: f: disk full"
        assert (await scene.state()).phase == "failed"

    in_owner_scene(test, trigger={"every": "300s"}, retries=RETRIES)


def test_the_documented_default_holds_for_the_schedule_and_not_for_runs_by_hand() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.problems = FULL
        run = await node.owner.request_run()
        assert (await scene.ended(run, within_s=5)).outcome is F
        await until_wall(scene, 800)
        assert gaps(await record_at(scene, 600)) == [30.0, 60.0]

    in_owner_scene(test, trigger={"every": "600s"})


def test_a_run_by_hand_is_tried_again_when_the_file_says_so() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.problems = FULL
        run = await node.owner.request_run()
        await until(lambda: len(scene.starts) == 2)
        scene.source.problems = ()
        record = await scene.ended(run)
        assert (record.outcome, len(record.attempts)) == (S, 2)

    in_owner_scene(test, retries=RETRIES)


def test_no_attempt_comes_later_than_the_next_run() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.problems = FULL
        await until_wall(scene, 97)
        assert await history(scene) == [(20 * n, F) for n in range(1, 5)]
        assert [len(record.attempts) for _, record in await scene.runs()] == [2] * 4

    in_owner_scene(test, trigger={"every": "20s"}, retries=RETRIES)


def test_held_and_cancelled_runs_are_not_tried_again() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.plan = b"\x01"
        held = await node.owner.request_run()
        await scene.blocked(held)
        scene.source.plan, scene.source.run_s = b"", 60
        run = await node.owner.request_run()
        await running(node)
        await node.owner.cancel(parse_instant(run))
        record = await scene.ended(run)
        assert record.outcome is Outcome.CANCELLED
        await scene.sleep(100)
        assert len(scene.starts) == 2

    in_owner_scene(test, retries=RETRIES)


def test_i9_retries_survive_a_takeover() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.problems = FULL
        await until_wall(scene, 305)
        await node.die()
        heir = scene.add("c2")
        await heir.begin()
        scene.source.problems = ()
        await until_wall(scene, 330)
        record = await record_at(scene, 300)
        assert record.outcome is S
        assert [one.owner for one in record.attempts] == ["c1", "c2"]
        assert record.attempts[0].why_ended == "w3:data: f: disk full", "told when it failed"
        assert 9.9 <= gaps(record)[0] <= 11
        assert record.failures == 1
        assert len(await scene.runs()) == 1

    in_owner_scene(test, trigger={"every": "300s"}, retries=RETRIES)


def test_a_clock_set_back_does_not_delay_the_next_attempt() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.problems = FULL
        run = await node.owner.request_run()
        await until(lambda: node.owner.current is not None and node.owner.current.record.is_parked)
        scene.source.problems = ()
        scene.world.set_wall(-86_400)
        assert (await scene.ended(run, within_s=15)).outcome is S
        scene.source.problems = FULL
        run = await node.owner.request_run()
        await until(lambda: node.owner.current is not None and node.owner.current.record.is_parked)
        scene.source.problems = ()
        await node.die()
        scene.world.set_wall(-86_400)
        await scene.add("c2").begin()
        assert (await scene.ended(run, within_s=15)).outcome is S, "nor at the next owner"

    in_owner_scene(test, retries=RETRIES)


def test_a_run_between_attempts_can_be_cancelled_or_replaced() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.problems = FULL
        first = await node.owner.request_run()
        await until(lambda: node.owner.current is not None and node.owner.current.record.is_parked)
        second = await node.owner.request_run()
        replaced = await scene.ended(first)
        assert replaced.outcome is F
        assert "a later run took its place" in replaced.reason
        await until(lambda: node.owner.current is not None and node.owner.current.record.is_parked)
        cancelled = await node.owner.cancel(parse_instant(second))
        assert cancelled.outcome is Outcome.CANCELLED
        with pytest.raises(RequestRefused):
            await node.owner.cancel(parse_instant(second))
        await scene.sleep(60)
        assert len(scene.starts) == 2
        assert (await scene.state()).phase == "idle"

    in_owner_scene(test, retries=RETRIES)


def test_a_cancel_survives_its_owner() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 100
        run = await node.owner.request_run()
        await running(node)
        node.links.cut()  # the worker hears nothing of it
        await node.owner.cancel(parse_instant(run))
        await node.die()
        assert scene.source.orders(CancelRun) == []
        await scene.add("c2").begin()
        record = await scene.ended(run, within_s=5)
        assert (record.outcome, record.reason) == (Outcome.CANCELLED, "cancelled by an operator")

    in_owner_scene(test)


def test_a_queued_run_survives_its_owner() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 20
        first = await node.owner.request_run()
        await running(node)
        second = await node.owner.request_run()
        await node.die()
        await scene.add("c2").begin()
        assert (await scene.ended(first)).outcome is S
        assert (await scene.ended(second)).outcome is S
        assert scene.starts == [first, second]

    in_owner_scene(test, overlap="queue")


def test_a_queued_run_can_be_cancelled() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 20
        first = await node.owner.request_run()
        await running(node)
        second = await node.owner.request_run()
        await node.owner.cancel(parse_instant(second))
        assert (await scene.ended(first)).outcome is S
        await scene.sleep(60)
        assert scene.starts == [first]

    in_owner_scene(test, overlap="queue")


# Windows in UTC; the scene begins on a Sunday at 12:00

WINDOWS = [{"from": "12:10", "to": "12:20"}, {"from": "12:50", "to": "13:00", "days": "sun,tue"}]


def test_runs_that_are_due_outside_the_windows_begin_when_they_open() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 500)
        assert await scene.runs() == []
        state = await scene.state()
        assert state.phase == "waiting"
        assert state.reason == (
            "due since 2026-03-01 12:04:00+00:00, outside the job's windows: "
            "they open at 2026-03-01 12:10:00+00:00"
        )
        assert state.next_due == at(600)
        await until_wall(scene, 650)
        assert await history(scene) == [(240, K), (480, S)]
        skipped, ran = (record for _, record in await scene.runs())
        assert skipped.reason == "outside the job's windows"
        assert ran.started is not None
        assert 0 <= (ran.started - at(600)).total_seconds() < 1
        assert ran.reason == (
            "due at 2026-03-01 12:08:00+00:00, outside the job's windows: begun when they opened"
        )
        await until_wall(scene, 1_300)
        assert (await history(scene))[2:] == [(720, S), (960, S)], "1200 waits"
        await until_wall(scene, 3_010)
        found = [(when, outcome) for when, outcome in await history(scene) if when >= 1_200]
        assert found == [*((240 * n, K) for n in range(5, 12)), (2_880, S)]

    in_owner_scene(test, trigger={"every": "240s"}, windows=WINDOWS, missed="skip")


def test_a_run_stops_when_its_window_closes_and_goes_on_in_the_next() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 900
        await until_wall(scene, 1_100)
        assert (await history(scene)) == [(1_000, Outcome.RUNNING)]
        await until_wall(scene, 1_205)
        record = await record_at(scene, 1_000)
        assert (record.outcome, record.is_parked) == (Outcome.RUNNING, True)
        assert record.attempts[0].why_ended == "outside the job's windows"
        assert record.attempts[0].ended is not None
        assert 0 <= (record.attempts[0].ended - at(1_200)).total_seconds() < 1
        assert "goes on at 2026-03-01 12:50:00" in record.reason
        assert scene.source.run is None, "nothing of it is left at the worker"
        assert (await scene.state()).phase == "waiting"
        scene.source.run_s = 5
        await node.die()
        await scene.add("c2").begin()
        await until_wall(scene, 3_010)
        record = await record_at(scene, 1_000)
        assert record.outcome is S
        assert [one.owner for one in record.attempts] == ["c1", "c2"]
        assert 0 <= (record.attempts[1].started - at(3_000)).total_seconds() < 1
        assert record.failures == 0

    in_owner_scene(test, trigger={"every": "1000s"}, windows=WINDOWS)


def test_a_run_by_hand_is_allowed_outside_the_windows_and_says_so() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 30)
        record = await scene.ended(await node.owner.request_run("operator/alice"))
        assert record.outcome is S
        assert record.reason == "asked for by operator/alice, outside the job's windows"
        assert (await scene.state()).reason == ""
        await until_wall(scene, 1_190)
        scene.source.run_s = 60
        run = await node.owner.request_run()
        assert (await scene.ended(run)).outcome is S, "it is not stopped when they close"

    in_owner_scene(test, windows=WINDOWS)


# cron


def test_cron_runs_at_its_instants_in_its_zone() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 3 * 3_600)
        hour = 3_600
        assert await history(scene) == [(0.5 * hour, S), (2.5 * hour, S)]
        assert (await scene.state()).next_due == datetime.fromisoformat("2026-03-01T16:30:00Z")

    in_owner_scene(
        test,
        trigger={"cron": "30 */2 * * *", "timezone": "Asia/Kathmandu"} | {"cron": "15 */2 * * *"},
    )


def test_cron_instants_that_nobody_served_are_missed() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 65)
        await node.die()
        await until_wall(scene, 310)
        await scene.add("c2").begin()
        await until_wall(scene, 330)
        assert await history(scene) == [(60, S), (120, M), (180, M), (240, M), (300, S)]
        last = await record_at(scene, 300)
        assert last.follows == at(240)
        assert [r.seq for _, r in await scene.runs()] == [1, 2, 3, 4, 5]

    in_owner_scene(test, trigger={"cron": "* * * * *"})


def test_a_long_absence_is_one_record_and_the_newest_instants() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 65)
        await node.die()
        scene.world.set_wall(60 * 999.0)
        await scene.add("c2").begin()
        await until_wall(scene, 60 * 1_000 + 30)
        runs = await scene.runs()
        assert len(runs) == 1 + 1 + 90 + 1
        many = runs[1][1]
        assert (many.first, many.due, many.outcome) == (at(120), at(60 * 909), M)
        assert runs[2][1].follows == many.due
        assert runs[2][1].due == many.due + timedelta(seconds=60)

    in_owner_scene(test, trigger={"every": "60s"})
