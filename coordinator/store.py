"""What a coordinator needs of etcd, as types and one protocol.

The scheduler, the lease sessions and the election are written against `Store`. Two things implement
it: `etcd_store.EtcdStore` (a real cluster) and `memory_store.MemoryStore` (virtual time, for pure
tests). One contract suite runs against both. Nothing here knows gRPC.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as etcd holds it; all numbers as etcd defines them."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int
    """0 when the key is bound to no lease."""


class Field(StrEnum):
    """The fields of a key that a transaction can compare."""

    CREATE = "create"
    MOD = "mod"
    VERSION = "version"
    VALUE = "value"
    LEASE = "lease"


@dataclass(frozen=True, slots=True)
class Compare:
    """True when `field` of `key` equals `value`; a missing key has 0 for every number."""

    key: str
    field: Field
    value: int | bytes


@dataclass(frozen=True, slots=True)
class Get:
    """Read one key within a transaction."""

    key: str


@dataclass(frozen=True, slots=True)
class Put:
    """Write one key within a transaction."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key within a transaction."""

    key: str


Op = Get | Put | Delete


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Which branch of a transaction ran, at which revision; `gets` answers its Gets in order."""

    succeeded: bool
    revision: int
    gets: tuple[KeyValue | None, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys under a prefix at one revision; what a consumer knew before is void."""

    revision: int
    kvs: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """A key was written. `previous` is not given: consumers keep what they need."""

    kv: KeyValue


@dataclass(frozen=True, slots=True)
class Deleted:
    """A key is gone: deleted, or its lease ended."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """The events that followed, in order, complete up to `revision`."""

    revision: int
    events: tuple[Changed | Deleted, ...]


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """A lease as granted: etcd may give a longer TTL than was asked for."""

    lease_id: int
    ttl_s: float
    sent_at: float
    """On the clock given to the store, from before the request was sent."""


class Store(Protocol):
    """Keys, transactions, leases and watches, each call with a deadline of its own.

    Every method raises `StoreUnavailable` when no member with a quorum answered in time (the outcome
    of a write is then unknown), `StoreDenied` for missing permission or a refused password, and
    `StoreFull` when the database is at its quota. Cancelling a call leaves no half state here; a write
    in flight may still happen. A write under a lease that is gone raises `LeaseNotFound` and writes
    nothing; what etcd will never take raises `StoreRejected`. See `errors`.
    """

    async def cluster_id(self) -> int:
        """Return the cluster's own id."""

    async def get(self, key: str) -> KeyValue | None:
        """Read one key, linearizably."""

    async def range(self, prefix: str) -> Snapshot:
        """Read all keys under a prefix, sorted by key, at one revision, linearizably."""

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write one key and return the revision. Retried when the answer is lost: idempotent."""

    async def delete(self, key: str) -> bool:
        """Delete one key; say whether it was there (False too when a lost answer was retried)."""

    async def txn(
        self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TxnResult:
        """Run one transaction, of at most 128 operations a branch.

        Never retried after its answer was lost: it raises `StoreUnavailable`, and the caller, who
        knows what it wrote, looks.
        """

    async def grant(self, ttl_s: int) -> LeaseGrant:
        """Grant a lease of at least `ttl_s` whole seconds."""

    async def keep_alive(self, lease_id: int, *, patience_s: float | None = None) -> float:
        """Renew a lease once; return the TTL in seconds, or 0 when the lease is gone.

        A member that says nothing for `patience_s` is left for another: as long as for any other call
        unless said, and never longer.
        """

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys; a lease that is gone already is no error."""

    async def time_to_live(self, lease_id: int) -> float:
        """Return the seconds left, or 0 when the lease is gone."""

    def watch(self, prefix: str) -> AbstractAsyncContextManager[AsyncIterator[Snapshot | Changes]]:
        """Follow a prefix: first a `Snapshot`, then `Changes` without loss, in order.

        After a compaction that passed the watch by, another `Snapshot` comes instead of what was lost.
        Reconnects by itself for as long as it takes; raises only `StoreDenied`.
        """

    async def close(self) -> None:
        """End all calls and connections."""
