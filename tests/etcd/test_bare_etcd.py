"""The guardian's own calls to etcd, on real clusters: with certificates, with users, and in trouble."""

import asyncio
import signal
import socket
import time
from pathlib import Path

import pytest

from coordinator.bare_etcd import BareEtcd, EtcdRefused, EtcdSilent
from coordinator.embedded_etcd import ClusterOptions, EtcdCluster, ServerTls, start_etcd
from coordinator.etcd_config import Endpoint
from coordinator.etcd_store import EtcdConfig, EtcdStore, EtcdTls
from coordinator.guardian import etcd_of
from coordinator.guardian_link import describe_etcd
from tests.etcd.certificates import Authority
from tests.etcd.test_security import as_user, guarded

__all__ = ["guarded"]


def address_of(url: str) -> tuple[str, int]:
    host, _, port = Endpoint.parse(url).target.rpartition(":")
    return host, int(port)


async def revoke(etcd: BareEtcd, lease_id: int, url: str, within_s: float = 5.0) -> None:
    await asyncio.to_thread(etcd.revoke, lease_id, address_of(url), within_s)


async def test_a_lease_and_its_keys_go_at_any_member(etcd: EtcdCluster, store: EtcdStore) -> None:
    bare = etcd_of(describe_etcd(EtcdConfig(etcd.endpoints)))
    assert bare.addresses == tuple(map(address_of, etcd.endpoints))
    for url in etcd.endpoints:
        lease = await store.grant(60)
        await store.put("/test/bare", b"x", lease=lease.lease_id)
        await revoke(bare, lease.lease_id, url)
        assert await store.time_to_live(lease.lease_id) == 0
        assert await store.get("/test/bare") is None
        with pytest.raises(EtcdRefused):
            await revoke(bare, lease.lease_id, url)


async def test_with_certificates(fast_dir: Path, prefix: str) -> None:
    ours, foreign = Authority("ours"), Authority("foreign")
    good = EtcdTls(ours.pem, *ours.issue("client"))
    options = ClusterOptions(
        tls=ServerTls(*ours.write(fast_dir / "tls", "server")), client_tls=good
    )
    async with start_etcd(fast_dir / prefix.split("/")[2], 1, options=options) as cluster:
        url = cluster.endpoints[0]
        config = EtcdConfig(cluster.endpoints, tls=good)
        store = EtcdStore(config)
        lease = await store.grant(60)
        for bad in (EtcdTls(ours.pem), EtcdTls(foreign.pem, *ours.issue("client"))):
            bare = etcd_of(describe_etcd(EtcdConfig(cluster.endpoints, tls=bad)))
            with pytest.raises(EtcdSilent):
                await revoke(bare, lease.lease_id, url)
        assert await store.time_to_live(lease.lease_id) > 0
        await revoke(etcd_of(describe_etcd(config)), lease.lease_id, url)
        assert await store.time_to_live(lease.lease_id) == 0
        await store.close()


async def test_with_a_user_whose_token_has_expired_long_ago(guarded: EtcdCluster) -> None:
    store = as_user(guarded, "app", "secret")
    url = guarded.endpoints[0]
    lease = await store.grant(60)
    await store.put("/ok/a", b"", lease=lease.lease_id)

    def bare(user: str | None, password: str | None) -> BareEtcd:
        return etcd_of(describe_etcd(EtcdConfig(guarded.endpoints, user=user, password=password)))

    for user, password in ((None, None), ("app", "wrong")):
        with pytest.raises(EtcdRefused):
            await revoke(bare(user, password), lease.lease_id, url)
    assert await store.time_to_live(lease.lease_id) > 0
    await revoke(bare("app", "secret"), lease.lease_id, url)
    assert await store.get("/ok/a") is None
    await store.close()


async def test_a_user_where_none_is_asked_for(etcd: EtcdCluster, store: EtcdStore) -> None:
    bare = etcd_of(describe_etcd(EtcdConfig(etcd.endpoints, user="app", password="secret")))
    lease = await store.grant(60)
    await revoke(bare, lease.lease_id, etcd.endpoints[0])
    assert await store.time_to_live(lease.lease_id) == 0


async def test_members_that_are_dead_hung_or_no_etcd_are_left_in_time(
    fast_dir: Path, prefix: str
) -> None:
    async with start_etcd(fast_dir / prefix.split("/")[2], 1) as cluster:
        bare = etcd_of(describe_etcd(EtcdConfig(cluster.endpoints)))
        cluster.members[0].signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(EtcdSilent, match=r"127\.0\.0\.1:\d+: .*(time|timed)"):
            await revoke(bare, 1, cluster.endpoints[0], 0.3)
        assert time.monotonic() - began < 5
        cluster.members[0].signal(signal.SIGCONT)
        await cluster.members[0].kill()
        with pytest.raises(EtcdSilent, match="refused"):
            await revoke(bare, 1, cluster.endpoints[0], 5.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100)

        answering = asyncio.create_task(asyncio.to_thread(answer))
        host, port = listener.getsockname()
        with pytest.raises(EtcdSilent):
            await revoke(bare, 1, f"http://{host}:{port}")
        await answering
