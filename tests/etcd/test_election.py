"""Campaigns of several nodes in virtual time: one owner at any time, and never none for long."""

import asyncio
import random
from collections.abc import Callable
from functools import partial

import pytest

from coordinator.election import LostReason
from coordinator.errors import StoreUnavailable
from coordinator.memory_store import Fault, MemoryEtcd, MemoryStore
from coordinator.ownership import Claim
from coordinator.store import Put
from tests.etcd.nodes import Node, World
from tests.etcd.virtual_time import VirtualClock, run_virtual

SEEDS = range(5)


class Scene:
    """A cluster in memory and the nodes on it."""

    def __init__(self, seed: int, jobs: int = 20) -> None:
        self.clock = VirtualClock()
        self.etcd = MemoryEtcd(self.clock, seed=seed)
        self.world = World(self.clock, jobs={f"job-{n}" for n in range(jobs)})
        self.random = random.Random(seed)
        self.stores: dict[str, MemoryStore] = {}
        self.clocks: dict[str, VirtualClock] = {}

    def node(self, name: str, rank: Callable[[str], int | None] = lambda _: 0) -> Node:
        clock = self.clocks[name] = VirtualClock()
        store = self.stores[name] = MemoryStore(self.etcd, clock)
        return Node(self.world, name, store, clock, rank)

    def key_of(self, job: str) -> str | None:
        kv = self.etcd.get(self.world.keys.owner(job))
        return None if kv is None else Claim.from_json(kv.value).node


@pytest.mark.parametrize("seed", SEEDS)
def test_nodes_of_equal_rank_share_without_ever_two_owners(seed: int) -> None:
    async def main() -> None:
        scene = Scene(seed)
        world = scene.world
        nodes = [scene.node(name) for name in ("a", "b", "c")]
        await world.until(world.all_know_all)
        for job in world.jobs:
            (holder,) = world.holders(job)
            assert scene.key_of(job) == holder
            assert {node.election.owners[job].node for node in nodes} == {holder}
            ownership = world.nodes[holder].election.owned[job]
            result = await nodes[0].store.txn([ownership.compare()], [Put("/x", b"")])
            assert result.succeeded
        await world.for_s(30)
        world.check_history()
        assert len(world.events) == len(world.jobs), "nothing moves while nothing happens"

    run_virtual(main())


@pytest.mark.parametrize("seed", SEEDS)
def test_when_a_node_dies_the_next_takes_over_after_the_ttl(seed: int) -> None:
    async def main() -> None:
        scene = Scene(seed)
        world = scene.world
        first = scene.node("first", lambda _: 0)
        await world.until(world.all_owned)
        scene.node("second", lambda _: 1)
        await scene.world.for_s(3)
        tokens = {job: first.election.owned[job].token for job in world.jobs}
        await first.die()
        took_s = await world.until(world.all_owned)
        assert 1.4 <= took_s <= 2.7
        for job in world.jobs:
            assert world.nodes["second"].election.owned[job].token > tokens[job]
        world.check_history()

    run_virtual(main())


@pytest.mark.parametrize("seed", SEEDS)
def test_the_better_rank_claims_first(seed: int) -> None:
    async def main() -> None:
        scene = Scene(seed, jobs=1)
        world = scene.world
        nodes = [scene.node(f"r{rank}", ranked(rank)) for rank in (3, 1, 2)]
        for node in nodes:
            await node.election.ready()
        await world.until(world.all_owned)
        assert world.holders("job-0") == ["r1"]
        assert 0.04 < world.events[0].at - 1000.0 < 0.1
        scene.etcd.revoke_all()
        world.nodes["r1"].rank = lambda _: None
        vacant_at = scene.clock.now()
        await world.until(lambda: world.holders("job-0") == ["r2"])
        assert 0.1 <= scene.clock.now() - vacant_at < 0.2
        world.check_history()

    run_virtual(main())


@pytest.mark.parametrize("seed", SEEDS)
def test_every_lease_lost_at_once(seed: int) -> None:
    async def main() -> None:
        scene = Scene(seed, jobs=450)
        world = scene.world
        for name in ("a", "b", "c"):
            scene.node(name, spread(name))
        await world.until(world.all_owned)
        world.leases_are_kept = False
        for _ in range(3):
            before = scene.etcd.revision
            scene.etcd.revoke_all()
            assert await world.until(partial(owned_since, world, before)) < 3
            await world.for_s(1)
        world.check_history()
        reasons = {event.reason for event in world.events if event.ownership is None}
        assert reasons <= {LostReason.VANISHED, LostReason.SESSION_ENDED}

    run_virtual(main())


