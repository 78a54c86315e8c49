"""A coordinator's jobs: which it takes, which it gives back, and that one cannot harm another."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest

from coordinator.catalog import Catalog
from coordinator.job_owner import JobOwner
from coordinator.lease_session import LeasePool
from coordinator.ledger import Ledger
from coordinator.records import CoordinatorRecord, DrainRecord, encode
from coordinator.scheduler import AGAIN_S, Scheduler
from tests.coordinator.fake_workers import FakeLinks, FakeWorker
from tests.coordinator.worlds import JOB, START, TTL_S, Etcd, job_spec, until
from tests.etcd.virtual_time import run_virtual
from wire.orders import Outcome
from wire.token import Token


class Member:
    """One coordinator with everything but its network."""

    def __init__(self, group: "Group", name: str) -> None:
        world = group.world
        self.group = group
        self.name = name
        self.store = world.store()
        self.leases = LeasePool(self.store, world.clock)
        self.catalog = Catalog(self.store, world.keys)
        self.links = FakeLinks(group.workers.values())
        self.ledger = Ledger(self.store, world.keys, world.clock)
        self.scheduler = Scheduler(
            name,
            self.store,
            world.keys,
            world.clock,
            self.leases,
            self.catalog,
            self.links.as_links(),
            self.ledger,
        )
        self._tasks = [
            asyncio.create_task(self.catalog.follow()),
            asyncio.create_task(self._be_present()),
            asyncio.create_task(self.scheduler.run()),
        ]

    async def say_held(self, why: str) -> None:
        await self._be_present(START, why)

    async def _be_present(self, held_until: datetime | None = None, held: str = "") -> None:
        session = await self.leases.session(TTL_S)
        record = CoordinatorRecord(
            address="a:1",
            http="",
            version="0",
            since=START,
            instance=self.name,
            held_until=held_until,
            held=held,
        )
        key = self.group.world.keys.coordinator(self.name)
        await self.store.put(key, encode(record), lease=session.lease_id)

    @property
    def jobs(self) -> set[str]:
        return set(self.scheduler.election.owned)

    async def drain(self) -> None:
        record = DrainRecord(by="operator/alice", since=START)
        await self.group.world.store().put(self.group.world.keys.drain(self.name), encode(record))

    async def undrain(self) -> None:
        await self.group.world.store().delete(self.group.world.keys.drain(self.name))

    async def stop(self) -> None:
        await self.scheduler.stop()
        await self._end()

    async def die(self) -> None:
        self.links.cut()
        self.store.is_cut = True
        await self._end()

    async def _end(self) -> None:
        owners = [one.task for one in self.scheduler._owned.values()]
        for task in (*self._tasks, *owners):
            task.cancel()
        await asyncio.gather(*self._tasks, *owners, return_exceptions=True)
        await self.leases.close()
        await self.store.close()


class Group:
    """Several coordinators and the workers they share."""

    def __init__(self) -> None:
        self.world = Etcd()
        self.workers = {name: FakeWorker(name) for name in ("w1", "w2", "w3")}
        self.members: list[Member] = []

    def add(self, *names: str) -> list[Member]:
        added = [Member(self, name) for name in names]
        self.members += added
        return added

    async def define(self, name: str = JOB, **fields: Any) -> None:
        await self.world.define(job_spec(name=name, **fields))

    def owner_of(self, job: str) -> str | None:
        owners = [member.name for member in self.members if job in member.jobs]
        assert len(owners) <= 1
        return owners[0] if owners else None


def in_group(test: Callable[[Group], Awaitable[None]]) -> None:
    async def main() -> None:
        group = Group()
        await group.world.register()
        try:
            await test(group)
        finally:
            for member in group.members:
                await member.die()

    run_virtual(main())


def test_a_job_is_taken_when_it_is_defined_and_released_when_it_is_deleted() -> None:
    async def test(group: Group) -> None:
        (member,) = group.add("c1")
        await asyncio.sleep(1)
        assert not member.jobs
        await group.define()
        await until(lambda: member.scheduler.owner(JOB) is not None)
        await group.world.store().delete(group.world.keys.job(JOB))
        await until(lambda: not member.jobs)
        assert member.scheduler.owner(JOB) is None
        await until(lambda: group.world.etcd.get(group.world.keys.owner(JOB)) is None)
        await asyncio.sleep(10)
        assert not member.jobs, "and not taken again"

    in_group(test)


def test_a_job_that_is_deleted_while_it_runs_is_dropped_at_its_workers() -> None:
    async def test(group: Group) -> None:
        (member,) = group.add("c1")
        await group.define()
        await until(lambda: member.scheduler.owner(JOB) is not None)
        owner = member.scheduler.owner(JOB)
        assert owner is not None
        group.workers["w1"].run_s = 60
        await owner.request_run()
        await until(lambda: group.workers["w1"].run is not None)
        await group.world.store().delete(group.world.keys.job(JOB))
        await until(lambda: group.workers["w1"].assignment is None)
        assert group.workers["w1"].run is None

    in_group(test)


def test_a_job_of_a_newer_version_is_left_to_whoever_understands_it() -> None:
    async def test(group: Group) -> None:
        (member,) = group.add("c1")
        await group.world.store().put(group.world.keys.job("newer"), b'{"what":"is this"}')
        await group.define()
        await until(lambda: member.jobs == {JOB})
        await asyncio.sleep(10)
        assert member.jobs == {JOB}

    in_group(test)


def test_jobs_spread_over_the_coordinators_and_go_to_the_rest_when_one_dies() -> None:
    async def test(group: Group) -> None:
        members = group.add("c1", "c2", "c3")
        await asyncio.sleep(2)
        names = {f"job-{n}" for n in range(30)}
        for name in names:
            await group.define(name, source="w1:data", targets=["w2:data"])
        await until(lambda: all(group.owner_of(name) for name in names))
        assert all(5 <= len(member.jobs) <= 15 for member in members)
        group.members.remove(members[0])
        await members[0].die()
        await until(lambda: all(group.owner_of(name) for name in names), within_s=TTL_S + 2)

    in_group(test)


def test_placement_is_respected() -> None:
    async def test(group: Group) -> None:
        group.add("c1", "c2", "c3")
        await asyncio.sleep(2)
        await group.define("here", placement={"nodes": ["c2"], "fallback": False})
        await group.define("order", placement={"nodes": ["c3", "c1"]})
        await until(lambda: group.owner_of("here") == "c2" and group.owner_of("order") == "c3")
        for name in ("c2", "c3"):
            member = next(one for one in group.members if one.name == name)
            group.members.remove(member)
            await member.die()
        await asyncio.sleep(15)
        assert group.owner_of("here") is None, "it waits for its node"
        assert group.owner_of("order") == "c1"
        (back,) = group.add("c2")
        await until(lambda: group.owner_of("here") == "c2")
        assert "order" not in back.jobs, "and nothing returns by itself"

    in_group(test)


def test_a_draining_coordinator_takes_nothing_new() -> None:
    async def test(group: Group) -> None:
        draining, other = group.add("c1", "c2")
        await asyncio.sleep(2)
        await draining.drain()
        await asyncio.sleep(0.5)
        for number in range(6):
            await group.define(f"job-{number}")
        await until(lambda: len(other.jobs) == 6)
        assert not draining.jobs

    in_group(test)


def test_a_coordinator_that_stops_hands_its_jobs_over_at_once() -> None:
    async def test(group: Group) -> None:
        first, second = group.add("c1", "c2")
        await asyncio.sleep(2)
        await group.define(placement={"nodes": ["c1"]})
        await until(lambda: first.scheduler.owner(JOB) is not None)
        owner = first.scheduler.owner(JOB)
        assert owner is not None
        group.workers["w1"].run_s = 20
        await owner.request_run()
        await until(lambda: group.workers["w1"].run is not None)
        began = group.world.clock.now()
        group.members.remove(first)
        await first.stop()
        await until(lambda: JOB in second.jobs)
        assert group.world.clock.now() - began < 0.5
        await until(lambda: not _is_running(second), within_s=60)
        ((_, record),) = await second.ledger.runs(JOB)
        assert record.outcome is Outcome.SUCCEEDED
        assert [one.owner for one in record.attempts] == ["c1", "c2"]
        assert len(group.workers["w1"].starts) == 1

    in_group(test)


def _is_running(member: Member) -> bool:
    owner = member.scheduler.owner(JOB)
    return owner is None or not owner._ready.is_set() or owner.current is not None


def test_one_jobs_error_does_not_stop_the_others_and_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = JobOwner._begin
    failing = {"bad"}

    async def fail(owner: JobOwner) -> None:
        if owner.name in failing:
            raise ZeroDivisionError("ours")
        await begin(owner)

    monkeypatch.setattr(JobOwner, "_begin", fail)

    async def test(group: Group) -> None:
        (member,) = group.add("c1")
        await group.define("bad")
        await group.define("good")
        await until(lambda: member.jobs == {"bad", "good"})
        good, bad = member.scheduler.owner("good"), member.scheduler.owner("bad")
        assert good is not None
        assert bad is not None
        await good.request_run()
        failing.clear()
        await asyncio.sleep(AGAIN_S + 0.5)
        await bad.request_run()
        assert member.jobs == {"bad", "good"}

    in_group(test)


def test_an_owner_that_only_a_worker_refuses_goes_on_trying() -> None:
    """As after etcd was set back to a backup: the job must not lie dead under its own key."""

    async def test(group: Group) -> None:
        (member,) = group.add("c1")
        await group.define()
        await until(lambda: member.scheduler.owner(JOB) is not None)
        owner = member.scheduler.owner(JOB)
        assert owner is not None
        token = owner.ownership.token
        group.workers["w1"].highest = Token(token.cluster_id, token.revision + 100)
        run = await owner.request_run()
        await asyncio.sleep(1)
        assert not group.workers["w1"].starts
        group.workers["w1"].highest = token
        await asyncio.sleep(AGAIN_S + 5)
        ((_, record),) = await member.ledger.runs(JOB)
        assert record.outcome is Outcome.SUCCEEDED, run

    in_group(test)


def test_a_preferred_owner_that_dies_does_not_keep_others_off_while_it_is_listed() -> None:
    async def test(group: Group) -> None:
        home, heir = group.add("c1", "c2")
        await asyncio.sleep(2)
        await group.define("home", placement={"nodes": ["c1"]}, lease_ttl="2s")
        await group.define("only", placement={"nodes": ["c1"], "fallback": False}, lease_ttl="2s")
        await until(lambda: home.jobs == {"home", "only"})
        died = group.world.clock.now()
        dying = asyncio.create_task(home.die())
        await until(lambda: heir.jobs == {"home"})
        assert group.world.clock.now() - died < 2 + 1 + 0.2
        assert "c1" in heir.catalog.coordinators, "its presence lives longer"
        owner = heir.scheduler.owner("home")
        assert owner is not None
        assert owner.ownership.reason == "c1, preferred, fell silent"
        await dying
        assert heir.jobs == {"home"}

    in_group(test)


def test_a_preferred_owner_that_only_lost_its_lease_takes_its_jobs_again() -> None:
    async def test(group: Group) -> None:
        home, heir = group.add("c1", "c2")
        await asyncio.sleep(2)
        for number in range(20):
            await group.define(f"home-{number}", placement={"nodes": ["c1"]}, lease_ttl="2s")
        await until(lambda: len(home.jobs) == 20)
        for _ in range(5):
            session = home.leases.current(2)
            assert session is not None
            group.world.etcd.revoke(session.lease_id)
            await asyncio.sleep(3)
            assert len(home.jobs) == 20
            assert not heir.jobs

    in_group(test)
