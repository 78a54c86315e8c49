"""`Store` on a real etcd cluster: our values to etcd's messages and back."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from coordinator.errors import LeaseNotFound, StoreDenied, StoreRejected
from coordinator.etcd_config import EtcdConfig, EtcdTls
from coordinator.etcd_connection import RpcFailed, Verdict
from coordinator.etcd_leases import LeaseRenewer
from coordinator.etcd_messages import (
    ALARM,
    COMPACT,
    DELETE_RANGE,
    LEASE_GRANT,
    LEASE_REVOKE,
    LEASE_TIME_TO_LIVE,
    MEMBER_LIST,
    PUT,
    RANGE,
    STATUS,
    TXN,
    rpc,
)
from coordinator.etcd_transport import Transport
from coordinator.etcd_watch import Watch, key_value, prefix_end
from coordinator.store import (
    Changes,
    Compare,
    Delete,
    Field,
    Get,
    KeyValue,
    LeaseGrant,
    Op,
    Put,
    Snapshot,
    TxnResult,
)
from wire.clock import BootClock, Clock

__all__ = ["EtcdConfig", "EtcdStore", "EtcdTls"]


@dataclass(frozen=True, slots=True)
class EtcdFacts:
    """What one member of etcd says of itself."""

    version: str
    db_bytes: int
    is_full: bool
    """Some member has raised the alarm NOSPACE: the cluster takes no writes."""


_PAGE = 5_000
_TARGETS: dict[Field, tuple[Any, str]] = {
    Field.CREATE: (rpc.Compare.CREATE, "create_revision"),
    Field.MOD: (rpc.Compare.MOD, "mod_revision"),
    Field.VERSION: (rpc.Compare.VERSION, "version"),
    Field.VALUE: (rpc.Compare.VALUE, "value"),
    Field.LEASE: (rpc.Compare.LEASE, "lease"),
}


class EtcdStore:
    """A client of one etcd cluster, with failover over its endpoints. Belongs to one event loop."""

    def __init__(self, config: EtcdConfig, clock: Clock | None = None) -> None:
        self._clock = clock or BootClock()
        self._transport = Transport(config)
        self._renewer = LeaseRenewer(self._transport)

    @property
    def switches(self) -> int:
        """How often a member was left for another since the store was made."""
        return self._transport.switches

    @property
    def serving(self) -> str | None:
        """HOST:PORT of the member in use; None while there is none."""
        return self._transport.serving

    async def facts(self) -> EtcdFacts:
        """Ask the member that serves what it is; raises StoreError."""
        found = await self._transport.call(STATUS, rpc.StatusRequest(), resend=True)
        asked = rpc.AlarmRequest(action=rpc.AlarmRequest.GET)
        try:
            alarms = (await self._transport.call(ALARM, asked, resend=True)).alarms
        except StoreDenied:  # this user need not be allowed to ask
            alarms = ()
        is_full = any(one.alarm == rpc.NOSPACE for one in alarms)
        return EtcdFacts(found.version, found.dbSize, is_full)

    async def cluster_id(self) -> int:
        """Return the cluster's own id, as any member knows it."""
        answer = await self._transport.call(MEMBER_LIST, MEMBER_LIST.request(), resend=True)
        return int(answer.header.cluster_id)

    async def get(self, key: str) -> KeyValue | None:
        """Read one key, linearizably."""
        request = RANGE.request(key=key.encode())
        answer = await self._transport.call(RANGE, request, resend=True)
        return key_value(answer.kvs[0]) if answer.kvs else None

    async def range(self, prefix: str) -> Snapshot:
        """Read all keys under a non-empty prefix, in pages at one revision."""
        while True:
            try:
                return await self._range(prefix)
            except RpcFailed as failed:  # compacted between two pages: once more
                if failed.verdict is not Verdict.COMPACTED:
                    raise failed.error() from failed

    async def _range(self, prefix: str) -> Snapshot:
        start, end, revision = prefix.encode(), prefix_end(prefix), 0
        kvs: list[KeyValue] = []
        while True:
            request = RANGE.request(key=start, range_end=end, limit=_PAGE, revision=revision)
            answer = await self._transport.call(RANGE, request, resend=True)
            revision = revision or answer.header.revision
            kvs.extend(map(key_value, answer.kvs))
            if not answer.more:
                return Snapshot(revision, tuple(kvs))
            start = answer.kvs[-1].key + b"\x00"

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write one key and return the revision."""
        request = PUT.request(key=key.encode(), value=value, lease=lease)
        answer = await self._transport.call(PUT, request, resend=True)
        return int(answer.header.revision)

    async def delete(self, key: str) -> bool:
        """Delete one key; say whether it was there."""
        request = DELETE_RANGE.request(key=key.encode())
        answer = await self._transport.call(DELETE_RANGE, request, resend=True)
        return bool(answer.deleted)

    async def txn(
        self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TxnResult:
        """Run one transaction; sent again after a lost answer only when it writes nothing."""
        request = TXN.request(
            compare=[_compare(compare) for compare in compares],
            success=[_operation(op) for op in success],
            failure=[_operation(op) for op in failure],
        )
        only_reads = all(isinstance(op, Get) for op in (*success, *failure))
        answer = await self._transport.call(TXN, request, resend=only_reads)
        gets = tuple(
            key_value(response.response_range.kvs[0]) if response.response_range.kvs else None
            for response in answer.responses
            if response.HasField("response_range")
        )
        return TxnResult(bool(answer.succeeded), int(answer.header.revision), gets)

    async def grant(self, ttl_s: int) -> LeaseGrant:
        """Grant a lease under an id of our own choice, so that a lost answer does no harm."""
        lease_id = secrets.randbits(62) + 1
        sent_at = self._clock.now()
        request = LEASE_GRANT.request(TTL=ttl_s, ID=lease_id)
        try:
            answer = await self._transport.call(LEASE_GRANT, request, resend=True)
        except RpcFailed as failed:
            if failed.verdict is not Verdict.EXISTS:
                raise failed.error() from failed
            granted = (await self._lease(lease_id)).grantedTTL
            if granted <= 0:
                raise LeaseNotFound("the lease ended before its grant was answered") from failed
            return LeaseGrant(lease_id, float(granted), sent_at)
        if answer.error:
            raise StoreRejected(answer.error)
        return LeaseGrant(lease_id, float(answer.TTL), sent_at)

    async def keep_alive(self, lease_id: int, *, patience_s: float | None = None) -> float:
        """Renew a lease once; return the TTL in seconds, or 0 when the lease is gone."""
        transport = self._transport
        patience_s = min(transport.attempt_s, patience_s or transport.attempt_s)
        return await self._renewer.renew(lease_id, patience_s=patience_s, total_s=transport.total_s)

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys; a lease that is gone already is no error."""
        request = LEASE_REVOKE.request(ID=lease_id)
        try:
            await self._transport.call(LEASE_REVOKE, request, resend=True)
        except LeaseNotFound:
            return

    async def time_to_live(self, lease_id: int) -> float:
        """Return the whole seconds left, or 0 when the lease is gone."""
        return float(max(0, (await self._lease(lease_id)).TTL))

    async def _lease(self, lease_id: int) -> Any:
        request = LEASE_TIME_TO_LIVE.request(ID=lease_id)
        return await self._transport.call(LEASE_TIME_TO_LIVE, request, resend=True)

    async def compact(self, revision: int) -> None:
        """Forget the history before a revision; one that is forgotten already is no error."""
        try:
            await self._transport.call(COMPACT, COMPACT.request(revision=revision), resend=True)
        except RpcFailed as failed:
            if failed.verdict is not Verdict.COMPACTED:
                raise failed.error() from failed

    def watch(self, prefix: str) -> AbstractAsyncContextManager[AsyncIterator[Snapshot | Changes]]:
        """Follow a prefix, over failures and compactions, until the block is left."""
        return Watch(self._transport, prefix, self.range).open()

    async def close(self) -> None:
        """End all calls and connections."""
        await self._renewer.close()
        await self._transport.close()


def _compare(compare: Compare) -> Any:
    target, field = _TARGETS[compare.field]
    return rpc.Compare(
        key=compare.key.encode(),
        target=target,
        result=rpc.Compare.EQUAL,
        **{field: compare.value},
    )


def _operation(op: Op) -> Any:
    match op:
        case Get(key):
            return rpc.RequestOp(request_range=RANGE.request(key=key.encode()))
        case Put(key, value, lease):
            put = PUT.request(key=key.encode(), value=value, lease=lease)
            return rpc.RequestOp(request_put=put)
        case Delete(key):
            return rpc.RequestOp(request_delete_range=DELETE_RANGE.request(key=key.encode()))
