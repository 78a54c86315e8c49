"""Jobs that move because somebody says so, or because their preferred node is back; and pauses."""

import asyncio
from datetime import UTC, datetime

import msgspec
import pytest

from coordinator import present
from coordinator.forecast import forecast
from coordinator.job_owner import JobOwner, RequestRefused
from coordinator.ledger import NotOwner
from coordinator.records import JobRecord, PauseRecord, decode, encode
from tests.coordinator.owners import OwnerNode, OwnerScene, in_owner_scene, running
from tests.coordinator.test_scheduled import at, history, until_wall
from tests.coordinator.test_scheduler import Group, Member, in_group
from tests.coordinator.worlds import JOB, START, until
from wire.orders import Outcome

S, K = Outcome.SUCCEEDED, Outcome.SKIPPED
WHO = "operator/alice"


def member(group: Group, name: str) -> Member:
    return next(one for one in group.members if one.name == name)


def owner_at(group: Group, name: str) -> JobOwner:
    owner = member(group, name).scheduler.owner(JOB)
    assert owner is not None
    return owner


async def owned_by(group: Group, name: str, within_s: float = 10) -> None:
    await until(lambda: group.owner_of(JOB) == name, within_s)


async def explained(group: Group, by: str) -> str:
    """What `job explain` says first, asked of one of them."""
    one = member(group, by)
    job = one.catalog.jobs[JOB]
    state = await one.ledger.state(JOB)
    owner = one.scheduler.election.owners.get(JOB)
    ahead = forecast(job.spec.placement, 5.0, None, one.scheduler.decide(job))
    view = present.explain_view(job, state, owner, one.scheduler.decide(job), ahead)
    return view.reasons[0]


def test_a_drained_coordinator_hands_over_its_jobs_and_takes_no_more() -> None:
    async def test(group: Group) -> None:
        drained, other = group.add("c1", "c2")
        await asyncio.sleep(2)
        await group.define(placement={"nodes": ["c1"]})
        await owned_by(group, "c1")
        group.workers["w1"].run_s = 20
        await owner_at(group, "c1").request_run()
        await until(lambda: group.workers["w1"].run is not None)
        began = group.world.clock.now()
        await drained.drain()
        await owned_by(group, "c2")
        assert group.world.clock.now() - began < 0.5
        await asyncio.sleep(30)
        ((_, record),) = await other.ledger.runs(JOB)
        assert record.outcome is S
        assert record.attempts[0].why_ended == ("c1 handed the job over: drained by operator/alice")
        assert len(group.workers["w1"].starts) == 1, "adopted, not begun anew"
        assert "gave it up (drained by operator/alice)" in await explained(group, "c2")
        await drained.undrain()
        await asyncio.sleep(10)
        assert group.owner_of(JOB) == "c2", "nothing moves by itself"
        await other.drain()
        await owned_by(group, "c1")

    in_group(test)


def test_a_drain_survives_the_coordinators_death() -> None:
    async def test(group: Group) -> None:
        first, _ = group.add("c1", "c2")
        await asyncio.sleep(2)
        await first.drain()
        group.members.remove(first)
        await first.die()
        await asyncio.sleep(10)
        group.add("c1")
        await asyncio.sleep(2)
        await group.define(placement={"nodes": ["c1"], "fallback": False})
        await asyncio.sleep(10)
        assert group.owner_of(JOB) is None
        job = member(group, "c2").catalog.jobs[JOB]
        reasons = member(group, "c2").scheduler.decide(job).reasons
        assert "c1 is draining and takes no more" in reasons
        assert "no preferred node is there and fallback is false: the job waits" in reasons
        await member(group, "c1").undrain()
        await owned_by(group, "c1")

    in_group(test)


