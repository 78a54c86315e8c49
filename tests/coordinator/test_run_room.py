"""Runs that wait for room at coordinators and at several workers: never too many, and all end."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.run_driver import Queueing, RunDriver, RunOrder, Watchers
from coordinator.run_room import RunRoom
from syncengine.model import RunOptions
from tests.coordinator.fake_workers import FakeLinks, FakeRoom, FakeWorker
from tests.coordinator.owners import OwnerNode, OwnerScene, in_owner_scene
from tests.coordinator.worlds import Etcd, Node, until
from tests.etcd.virtual_time import run_virtual
from wire.orders import Assignment, Member, Outcome, RunEnded
from wire.room import Room

WORKERS = ("w1", "w2", "w3", "w4")


@dataclass(frozen=True)
class Plan:
    """A job of the crowd: where it works, who owns it, when it is asked for and for how long."""

    workers: tuple[str, ...]
    coordinator: int
    priority: int
    at_s: float
    run_s: float


plans = st.builds(
    Plan,
    st.lists(st.sampled_from(WORKERS), min_size=2, max_size=4, unique=True).map(tuple),
    st.integers(0, 1),
    st.integers(-1, 1),
    st.floats(0, 3),
    st.floats(0.1, 4),
)


@dataclass
class Crowd:
    """Many jobs, each with workers of its own that share the room of their name."""

    node: Node
    rooms: dict[str, FakeRoom]
    own: tuple[RunRoom, ...]
    busy: Counter[str] = field(default_factory=Counter)
    worst: Counter[str] = field(default_factory=Counter)
    fakes: list[FakeWorker] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    async def run(self, name: str, plan: Plan) -> RunEnded:
        """Do what an owner does for one job; count who is busy while its runner works."""
        await asyncio.sleep(plan.at_s)
        owned = replace(await self.node.own(), job=name)
        workers = [FakeWorker(one, run_s=plan.run_s, at=self.rooms[one]) for one in plan.workers]
        self.fakes += workers
        self._count(name, plan, workers[0])
        addresses = {one: f"{one}.example:7000" for one in plan.workers}
        members = tuple(Member(one, "data", b"", addresses[one]) for one in plan.workers)
        assignment = Assignment(name, 1, members, RunOptions())
        order = RunOrder(assignment, "r1", addresses, priority=plan.priority)
        room = self.own[plan.coordinator]
        links = FakeLinks(workers).as_links()
        clock = self.node.world.clock
        with RunDriver(owned, order, links, clock, Watchers(), Queueing(room)) as driver:
            ended = await driver.drive()
            driver.settle()
        await asyncio.sleep(0.1)  # until the last order has arrived
        return ended

    def _count(self, name: str, plan: Plan, runner: FakeWorker) -> None:
        go = runner._go
        places = (*plan.workers, f"c{plan.coordinator}")

        @contextmanager
        def counted() -> Iterator[None]:
            self.order.append(name)
            self.busy.update(places)
            self.worst |= self.busy
            try:
                yield
            finally:
                self.busy.subtract(places)

        async def spy(*order: object) -> None:
            with counted():
                await go(*order)  # type: ignore[arg-type]

        runner._go = spy  # type: ignore[method-assign, assignment]


async def crowd_of(limits: dict[str, int], own: int | None) -> Crowd:
    node = Node(Etcd(), "c1")
    await node.own()
    rooms = {name: FakeRoom(Room(limits.get(name))) for name in WORKERS}
    return Crowd(node, rooms, (RunRoom("c0", own), RunRoom("c1", own)))


def gather(
    jobs: list[Plan],
    limits: dict[str, int],
    own: int | None = None,
    deaths: list[tuple[float, int]] | None = None,
) -> tuple[Crowd, list[RunEnded]]:
    async def main() -> tuple[Crowd, list[RunEnded]]:
        crowd = await crowd_of(limits, own)

        async def die(at_s: float, which: int) -> None:
            await asyncio.sleep(at_s)
            if crowd.fakes:
                victim = crowd.fakes[which % len(crowd.fakes)]
                victim.die()
                await asyncio.sleep(0.3)
                victim.come_back()

        dying = [asyncio.create_task(die(*one)) for one in deaths or []]
        runs = (crowd.run(f"j{number:02}", plan) for number, plan in enumerate(jobs))
        try:
            return crowd, await asyncio.gather(*runs)
        finally:
            await asyncio.gather(*dying)
            await crowd.node.close()

    return run_virtual(main())


limits_of = st.dictionaries(st.sampled_from(WORKERS), st.integers(1, 2))


@given(st.lists(plans, min_size=2, max_size=10), limits_of, st.none() | st.integers(1, 3))
@settings(max_examples=60)
def test_never_too_many_anywhere_and_nobody_waits_in_a_circle(
    jobs: list[Plan], limits: dict[str, int], own: int | None
) -> None:
    crowd, ended = gather(jobs, limits, own)
    assert {one.outcome for one in ended} == {Outcome.SUCCEEDED}
    for name, limit in limits.items():
        assert crowd.worst[name] <= limit, (name, crowd.worst)
    if own is not None:
        assert max(crowd.worst["c0"], crowd.worst["c1"]) <= own
    assert all(room.room.taken == 0 for room in crowd.rooms.values())
    assert all(room.taken == room.waiting == 0 for room in crowd.own)


@given(
    st.lists(plans, min_size=2, max_size=8),
    limits_of,
    st.lists(st.tuples(st.floats(0, 12), st.integers(0, 40)), max_size=6),
)
@settings(max_examples=40)
def test_workers_that_die_and_return_leave_nobody_waiting_for_ever(
    jobs: list[Plan], limits: dict[str, int], deaths: list[tuple[float, int]]
) -> None:
    crowd, ended = gather(jobs, limits, None, deaths)
    assert len(ended) == len(jobs)
    assert all(room.waiting == 0 for room in crowd.own)


def test_a_circle_of_jobs_in_pairs_ends() -> None:
    """Without one order for all, each would hold one worker and wait for the next."""
    ring = [("w1", "w2"), ("w2", "w3"), ("w3", "w4"), ("w4", "w1")]
    jobs = [Plan(pair, 0, 0, 0.0, 1.0) for pair in ring]
    crowd, ended = gather(jobs, dict.fromkeys(WORKERS, 1))
    assert {one.outcome for one in ended} == {Outcome.SUCCEEDED}
    assert max(crowd.worst[name] for name in WORKERS) == 1


def test_priority_decides_and_then_who_waits_longest() -> None:
    jobs = [
        Plan(("w1", "w2"), 0, 0, 0.0, 2.0),
        Plan(("w1", "w2"), 0, 0, 0.4, 0.1),
        Plan(("w1", "w2"), 1, 5, 0.6, 0.1),
        Plan(("w1", "w2"), 1, 0, 0.2, 0.1),
    ]
    for limits, own in (({"w1": 1}, None), ({}, 1)):
        jobs = [replace(one, coordinator=0) if own else one for one in jobs]
        crowd, _ = gather(jobs, limits, own)
        assert crowd.order == ["j00", "j02", "j03", "j01"]


def full(scene: OwnerScene) -> FakeRoom:
    """Have another job take all room at w2."""
    desk = FakeRoom(Room(1))
    desk.room.take("other")
    scene.workers["w2"].at = desk
    return desk


WHY = "waits for room at w2: 1 of 1 runs"


def test_a_run_that_waits_says_so_and_begins_when_there_is_room() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        desk = full(scene)
        run = await node.owner.request_run("me")
        await until(lambda: node.owner.state.phase == "waiting")
        await scene.sleep(30)
        assert (await scene.state()).reason == WHY
        record = await scene.run(run)
        assert (record.reason, record.outcome) == (WHY, Outcome.RUNNING)
        assert scene.starts == []
        desk.leave("other")
        await until(lambda: node.owner.state.phase == "running")
        record = await scene.ended(run)
        assert (record.outcome, record.waits) == (Outcome.SUCCEEDED, None)
        assert record.reason == "asked for by me"
        assert desk.room.taken == 0

    in_owner_scene(test)


def test_a_run_that_waits_can_be_cancelled_and_paused() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        desk = full(scene)
        run = await node.owner.request_run()
        await until(lambda: node.owner.state.reason == WHY)
        assert node.owner.current is not None
        await node.owner.cancel(node.owner.current.instant)
        record = await scene.ended(run, 10)
        assert (record.outcome, record.waits) == (Outcome.CANCELLED, None)
        assert desk.room.waiting == 0

    in_owner_scene(test)


def test_i9_the_next_owner_goes_on_waiting_and_its_place_is_kept() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        desk = full(scene)
        run = await node.owner.request_run()
        await until(lambda: node.owner.state.reason == WHY)
        since = (await scene.run(run)).waits
        await node.die()
        heir = scene.add("c2")
        await heir.begin()
        await until(lambda: heir.owner.state.reason == WHY)
        desk.room.ask("late", 0, 1e9)
        desk.by_job["late"] = FakeWorker("w2")
        record = await scene.run(run)
        assert record.waits == since
        assert desk.room.waiting == 2
        desk.leave("other")
        assert (await scene.ended(run)).outcome is Outcome.SUCCEEDED
        assert scene.starts == [run]

    in_owner_scene(test)


def test_a_takeover_stops_no_run_for_want_of_room() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        desk = FakeRoom(Room(1))
        scene.workers["w2"].at = desk
        scene.source.run_s = 60
        run = await node.owner.request_run()
        await until(lambda: len(scene.starts) == 1)
        await node.die()
        heir = scene.add("c2")
        await heir.begin()
        heir.owner.room = RunRoom("c2", 1)
        heir.owner.room.enter("other", 0, 0.0, is_under_way=True)
        record = await scene.ended(run)
        assert record.outcome is Outcome.SUCCEEDED
        assert scene.starts == [run], "it was adopted at once"
        assert [one.owner for one in record.attempts] == ["c1", "c2"]

    in_owner_scene(test)
