"""What goes over the wire between real workers: deltas, the rest of a file, one rate for all targets."""

import os
import time
from pathlib import Path

import pytest

from coordinator.embedded_etcd import EtcdCluster
from tests.cluster.harness import Scene, scene_on, until
from tests.cluster.trees import check_equal
from worker.payload_way import LEAST_BYTES

MIB = 1024 * 1024


def arrived(root: Path) -> int:
    """How much of large files lies at a target that was not published yet."""
    folder = root / ".baton" / "partial"
    return sum(path.stat().st_blocks * 512 for path in folder.glob("*"))


def change(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.timeout(180)
async def test_only_what_changed_travels_to_every_target(trio: Scene) -> None:
    source, target = trio.roots["a"], trio.roots["b"]
    (source / "large").write_bytes(os.urandom(40 * MIB))
    await trio.apply(name="delta", source="a:data", targets=["b:data"])
    first = await trio.run_ok("delta")
    assert first["bytes_sent"] > 40 * MIB
    for number in range(3):
        change(source / "large", (7 + number) * MIB, b"changed" * 14)
        run = await trio.run_ok("delta")
        assert run["bytes_sent"] < 300_000, run
        assert run["files_copied"] == 1
        check_equal(source, target)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", ["a", "b"])
@pytest.mark.parametrize("times", [1, 6])
async def test_after_a_worker_was_killed_only_the_rest_travels(
    pair: Scene, victim: str, times: int
) -> None:
    """Frames go over the call; six times as much has a connection of its own."""
    source, target = pair.roots["a"], pair.roots["b"]
    (source / "new").mkdir()
    (source / "new" / "large").write_bytes(os.urandom(times * 24 * MIB))
    transfer = {"bandwidth": f"{times * 8}MB/s", "compression": "off"}
    await pair.apply(name="rest", source="a:data", targets=["b:data"], transfer=transfer)
    run = await pair.request_run("rest")
    await until(lambda: arrived(target) > times * 12 * MIB, "half of the file", 60)
    own_way = pair.cluster.members["a"].events("payload_connected")
    assert bool(own_way) == (times * 24 * MIB >= LEAST_BYTES)
    member = pair.cluster.members[victim]
    await member.kill()
    kept = arrived(target)
    await member.start()
    await member.wait_ready()
    await pair.run_ended("rest", run, 60)
    transfer["bandwidth"] = "off"
    await pair.apply(name="rest", source="a:data", targets=["b:data"], transfer=transfer)
    again = await pair.run_ok("rest")
    check_equal(source, target)
    assert kept > times * 12 * MIB
    # Where the source was killed, the run went on by itself; else the next one carried on.
    assert again["bytes_sent"] < times * 14 * MIB, again
    assert arrived(target) == 0


@pytest.mark.timeout(180)
async def test_a_rate_is_that_of_the_job_and_not_of_each_target(
    etcd: EtcdCluster, tmp_path: Path
) -> None:
    async with scene_on(etcd, tmp_path / "s", coordinators=1, workers=("a", "b", "c")) as scene:
        await check_rate(scene)


async def check_rate(scene: Scene) -> None:
    source = scene.roots["a"]
    (source / "large").write_bytes(os.urandom(6 * MIB))
    await scene.apply(
        name="rate",
        source="a:data",
        targets=["b:data", "c:data"],
        transfer={"bandwidth": "4MB/s", "compression": "off"},
    )
    began = time.monotonic()
    run = await scene.run_ok("rate")
    took = time.monotonic() - began
    assert run["bytes_sent"] > 12 * MIB
    assert took >= 0.9 * (run["bytes_sent"] - MIB) / 4_000_000
    for name in ("b", "c"):
        check_equal(source, scene.roots[name])


@pytest.mark.timeout(180)
async def test_content_that_is_fetched_travels_by_what_changed_too(pair: Scene) -> None:
    """The member that carries out a `sync` fetches what others have, by the same questions."""
    one, other = pair.roots["a"], pair.roots["b"]
    (one / "from-a").write_bytes(os.urandom(6 * MIB))
    (other / "from-b").write_bytes(os.urandom(6 * MIB))
    await pair.apply(name="both", rule="sync", members=["a:data", "b:data"])
    await pair.run_ok("both")
    check_equal(one, other)
    change(one / "from-b", 2 * MIB, b"changed at a")
    change(other / "from-a", 3 * MIB, b"changed at b")
    run = await pair.run_ok("both")
    check_equal(one, other)
    assert run["conflicts"] == 0
    assert run["bytes_sent"] < 600_000, run
