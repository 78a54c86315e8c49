"""TLS with client certificates, and users whose tokens expire."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.embedded_etcd import (
    ClusterOptions,
    EtcdCluster,
    ServerTls,
    start_etcd,
    wheel_etcdctl,
)
from coordinator.errors import BadConfig, StoreDenied, StoreUnavailable
from coordinator.etcd_store import EtcdConfig, EtcdStore, EtcdTls
from coordinator.store import Changes, Compare, Field, Put, Snapshot
from tests.etcd.certificates import Authority


async def test_tls_with_client_certificates(fast_dir: Path, prefix: str) -> None:
    ours, foreign = Authority("ours"), Authority("foreign")
    good = EtcdTls(ours.pem, *ours.issue("client"))
    options = ClusterOptions(
        tls=ServerTls(*ours.write(fast_dir / "tls", "server")), client_tls=good
    )
    data = fast_dir / prefix.split("/")[2]
    async with start_etcd(data, 1, options=options) as cluster:
        store = EtcdStore(EtcdConfig(cluster.endpoints, tls=good))
        async with store.watch(prefix) as items:
            assert isinstance(await anext(items), Snapshot)
            await store.put(prefix + "a", b"")
            assert isinstance(await anext(items), Changes)
        lease = await store.grant(5)
        assert await store.keep_alive(lease.lease_id) == 5
        await store.close()
        for bad in (
            EtcdTls(ours.pem),
            EtcdTls(ours.pem, *foreign.issue("client")),
            EtcdTls(foreign.pem, *ours.issue("client")),
        ):
            store = EtcdStore(EtcdConfig(cluster.endpoints, tls=bad, attempt_s=0.5, total_s=0.8))
            with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
                await store.get(prefix)
            await store.close()


def test_certificates_and_addresses_must_fit() -> None:
    with pytest.raises(BadConfig):
        EtcdConfig(("https://h:2379",))
    with pytest.raises(BadConfig):
        EtcdConfig(("http://h:2379",), tls=EtcdTls(b""))
    with pytest.raises(BadConfig):
        EtcdTls(b"", b"cert without key")
    for url in ("ftp://h:1", "http://h:1/path", "http://:1", "http://h:99999", ""):
        with pytest.raises(BadConfig):
            EtcdConfig((url,))
    with pytest.raises(BadConfig):
        EtcdConfig(())


@pytest.fixture
async def guarded(fast_dir: Path, prefix: str) -> AsyncIterator[EtcdCluster]:
    """A cluster with a user `app` who may touch /ok/ only, and tokens that live 2 s."""
    etcdctl = wheel_etcdctl()
    if etcdctl is None:
        pytest.skip("no etcdctl here")
    options = ClusterOptions(auth_token_ttl_s=2)
    data = fast_dir / prefix.split("/")[2]
    async with start_etcd(data, 1, options=options) as cluster:
        for line in (
            "user add root:secret",
            "user grant-role root root",
            "role add app",
            "role grant-permission app readwrite --prefix=true /ok/",
            "user add app:secret",
            "user grant-role app app",
            "auth enable",
        ):
            process = await asyncio.create_subprocess_exec(
                *(str(etcdctl), f"--endpoints={cluster.endpoints[0]}", *line.split()),
                stdout=asyncio.subprocess.DEVNULL,
                env={"ETCDCTL_API": "3"},
            )
            assert await process.wait() == 0, line
        yield cluster


def as_user(cluster: EtcdCluster, user: str | None, password: str | None) -> EtcdStore:
    return EtcdStore(EtcdConfig(cluster.endpoints, user=user, password=password, total_s=3.0))


async def test_a_token_that_expired_is_renewed(guarded: EtcdCluster) -> None:
    store = as_user(guarded, "app", "secret")
    writer = as_user(guarded, "app", "secret")
    assert await store.cluster_id() > 0
    lease = await store.grant(30)
    await store.put("/ok/a", b"", lease=lease.lease_id)
    async with store.watch("/ok/") as items:
        assert isinstance(await anext(items), Snapshot)
        # Both tokens die unused; the watch's stream and the lease's stay.
        await asyncio.sleep(4.5)
        result = await writer.txn([Compare("/ok/a", Field.VERSION, 1)], [Put("/ok/b", b"")])
        assert result.succeeded
        assert isinstance(await anext(items), Changes)
        assert await store.keep_alive(lease.lease_id) == 30
        await asyncio.sleep(4.5)
        async with store.watch("/ok/") as second:
            assert isinstance(await anext(second), Snapshot)
            await writer.put("/ok/c", b"")
            async with asyncio.timeout(60):
                assert isinstance(await anext(second), Changes)
                assert isinstance(await anext(items), Changes)
    await store.revoke(lease.lease_id)
    await store.close()
    await writer.close()


@pytest.mark.alone
async def test_what_is_not_allowed_is_denied_at_once(guarded: EtcdCluster) -> None:
    app = as_user(guarded, "app", "secret")
    wrong = as_user(guarded, "app", "wrong")
    nobody = as_user(guarded, None, None)
    started = time.monotonic()
    for store, key in ((app, "/elsewhere/a"), (wrong, "/ok/a"), (nobody, "/ok/a")):
        with pytest.raises(StoreDenied):
            await store.put(key, b"")
        with pytest.raises(StoreDenied):
            await store.get(key)
        with pytest.raises(StoreDenied):
            async with store.watch(key) as items, asyncio.timeout(60):
                await anext(items)
        await store.close()
    assert time.monotonic() - started < 2.5


async def test_a_user_where_none_is_asked_for_is_no_error(etcd: EtcdCluster, prefix: str) -> None:
    store = as_user(etcd, "app", "secret")
    assert await store.put(prefix + "a", b"") > 0
    await store.close()
