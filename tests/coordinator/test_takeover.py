"""One owner after another: what the next finds in the ledger and at the workers, and what it does."""

import asyncio
from datetime import timedelta

import pytest

from coordinator.keys import instant_text
from coordinator.ledger import Ledger
from coordinator.records import RunRecord, StateRecord
from tests.coordinator.owners import OwnerNode, OwnerScene, in_owner_scene, running
from tests.coordinator.worlds import JOB, START, TTL_S, until
from wire.orders import Outcome, StartRun


def test_a_run_goes_on_under_the_next_owner_without_a_second_start() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 30
        run = await node.owner.request_run()
        await running(node)
        heir = scene.add("c2", rank=1)
        await node.die()
        died = scene.world.clock.now()
        await heir.begin()
        assert scene.world.clock.now() - died < TTL_S + 1.5
        record = await scene.ended(run)
        assert record.outcome is Outcome.SUCCEEDED
        assert scene.starts == [run]
        assert [one.owner for one in record.attempts] == ["c1", "c2"]
        assert record.attempts[0].why_ended == "its owner was lost"
        assert record.attempts[0].token != record.attempts[1].token
        assert scene.source.highest == heir.owner.ownership.token
        assert (await scene.state()).last_success == record.started

    in_owner_scene(test)


def test_a_run_that_ended_while_nobody_owned_the_job_is_recorded_once() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 2
        run = await node.owner.request_run()
        await running(node)
        await node.die()
        await scene.sleep(20)
        heir = scene.add("c2")
        await heir.begin()
        record = await scene.ended(run)
        assert record.outcome is Outcome.SUCCEEDED
        assert scene.starts == [run]
        await scene.sleep(1)
        assert scene.source.run is None, "settled"
        assert len(await scene.runs()) == 1

    in_owner_scene(test)


def test_an_owner_that_stops_says_so_and_the_next_adopts() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 30
        run = await node.owner.request_run()
        await running(node)
        heir = scene.add("c2", rank=1)
        await scene.sleep(1)
        before = scene.world.clock.now()
        await node.stop()
        handed = await scene.run(run)
        assert handed.is_open
        assert handed.attempts[0].why_ended == "c1 handed the job over: stopped"
        await heir.begin()
        assert scene.world.clock.now() - before < 0.5
        record = await scene.ended(run)
        assert record.outcome is Outcome.SUCCEEDED
        assert record.attempts[0].why_ended == "c1 handed the job over: stopped"
        assert scene.starts == [run]

    in_owner_scene(test)


def test_handing_over_without_a_run_or_without_the_lease_writes_nothing() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        before = scene.world.etcd.revision
        await node.owner.hand_over()
        assert scene.world.etcd.revision == before
        scene.source.run_s = 60
        run = await node.owner.request_run()
        await running(node)
        node.task.cancel()
        node.node.store.is_cut = True
        began = scene.world.clock.now()
        await node.owner.hand_over()
        assert scene.world.clock.now() - began <= 1.1, "etcd's silence does not keep it"
        await until(lambda: not node.owner.ownership.is_held)
        await node.owner.hand_over()
        assert (await scene.run(run)).attempts[0].ended is None

    in_owner_scene(test)


def test_i4_an_owner_that_hangs_is_refused_by_the_workers_and_stops() -> None:
    """It still believes in its lease (the clock lies), but the workers know the heir."""

    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 60
        run = await node.owner.request_run()
        await running(node)
        heir = scene.add("c2", rank=1)
        await scene.sleep(1)
        node.node.rank = None
        await scene.store.delete(scene.world.keys.owner(JOB))
        await heir.begin()
        await until(lambda: scene.source.highest == heir.owner.ownership.token)
        link = node.links.to("w1", "w1.example:7000")
        scene.source.take(StartRun(JOB, node.owner.ownership.token, run), link)
        await node.task
        assert not node.task.cancelled()
        assert len(scene.starts) == 2, "heard, and refused"
        assert scene.source.run is not None
        assert scene.source.run.ended is None
        record = await scene.ended(run)
        assert record.outcome is Outcome.SUCCEEDED

    in_owner_scene(test)


