"""One etcd for all tests here that harm it in no way; a cluster for every test that asks for one."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from coordinator.embedded_etcd import EtcdCluster, start_etcd
from tests.cluster.harness import Scene, scene_on

SceneMaker = Callable[..., AbstractAsyncContextManager[Scene]]


@pytest.fixture(scope="session")
def fast_dir() -> Iterator[Path]:
    """A directory whose syncs cost nothing, where there is one: for etcd, never for trees."""
    shm = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="baton-cluster-", dir=shm if shm.is_dir() else None))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
async def etcd(fast_dir: Path) -> AsyncIterator[EtcdCluster]:
    async with start_etcd(fast_dir / "etcd") as cluster:
        yield cluster


@pytest.fixture
async def pair(etcd: EtcdCluster, tmp_path: Path) -> AsyncIterator[Scene]:
    """One coordinator c1 and two workers a and b."""
    async with scene_on(etcd, tmp_path / "pair", coordinators=1, workers=("a", "b")) as scene:
        yield scene


@pytest.fixture
async def trio(etcd: EtcdCluster, tmp_path: Path) -> AsyncIterator[Scene]:
    """Three coordinators c1 to c3 and two workers a and b."""
    async with scene_on(etcd, tmp_path / "trio", coordinators=3, workers=("a", "b")) as scene:
        yield scene


@pytest.fixture(scope="session")
async def steady(etcd: EtcdCluster) -> AsyncIterator[Scene]:
    """One coordinator and workers a, b, c, for tests that harm no process: a PATH for each."""
    directory = Path(tempfile.mkdtemp(prefix="baton-steady-"))
    try:
        async with scene_on(
            etcd, directory, coordinators=1, workers=("a", "b", "c"), spare=40
        ) as scene:
            yield scene
    finally:
        shutil.rmtree(directory)
