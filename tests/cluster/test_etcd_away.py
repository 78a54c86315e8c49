"""etcd hangs or is away: owners fall silent in time, and go on where they were."""

import asyncio
import itertools
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.embedded_etcd import start_etcd
from tests.cluster.harness import Scene, paused, scene_on, until
from tests.cluster.trees import check_equal, grow, put

log = logging.getLogger(__name__)

TTL_S = 2
QUORUM_LOST_S = 60.0
LOADED_S = 3.0
"""What a machine may take longer that carries other tests beside."""


@pytest.fixture
async def alone(fast_dir: Path, tmp_path: Path) -> AsyncIterator[Scene]:
    """Two coordinators and two workers on an etcd of their own, to be harmed."""
    async with (
        start_etcd(fast_dir / tmp_path.name) as etcd,
        scene_on(etcd, tmp_path / "alone", coordinators=2, workers=("a", "b")) as scene,
    ):
        yield scene


def published(target: Path) -> int:
    """Files under their own names; what is staged lies in hidden directories."""
    count = 0
    for _, folders, files in os.walk(target):
        folders[:] = [name for name in folders if not name.startswith(".baton")]
        count += sum(not name.startswith(".baton") for name in files)
    return count


@pytest.mark.timeout(180)
async def test_i12_etcd_hangs_and_nothing_is_published_past_the_deadline(alone: Scene) -> None:
    source, target = alone.roots["a"], alone.roots["b"]
    files = 40_000
    grow(source, files, size=40)
    await alone.apply(name="hang", source="a:data", targets=["b:data"], lease_ttl=f"{TTL_S}s")
    run = await alone.request_run("hang")
    await until((target / "d000").exists, "the beginning", 60)
    member = alone.etcd.members[0]
    with paused(alone.cluster.members["b"]):  # or it would be done before the deadline
        member.signal(signal.SIGSTOP)
        stopped_at = time.monotonic()
        await asyncio.sleep(TTL_S + 0.3)
    await asyncio.sleep(0.3)  # the slice in which the target was held ends
    counts = [await asyncio.to_thread(published, target)]
    while time.monotonic() < stopped_at + 3 * TTL_S:
        await asyncio.sleep(0.3)
        counts.append(await asyncio.to_thread(published, target))
    member.signal(signal.SIGCONT)
    assert counts[0] < files, "the run was over before etcd hung: make it longer"
    assert len(set(counts)) == 1, f"published past the deadline: {counts}"
    record = await alone.run_ended("hang", run, 90)
    assert record.outcome.value == "succeeded", record
    assert record.counts.files_copied == files
    check_equal(source, target)
    assert (await alone.run_ok("hang"))["files_copied"] == 0


@pytest.fixture
async def quorate(fast_dir: Path, tmp_path: Path) -> AsyncIterator[Scene]:
    """Two coordinators and two workers on an etcd of three members, to be harmed."""
    async with (
        start_etcd(fast_dir / tmp_path.name, 3) as etcd,
        scene_on(etcd, tmp_path / "quorate", coordinators=2, workers=("a", "b")) as scene,
    ):
        yield scene


@pytest.mark.alone
@pytest.mark.timeout(300)
async def test_i12_without_a_quorum_all_park_and_go_on_where_they_were(quorate: Scene) -> None:
    source, target = quorate.roots["a"], quorate.roots["b"]
    files = 30_000
    size = grow(source, files, size=200)
    await quorate.apply(name="ride", source="a:data", targets=["b:data"], lease_ttl="5s")
    run = await quorate.request_run("ride")
    await until((target / "d000").exists, "the beginning", 60)
    lost = quorate.etcd.members[:2]
    with paused(quorate.cluster.members["b"]):  # or it would be done before the deadline
        for member in lost:
            await member.kill()
        lost_at = time.monotonic()
        await asyncio.sleep(5 + 0.3)
    await asyncio.sleep(0.3)  # the slice in which the target was held ends
    counts = [await asyncio.to_thread(published, target)]
    while time.monotonic() < lost_at + QUORUM_LOST_S:
        await asyncio.sleep(0.5)
        counts.append(await asyncio.to_thread(published, target))
    assert counts[0] < files, "the run was over before the quorum was lost: make it longer"
    assert len(set(counts)) == 1, f"published past the deadline: {counts}"
    for member in lost:
        await member.start()
    await lost[0].wait_healthy()
    back_at = time.monotonic()
    more = counts[0]
    await until(lambda: published(target) > more, "that it goes on", 20)
    went_on_s = time.monotonic() - back_at
    record = await quorate.run_ended("ride", run, 90)
    log.info("went on %.1f s after the quorum, %d bytes sent", went_on_s, record.counts.bytes_sent)
    assert went_on_s < 5 + LOADED_S
    assert record.outcome.value == "succeeded", record
    assert record.counts.files_copied == files
    assert record.counts.bytes_sent < size * 1.2 + 100 * files, "nothing is sent again"
    for worker in ("a", "b"):
        events = quorate.cluster.members[worker].events
        assert len(events("run_started")) == (worker == "a"), "nothing is scanned again"
        assert not events("planned_anew")
    check_equal(source, target)


@pytest.mark.timeout(180)
async def test_etcd_gone_is_said_by_every_command_and_jobs_go_on_when_it_returns(
    alone: Scene,
) -> None:
    source, target = alone.roots["a"], alone.roots["b"]
    put(source / "one", "1")
    await alone.apply(
        name="tick", source="a:data", targets=["b:data"], trigger={"every": "1s"}, lease_ttl="2s"
    )
    await until((target / "one").exists, "the first run")
    member = alone.etcd.members[0]
    await member.kill()
    put(source / "two", "2")
    for command in (("job", "show", "tick"), ("status",), ("worker", "list"), ("job", "list")):
        ended = await alone.baton(*command, "--timeout", "4")
        assert (ended.code, ended.out) == (4, ""), (command, ended)
    ended = await alone.baton("job", "show", "tick", "--timeout", "15")
    assert ended.code == 4
    assert member.endpoint.removeprefix("http://") in ended.err
    assert not (target / "two").exists()
    await member.start()
    await member.wait_healthy()
    await until((target / "two").exists, "a run after etcd returned", 30)
    await until(lambda: published_once(alone), "the ledger caught up", 30)
    status = await alone.baton("status", "-o", "json")
    assert status.code == 0
    assert len(status.json["coordinators"]) == 2


async def published_once(scene: Scene) -> bool:
    """Whether the ledger has every due instant up to now, once, a second apart (I9)."""
    runs = await scene.ledger.runs("tick")
    instants = [at for at, _ in runs]
    steps = [(b - a).total_seconds() for a, b in itertools.pairwise(instants)]
    assert set(steps) <= {1.0}, steps
    return runs[-1][1].outcome.value in {"succeeded", "running"}