def test_a_held_run_still_waits_under_the_next_owner() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.plan = b"\x01"
        run = await node.owner.request_run()
        held = await scene.blocked(run)
        await node.die()
        heir = scene.add("c2")
        await heir.begin()
        await scene.sleep(60)
        assert await scene.run(run) == held
        assert scene.starts == [run]
        assert heir.owner.held is not None

    in_owner_scene(test)


def test_a_changed_definition_replaces_the_run_that_the_dead_owner_had_begun() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 60
        run = await node.owner.request_run()
        await running(node)
        await node.die()
        await scene.define(generation=2)
        scene.source.run_s = 1
        heir = scene.add("c2")
        await heir.begin()
        record = await scene.ended(run)
        assert record.outcome is Outcome.SUCCEEDED
        assert scene.starts == [run, run]
        assert scene.source.assignment is None

    in_owner_scene(test)


def test_of_several_open_runs_the_last_goes_on() -> None:
    """No owner of this version leaves two; an operator with etcdctl, or a fault, may."""

    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await node.die()
        stray = scene.add("c2")
        owned = await stray.node.own()
        ledger = Ledger(stray.node.store, scene.world.keys, scene.world.clock)
        runs = [
            (
                START + timedelta(minutes=n),
                RunRecord(due=START, generation=1, outcome=Outcome.RUNNING),
            )
            for n in range(3)
        ]
        await ledger.write(owned, StateRecord(), runs)
        await stray.begin()
        for at, _ in runs:
            await scene.ended(instant_text(at))
        found = [record for _, record in await scene.runs()]
        assert [one.outcome for one in found] == [
            Outcome.FAILED,
            Outcome.FAILED,
            Outcome.SUCCEEDED,
        ]
        assert all(one.ended for one in found)
        assert found[0].reason == "a later run took over"

    in_owner_scene(test)


@pytest.mark.parametrize("at_s", [0.0, 0.003, 0.006, 0.01, 0.02, 0.5, 1.0, 1.05, 1.1])
def test_i9_wherever_an_owner_dies_the_run_ends_once_and_has_effect_once(at_s: float) -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        asking = asyncio.create_task(node.owner.request_run())
        await scene.sleep(at_s)
        await node.die()
        await asyncio.gather(asking, return_exceptions=True)
        heir = scene.add("c2")
        owner = await heir.begin()
        await owner._ready.wait()
        await until(lambda: owner.current is None)
        await scene.sleep(5)
        runs = await scene.runs()
        assert all(record.ended for _, record in runs)
        assert len(runs) <= 1
        assert len(scene.starts) == len(runs), "ordered once, adopted after"
        for _, record in runs:
            assert record.outcome is Outcome.SUCCEEDED
        again = await owner.request_run()
        assert (await scene.ended(again)).outcome is Outcome.SUCCEEDED

    in_owner_scene(test)


def test_a_quorum_lost_for_a_while_stops_the_owner_and_the_run_goes_on_after() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 20
        run = await node.owner.request_run()
        await running(node)
        scene.world.etcd.has_quorum = False
        await until(lambda: not node.owner.ownership.is_held)
        heard = len(scene.source.heard)
        await scene.sleep(30)
        assert len(scene.source.heard) == heard, "past its deadline it says nothing (I12)"
        await _gone(node)
        scene.world.etcd.has_quorum = True
        await node.begin()
        record = await scene.ended(run)
        assert record.outcome is Outcome.SUCCEEDED
        assert scene.starts == [run]

    in_owner_scene(test)


async def _gone(node: OwnerNode) -> None:
    """Wait for the end of the owner's task: its lease is over, its election noticed."""
    node.task.cancel()
    await asyncio.gather(node.task, return_exceptions=True)
