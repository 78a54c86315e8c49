"""What the owner of a job does and records: requests, holds, cancels, outcomes."""

import asyncio
from datetime import timedelta

import pytest

from coordinator.job_owner import RequestRefused
from coordinator.keys import instant_text, parse_instant
from coordinator.ledger import NotOwner
from coordinator.memory_store import Fault
from coordinator.records import StateRecord
from syncengine.model import Counts, Problem, What
from tests.coordinator.fake_workers import unreachable
from tests.coordinator.owners import OwnerNode, OwnerScene, in_owner_scene, running
from tests.coordinator.worlds import JOB, START, until
from wire.orders import CloseSession, Outcome, PlannedChange, RefusalReason, SettleRun


def seconds(record_time: object, since: object = START) -> float:
    return (record_time - since).total_seconds()  # type: ignore[operator,no-any-return]


# A run by hand


def test_a_run_by_hand_succeeds_and_is_recorded() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        asked = scene.world.wall()
        run = await node.owner.request_run()
        assert abs(seconds(parse_instant(run), asked)) < 1
        assert (await scene.run(run)).outcome is Outcome.RUNNING, "in the ledger at once"
        record = await scene.ended(run)
        assert record.outcome is Outcome.SUCCEEDED
        assert record.generation == 1
        assert record.counts.files_copied == 2
        (attempt,) = record.attempts
        assert (attempt.owner, attempt.token) == ("c1", str(node.owner.ownership.token))
        assert attempt.ended is not None
        state = await scene.state()
        assert state.phase == "idle"
        assert (state.last_run, state.last_outcome) == (run, "succeeded")
        assert state.last_success == record.started
        assert state.last_ended == record.ended
        assert state.up_to_date == {"w2:data": record.started, "w3:data": record.started}
        await scene.sleep(0.1)
        assert [type(one) for one in scene.source.heard][-2:] == [SettleRun, CloseSession]

    in_owner_scene(test)


def test_the_state_says_running_while_it_runs() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await node.owner.request_run()
        await running(node)
        state = await scene.state()
        assert (state.phase, state.last_run) == ("running", run)
        assert node.owner.current is not None
        assert node.owner.current.progress is not None
        assert node.owner.current.progress.files_total == 2
        await scene.ended(run)
        assert node.owner.current is None

    in_owner_scene(test)


def test_a_failed_run_names_its_problem_and_leaves_the_last_success() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        good = await scene.ended(await node.owner.request_run())
        await scene.sleep(100)
        path = b"caf\xe9"
        scene.source.problems = (Problem(path, "w3:data", What.NO_SPACE, "disk full"),) * 2
        scene.source.behind = ("w3:data",)
        record = await scene.ended(await node.owner.request_run())
        assert record.outcome is Outcome.FAILED
        assert record.problems[0].path.encode("utf-8", "surrogateescape") == path
        assert record.problems_total == 2
        assert "w3:data" in record.reason
        assert "disk full, and 1 more" in record.reason
        state = await scene.state()
        assert (state.phase, state.last_outcome) == ("failed", "failed")
        assert state.reason == record.reason
        assert state.last_success == good.started
        assert state.up_to_date == {"w2:data": record.started, "w3:data": good.started}

    in_owner_scene(test)


def test_the_source_away_fails_the_run_after_its_limit() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.die()
        record = await scene.ended(await node.owner.request_run())
        assert record.outcome is Outcome.FAILED
        assert "w1 at w1.example:7000 cannot be reached" in record.reason
        assert (await scene.state()).up_to_date == {}
        scene.source.come_back()
        assert (await scene.ended(await node.owner.request_run())).outcome is Outcome.SUCCEEDED

    in_owner_scene(test)


def test_a_target_that_refuses_is_named() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.workers["w2"].refuses = RefusalReason.READ_ONLY
        scene.source.problems = (unreachable("w2:data"),)
        scene.source.behind = ("w2:data",)
        record = await scene.ended(await node.owner.request_run())
        assert record.problems[0].detail == "w2 refuses: read-only"
        assert set((await scene.state()).up_to_date) == {"w3:data"}

    in_owner_scene(test)


