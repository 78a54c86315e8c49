"""A coordinator: all of it that is not network, put together as the daemon does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.catalog import Catalog
from coordinator.conversation import Conversation, LinkBroken
from coordinator.errors import CoordinatorError
from coordinator.lease_session import LeasePool
from coordinator.ledger import Ledger
from coordinator.links import WorkerLinks
from coordinator.presence import Presence, PreviousLife
from coordinator.records import CoordinatorRecord
from coordinator.scheduler import Scheduler
from tests.simulation.etcd import SimulatedStore
from tests.simulation.loop import Process
from tests.simulation.network import Line, Pipe
from tests.simulation.workers import SimulatedWorker
from wire.orders import Order, Pulse, Report

if TYPE_CHECKING:
    from tests.simulation.world import World

_AGAIN_S = 1.0
"""After which a service manager starts a coordinator that ended by itself."""
_CONNECT_S = (0.5, 3.0)


class SimulatedCoordinator:
    """One coordinator, through all of its lives."""

    def __init__(self, world: "World", name: str, state: Path) -> None:
        self.world = world
        self.name = name
        self.clock_error_s = 0.0
        """By how much its wall clock is wrong."""
        self.process: Process
        self.scheduler: Scheduler | None = None
        self.stopping: asyncio.Event
        self._state = state / name
        self._state.mkdir()
        self.start()

    def start(self) -> None:
        """Begin a life, with the state directory of the last one."""
        self.process = Process(self.world.loop, self.name)
        self.scheduler = None
        self.stopping = asyncio.Event()
        self.process.start(self._live())

    def wall(self) -> datetime:
        """Return what its wall clock shows."""
        return self.world.wall() + timedelta(seconds=self.clock_error_s)

    async def _live(self) -> None:
        world, process = self.world, self.process
        store = SimulatedStore(world, self.name, process)
        try:
            await self._coordinate(store)
        except CoordinatorError as error:
            world.trace.add(self.name, f"ends: {error}")
        finally:
            world.trace.add(self.name, "ended")
            world.network.died(process)
            world.loop.outside.call_at(world.loop.time() + _AGAIN_S, self._start_again, process)
        await store.close()

    def _start_again(self, process: Process) -> None:
        if self.process is process:
            process.kill()
            self.start()

    async def _coordinate(self, store: SimulatedStore) -> None:
        world, clock, keys = self.world, self.world.clock, self.world.keys
        await store.cluster_id()
        leases = LeasePool(store, clock)
        before = PreviousLife(self._state)
        await before.bury(store)
        leases.observe(before)
        catalog = Catalog(store, keys)
        links = WorkerLinks(self._connect, clock)
        ledger = Ledger(store, keys, clock)
        scheduler = Scheduler(
            self.name, store, keys, clock, leases, catalog, links, ledger, self.wall
        )
        self.scheduler = scheduler
        presence = Presence(store, keys, clock, leases, self.name)
        tasks: list[asyncio.Task[None]] = []
        try:
            record = CoordinatorRecord(
                address="c:1", http="", version="0", since=self.wall(), instance=presence.instance
            )
            await presence.claim(record)
            world.trace.add(self.name, "present")
            works = (catalog.follow(), scheduler.run(), presence.keep(record))
            tasks = [asyncio.create_task(work) for work in works]
            stopping = asyncio.create_task(self.stopping.wait())
            await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in (tasks[0], tasks[2], stopping):
                task.cancel()
            ended = list(await asyncio.gather(tasks[0], tasks[2], return_exceptions=True))
            tasks[1].cancel()
            ended += await asyncio.gather(tasks[1], return_exceptions=True)
            world.checks.ended_well(self.name, ended)
        finally:
            await scheduler.stop()
            await links.close()
            await leases.close()

    @contextlib.asynccontextmanager
    async def _connect(self, name: str, address: str) -> AsyncIterator[Conversation]:
        world, process = self.world, self.process
        worker = world.workers[name]
        loop, network = world.loop, world.network
        ways = (self.name, name), (name, self.name)
        if worker.process.is_paused or any(way in network.cuts for way in ways):
            await asyncio.sleep(loop.random.uniform(*_CONNECT_S))
            raise LinkBroken("unavailable: no answer")
        await asyncio.sleep(network.arrival() - loop.time())
        if worker.process.is_dead or worker.process.is_paused:
            raise LinkBroken("unavailable: connection refused")
        conversation = _Conversation(world, process, worker)
        try:
            yield conversation
        finally:
            conversation.line.hang_up(0)


class _Conversation:
    """The coordinator's end of a line to a worker."""

    def __init__(self, world: "World", process: Process, worker: SimulatedWorker) -> None:
        self._world = world
        self._process = process
        self._worker = worker.name
        self._heard: asyncio.Queue[Report | LinkBroken] = asyncio.Queue()
        network, server = world.network, worker.process
        answers = Pipe(network, (worker.name, process.name), process, self._heard.put_nowait)
        self._orders = Pipe(
            network, (process.name, worker.name), server, lambda order: worker.take(order, link)
        )
        self.line = Line(
            network,
            (process, server),
            (self._orders, answers),
            (
                lambda why: self._heard.put_nowait(LinkBroken(why)),
                lambda _why: worker.hung_up(link),
            ),
        )
        network.add(self.line)
        link = server.context.run(worker.accept, self.line, answers)

    async def hear(self) -> Report:
        report = await self._heard.get()
        if isinstance(report, LinkBroken):
            raise report
        if not isinstance(report, Pulse):
            heard = f"hears {type(report).__name__} {report.job} from {self._worker}"
            self._world.trace.add(self._process.name, heard)
        return report

    async def say(self, order: Order) -> None:
        self._world.checks.ordered(self._process, order)
        self._orders.send(order)
