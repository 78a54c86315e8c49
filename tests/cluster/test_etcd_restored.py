"""etcd is set back to a backup: workers refuse its tokens, say what to do, and obey after `accept`."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.embedded_etcd import EtcdCluster, start_etcd, wheel_etcd, wheel_etcdctl
from tests.cluster.harness import Scene, scene_on, until
from tests.cluster.trees import check_equal, put

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
async def alone(fast_dir: Path, tmp_path: Path) -> AsyncIterator[Scene]:
    """One coordinator and two workers on an etcd of their own."""
    async with (
        start_etcd(fast_dir / tmp_path.name, binary=wheel_etcd()) as etcd,
        scene_on(etcd, tmp_path / "alone", coordinators=1, workers=("a", "b")) as scene,
    ):
        yield scene


def etcdctl(*arguments: str) -> None:
    program = wheel_etcdctl()
    assert program is not None
    subprocess.run([program, *arguments], check=True, capture_output=True, timeout=30)


async def set_back(etcd: EtcdCluster, backup: Path, token: str | None) -> None:
    """Restore a snapshot, as a cluster of another id when a token is given."""
    (member,) = etcd.members
    arguments = dict(one[2:].split("=", 1) for one in member._arguments if "=" in one)
    await member.stop()
    data = Path(arguments["data-dir"])
    await asyncio.to_thread(shutil.rmtree, data)
    await asyncio.to_thread(
        etcdctl,
        *("snapshot", "restore", str(backup), "--data-dir", str(data)),
        *("--name", arguments["name"], "--initial-cluster", arguments["initial-cluster"]),
        *("--initial-cluster-token", token or arguments["initial-cluster-token"]),
        *("--initial-advertise-peer-urls", arguments["initial-advertise-peer-urls"]),
    )
    await member.start()
    await member.wait_healthy()


@pytest.mark.parametrize("token", [None, "another"], ids=["same-id", "new-id"])
async def test_i4_workers_refuse_a_restored_etcd_until_an_operator_accepts_it(
    alone: Scene, token: str | None
) -> None:
    source, target = alone.roots["a"], alone.roots["b"]
    put(source / "one", "1")
    await alone.apply(name="back", source="a:data", targets=["b:data"], lease_ttl="2s")
    await alone.run_ok("back")
    backup = alone.directory / "backup"
    await asyncio.to_thread(
        etcdctl, "--endpoints", alone.etcd.endpoints[0], "snapshot", "save", str(backup)
    )
    for _ in range(100):  # so that what is restored does not soon come to these revisions again
        await alone.store.put("/elsewhere", b"")
    await alone.ok("job", "restart", "back")
    put(source / "two", "2")
    await alone.run_ok("back")
    await set_back(alone.etcd, backup, token)
    await until(lambda: alone.owner("back"), "an owner again", 30)
    put(source / "three", "3")
    run = await alone.request_run("back")

    async def refused() -> dict[str, Any] | None:
        shown = await alone.show("back")
        return shown if "baton worker accept" in shown["reason"] else None

    shown = await until(refused, "the refusal to be said", 30)
    assert shown["phase"] == ("waiting" if token is None else "failed")
    assert "worker a" in shown["reason"]
    assert not (target / "three").exists()
    for worker in ("a", "b"):
        accepted = (await alone.ok("worker", "accept", worker, "-o", "json")).json
        assert (accepted["name"], accepted["forgotten"]) == (worker, 1)
    if token is None:
        record = await alone.run_ended("back", run, 60)
        assert record.outcome.value == "succeeded", record
        assert len(record.attempts) == 1, "those that nobody obeyed were none"
    else:
        await alone.run_ok("back")
    check_equal(source, target)
    again = (await alone.ok("worker", "accept", "a", "-o", "json")).json
    assert again["forgotten"] == 0, "it does no harm twice"
    await alone.run_ok("back")
    assert (await alone.ok("ledger", "verify", "-o", "json")).json["ok"] is True
    unknown = await alone.baton("worker", "accept", "nobody")
    assert (unknown.code, "there is no worker nobody" in unknown.err) == (2, True)
