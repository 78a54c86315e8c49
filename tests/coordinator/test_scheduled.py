"""Runs by the clock: due, missed, overlapping, across takeovers and clocks that jump."""

import asyncio
import itertools
from datetime import datetime, timedelta

import pytest

from coordinator.ledger import KEPT_PASSED_OVER, KEPT_RUNS, TRIM_EVERY
from coordinator.ledger_proof import prove
from tests.coordinator.owners import OwnerNode, OwnerScene, in_owner_scene, running
from tests.coordinator.worlds import START
from wire.orders import Outcome

S, M = Outcome.SUCCEEDED, Outcome.MISSED


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


async def until_wall(scene: OwnerScene, seconds: float) -> None:
    """Wait until the wall clock says so many seconds after the start."""
    await asyncio.sleep(max(0.0, (at(seconds) - scene.world.wall()).total_seconds()))


async def history(scene: OwnerScene) -> list[tuple[float, Outcome]]:
    """Each instant, in seconds after the start, and how it ended."""
    return [
        ((instant - START).total_seconds(), record.outcome)
        for instant, record in await scene.runs()
    ]


def test_instants_become_runs_on_time() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 185)
        assert await history(scene) == [(60, S), (120, S), (180, S)]
        for instant, record in await scene.runs():
            assert record.started is not None
            assert timedelta(0) <= record.started - instant < timedelta(seconds=0.1)
        state = await scene.state()
        assert (state.last_due, state.next_due) == (at(180), at(240))

    in_owner_scene(test, trigger={"every": "60s"})


def test_the_next_instant_is_shown_before_there_was_a_run() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 2)
        assert (await scene.state()).next_due == at(60)

    in_owner_scene(test, trigger={"every": "60s"})


def test_runs_begin_by_their_share_of_the_jitter_whoever_owns_the_job() -> None:
    began: list[list[float]] = []

    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 20 * 60)
        if began:
            await node.die()
            await scene.add("c2").begin()
        await until_wall(scene, 41 * 60)
        assert await history(scene) == [(n * 60, S) for n in range(1, 41)]
        delays = []
        for instant, record in await scene.runs():
            assert record.started is not None
            delays.append((record.started - instant).total_seconds())
        began.append([round(delay) for delay in delays])
        state = await scene.state()
        assert state.next_due is not None
        assert at(41 * 60) <= state.next_due < at(42 * 60)
        job = (scene.nodes[-1].catalog).jobs["job"]
        proof = prove("job", job, *await scene.ledger.whole("job"), scene.world.wall())
        assert proof.findings == ()

    for _ in range(2):
        in_owner_scene(test, trigger={"every": "60s"}, start_jitter="50s")
    first, second = began
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) <= 9, "but for the takeover"
    assert [a for a, b in zip(first, second, strict=True) if a != b] == first[
        19:20
    ] or first == second
    assert min(first) < 10, first
    assert max(first) > 40, first
    assert max(first) <= 50, first


def test_counted_from_the_end_runs_keep_their_distance() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 45
        await until_wall(scene, 330)
        runs = await scene.runs()
        assert len(runs) == 3
        for (_, before), (instant, _) in itertools.pairwise(runs):
            assert before.ended is not None
            assert instant - before.ended == timedelta(seconds=60)

    in_owner_scene(test, trigger={"every": "60s", "from": "end"})


def test_i9_instants_missed_while_nobody_was_there_are_in_the_ledger() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 65)
        await node.die()
        await until_wall(scene, 310)
        await scene.add("c2").begin()
        await until_wall(scene, 330)
        assert await history(scene) == [(60, S), (120, M), (180, M), (240, M), (300, S)]
        missed = dict(await scene.runs())[at(120)]
        assert missed.reason == "nobody ran it in time"
        assert missed.ended == at(120)

    in_owner_scene(test, trigger={"every": "60s"})