def owned_since(world: World, revision: int) -> bool:
    """Whether every job has one owner, with a token above a revision."""
    owned = [own for node in world.nodes.values() for own in node.election.owned.values()]
    return world.all_owned() and all(own.token.revision > revision for own in owned)


def ranked(rank: int) -> Callable[[str], int]:
    return lambda _: rank


def spread(name: str) -> Callable[[str], int]:
    """Rank nodes a, b and c in another order for each job."""
    return lambda job: (ord(name) + sum(job.encode())) % 3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", Fault)
def test_a_claim_without_an_answer(seed: int, fault: Fault) -> None:
    async def main() -> None:
        scene = Scene(seed)
        world = scene.world
        node = scene.node("a")
        scene.stores["a"].fail_next(fault)
        await node.election.ready()
        await world.until(world.all_owned, 10)
        await world.for_s(5)
        assert world.all_owned()
        world.check_history()
        assert len(world.events) == len(world.jobs), "gained once each"
        for job, ownership in node.election.owned.items():
            kv = scene.etcd.get(world.keys.owner(job))
            assert kv is not None
            assert kv.create_revision == ownership.token.revision

    run_virtual(main())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_release_lets_the_next_claim_and_only_deletes_our_own_key(seed: int) -> None:
    async def main() -> None:
        scene = Scene(seed)
        world = scene.world
        first = scene.node("first", lambda _: 0)
        await world.until(world.all_owned)
        second = scene.node("second", lambda _: 1)
        await second.election.ready()
        first.rank = lambda _: None
        started = scene.clock.now()
        assert await first.election.release("job-0", "test")
        assert not await first.election.release("job-0", "test")
        await world.until(lambda: world.holders("job-0") == ["second"])
        assert scene.clock.now() - started < 0.3
        # A key that is no longer the one it made is not deleted by the first node.
        stale = first.election.owned["job-1"]
        await scene.stores["second"].delete(stale.key)
        await scene.stores["second"].put(stale.key, second_value := b"not ours")
        await first.election.release_all()
        kv = scene.etcd.get(stale.key)
        assert kv is not None
        assert kv.value == second_value
        world.jobs.remove("job-1")
        await world.until(world.all_owned)
        assert not first.election.owned
        world.check_history()

    run_virtual(main())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", Fault)
def test_a_release_without_an_answer_is_made_good(seed: int, fault: Fault) -> None:
    async def main() -> None:
        scene = Scene(seed)
        world = scene.world
        first = scene.node("first", lambda _: 0)
        await world.until(world.all_owned)
        second = scene.node("second", lambda _: 1)
        await second.election.ready()
        first.rank = lambda _: None
        scene.stores["first"].fail_next(fault)
        with pytest.raises(StoreUnavailable):
            await first.election.release_all()
        assert not first.election.owned
        await world.until(world.all_owned, 5)
        assert all(world.holders(job) == ["second"] for job in world.jobs)
        world.check_history()

    run_virtual(main())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_cut_off_falls_silent_before_another_owns(seed: int) -> None:
    async def main() -> None:
        scene = Scene(seed)
        world = scene.world
        first = scene.node("first", lambda _: 0)
        await world.until(world.all_owned)
        scene.node("second", lambda _: 1)
        await world.for_s(1)
        scene.stores["first"].is_cut = True
        await world.until(lambda: world.holders("job-0") == ["second"])
        assert not any(ownership.is_held for ownership in first.election.owned.values())
        scene.stores["first"].is_cut = False
        await world.for_s(5)
        assert not first.election.owned
        assert first.election.owners["job-0"].node == "second"
        world.check_history()

    run_virtual(main())


def test_i12_a_node_whose_loop_stood_still_gives_no_orders_and_recovers() -> None:
    async def main() -> None:
        scene = Scene(1)
        world = scene.world
        node = scene.node("a")
        await world.until(world.all_owned)
        ownership = node.election.owned["job-0"]
        scene.clocks["a"].skip(6)
        assert not ownership.is_held
        assert ownership.remaining_s() < 0
        await world.until(world.all_owned)
        assert not ownership.is_held
        assert ownership.lost is not None
        assert node.election.owned["job-0"].token > ownership.token
        world.check_history()

    run_virtual(main())


