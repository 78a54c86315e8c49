"""etcd3's own client beside ours: what one writes, the other reads, leases and revisions included."""

import asyncio
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest

from coordinator.embedded_etcd import EtcdCluster
from coordinator.etcd_messages import make_etcd3_importable
from coordinator.etcd_store import EtcdStore
from coordinator.store import Changed, Changes, Compare, Deleted, Field, Put, Snapshot


@pytest.fixture
async def other(etcd: EtcdCluster) -> AsyncIterator[Any]:
    make_etcd3_importable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import etcd3
    port = int(etcd.endpoints[-1].rsplit(":", 1)[1])
    client = await asyncio.to_thread(etcd3.client, "127.0.0.1", port, timeout=5)
    yield client
    await asyncio.to_thread(client.close)


async def test_it_reads_what_we_write(store: EtcdStore, other: Any, prefix: str) -> None:
    lease = await store.grant(60)
    await store.put(prefix + "a", b"1")
    revision = await store.put(prefix + "a", b"2", lease=lease.lease_id)
    ours = await store.get(prefix + "a")
    assert ours is not None
    value, meta = await asyncio.to_thread(other.get, prefix + "a")
    assert value == b"2"
    assert (meta.create_revision, meta.mod_revision, meta.version, meta.lease_id) == (
        ours.create_revision,
        revision,
        2,
        lease.lease_id,
    )
    info = await asyncio.to_thread(other.get_lease_info, lease.lease_id)
    assert info.grantedTTL == 60
    assert info.keys == [(prefix + "a").encode()]
    await store.revoke(lease.lease_id)
    assert await asyncio.to_thread(other.get, prefix + "a") == (None, None)


async def test_we_see_what_it_writes(store: EtcdStore, other: Any, prefix: str) -> None:
    async with store.watch(prefix) as items:
        assert isinstance(await anext(items), Snapshot)
        lease = await asyncio.to_thread(other.lease, 60)
        await asyncio.to_thread(other.put, prefix + "a", "x", lease)
        async with asyncio.timeout(60):
            changes = await anext(items)
        assert isinstance(changes, Changes)
        (event,) = changes.events
        assert isinstance(event, Changed)
        assert (event.kv.value, event.kv.version, event.kv.lease) == (b"x", 1, lease.id)
        assert await store.keep_alive(lease.id) == 60
        assert 58 <= await store.time_to_live(lease.id) <= 60
        await asyncio.to_thread(lease.revoke)
        async with asyncio.timeout(60):
            changes = await anext(items)
        assert isinstance(changes, Changes)
        assert changes.events == (Deleted(prefix + "a", changes.revision),)


async def test_transactions_of_both_exclude_each_other(
    store: EtcdStore, other: Any, prefix: str
) -> None:
    key = prefix + "a"
    txn = other.transactions

    def theirs() -> bool:
        won, _ = other.transaction(
            compare=[txn.create(key) == 0], success=[txn.put(key, "theirs")], failure=[]
        )
        return bool(won)

    ours, won = await asyncio.gather(
        store.txn([Compare(key, Field.CREATE, 0)], [Put(key, b"ours")]), asyncio.to_thread(theirs)
    )
    assert ours.succeeded != won
    kv = await store.get(key)
    assert kv is not None
    assert kv.value == (b"theirs" if won else b"ours")
