"""A real coordinator whose wall clock is set while it works; what counts leases is the true one."""

import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from coordinator.embedded_etcd import EtcdCluster
from coordinator.timetable import SET_AHEAD
from tests.cluster.harness import Scene, scene_on, until
from tests.cluster.trees import check_equal, grow

pytestmark = pytest.mark.timeout(180)

DAY_S = 86_400


def faketime() -> str | None:
    """Where Debian has the library that shows a process another wall clock."""
    program = shutil.which("faketime")
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")) if program else []
    return str(found[0]) if found else None


class Clock:
    """The wall clock of one coordinator, set by writing a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(0)

    def set(self, ahead_s: int) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(f"{ahead_s:+d}\n")
        os.replace(fresh, self.path)

    def environment(self, library: str) -> dict[str, str]:
        return {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self.path),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


@pytest.fixture
async def clocked(etcd: EtcdCluster, tmp_path: Path) -> AsyncIterator[tuple[Scene, Clock]]:
    """Two coordinators, c2 with a clock that can be set, and two workers."""
    library = faketime()
    if library is None:
        pytest.skip("faketime is not installed")
    clock = Clock(tmp_path / "clock")
    workers = ("a", "b")
    async with scene_on(etcd, tmp_path / "clocked", coordinators=2, workers=workers) as scene:
        member = scene.cluster.members["c2"]
        await member.stop()
        member.environment = clock.environment(library)
        await scene.cluster.start("c2")
        yield scene, clock


async def test_a_clock_that_jumps_a_day_fires_few_runs_keeps_its_lease_and_is_warned_of(
    clocked: tuple[Scene, Clock],
) -> None:
    scene, clock = clocked
    source, target = scene.roots["a"] / "tick", scene.roots["b"] / "tick"
    source.mkdir()
    grow(source, 5)
    await scene.apply(
        name="tick",
        source="a:data/tick",
        targets=["b:data/tick"],
        trigger={"every": "1s"},
        placement={"nodes": ["c2"]},
        missed="all",
    )

    async def owner() -> tuple[str, int] | None:
        found = await scene.owner("tick")
        return found if found is not None and found[0] == "c2" else None

    owned = await until(owner, "c2 to own it")
    await until(target.exists)
    warnings = (await scene.ok("status", "-o", "json")).json["warnings"]
    assert not any(" s apart" in one for one in warnings)
    for ahead_s in (DAY_S, 0):
        ran = await ran_of(scene)
        clock.set(ahead_s)
        (source / f"at{ahead_s}").write_text("after the jump")
        await until((target / f"at{ahead_s}").exists, f"a run with the clock at {ahead_s} s")

        async def caught_up(ahead_s: int = ahead_s) -> bool:
            due = (await scene.state("tick")).last_due
            now = datetime.now(UTC) + timedelta(seconds=ahead_s)
            return due is not None and abs((now - due).total_seconds()) < 5

        await until(caught_up, "the schedule to go by the clock as it is", 40)
        fired = await ran_of(scene) - ran
        assert fired < 60, f"{fired} runs began at once"
        assert await scene.owner("tick") == owned, "the lease was lost, or looked at the wall clock"

        async def warned(ahead_s: int = ahead_s) -> bool:
            status = (await scene.ok("status", "-o", "json")).json
            by_name = {one["name"]: one["clock_offset_s"] for one in status["coordinators"]}
            apart_s = abs(by_name["c2"] - by_name["c1"])
            said = any(" s apart: let NTP" in one for one in status["warnings"])
            assert said is (apart_s > 1)
            return bool(abs(apart_s - ahead_s) < 1)

        await until(warned, f"status to tell of clocks {ahead_s} s apart", 40)
    records = await scene.ledger.runs("tick")
    assert any(record.reason == SET_AHEAD for _, record in records)
    check_equal(source, target)
    proof: dict[str, Any] = (await scene.ok("ledger", "verify", "tick", "-o", "json")).json
    assert proof["ok"] is True


async def ran_of(scene: Scene) -> int:
    """How many runs have begun."""
    return sum(record.started is not None for _, record in await scene.ledger.runs("tick"))