def test_a_worker_that_is_not_registered_fails_the_run_with_what_to_do() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await scene.store.delete(scene.world.keys.worker("w3"))
        await until(lambda: "w3" not in node.catalog.workers)
        record = await scene.ended(await node.owner.request_run())
        assert record.outcome is Outcome.FAILED
        assert "baton worker add w3 HOST:PORT" in record.reason
        assert not scene.starts

    in_owner_scene(test)


def test_a_source_that_restarts_mid_run_gets_it_again() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 10
        run = await node.owner.request_run()
        await running(node)
        scene.source.die()
        await scene.sleep(3)
        scene.source.come_back()
        record = await scene.ended(run)
        assert record.outcome is Outcome.SUCCEEDED
        assert scene.starts == [run, run]
        assert len(record.attempts) == 1

    in_owner_scene(test)


@pytest.mark.parametrize("fault", [Fault.ANSWER_LOST, Fault.REQUEST_LOST, Fault.REQUEST_LATE])
def test_i9_lost_answers_make_no_second_run(fault: Fault) -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        for _ in range(3):
            node.node.store.fail_next(fault)
            run = await node.owner.request_run()
            node.node.store.fail_next(fault, fault)
            assert (await scene.ended(run)).outcome is Outcome.SUCCEEDED
        assert len(await scene.runs()) == 3
        assert len(scene.starts) == 3

    in_owner_scene(test)


def test_i9_two_requests_at_the_same_instant_are_two_runs() -> None:
    """A wall clock may be coarse, or set back to an instant that was used."""

    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        now = scene.world.wall()
        node.owner.wall = lambda: now
        runs = [await node.owner.request_run()]
        await until(lambda: node.owner.current is None)
        runs.append(await node.owner.request_run())
        await scene.ended(runs[1])
        assert [parse_instant(run) for run in runs] == [now, now + timedelta(microseconds=1)]
        assert (await scene.state()).last_due is None, "no instant of a schedule"

    in_owner_scene(test)


# Overlap


def test_overlap_skip_refuses_a_second_run() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await node.owner.request_run()
        await running(node)
        with pytest.raises(RequestRefused, match="still going on"):
            await node.owner.request_run()
        await scene.ended(run)
        assert len(await scene.runs()) == 1

    in_owner_scene(test, overlap="skip")


def test_overlap_queue_runs_them_one_after_another() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 5
        first = await node.owner.request_run()
        await running(node)
        asked = scene.world.clock.now()
        second = await node.owner.request_run("operator/alice")
        assert scene.world.clock.now() - asked < 0.1, "the answer does not wait for the first"
        waiting = await scene.run(second)
        assert (waiting.is_queued, waiting.attempts) == (True, ())
        assert waiting.reason == f"asked for by operator/alice, begins after run {first}"
        assert await node.owner.request_run() == second, "one that will begin is enough"
        assert (await scene.ended(first)).outcome is Outcome.SUCCEEDED
        assert (await scene.ended(second)).outcome is Outcome.SUCCEEDED
        assert scene.starts == [first, second]

    in_owner_scene(test, overlap="queue")


def test_overlap_cancel_ends_the_first_for_the_second() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 50
        first = await node.owner.request_run()
        await running(node)
        scene.source.run_s = 1
        second = await node.owner.request_run()
        cancelled = await scene.ended(first)
        assert cancelled.outcome is Outcome.CANCELLED
        assert cancelled.reason == "a run asked for by hand takes its place"
        assert (await scene.ended(second)).outcome is Outcome.SUCCEEDED

    in_owner_scene(test, overlap="cancel")


# Holds and approvals


