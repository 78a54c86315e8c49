"""The cluster in memory with somebody who looks at every commit, and clients that faults happen to."""

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from coordinator.errors import StoreError, StoreUnavailable
from coordinator.memory_store import Fault, MemoryEtcd, MemoryStore
from coordinator.store import Changed, Deleted, LeaseGrant
from tests.simulation.loop import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")

_TOTALS_S = (1.0, 3.0, 10.0)
_LATE_S = (0.2, 6.0)


class Fate(StrEnum):
    """What becomes of a request."""

    REQUEST_LOST = "request lost"
    ANSWER_LOST = "answer lost"
    REQUEST_LATE = "request late"
    SLOW = "slow"


class SimulatedEtcd(MemoryEtcd):
    """Tells of every commit before anybody can act on it."""

    def __init__(self, world: "World") -> None:
        super().__init__(world.clock, seed=world.loop.random.getrandbits(32))
        self._world = world
        self.writer: Process | None = None
        """Whose request is being carried out."""

    def _commit(self, events: list[Changed | Deleted]) -> None:
        super()._commit(events)
        if events:
            self._world.checks.committed(self.writer, events)

    def revoke(self, *lease_ids: int) -> None:
        for lease_id in lease_ids:
            deadline = self.lease_deadline(lease_id)
            if deadline is not None and deadline < self.clock.now():
                self._world.checks.expired(lease_id)
        super().revoke(*lease_ids)

    def lease_deadline(self, lease_id: int) -> float | None:
        """Return when a lease ends unless it is renewed; None when it is gone."""
        lease = self._leases.get(lease_id)
        return None if lease is None else lease.deadline


class SimulatedStore(MemoryStore):
    """One process's client: requests and answers travel by themselves, whatever the process does."""

    def __init__(self, world: "World", node: str, process: Process) -> None:
        super().__init__(world.etcd)
        self._world = world
        self._process = process
        self._up, self._down = (node, "etcd"), ("etcd", node)
        self._total_s = world.loop.random.choice(_TOTALS_S)

    async def grant(self, ttl_s: int) -> LeaseGrant:
        granted = await super().grant(ttl_s)
        self._world.checks.renewed(granted.lease_id, granted.sent_at, granted.ttl_s)
        return granted

    async def keep_alive(self, lease_id: int, *, patience_s: float | None = None) -> float:
        sent_at = self._world.clock.now()
        ttl_s = await super().keep_alive(lease_id, patience_s=patience_s)
        self._world.checks.renewed(lease_id, sent_at, ttl_s)
        return ttl_s

    async def _call(self, do: Callable[[], T], fault: Fault | None = None) -> T:
        world = self._world
        loop, network = world.loop, world.network
        done = loop.create_future()
        fate = world.fate()
        if fate is not None:
            world.trace.add(self._process.name, f"store: {fate}")

        def give_up() -> None:
            if not done.done():
                done.set_exception(self._unavailable())

        def answer(result: T | StoreError) -> None:
            if done.done():
                return
            if isinstance(result, StoreError):
                done.set_exception(result)
            else:
                done.set_result(result)

        def act() -> None:
            if not self._etcd.has_quorum:
                if loop.random.random() < 0.5:
                    world.at_quorum(act)
                return
            result: T | StoreError
            world.etcd.writer = self._process
            try:
                result = do()
            except StoreError as error:
                result = error
            finally:
                world.etcd.writer = None
            if fate is not Fate.ANSWER_LOST:
                network.pass_on(self._down, self._process, lambda: answer(result))

        total_s = self._total_s
        if fate is Fate.REQUEST_LATE:
            later = loop.time() + loop.random.uniform(*_LATE_S)
            world.etcd_process.call_at(later, act)
            total_s = min(total_s, loop.random.uniform(0.05, 0.5))
        elif fate is Fate.SLOW:
            world.etcd_process.call_at(loop.time() + loop.random.uniform(0.05, 2.0), act)
        elif fate is not Fate.REQUEST_LOST:
            network.pass_on(self._up, world.etcd_process, act)
        if fate in {Fate.REQUEST_LOST, Fate.ANSWER_LOST}:
            total_s = min(total_s, loop.random.uniform(0.1, 1.0))
        timer = loop.call_later(total_s, give_up)
        try:
            result: T = await done
            return result
        finally:
            timer.cancel()

    def _is_reachable(self) -> bool:
        return self._etcd.has_quorum and self._down not in self._world.network.cuts

    def _unavailable(self) -> StoreUnavailable:
        return StoreUnavailable("no answer", {"simulated": "cut off, no quorum or lost"})