def test_restart_goes_home_and_begins_the_run_afresh() -> None:
    async def test(group: Group) -> None:
        home, _ = group.add("c1", "c2")
        await asyncio.sleep(2)
        await group.define(placement={"nodes": ["c1"]})
        await owned_by(group, "c1")
        group.members.remove(home)
        await home.die()
        await owned_by(group, "c2")
        group.add("c1")
        await asyncio.sleep(10)
        assert group.owner_of(JOB) == "c2"
        said = await explained(group, "c2")
        assert " UTC because c1, preferred, left at " in said
        assert said.endswith(f"; it stays until you run 'baton job restart {JOB}'")
        group.workers["w1"].run_s = 20
        run = await owner_at(group, "c2").request_run()
        await until(lambda: group.workers["w1"].run is not None)
        await member(group, "c2").scheduler.restart(JOB, WHO)
        await owned_by(group, "c1", within_s=1)
        await until(lambda: len(group.workers["w1"].starts) == 2)
        await asyncio.sleep(30)
        ((_, record),) = await member(group, "c1").ledger.runs(JOB)
        assert record.outcome is S
        assert [one.owner for one in record.attempts] == ["c2", "c1"]
        assert record.attempts[0].why_ended == "restarted by operator/alice"
        assert [start.run for start in group.workers["w1"].starts] == [run, run]
        assert "c2 gave it up (restarted by operator/alice)" in await explained(group, "c2")

    in_group(test)


def test_restart_where_it_is_already_gives_a_new_token() -> None:
    async def test(group: Group) -> None:
        group.add("c1")
        await group.define()
        await owned_by(group, "c1")
        before = owner_at(group, "c1").ownership.token
        await member(group, "c1").scheduler.restart(JOB, WHO)
        await owned_by(group, "c1")
        assert owner_at(group, "c1").ownership.token > before
        await member(group, "c1").scheduler.restart("unknown", WHO)

    in_group(test)


def test_failback_waits_until_the_preferred_is_stable_and_for_the_end_of_a_run() -> None:
    async def test(group: Group) -> None:
        home, _ = group.add("c1", "c2")
        await asyncio.sleep(2)
        await group.define(placement={"nodes": ["c1"], "failback": {"when_stable": "30s"}})
        await owned_by(group, "c1")
        group.members.remove(home)
        await home.die()
        await owned_by(group, "c2")
        (back,) = group.add("c1")
        await asyncio.sleep(20)
        group.members.remove(back)
        await back.die()  # not stable
        await asyncio.sleep(6)
        group.add("c1")
        await until(lambda: "c1" in member(group, "c2").catalog.coordinators)
        await asyncio.sleep(20)
        assert group.owner_of(JOB) == "c2"
        assert "it goes back to c1 when that was there for 30s" in await explained(group, "c2")
        group.workers["w1"].run_s = 40
        await owner_at(group, "c2").request_run()
        await asyncio.sleep(30)
        assert group.owner_of(JOB) == "c2", "not in a run"
        await owned_by(group, "c1", within_s=15)
        ((_, record),) = await member(group, "c1").ledger.runs(JOB)
        assert (record.outcome, len(record.attempts)) == (S, 1)
        assert "c2 gave it up (c1, preferred, is back)" in await explained(group, "c2")

    in_group(test)


@pytest.mark.parametrize("jobs", [30])
def test_of_those_who_are_there_the_preferred_always_claims(jobs: int) -> None:
    """Whatever the order in which they come: no lower one takes what a higher one is free to take."""

    async def test(group: Group) -> None:
        group.add("c1", "c2", "c3")
        await asyncio.sleep(2)
        orders = [["c1", "c2", "c3"], ["c3", "c1"], ["c2"]]
        for n in range(jobs):
            await group.define(f"job-{n}", placement={"nodes": orders[n % 3]})
        names = [f"job-{n}" for n in range(jobs)]
        await until(lambda: all(group.owner_of(name) for name in names))
        for n, name in enumerate(names):
            assert group.owner_of(name) == orders[n % 3][0]
        await member(group, "c3").drain()
        await asyncio.sleep(3)
        for n, name in enumerate(names):
            wanted = next(node for node in orders[n % 3] if node != "c3")
            assert group.owner_of(name) == wanted

    in_group(test)


# Pauses


async def pause(scene: OwnerScene, *, on: bool = True) -> None:
    key = scene.world.keys.job(JOB)
    kv = await scene.store.get(key)
    assert kv is not None
    paused = PauseRecord(by=WHO, since=datetime(2026, 3, 1, tzinfo=UTC)) if on else None
    record = msgspec.structs.replace(decode(kv.value, JobRecord), paused=paused)
    await scene.store.put(key, encode(record))