def test_a_held_run_waits_and_its_approval_releases_that_plan() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.plan = b"\x01\x02"
        run = await node.owner.request_run()
        record = await scene.blocked(run)
        assert record.outcome is Outcome.BLOCKED
        assert record.is_open
        assert record.plan == "0102"
        assert "would delete 9 of 10 files" in record.reason
        state = await scene.state()
        assert (state.phase, state.last_outcome) == ("blocked", "blocked")
        assert state.up_to_date == {}
        await scene.sleep(600)
        assert len(scene.starts) == 1, "it waits"
        approved = await node.owner.approve(parse_instant(run))
        assert approved.approved == "0102"
        record = await scene.ended(run)
        assert record.outcome is Outcome.SUCCEEDED
        assert [start.approved for start in scene.source.starts] == [b"", b"\x01\x02"]
        assert len(record.attempts) == 2
        assert record.holds == ()
        assert (await scene.state()).phase == "idle"

    in_owner_scene(test)


def test_an_approval_of_a_plan_that_changed_is_held_again() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.plan = b"\x01"
        run = await node.owner.request_run()
        await scene.blocked(run)
        scene.source.plan = b"\x02"
        await node.owner.approve(parse_instant(run))
        await until(lambda: len(scene.starts) == 2)
        await until(lambda: node.owner.held is not None)
        await scene.sleep(1)
        record = await scene.run(run)
        assert (record.outcome, record.plan, record.approved) == (Outcome.BLOCKED, "02", "")
        assert "no longer match the approved plan" in record.reason
        await node.owner.approve(parse_instant(run))
        assert (await scene.ended(run)).outcome is Outcome.SUCCEEDED

    in_owner_scene(test)


def test_only_a_held_run_with_a_plan_can_be_approved() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        with pytest.raises(RequestRefused, match="does not wait"):
            await node.owner.approve(START)
        run = await node.owner.request_run()
        await scene.ended(run)
        with pytest.raises(RequestRefused, match="does not wait"):
            await node.owner.approve(parse_instant(run))

    in_owner_scene(test)


def test_a_later_run_takes_the_place_of_one_that_is_held() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.plan = b"\x01"
        first = await node.owner.request_run()
        await scene.blocked(first)
        scene.source.plan = b""
        second = await node.owner.request_run()
        record = await scene.run(first)
        assert record.outcome is Outcome.BLOCKED
        assert record.ended is not None
        assert "took its place" in record.reason
        assert (await scene.ended(second)).outcome is Outcome.SUCCEEDED
        with pytest.raises(RequestRefused):
            await node.owner.approve(parse_instant(first))

    in_owner_scene(test)


def test_an_approval_and_a_new_run_at_once_leave_no_run_open() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        for wait_s in (0.0, 0.001, 0.003, 0.006, 0.01):
            scene.source.plan = b"\x01"
            held = await node.owner.request_run()
            await scene.blocked(held)
            await until(lambda: node.owner.held is not None)
            new = asyncio.create_task(node.owner.request_run())
            await scene.sleep(wait_s)
            try:
                await node.owner.approve(parse_instant(held))
            except RequestRefused:
                scene.source.plan = b""
            scene.source.plan = b""
            await scene.ended(await new)
            await scene.ended(held)

    in_owner_scene(test, overlap="queue")


def test_an_approval_counts_though_the_next_owner_carries_it_out() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.plan = b"\x01"
        run = await node.owner.request_run()
        await scene.blocked(run)
        heir = scene.add("c2", rank=1)
        await node.die()
        owner = await heir.begin()
        await owner.approve(parse_instant(run))
        record = await scene.ended(run)
        assert record.outcome is Outcome.SUCCEEDED
        assert [one.owner for one in record.attempts] == ["c1", "c2"]

    in_owner_scene(test)


# Cancelling


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.01, 0.3])
def test_a_run_is_cancelled_at_whatever_point_it_is(after_s: float) -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 60
        run = await node.owner.request_run()
        await scene.sleep(after_s)
        await node.owner.cancel(parse_instant(run))
        record = await scene.ended(run, within_s=3)
        assert record.outcome is Outcome.CANCELLED
        state = await scene.state()
        assert (state.phase, state.last_outcome) == ("idle", "cancelled")
        assert state.last_success is None
        assert state.up_to_date == {}

    in_owner_scene(test)


