"""etcd's data model in memory: revisions, transactions, leases, history. The server of `MemoryStore`.

Pure state on an injected clock; it knows no clients, no delays and no faults but one: without a quorum
time stands still for leases, and each gets its full TTL again when the quorum is back.
"""

import asyncio
import contextlib
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from coordinator.errors import LeaseNotFound, StoreRejected
from coordinator.store import (
    Changed,
    Changes,
    Compare,
    Delete,
    Deleted,
    Field,
    Get,
    KeyValue,
    Op,
    Put,
    TxnResult,
)
from wire.clock import Clock

MAX_TXN_OPS = 128
_SCAN_S = 0.5
"""etcd looks for expired leases twice a second."""


@dataclass(slots=True)
class _Lease:
    ttl_s: float
    deadline: float
    keys: set[str] = field(default_factory=set)


class MemoryEtcd:
    """One cluster that any number of `MemoryStore` clients share. Belongs to one event loop."""

    def __init__(
        self,
        clock: Clock,
        *,
        seed: int = 0,
        cluster_id: int = 0xBA70,
        min_ttl_s: int = 2,
    ) -> None:
        # Fixed at construction.
        self.clock = clock
        self.random = random.Random(seed)  # noqa: S311  chooses delays, guards nothing
        self.cluster_id = cluster_id
        self._min_ttl_s = min_ttl_s
        # Owned by the event loop.
        self.revision = 1
        self.compacted = 0
        self._kvs: dict[str, KeyValue] = {}
        self._history: list[Changes] = []
        self._leases: dict[int, _Lease] = {}
        self._next_lease = 1
        self._scanner: asyncio.Task[None] | None = None
        self._has_quorum = True
        self._listeners: list[tuple[str, Callable[[], None]]] = []

    @property
    def has_quorum(self) -> bool:
        """Whether the cluster answers at all; setting it injects or heals the fault."""
        return self._has_quorum

    @has_quorum.setter
    def has_quorum(self, has_quorum: bool) -> None:
        if has_quorum and not self._has_quorum:
            for lease in self._leases.values():
                lease.deadline = self.clock.now() + lease.ttl_s
        self._has_quorum = has_quorum
        self.tell_listeners()

    def listen(self, listener: Callable[[], None], prefix: str) -> Callable[[], None]:
        """Have `listener` called after every change under a prefix; returns what ends that."""
        entry = (prefix, listener)
        self._listeners.append(entry)
        return lambda: self._listeners.remove(entry)

    def tell_listeners(self) -> None:
        """Have every listener look again."""
        for _, listener in tuple(self._listeners):
            listener()

    def read(self, prefix: str) -> tuple[KeyValue, ...]:
        """Return all keys under a prefix, sorted."""
        return tuple(self._kvs[key] for key in sorted(self._kvs) if key.startswith(prefix))

    def get(self, key: str) -> KeyValue | None:
        """Return one key."""
        return self._kvs.get(key)

    def changes_after(self, revision: int, prefix: str) -> list[Changes] | None:
        """Return what happened under a prefix after a revision; None when that is compacted."""
        if revision + 1 < self.compacted:
            return None
        found = []
        first = bisect_right(self._history, revision, key=lambda one: one.revision)
        for changes in self._history[first:]:
            events = tuple(event for event in changes.events if _key(event).startswith(prefix))
            if events:
                found.append(Changes(changes.revision, events))
        return found

    def compact(self, revision: int) -> None:
        """Forget the history before a revision."""
        self.compacted = max(self.compacted, min(revision, self.revision))
        self._history = [one for one in self._history if one.revision >= self.compacted]

    def txn(
        self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]
    ) -> TxnResult:
        """Run one transaction; raises StoreRejected and LeaseNotFound as etcd does, changing nothing."""
        _check_form(compares, success, failure)
        succeeded = all(map(self._holds, compares))
        ops = success if succeeded else failure
        for op in ops:
            if isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise LeaseNotFound("NOT_FOUND: etcdserver: requested lease not found")
        gets: list[KeyValue | None] = []
        events: list[Changed | Deleted] = []
        for op in ops:
            match op:
                case Get(key):
                    gets.append(self._kvs.get(key))
                case Put():
                    events.append(self._put(op))
                case Delete(key):
                    if key in self._kvs:
                        events.append(self._delete(key))
        self._commit(events)
        return TxnResult(succeeded, self.revision, tuple(gets))

    def grant(self, ttl_s: int) -> tuple[int, float]:
        """Grant a lease; return its id and its TTL."""
        if ttl_s <= 0:
            raise StoreRejected("OUT_OF_RANGE: etcdserver: too small lease TTL")
        lease_id, self._next_lease = self._next_lease, self._next_lease + 1
        granted_s = float(max(ttl_s, self._min_ttl_s))
        self._leases[lease_id] = _Lease(granted_s, self.clock.now() + granted_s)
        if self._scanner is None or self._scanner.done():
            self._scanner = asyncio.create_task(self._expire(), name="memory-etcd-leases")
        return lease_id, granted_s

    def keep_alive(self, lease_id: int) -> float:
        """Renew a lease; return its TTL, or 0 when it is gone."""
        lease = self._leases.get(lease_id)
        if lease is None:
            return 0.0
        lease.deadline = self.clock.now() + lease.ttl_s
        return lease.ttl_s

    def time_to_live(self, lease_id: int) -> float:
        """Return the seconds left, or 0."""
        lease = self._leases.get(lease_id)
        return max(0.0, lease.deadline - self.clock.now()) if lease else 0.0

    def revoke(self, *lease_ids: int) -> None:
        """End leases and delete their keys."""
        for lease_id in lease_ids:
            lease = self._leases.pop(lease_id, None)
            if lease is not None:
                self._commit([self._delete(key) for key in sorted(lease.keys)])

    def revoke_all(self) -> None:
        """End every lease at once: what a stale leader that wakes up can do."""
        self.revoke(*self._leases)

    async def close(self) -> None:
        """Stop looking for expired leases."""
        if self._scanner is not None:
            self._scanner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._scanner

    def _holds(self, compare: Compare) -> bool:
        kv = self._kvs.get(compare.key)
        match compare.field:
            case Field.VALUE:
                return kv is not None and kv.value == compare.value
            case Field.CREATE:
                found = kv.create_revision if kv else 0
            case Field.MOD:
                found = kv.mod_revision if kv else 0
            case Field.VERSION:
                found = kv.version if kv else 0
            case Field.LEASE:
                found = kv.lease if kv else 0
        return found == compare.value

    def _put(self, op: Put) -> Changed:
        revision = self.revision + 1
        old = self._kvs.get(op.key)
        if old is not None and old.lease:
            self._leases[old.lease].keys.discard(op.key)
        if op.lease:
            self._leases[op.lease].keys.add(op.key)
        kv = KeyValue(
            op.key,
            op.value,
            old.create_revision if old else revision,
            revision,
            old.version + 1 if old else 1,
            op.lease,
        )
        self._kvs[op.key] = kv
        return Changed(kv)

    def _delete(self, key: str) -> Deleted:
        kv = self._kvs.pop(key)
        if kv.lease in self._leases:
            self._leases[kv.lease].keys.discard(key)
        return Deleted(key, self.revision + 1)

    def _commit(self, events: list[Changed | Deleted]) -> None:
        if events:
            self.revision += 1
            self._history.append(Changes(self.revision, tuple(events)))
            keys = [_key(event) for event in events]
            for prefix, listener in tuple(self._listeners):
                if any(key.startswith(prefix) for key in keys):
                    listener()

    async def _expire(self) -> None:
        await self.clock.sleep(self.random.uniform(0, _SCAN_S))
        while self._leases:
            if self.has_quorum:
                now = self.clock.now()
                self.revoke(*[i for i, lease in self._leases.items() if lease.deadline < now])
            await self.clock.sleep(_SCAN_S)


def _key(event: Changed | Deleted) -> str:
    return event.kv.key if isinstance(event, Changed) else event.key


def _check_form(compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]) -> None:
    """Refuse what etcd refuses whatever the keys are."""
    for branch in (compares, success, failure):
        if len(branch) > MAX_TXN_OPS:
            raise StoreRejected("INVALID_ARGUMENT: etcdserver: too many operations in txn request")
    for branch in (success, failure):
        written = [op.key for op in branch if not isinstance(op, Get)]
        if len(written) != len(set(written)):
            raise StoreRejected("INVALID_ARGUMENT: etcdserver: duplicate key given in txn request")
