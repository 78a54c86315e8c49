"""Caps, priority and time limits of runs on real processes."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from coordinator.embedded_etcd import EtcdCluster
from tests.cluster.harness import Scene, paused, scene_on, until
from tests.cluster.trees import check_equal, grow

pytestmark = pytest.mark.timeout(180)

PAIRS = (("a", "b"), ("b", "c"), ("c", "a"), ("b", "a"), ("c", "b"), ("a", "c"))


@pytest.fixture
async def narrow(etcd: EtcdCluster, tmp_path: Path) -> AsyncIterator[Scene]:
    """Two coordinators, and three workers that take part in one run each."""
    async with scene_on(
        etcd, tmp_path / "narrow", coordinators=2, workers=("a", "b", "c"), max_runs=1
    ) as scene:
        yield scene


async def test_a_worker_takes_part_in_so_many_runs_whoever_owns_them(narrow: Scene) -> None:
    trees = []
    for number, (source, target) in enumerate(PAIRS):
        name = f"ring{number}"
        trees.append((narrow.roots[source] / name, narrow.roots[target] / name))
        trees[-1][0].mkdir()
        grow(trees[-1][0], 20)
        await narrow.apply(
            name=name,
            source=f"{source}:data/{name}",
            targets=[f"{target}:data/{name}"],
            placement={"nodes": [f"c{number % 2 + 1}"]},
            priority=5 if number == 5 else 0,
        )
    names = [f"ring{number}" for number in range(len(PAIRS))]
    for name in names:
        await until(partial(narrow.owner, name), "an owner")
    with paused(narrow.cluster.members["a"]):  # so that they come to wait for one another
        runs = dict(zip(names, await asyncio.gather(*map(narrow.request_run, names)), strict=True))
    for name, run_id in runs.items():
        record = await narrow.run_ended(name, run_id, 60)
        assert record.outcome.value == "succeeded", record
    for before, after in trees:
        check_equal(before, after)


async def test_a_run_stops_at_its_time_limit_and_is_tried_again(pair: Scene) -> None:
    source, target = pair.roots["a"] / "long", pair.roots["b"] / "long"
    source.mkdir()
    with (source / "large").open("wb") as file:
        file.truncate(8 << 20)
        for place in range(0, 8 << 20, 4096):
            file.seek(place)
            file.write(place.to_bytes(8, "big") * 512)
    job: dict[str, Any] = {
        "name": "long",
        "source": "a:data/long",
        "targets": ["b:data/long"],
        "time_limit": "2s",
        "transfer": {"bandwidth": "200kB/s", "compression": "off"},
    }
    await pair.apply(**job, retries={"attempts": 2, "delay": "1s", "backoff": 1})
    run = await pair.run("long")
    assert run["outcome"] == "failed"
    assert len(run["attempts"]) == 2
    assert "the run reached its time limit of 2 s and was stopped" in run["reason"]
    assert run["errors"][0]["what"] == "out-of-time"
    assert (await pair.show("long"))["phase"] == "failed"
    # No limit any more: how fast a disk makes 8 MiB durable, nobody promised.
    del job["time_limit"]
    job["transfer"] = {"compression": "off"}
    await pair.apply(**job)
    await pair.run_ok("long")
    check_equal(source, target)


async def test_a_coordinator_carries_on_so_many_runs(pair: Scene) -> None:
    member = pair.cluster.members["c1"]
    await member.stop()
    member.arguments += ["--max-runs", "1"]
    await pair.cluster.start("c1")
    for name in ("one", "two"):
        (pair.roots["a"] / name).mkdir()
        grow(pair.roots["a"] / name, 5)
        await pair.apply(name=name, source=f"a:data/{name}", targets=[f"b:data/{name}"])
    with paused(pair.cluster.members["b"]):
        first, second = [await pair.request_run(name) for name in ("one", "two")]

        async def waits() -> bool:
            return bool((await pair.show("two"))["phase"] == "waiting")

        await until(waits)
        shown = await pair.show("two")
        assert shown["reason"] == "waits for room at coordinator c1: 1 of 1 runs"
    for name, run in (("one", first), ("two", second)):
        assert (await pair.run_ended(name, run)).outcome.value == "succeeded"