def test_a_paused_job_begins_nothing_and_makes_up_for_nothing() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 65)
        await pause(scene)
        await until_wall(scene, 130)
        state = await scene.state()
        assert (state.phase, state.reason) == ("paused", f"paused by {WHO}")
        assert state.next_due is None
        with pytest.raises(RequestRefused, match="baton job resume"):
            await node.owner.request_run()
        await node.die()
        await scene.add("c2").begin()
        await until_wall(scene, 250)
        assert await history(scene) == [(60, S)], "whoever owns it"
        await pause(scene, on=False)
        await until_wall(scene, 310)
        assert await history(scene) == [(60, S), (120, K), (180, K), (240, K), (300, S)]
        assert dict(await scene.runs())[at(120)].reason == "the job was paused"
        assert (await scene.state()).phase == "idle"

    in_owner_scene(test, trigger={"every": "60s"}, missed="all")


def test_a_pause_stops_a_run_that_goes_on_after_it() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 60
        run = await node.owner.request_run()
        await running(node)
        await pause(scene)
        await until(lambda: scene.source.run is None)
        await scene.sleep(1)
        record = await scene.run(run)
        assert record.is_parked
        assert record.attempts[0].why_ended == f"paused by {WHO}"
        assert (await scene.state()).phase == "paused"
        await scene.sleep(100)
        assert len(scene.starts) == 1
        scene.source.run_s = 1
        await pause(scene, on=False)
        record = await scene.ended(run, within_s=5)
        assert (record.outcome, len(record.attempts)) == (S, 2)
        assert scene.starts == [run, run]

    in_owner_scene(test)


def test_a_pause_that_the_owner_did_not_live_to_carry_out_is_by_the_next() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 60
        run = await node.owner.request_run()
        await running(node)
        await node.die()
        await pause(scene)
        await scene.add("c2").begin()
        await until(lambda: scene.source.run is None)
        await scene.sleep(1)
        assert (await scene.run(run)).is_parked

    in_owner_scene(test)


def test_the_scene_begins_on_a_sunday() -> None:
    assert START.strftime("%a") == "Sun", "the windows of other tests rely on it"


# Drills


def test_a_drill_measures_a_takeover_and_harms_no_run() -> None:
    async def test(group: Group) -> None:
        group.add("c1", "c2")
        await asyncio.sleep(2)
        await group.define(placement={"nodes": ["c1"]})
        await group.define("other", placement={"nodes": ["c1"]})
        await owned_by(group, "c1")
        await until(lambda: group.owner_of("other") == "c1")
        group.workers["w1"].run_s = 30
        run = await owner_at(group, "c1").request_run()
        await until(lambda: group.workers["w1"].run is not None)
        report = await member(group, "c1").scheduler.drill(JOB)
        assert (report.owner, report.next_owner, report.run) == ("c1", "c2", run)
        assert 4.9 <= report.detection_s <= 6
        assert 0 <= report.claim_s < 0.5
        await owner_at(group, "c2").until_adopted()
        await asyncio.sleep(40)
        ((_, record),) = await member(group, "c2").ledger.runs(JOB)
        assert (record.outcome, len(group.workers["w1"].starts)) == (S, 1)
        assert [one.owner for one in record.attempts] == ["c1", "c2"]
        assert group.owner_of("other") == "c1", "other jobs keep their lease"
        await member(group, "c2").scheduler.restart(JOB, WHO)
        await owned_by(group, "c1")

    in_group(test)


def test_a_drill_with_nobody_else_there_ends_where_it_began() -> None:
    async def test(group: Group) -> None:
        group.add("c1")
        await group.define()
        await owned_by(group, "c1")
        report = await member(group, "c1").scheduler.drill(JOB)
        assert (report.owner, report.next_owner, report.run) == ("c1", "c1", None)
        assert report.claim_s >= 2
        await owned_by(group, "c1")
        with pytest.raises(NotOwner):
            await member(group, "c1").scheduler.drill("unknown")

    in_group(test)
