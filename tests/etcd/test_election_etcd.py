"""Elections on a real cluster: takeover after a death, handover after a release, thousands of jobs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from coordinator.embedded_etcd import EtcdCluster
from coordinator.etcd_store import EtcdConfig, EtcdStore
from coordinator.keys import Keys
from tests.etcd.nodes import Node, World
from wire.clock import BootClock

pytestmark = pytest.mark.alone

Make = Callable[[str, int | None], Node]


@pytest.fixture
async def world(prefix: str) -> World:
    return World(BootClock(), Keys(prefix), {"job-1", "job-2", "job-3"})


@pytest.fixture
async def make(etcd: EtcdCluster, world: World) -> AsyncIterator[Make]:
    stores: list[EtcdStore] = []

    def node(name: str, rank: int | None) -> Node:
        stores.append(EtcdStore(EtcdConfig(etcd.endpoints)))
        return Node(world, name, stores[-1], world.clock, lambda _: rank)

    yield node
    for one in list(world.nodes.values()):
        await one.close()
    for store in stores:
        await store.close()


async def test_takeover_when_the_holder_dies(world: World, make: Make) -> None:
    first = make("first", 0)
    await world.until(world.all_owned)
    make("second", 1)
    await world.until(world.all_know_all)
    await first.die()
    took_s = await world.until(world.all_owned)
    assert 1.4 < took_s < 3.5
    world.check_history()


async def test_handover_when_the_holder_releases(world: World, make: Make) -> None:
    first = make("first", 0)
    await world.until(world.all_owned)
    make("second", 1)
    await world.until(world.all_know_all)
    first.rank = lambda _: None
    started = time.monotonic()
    await first.election.release_all()
    await world.until(world.all_owned)
    took_s = time.monotonic() - started
    assert took_s < 0.3
    assert world.holders("job-1") == ["second"]
    world.check_history()


async def test_closing_the_leases_hands_over_too(world: World, make: Make) -> None:
    first = make("first", 0)
    await world.until(world.all_owned)
    make("second", 1)
    await world.until(world.all_know_all)
    started = time.monotonic()
    first.task.cancel()
    await first.leases.close()
    del world.nodes["first"]
    await world.until(world.all_owned)
    assert time.monotonic() - started < 0.5
    world.check_history()


@pytest.mark.timeout(180)
async def test_five_thousand_jobs_change_hands(world: World, make: Make) -> None:
    world.jobs |= {f"mass-{n}" for n in range(5000)}

    async def all_at(node: Node) -> float:
        started = time.monotonic()
        async with asyncio.timeout(20):
            while len(node.election.owned) < len(world.jobs):
                await asyncio.sleep(0.005)
        return time.monotonic() - started

    first = make("first", 0)
    assert await all_at(first) < 3
    second = make("second", 1)
    await second.election.ready()
    await first.die()
    (session,) = first.leases._sessions.values()
    await second.store.revoke(session.lease_id)
    took_s = await all_at(second)
    assert took_s < 3
