"""The contract of `Store`, against memory in virtual time and against real clusters."""

import pytest

from coordinator.etcd_store import EtcdConfig, EtcdStore
from coordinator.memory_store import MemoryEtcd, MemoryStore
from coordinator.store import Changes, Snapshot
from tests.etcd.conftest import Clusters
from tests.etcd.contract import CASES, World
from tests.etcd.virtual_time import VirtualClock, run_virtual
from wire.clock import BootClock


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [1, 2])
def test_memory(name: str, seed: int) -> None:
    async def main() -> None:
        clock = VirtualClock()
        etcd = MemoryEtcd(clock, seed=seed)
        await CASES[name](World(MemoryStore(etcd), MemoryStore(etcd), clock, "/test/"))
        await etcd.close()

    run_virtual(main())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["path", "wheel"])
async def test_etcd(name: str, kind: str, clusters: Clusters, prefix: str) -> None:
    cluster = await clusters.get(kind)
    first, *others = cluster.endpoints
    clock = BootClock()
    store = EtcdStore(EtcdConfig((first, *others)), clock)
    second = EtcdStore(EtcdConfig((*others, first)), clock)
    try:
        await CASES[name](World(store, second, clock, prefix))
    finally:
        await store.close()
        await second.close()


def test_i13_memory_gives_a_snapshot_after_a_compaction() -> None:
    async def main() -> None:
        etcd = MemoryEtcd(VirtualClock())
        store, other = MemoryStore(etcd), MemoryStore(etcd)
        async with store.watch("/a/") as items:
            assert await anext(items) == Snapshot(1, ())
            await other.put("/a/1", b"")
            assert isinstance(await anext(items), Changes)
            store.is_cut = True
            for n in range(5):
                revision = await other.put(f"/a/{n}", b"new")
            await other.compact(revision)
            store.is_cut = False
            snapshot = await anext(items)
            assert isinstance(snapshot, Snapshot)
            assert [kv.value for kv in snapshot.kvs] == [b"new"] * 5
            await other.put("/a/9", b"")
            assert isinstance(await anext(items), Changes)

    run_virtual(main())