def test_a_restarted_node_does_not_take_its_old_key_for_its_own() -> None:
    async def main() -> None:
        scene = Scene(3)
        world = scene.world
        old = scene.node("a")
        await world.until(world.all_owned)
        await old.die()
        new = scene.node("a")
        await new.election.ready()
        assert new.election.owners["job-0"].node == "a"
        assert not new.election.owned
        await world.until(world.all_owned)
        world.check_history()

    run_virtual(main())


def test_a_key_overwritten_by_somebody_is_lost_to_us() -> None:
    async def main() -> None:
        scene = Scene(4, jobs=2)
        world = scene.world
        node = scene.node("a")
        await world.until(world.all_owned)
        ownership = node.election.owned["job-0"]
        await MemoryStore(scene.etcd).put(ownership.key, b"an operator was here")
        await world.until(lambda: not ownership.is_held)
        assert world.events[-1].reason is LostReason.CHANGED
        assert node.election.owners["job-0"].node == "?"
        await MemoryStore(scene.etcd).delete(ownership.key)
        await world.until(world.all_owned)
        world.check_history()

    run_virtual(main())


def test_new_jobs_and_new_candidacies_are_seen_when_told() -> None:
    async def main() -> None:
        scene = Scene(5, jobs=3)
        world = scene.world
        node = scene.node("a", lambda job: None if job == "job-1" else 0)
        await node.election.ready()
        await world.until(lambda: len(node.election.owned) == 2)
        world.jobs.add("new")
        node.election.reconsider()
        await world.until(lambda: "new" in node.election.owned)
        assert not world.holders("job-1")
        node.rank = lambda _: 0
        await world.for_s(5)
        assert not world.holders("job-1")
        node.election.reconsider()
        await world.until(world.all_owned)
        await node.close()
        assert scene.etcd.read(world.keys.prefix) == ()
        world.check_history()

    run_virtual(main())


@pytest.mark.parametrize("seed", range(10))
def test_one_owner_through_a_storm(seed: int) -> None:
    """Cuts, lost answers, lost leases, deaths, lost quorum, in any order; then peace."""

    async def main() -> None:
        scene = Scene(seed, jobs=10)
        world, dice = scene.world, scene.random
        names = ["a", "b", "c"]
        world.leases_are_kept = seed % 2 == 0
        for name in names:
            scene.node(name, spread(name))
        for _ in range(40):
            name = dice.choice(names)
            match dice.randrange(7):
                case 0:
                    scene.stores[name].is_cut = not scene.stores[name].is_cut
                case 1:
                    scene.stores[name].fail_next(dice.choice(list(Fault)))
                case 2 if not world.leases_are_kept:
                    scene.etcd.revoke_all()
                case 3:
                    await world.nodes[name].die()
                    scene.node(name, spread(name))
                case 4:
                    scene.etcd.has_quorum = not scene.etcd.has_quorum
                case 5:
                    scene.clocks[name].skip(dice.uniform(0, 5))
                case 6:
                    scene.etcd.compact(scene.etcd.revision)
            await world.for_s(dice.choice([0.01, 0.1, 1.0, 4.0]))
        scene.etcd.has_quorum = True
        for store in scene.stores.values():
            store.is_cut = False
        await world.until(world.all_owned, 30)
        await world.for_s(5)
        assert world.all_owned()
        world.check_history()
        for node in world.nodes.values():
            assert not node.task.done()

    run_virtual(main(), limit_s=1000)


def test_the_same_seed_gives_the_same_run() -> None:
    def run() -> list[tuple[float, str, str]]:
        async def main() -> list[tuple[float, str, str]]:
            scene = Scene(7)
            for name in ("a", "b", "c"):
                scene.node(name)
            await scene.world.until(scene.world.all_owned)
            scene.etcd.revoke_all()
            await scene.world.for_s(5)
            await asyncio.sleep(0)
            return [(event.at, event.node, event.job) for event in scene.world.events]

        return run_virtual(main())

    assert run() == run()
