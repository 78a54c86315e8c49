"""Real etcd clusters, started when a test first asks, ended with the session."""

import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from coordinator.embedded_etcd import (
    EtcdBinary,
    EtcdCluster,
    choose_etcd,
    path_etcds,
    start_etcd,
    wheel_etcd,
)
from coordinator.etcd_store import EtcdConfig, EtcdStore


class Clusters:
    """Three members of each kind of binary, shared by the tests that harm none of them."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._running: dict[str, EtcdCluster] = {}
        self._stack = AsyncExitStack()

    @staticmethod
    def binary(kind: str) -> EtcdBinary | None:
        if kind == "path":
            return next(iter(path_etcds()), None)
        return wheel_etcd()

    async def get(self, kind: str = "sound") -> EtcdCluster:
        binary = choose_etcd() if kind == "sound" else self.binary(kind)
        if binary is None:
            pytest.skip(f"no etcd binary ({kind}) here")
        name = "-".join(map(str, binary.version))
        if name not in self._running:
            self._running[name] = await self._stack.enter_async_context(
                start_etcd(self._data / name, 3, binary=binary)
            )
        return self._running[name]

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture(scope="session")
def fast_dir() -> Iterator[Path]:
    """A directory whose syncs cost nothing, where there is one."""
    shm = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="baton-etcd-", dir=shm if shm.is_dir() else None))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
async def clusters(fast_dir: Path) -> AsyncIterator[Clusters]:
    clusters = Clusters(fast_dir / "shared")
    yield clusters
    await clusters.close()


@pytest.fixture
async def etcd(clusters: Clusters) -> EtcdCluster:
    """A healthy three-member cluster on the best binary here."""
    return await clusters.get()


@pytest.fixture
async def store(etcd: EtcdCluster) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(EtcdConfig(etcd.endpoints))
    yield store
    await store.close()


@pytest.fixture
def prefix() -> str:
    """A prefix of this test's own, in the form of Baton's."""
    return f"/test/{uuid.uuid4().hex}/"
