"""Stories told on purpose: what seeds come to too seldom, brought about step by step.

Each waits for a moment that matters, however the seed comes to it, and strikes there. A sound cluster
gets over it; with the guard that it is about switched off, a check finds so.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING

from coordinator.job_file import spec_from_plain
from coordinator.keys import parse_instant
from coordinator.ownership import Claim
from coordinator.records import DrainRecord, RunRecord, decode, encode
from coordinator.store import Put
from wire.orders import OpenSession

if TYPE_CHECKING:
    from tests.simulation.coordinators import SimulatedCoordinator
    from tests.simulation.workers import SimulatedWorker
    from tests.simulation.world import World

Plot = Callable[["World"], Awaitable[None]]

_WITHIN_S = 60.0
_AHEAD_S = 3_600.0
_FURTHER_S = 4_500.0
"""More than the hour from which a cron schedule goes back too; instants of all of it have records."""
_PASSED = 60


class _Scene:
    """The first job of a world, as a plot needs it, and what becomes of it."""

    def __init__(self, world: "World", trigger: dict[str, str] | None = None) -> None:
        self.world = world
        self.job = min(world.jobs)
        plain = world.jobs[self.job] | {
            "trigger": trigger or {"every": "5s"},
            "overlap": "skip",
            "missed": "latest",
            "lease_ttl": "5s",
            "placement": {},
        }
        world.specs[self.job] = spec_from_plain(plain)
        world.define(self.job)

    @property
    def source(self) -> "SimulatedWorker":
        return self.world.workers[str(self.world.jobs[self.job]["source"]).partition(":")[0]]

    @property
    def target(self) -> "SimulatedWorker":
        (target,) = self.world.jobs[self.job]["targets"]
        return self.world.workers[target.partition(":")[0]]

    async def until(self, what: str, holds: Callable[[], object]) -> None:
        """Wait for a moment; at most a tick of the loop later, sooner than any answer arrives."""
        news = self.world.trace.news
        try:
            async with asyncio.timeout(_WITHIN_S):
                while not holds():
                    news.clear()
                    await news.wait()
        except TimeoutError:
            raise AssertionError(f"the plot does not come to: {what}") from None
        self.world.trace.add("PLOT", what)

    def claim(self) -> tuple[Claim, int] | None:
        """Return who owns the job, and the revision of the token."""
        kv = self.world.etcd.get(self.world.keys.owner(self.job))
        return None if kv is None else (Claim.from_json(kv.value), kv.create_revision)

    def owner(self) -> "SimulatedCoordinator":
        claim = self.claim()
        assert claim is not None, "it has an owner"
        return self.world.coordinators[claim[0].node]

    def open_run(self) -> datetime | None:
        """Return the instant of the run that has begun and not ended, as etcd has it."""
        prefix = self.world.keys.runs(self.job)
        for kv in self.world.etcd.read(prefix):
            if decode(kv.value, RunRecord).is_open:
                return parse_instant(kv.key.removeprefix(prefix))
        return None

    async def until_created(self) -> datetime:
        """Wait until a run is in the ledger, which its owner has not heard yet."""
        await self.until("a run is created", lambda: self.open_run() is not None)
        instant = self.open_run()
        assert instant is not None
        return instant


async def late_orders(world: "World") -> None:
    """An owner's order to open a session is on its way until the next owner has begun to publish."""
    scene = _Scene(world)
    await scene.until_created()
    await scene.until("it has ended, so that the links stand", lambda: scene.open_run() is None)
    await scene.until_created()
    old, before = scene.owner(), scene.claim()
    assert before is not None
    ways = [(old.name, worker) for worker in world.workers]
    network = world.network
    network.cuts.update(ways)  # too short for anybody to wonder
    await scene.until("both orders are held back", lambda: _opens(world) == len(ways))
    network.cuts.update([(old.name, "etcd"), ("etcd", old.name)])
    world.etcd.revoke_all()

    def publishes_anew() -> bool:
        now = world.checks.published_under(scene.target.name, scene.job)
        return now is not None and now.revision > before[1]

    await scene.until("the next owner's run publishes", publishes_anew)
    network.heal(*ways)
    await asyncio.sleep(2.0)  # the old owner believes in its lease for longer


async def cancelled_at_once(world: "World") -> None:
    """A worker finds the order for a run and the one that cancels it in the same turn of its loop."""
    scene = _Scene(world)
    instant = await scene.until_created()
    owner, source = scene.owner(), scene.source
    await scene.until("the source has a session", lambda: source.sessions.get(scene.job))
    source.process.pause()
    await asyncio.sleep(0.2)
    assert owner.scheduler is not None
    job_owner = owner.scheduler.owner(scene.job)
    assert job_owner is not None
    cancelling = owner.process.start(job_owner.cancel(instant))
    await asyncio.sleep(0.2)
    source.process.resume()
    await cancelling
    await asyncio.sleep(1.0)


async def drained_while_writing(world: "World") -> None:
    """An owner is told to give its job up while a run of that is being put into the ledger."""
    scene = _Scene(world)
    await scene.until("it is owned", scene.claim)
    await asyncio.sleep(world.random.uniform(4.999, 5.003))  # every 5 s, since it was defined
    record = DrainRecord(by="operator", since=world.wall())
    world.operate(Put(world.keys.drain(scene.owner().name), encode(record)))
    await asyncio.sleep(1.0)


async def clock_ahead_in_a_run(world: "World") -> None:
    """A clock is an hour ahead when a run ends, and right again before the next begins."""
    scene = _Scene(world)
    await scene.until_created()
    owner, prefix = scene.owner(), world.keys.runs(scene.job)
    await scene.until(
        "the run publishes", lambda: world.checks.published_under(scene.target.name, scene.job)
    )
    world.was_set_back = True
    owner.clock_error_s = _AHEAD_S
    await scene.until("it has ended", lambda: scene.open_run() is None)
    owner.clock_error_s = 0.0
    assert world.etcd.read(prefix)
    await asyncio.sleep(1.0)


def _opens(world: "World") -> int:
    """Return how many orders to open a session are held back."""
    return sum(isinstance(one, OpenSession) for one in world.network.held())


async def clock_back_to_instants_told(world: "World") -> None:
    """A clock is set ahead, instants are passed over, and it is set right: they come again."""
    scene = _Scene(world, {"cron": "* * * * *"})
    await scene.until("it is owned", scene.claim)
    await asyncio.sleep(1.0)  # its owner knows this schedule, and not the one before
    owner, runs = scene.owner(), world.keys.runs(scene.job)
    world.was_set_back = True
    owner.clock_error_s = _FURTHER_S
    await scene.until("instants were passed over", lambda: len(world.etcd.read(runs)) > _PASSED)
    owner.clock_error_s = 0.0
    await asyncio.sleep(1.0)


PLOTS: dict[str, Plot] = {
    plot.__name__.replace("_", "-"): plot
    for plot in (
        late_orders,
        cancelled_at_once,
        drained_while_writing,
        clock_ahead_in_a_run,
        clock_back_to_instants_told,
    )
}
