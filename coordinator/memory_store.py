"""`Store` in memory: a client of a `MemoryEtcd`, with delays and faults of its own, for virtual time."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import TypeVar

from coordinator.errors import StoreUnavailable
from coordinator.memory_etcd import MemoryEtcd
from coordinator.store import (
    Changes,
    Compare,
    Delete,
    Get,
    KeyValue,
    LeaseGrant,
    Op,
    Put,
    Snapshot,
    TxnResult,
)
from wire.clock import Clock

__all__ = ["Fault", "MemoryEtcd", "MemoryStore"]

_SHORTEST_S, _LONGEST_S = 0.0002, 0.003
"""How long a request or an answer or an event is on its way."""


T = TypeVar("T")


class Fault(StrEnum):
    """What can be made to happen to the next transactions of one client."""

    REQUEST_LOST = "request-lost"
    ANSWER_LOST = "answer-lost"
    REQUEST_LATE = "request-late"
    """The client gives up first; the transaction happens all the same, some time later."""


class MemoryStore:
    """One client; several share a server. `is_cut` separates it from the server and heals it."""

    def __init__(
        self,
        etcd: MemoryEtcd,
        clock: Clock | None = None,
        *,
        total_s: float = 10.0,
        late_s: float = 1.0,
    ) -> None:
        # Fixed at construction.
        self._etcd = etcd
        self._clock = clock or etcd.clock
        self._total_s = total_s
        self._late_s = late_s
        # Owned by the event loop.
        self._is_cut = False
        self._faults: deque[Fault] = deque()
        self._late: set[asyncio.Task[None]] = set()

    @property
    def is_cut(self) -> bool:
        """Whether nothing passes between this client and the server."""
        return self._is_cut

    @is_cut.setter
    def is_cut(self, is_cut: bool) -> None:
        self._is_cut = is_cut
        self._etcd.tell_listeners()

    def fail_next(self, *faults: Fault) -> None:
        """Have these faults happen to the next transactions, one each, in order."""
        self._faults.extend(faults)

    async def cluster_id(self) -> int:
        """Return the cluster's own id."""
        return await self._call(lambda: self._etcd.cluster_id)

    async def get(self, key: str) -> KeyValue | None:
        """Read one key."""
        return await self._call(lambda: self._etcd.get(key))

    async def range(self, prefix: str) -> Snapshot:
        """Read all keys under a prefix."""
        return await self._call(lambda: Snapshot(self._etcd.revision, self._etcd.read(prefix)))

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write one key and return the revision."""
        result = await self._call(lambda: self._etcd.txn((), (Put(key, value, lease),), ()))
        return result.revision

    async def delete(self, key: str) -> bool:
        """Delete one key; say whether it was there."""
        result = await self._call(lambda: self._etcd.txn((), (Get(key), Delete(key)), ()))
        return result.gets[0] is not None

    async def txn(
        self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TxnResult:
        """Run one transaction, or the fault that is next."""
        fault = self._faults.popleft() if self._faults else None
        return await self._call(lambda: self._etcd.txn(compares, success, failure), fault)

    async def grant(self, ttl_s: int) -> LeaseGrant:
        """Grant a lease of at least `ttl_s` whole seconds."""
        sent_at = self._clock.now()
        lease_id, granted_s = await self._call(lambda: self._etcd.grant(ttl_s))
        return LeaseGrant(lease_id, granted_s, sent_at)

    async def keep_alive(self, lease_id: int, *, patience_s: float | None = None) -> float:
        """Renew a lease once; return the TTL in seconds, or 0 when the lease is gone."""
        del patience_s  # there is but one member
        return await self._call(lambda: self._etcd.keep_alive(lease_id))

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys; a lease that is gone already is no error."""
        await self._call(lambda: self._etcd.revoke(lease_id))

    async def time_to_live(self, lease_id: int) -> float:
        """Return the seconds left, or 0 when the lease is gone."""
        return await self._call(lambda: self._etcd.time_to_live(lease_id))

    async def compact(self, revision: int) -> None:
        """Forget the history before a revision."""
        await self._call(lambda: self._etcd.compact(revision))

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Snapshot | Changes]]:
        """Follow a prefix until the block is left."""
        wake = asyncio.Event()
        unlisten = self._etcd.listen(wake.set, prefix)
        try:
            yield self._follow(prefix, wake)
        finally:
            unlisten()

    async def close(self) -> None:
        """End what is still on its way."""
        for late in self._late:
            late.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def _follow(self, prefix: str, wake: asyncio.Event) -> AsyncIterator[Snapshot | Changes]:
        revision: int | None = None
        while True:
            if not self._is_reachable():
                wake.clear()
                await wake.wait()
                continue
            await self._delay()
            wake.clear()
            found = None if revision is None else self._etcd.changes_after(revision, prefix)
            if found is None:
                revision = self._etcd.revision
                yield Snapshot(revision, self._etcd.read(prefix))
                continue
            for changes in found:
                revision = changes.revision
                yield changes
            if not found:
                revision = self._etcd.revision
                await wake.wait()

    def _is_reachable(self) -> bool:
        return self._etcd.has_quorum and not self._is_cut

    async def _delay(self) -> None:
        await self._clock.sleep(self._etcd.random.uniform(_SHORTEST_S, _LONGEST_S))

    async def _call(self, do: Callable[[], T], fault: Fault | None = None) -> T:
        """Have the server do something and return its answer; raises StoreUnavailable."""
        await self._pass()
        if fault is Fault.REQUEST_LATE:
            late = asyncio.create_task(self._do_late(do))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
        if fault in {Fault.REQUEST_LOST, Fault.REQUEST_LATE}:
            await self._give_up(self._late_s / 2)
        answer = do()
        if fault is Fault.ANSWER_LOST:
            await self._give_up(self._late_s / 2)
        await self._pass()
        return answer

    async def _pass(self) -> None:
        """Go one way between client and server; raises StoreUnavailable when none is open in time."""
        await self._delay()
        waited_s = 0.0
        while not self._is_reachable():
            if waited_s >= self._total_s:
                raise self._unavailable()
            await self._clock.sleep(0.05)
            waited_s += 0.05

    async def _give_up(self, after_s: float) -> None:
        await self._clock.sleep(after_s)
        raise self._unavailable()

    def _unavailable(self) -> StoreUnavailable:
        return StoreUnavailable("no answer", {"memory": "cut off, no quorum or lost"})

    async def _do_late(self, do: Callable[[], object]) -> None:
        await self._clock.sleep(self._late_s)
        do()