def test_a_held_run_is_dropped_by_cancelling_it() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.plan = b"\x01"
        run = await node.owner.request_run()
        await scene.blocked(run)
        await until(lambda: node.owner.held is not None)
        dropped = await node.owner.cancel(parse_instant(run))
        assert dropped.outcome is Outcome.CANCELLED
        assert await scene.run(run) == dropped
        assert (await scene.state()).phase == "idle"
        with pytest.raises(RequestRefused, match="not going on"):
            await node.owner.cancel(parse_instant(run))
        with pytest.raises(RequestRefused):
            await node.owner.approve(parse_instant(run))

    in_owner_scene(test)


def test_a_run_that_has_ended_or_never_was_cannot_be_cancelled() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        run = await node.owner.request_run()
        await scene.ended(run)
        await until(lambda: node.owner.current is None)
        for instant in (parse_instant(run), START):
            with pytest.raises(RequestRefused, match="not going on"):
                await node.owner.cancel(instant)

    in_owner_scene(test)


# Previews


def test_a_preview_tells_what_would_change_and_leaves_no_trace() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        planned: list[PlannedChange] = []
        ended = await node.owner.preview(planned.extend)
        assert ended.outcome is Outcome.SUCCEEDED
        assert [change.action for change in planned] == ["create"]
        assert await scene.runs() == []
        assert await scene.state() == StateRecord()
        await scene.sleep(0.1)
        assert scene.source.assignment is None, "its session is closed"

    in_owner_scene(test)


def test_no_preview_while_a_run_or_another_preview_goes_on() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        first = asyncio.create_task(node.owner.preview(lambda _: None))
        await scene.sleep(0.1)
        with pytest.raises(RequestRefused, match="previewed or verified already"):
            await node.owner.preview(lambda _: None)
        assert (await first).outcome is Outcome.SUCCEEDED
        run = await node.owner.request_run()
        with pytest.raises(RequestRefused, match="going on"):
            await node.owner.preview(lambda _: None)
        await scene.ended(run)

    in_owner_scene(test)


def test_a_run_ends_a_preview_and_is_not_ended_by_it() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 30
        previewing = asyncio.create_task(node.owner.preview(lambda _: None))
        await scene.sleep(5)
        scene.source.run_s = 2
        run = await node.owner.request_run()
        assert (await previewing).outcome is Outcome.CANCELLED
        record = await scene.ended(run)
        assert record.outcome is Outcome.SUCCEEDED

    in_owner_scene(test)


def test_whoever_asked_for_a_preview_may_leave() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 30
        previewing = asyncio.create_task(node.owner.preview(lambda _: None))
        await scene.sleep(5)
        previewing.cancel()
        await asyncio.gather(previewing, return_exceptions=True)
        await scene.sleep(0.1)
        assert scene.source.assignment is None
        scene.source.run_s = 1
        assert (await scene.ended(await node.owner.request_run())).outcome is Outcome.SUCCEEDED

    in_owner_scene(test)


# Losing the job


def test_requests_to_one_who_lost_the_job_are_refused_at_once() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 60
        await node.owner.request_run()
        await running(node)
        node.task.cancel()
        await asyncio.gather(node.task, return_exceptions=True)
        for action in (
            node.owner.request_run(),
            node.owner.approve(START),
            node.owner.cancel(START),
            node.owner.preview(lambda _: None),
        ):
            with pytest.raises(NotOwner):
                await action

    in_owner_scene(test, overlap="queue")


def test_a_request_whose_run_cannot_be_created_is_answered() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await scene.store.delete(scene.world.keys.owner(JOB))
        with pytest.raises(NotOwner):
            await node.owner.request_run()
        await node.task
        assert await scene.runs() == []

    in_owner_scene(test)


def test_counts_of_the_run_are_those_that_the_targets_reported() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.counts = Counts(1, 2, 3, 4, 5, 6, 7, 8)
        record = await scene.ended(await node.owner.request_run())
        counts = record.counts
        assert [getattr(counts, name) for name in Counts.__slots__] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert instant_text(record.due) == instant_text((await scene.runs())[0][0])

    in_owner_scene(test)
