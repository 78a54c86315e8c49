"""Trees of the size that people have: 50,000 small files, and 4 GiB in a few."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from coordinator.embedded_etcd import EtcdCluster
from tests.cluster.harness import Scene, scene_on
from tests.cluster.trees import grow, picture, rsync_says, temporaries

GIB = 1 << 30
NEEDED = 10 * GIB


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Path]:
    """A directory with room for both trees, in memory where that is large enough."""
    shm = Path("/dev/shm")
    if shm.is_dir() and shutil.disk_usage(shm).free >= NEEDED:
        path = Path(tempfile.mkdtemp(prefix="baton-large-", dir=shm))
        yield path
        shutil.rmtree(path)
        return
    if shutil.disk_usage(tmp_path).free < NEEDED:
        pytest.skip(f"needs {NEEDED // GIB} GiB of room for two trees of 4 GiB")
    yield tmp_path


def grow_large(root: Path, sizes: list[int]) -> None:
    """Files of these sizes, none like another and none like itself further on."""
    for number, size in enumerate(sizes):
        block, written = os.urandom(8 << 20), 0
        with (root / f"large{number}").open("wb") as file:
            while written < size:
                part = (b"%16d" % written + block[16:])[: size - written]
                written += file.write(part)


def digests(root: Path) -> dict[str, tuple[bytes, int]]:
    """What is in the files, and their times."""
    return {
        path.name: (blake3().update_mmap(path).digest(), path.stat().st_mtime_ns)
        for path in root.iterdir()
        if path.name != ".baton"
    }


async def mirror(scene: Scene) -> dict[str, Any]:
    await scene.apply(
        name="large", source="a:data", targets=["b:data"], transfer={"durability": "fast"}
    )
    return await scene.run("large", within_s=150)


async def nothing_more(scene: Scene) -> None:
    run = await scene.run("large", within_s=60)
    assert run["outcome"] == "succeeded"
    assert (run["files_copied"], run["files_updated"], run["bytes_copied"]) == (0, 0, 0)


@pytest.mark.timeout(240)
async def test_i10_fifty_thousand_small_files(etcd: EtcdCluster, roomy: Path, rsync: str) -> None:
    assert rsync
    async with scene_on(etcd, roomy / "scene", coordinators=1, workers=("a", "b")) as scene:
        source, target = scene.roots["a"], scene.roots["b"]
        total = await asyncio.to_thread(grow, source, 50_000, width=250, size=6_000)
        run = await mirror(scene)
        assert (run["outcome"], run["files_copied"]) == ("succeeded", 50_000), run
        assert run["bytes_copied"] == total
        assert await asyncio.to_thread(rsync_says, source, target) == ""
        assert await asyncio.to_thread(picture, source) == await asyncio.to_thread(picture, target)
        assert temporaries(target) == []
        await nothing_more(scene)


@pytest.mark.timeout(240)
async def test_i10_four_gibibytes_in_a_few_files(
    etcd: EtcdCluster, roomy: Path, rsync: str
) -> None:
    assert rsync
    async with scene_on(etcd, roomy / "scene", coordinators=1, workers=("a", "b")) as scene:
        source, target = scene.roots["a"], scene.roots["b"]
        sizes = [3 * GIB, 700 << 20, (324 << 20) - 1, 1, 0]
        await asyncio.to_thread(grow_large, source, sizes)
        run = await mirror(scene)
        assert (run["outcome"], run["files_copied"]) == ("succeeded", len(sizes)), run
        assert run["bytes_copied"] == sum(sizes)
        assert await asyncio.to_thread(rsync_says, source, target) == ""
        assert await asyncio.to_thread(digests, source) == await asyncio.to_thread(digests, target)
        await nothing_more(scene)


def peak_bytes(pid: int) -> int:
    """The most memory that a process held since it was started."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def grow_empty(root: Path, directories: range) -> None:
    """Empty files, 1,000 to a directory."""
    for number in directories:
        (root / f"d{number:04}").mkdir()
        for file in range(1_000):
            os.mknod(root / f"d{number:04}/f{file:05}")


@pytest.mark.timeout(240)
async def test_memory_does_not_grow_with_the_tree(etcd: EtcdCluster, roomy: Path) -> None:
    async with scene_on(etcd, roomy / "scene", coordinators=1, workers=("a", "b")) as scene:
        workers = [scene.cluster.members[name] for name in ("a", "b")]
        peaks: list[list[int]] = []
        for directories in (range(20), range(20, 150)):
            await asyncio.to_thread(grow_empty, scene.roots["a"], directories)
            for copied in (len(directories) * 1_000, 0):
                run = await mirror(scene)
                assert (run["outcome"], run["files_copied"]) == ("succeeded", copied), run
            peaks.append([peak_bytes(worker.pid) for worker in workers])
        for few, many in zip(*peaks, strict=True):
            assert many < 150 << 20
            assert many - few < 24 << 20, peaks
