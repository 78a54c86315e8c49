"""Owners of one job on an etcd in memory, each with its own links to workers that they share."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from coordinator.catalog import Catalog
from coordinator.job import JobSpec
from coordinator.job_owner import JobOwner
from coordinator.keys import parse_instant
from coordinator.ledger import Ledger
from coordinator.records import RunRecord, StateRecord
from tests.coordinator.fake_workers import FakeLinks, FakeWorker
from tests.coordinator.worlds import JOB, Etcd, Node, job_spec, until
from tests.etcd.virtual_time import run_virtual


class OwnerNode:
    """A coordinator that owns the job and does its work."""

    def __init__(self, scene: "OwnerScene", name: str, rank: int | None) -> None:
        world = scene.world
        self.scene = scene
        self.node = Node(world, name, rank)
        self.catalog = Catalog(self.node.store, world.keys)
        self.links = FakeLinks(scene.workers.values())
        self.ledger = Ledger(self.node.store, world.keys, world.clock)
        self.owner: JobOwner
        self.task: asyncio.Task[None]
        self._following = asyncio.create_task(self.catalog.follow())

    async def begin(self) -> JobOwner:
        """Wait for the ownership and begin to work."""
        ownership = await self.node.own()
        await self.catalog.ready()
        self.owner = JobOwner(
            self.node.name,
            ownership,
            self.catalog,
            self.ledger,
            self.links.as_links(),
            self.scene.world.clock,
            self.scene.world.wall,
        )
        self.catalog.on_change(self.owner.definition_changed)
        self.task = asyncio.create_task(self.owner.own())
        return self.owner

    async def die(self) -> None:
        """End without a word to etcd or to a worker."""
        self.links.cut()
        self.node.store.is_cut = True
        await self._stop(self.task, self._following)

    async def stop(self) -> None:
        """End in order, as `Scheduler.stop` does."""
        await self._stop(self.task)
        await self.owner.hand_over()
        await self.node.release()

    async def close(self) -> None:
        await self._stop(self._following, *([self.task] if hasattr(self, "task") else []))
        await self.node.close()

    async def _stop(self, *tasks: "asyncio.Task[None]") -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class OwnerScene:
    """The cluster in memory, the workers, and those who own the job in turn."""

    def __init__(self) -> None:
        self.world = Etcd()
        self.workers = {name: FakeWorker(name) for name in ("w1", "w2", "w3")}
        self.nodes: list[OwnerNode] = []
        self.store = self.world.store()
        self.ledger = Ledger(self.store, self.world.keys, self.world.clock)

    @property
    def source(self) -> FakeWorker:
        return self.workers["w1"]

    @property
    def starts(self) -> list[str]:
        """The runs that the source was ordered to do."""
        return [start.run for start in self.source.starts]

    def add(self, name: str, rank: int | None = 0) -> OwnerNode:
        node = OwnerNode(self, name, rank)
        self.nodes.append(node)
        return node

    async def state(self) -> StateRecord:
        return await self.ledger.state(JOB)

    async def runs(self) -> list[tuple[datetime, RunRecord]]:
        return await self.ledger.runs(JOB)

    async def run(self, text: str) -> RunRecord:
        record = await self.ledger.run(JOB, parse_instant(text))
        assert record is not None
        return record

    async def ended(self, text: str, within_s: float = 120.0) -> RunRecord:
        """Return a run once it has ended."""
        return await self._record(text, lambda one: one.ended is not None, within_s)

    async def blocked(self, text: str) -> RunRecord:
        """Return a run once it is held."""
        return await self._record(text, lambda one: bool(one.plan and one.holds), 60)

    async def _record(
        self, text: str, is_there: Callable[[RunRecord], bool], within_s: float
    ) -> RunRecord:
        async with asyncio.timeout(within_s):
            while True:
                record = await self.run(text)
                if is_there(record):
                    return record
                await asyncio.sleep(0.01)

    async def define(self, generation: int = 1, **fields: Any) -> JobSpec:
        spec = job_spec(**fields)
        await self.world.define(spec, generation)
        return spec

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def in_owner_scene(test: Callable[[OwnerScene, OwnerNode], Awaitable[None]], **fields: Any) -> None:
    """Run a test with a node that owns a job of these fields."""

    async def main() -> None:
        scene = OwnerScene()
        await scene.define(**fields)
        await scene.world.register()
        node = scene.add("c1")
        await node.begin()
        try:
            await test(scene, node)
        finally:
            for one in scene.nodes:
                await one.close()

    run_virtual(main(), limit_s=2 * 86_400)


async def running(node: OwnerNode) -> None:
    """Wait until a run is under way at its worker."""
    await until(lambda: node.owner.current is not None and node.owner.current.progress is not None)