def test_all_missed_instants_are_made_up_for_one_after_another() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 65)
        await node.die()
        await until_wall(scene, 310)
        await scene.add("c2").begin()
        await until_wall(scene, 340)
        assert await history(scene) == [(n * 60, S) for n in range(1, 6)]
        assert len(scene.starts) == 5

    in_owner_scene(test, trigger={"every": "60s"}, missed="all")


def test_skipped_ones_are_not_made_up_for() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 65)
        await node.die()
        await until_wall(scene, 310)
        await scene.add("c2").begin()
        await until_wall(scene, 370)
        assert await history(scene) == [(60, S), *((n * 60, M) for n in range(2, 6)), (360, S)]

    in_owner_scene(test, trigger={"every": "60s"}, missed="skip")


def test_overlap_skip_records_the_instants_that_came_during_a_run() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 150
        await until_wall(scene, 65)
        scene.source.run_s = 1
        await until_wall(scene, 290)
        skipped = Outcome.SKIPPED
        assert await history(scene) == [(60, S), (120, skipped), (180, skipped), (240, S)]
        assert dict(await scene.runs())[at(120)].reason == "the run before was still going on"

    in_owner_scene(test, trigger={"every": "60s"}, overlap="skip")


def test_a_run_that_ended_in_the_future_hides_no_instants_of_the_present() -> None:
    """The clock was a day ahead when it ended, and was set right then: found by the simulation."""

    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 2
        await until_wall(scene, 61)
        scene.world.set_wall(86_400)
        await asyncio.sleep(3)
        scene.world.set_wall(-86_400)
        assert (await scene.state()).last_ended is not None
        await asyncio.sleep(600)
        ended = [record for at, record in await scene.runs() if at > START + timedelta(minutes=4)]
        ended = [record for record in ended if record.due < START + timedelta(hours=1)]
        assert len(ended) >= 5
        assert {record.outcome for record in ended} == {S}

    in_owner_scene(test, trigger={"every": "60s"}, overlap="skip")


def test_overlap_queue_runs_the_latest_of_them_when_there_is_room() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 150
        await until_wall(scene, 65)
        scene.source.run_s = 1
        await until_wall(scene, 230)
        assert await history(scene) == [(60, S), (120, Outcome.SKIPPED), (180, S)]

    in_owner_scene(test, trigger={"every": "60s"}, overlap="queue")


def test_overlap_cancel_ends_a_run_when_the_next_is_due() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 150
        await until_wall(scene, 65)
        scene.source.run_s = 1
        await until_wall(scene, 130)
        assert await history(scene) == [(60, Outcome.CANCELLED), (120, S)]

    in_owner_scene(test, trigger={"every": "60s"}, overlap="cancel")


def test_overlap_cancel_does_not_end_a_run_for_instants_missed_before_it() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await node.die()
        await until_wall(scene, 310)
        scene.source.run_s = 20
        await scene.add("c2").begin()
        await until_wall(scene, 355)
        assert (await history(scene))[0] == (60, S)

    in_owner_scene(test, trigger={"every": "60s"}, overlap="cancel", missed="all")


def test_a_scheduled_run_takes_the_place_of_one_that_is_held() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.plan = b"\x01"
        await until_wall(scene, 200)
        runs = await scene.runs()
        assert [record.outcome for _, record in runs] == [Outcome.BLOCKED] * 3
        assert [record.is_open for _, record in runs] == [False, False, True]

    in_owner_scene(test, trigger={"every": "60s"})


def test_i9_the_owner_dies_at_an_instant_and_it_runs_once() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 60.004)
        await node.die()
        await scene.add("c2").begin()
        await until_wall(scene, 130)
        assert await history(scene) == [(60, S), (120, S)]
        assert len(scene.starts) == 2

    in_owner_scene(test, trigger={"every": "60s"})


@pytest.mark.parametrize("jump_s", [-30.0, 45.0])
def test_i9_a_wall_clock_that_is_set_repeats_no_instant(jump_s: float) -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 130)
        scene.world.set_wall(jump_s)
        await until_wall(scene, 250)
        assert await history(scene) == [(n * 60, S) for n in range(1, 5)]
        assert len(scene.starts) == 4

    in_owner_scene(test, trigger={"every": "60s"})


@pytest.mark.parametrize("trigger", [{"every": "60s"}, {"cron": "* * * * *"}])
def test_a_clock_set_back_far_neither_stops_a_job_nor_repeats_a_record(
    trigger: dict[str, str],
) -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 130)
        scene.world.set_wall(-7_200)
        await until_wall(scene, -6_700)
        after = [at for at, _ in await history(scene) if at < 0]
        assert 5 <= len(after) <= 7, after
        assert max(b - a for a, b in itertools.pairwise(after)) < 61
        await until_wall(scene, 250)
        runs = await scene.runs()
        assert [record.outcome for _, record in runs] == [S] * len(runs)
        assert len(scene.starts) == len(set(scene.starts)) == len(runs)

    in_owner_scene(test, trigger=trigger)


@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
def test_a_day_ahead_and_back_again_fires_few_runs(missed: str) -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 130)
        before = len(scene.starts)
        scene.world.set_wall(86_400)
        await until_wall(scene, 86_400 + 310)
        assert 2 <= len(scene.starts) - before <= 4, "one by minute, and not for the day"
        skipped = [r for _, r in await scene.runs() if r.reason == "the clock was set ahead"]
        assert len(skipped) > 80
        before = len(scene.starts)
        scene.world.set_wall(-86_400)
        await until_wall(scene, 610)
        assert 3 <= len(scene.starts) - before <= 6, "the job goes on"

    in_owner_scene(test, trigger={"every": "60s"}, missed=missed)


def test_a_day_ahead_leaves_the_newest_instants_in_the_ledger_and_goes_on() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 62)
        scene.world.set_wall(86_400)
        await until_wall(scene, 86_400 + 130)
        found = await history(scene)
        assert found[:1] == [(60, S)], "the missed ones push no run out"
        assert len(found) <= KEPT_RUNS + KEPT_PASSED_OVER + TRIM_EVERY
        assert found[-1:] == [(86_400 + 120, S)]
        assert len(scene.starts) <= 4

    in_owner_scene(test, trigger={"every": "60s"})


def test_a_changed_definition_moves_the_next_instant() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 10)
        await scene.define(generation=2, trigger={"every": "20s"})
        await until_wall(scene, 45)
        assert await history(scene) == [(20, S), (40, S)]
        assert (await scene.runs())[0][1].generation == 2
        await scene.define(generation=3, trigger={"manual": True})
        await until_wall(scene, 100)
        assert len(await scene.runs()) == 2
        assert (await scene.state()).next_due is None

    in_owner_scene(test, trigger={"every": "60s"})


def test_a_run_by_hand_does_not_move_the_schedule() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 30)
        by_hand = await node.owner.request_run()
        await scene.ended(by_hand)
        await until_wall(scene, 65)
        found = await history(scene)
        assert found[1:] == [(60, S)]
        assert 30 <= found[0][0] < 31

    in_owner_scene(test, trigger={"every": "60s"})


def test_etcd_away_at_an_instant_delays_its_run() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 59)
        scene.world.etcd.has_quorum = False
        await asyncio.sleep(3)
        assert scene.starts == [], "nothing acts before the ledger says so"
        scene.world.etcd.has_quorum = True
        await until_wall(scene, 90)
        assert await history(scene) == [(60, S)]

    in_owner_scene(test, trigger={"every": "60s"})


def test_a_manual_run_overlaps_a_scheduled_instant() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 50)
        scene.source.run_s = 20
        await node.owner.request_run()
        await running(node)
        await until_wall(scene, 100)
        assert (await history(scene))[1:] == [(60, Outcome.SKIPPED)]

    in_owner_scene(test, trigger={"every": "60s"})
