"""The guardian of a coordinator: deaths and hangs are noticed at once, and nothing else is."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli.local_cluster import Member, Part, is_alive
from coordinator.embedded_etcd import EtcdCluster
from coordinator.records import LifeRecord, encode
from tests.cluster import memory_hog
from tests.cluster.harness import Scene, scene_on, until

pytestmark = [pytest.mark.timeout(180), pytest.mark.alone]

TTL_S = 60
"""Of the jobs here: nothing that happens within seconds can be an expired lease."""


@pytest.fixture(scope="module")
async def three(
    etcd: EtcdCluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    """Three coordinators for all tests of this module, which start again what they harm."""
    directory = tmp_path_factory.mktemp("guardian")
    async with scene_on(etcd, directory / "three", coordinators=3, workers=("a", "b")) as scene:
        yield scene


async def owned(scene: Scene, name: str, ttl_s: int = TTL_S) -> tuple[Member, int]:
    """Make a job; return the member that owns it, and the revision of its token."""
    await scene.apply(
        name=name, source=f"a:data/{name}", targets=[f"b:data/{name}"], lease_ttl=f"{ttl_s}s"
    )
    node, revision = await until(lambda: scene.owner(name), "an owner")
    return scene.cluster.members[node], revision


async def claimed_anew(scene: Scene, name: str, revision: int, within_s: float) -> float:
    """Wait for the next owner; return after how many seconds."""
    began = time.monotonic()

    async def next_one() -> bool:
        now = await scene.owner(name)
        return now is not None and now[1] > revision

    await until(next_one, "the next owner", within_s)
    return time.monotonic() - began


async def test_a_dead_process_is_replaced_at_once(three: Scene) -> None:
    member, revision = await owned(three, "dead")
    member.signal(signal.SIGKILL, Part.PROPER)
    await claimed_anew(three, "dead", revision, 3)
    assert await member.wait() == 128 + signal.SIGKILL
    assert member.events("child_gone")
    assert member.events("leases_revoked")
    await three.cluster.start(member.name)


async def test_a_hung_process_is_killed_and_replaced(three: Scene) -> None:
    member, revision = await owned(three, "hung")
    proper = member.proper
    member.signal(signal.SIGSTOP, Part.PROPER)
    took_s = await claimed_anew(three, "hung", revision, 5)
    assert took_s > 1.0, "killed for less than a hang"
    assert await member.wait() == 128 + signal.SIGKILL
    assert not is_alive(proper)
    assert member.events("child_hung")
    await three.cluster.start(member.name)


async def test_a_coordinator_without_its_guardian_hands_over_and_stops(three: Scene) -> None:
    member, revision = await owned(three, "alone")
    proper = member.proper
    member.signal(signal.SIGKILL, Part.GUARDIAN)
    await claimed_anew(three, "alone", revision, 10)
    await member.wait()
    assert not is_alive(proper)
    assert member.events("guardian_gone")
    assert member.events("stopped")
    await three.cluster.start(member.name)


async def test_both_dead_is_a_dead_host_and_takes_the_lease(three: Scene) -> None:
    member, revision = await owned(three, "both", 2)
    await member.kill()
    assert await claimed_anew(three, "both", revision, 10) > 1.0
    assert not member.events("child_gone")
    await three.cluster.start(member.name)


async def test_a_guardian_that_was_stopped_blames_nobody(three: Scene) -> None:
    member, revision = await owned(three, "nobody")
    node = member.name
    proper = member.proper
    for part in (Part.GUARDIAN, Part.WHOLE):  # as with a machine that was suspended
        member.signal(signal.SIGSTOP, part)
        await asyncio.sleep(2.5)  # the state to be survived, not a wait for something
        member.signal(signal.SIGCONT, part)
    beats_until = time.monotonic() + 1.5
    while time.monotonic() < beats_until:
        assert member.is_running
        await asyncio.sleep(0.1)
    assert member.proper == proper
    assert await three.owner("nobody") == (node, revision)
    assert not member.events("child_hung")


async def test_asked_to_stop_it_stops_in_order(three: Scene) -> None:
    member, revision = await owned(three, "asked")
    assert await member.stop() == 0
    await claimed_anew(three, "asked", revision, 3)
    assert member.events("stopped")
    assert not member.events("child_gone")
    await three.cluster.start(member.name)


async def test_it_is_small(three: Scene) -> None:
    member = three.cluster.members["c1"]
    ours, theirs = memory_kib(member.pid), memory_kib(member.proper)
    assert ours < theirs / 2, (ours, theirs)
    maps = told_of(member.pid, "maps")
    assert "cygrpc" not in maps
    assert "_ssl" not in maps, "needed for https only"
    guardian, proper = (int(told_of(pid, "oom_score_adj")) for pid in (member.pid, member.proper))
    assert guardian < proper, "the kernel takes the child first"


def told_of(pid: int, what: str) -> str:
    return Path(f"/proc/{pid}/{what}").read_text()


def memory_kib(pid: int) -> int:
    return int(told_of(pid, "status").split("VmRSS:")[1].split()[0])


@contextlib.contextmanager
def service_manager(path: Path) -> Iterator[socket.socket]:
    """A socket as systemd's, which also says who wrote."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        manager.bind(str(path))
        manager.settimeout(20)
        yield manager


def hear(manager: socket.socket) -> tuple[bytes, int]:
    said, ancillary, _, _ = manager.recvmsg(100, socket.CMSG_SPACE(struct.calcsize("3i")))
    return said, struct.unpack("3i", ancillary[0][2])[0]


async def test_the_service_manager_hears_it_from_the_process_that_it_started(
    three: Scene, tmp_path: Path
) -> None:
    with service_manager(tmp_path / "notify") as manager:
        member = three.cluster.add_coordinator("notifies")
        now = datetime.now(UTC)
        life = LifeRecord(is_running=True, losses=(now - timedelta(minutes=1), now))
        await three.store.put(three.keys.life("notifies"), encode(life))
        member.environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        await three.cluster.start("notifies")
        assert await asyncio.to_thread(hear, manager) == (b"READY=1", member.pid)
        await check_held_down(three, "notifies")
        assert await member.stop() == 0
        assert await asyncio.to_thread(hear, manager) == (b"STOPPING=1", member.pid)
    del three.cluster.members["notifies"]


async def check_held_down(scene: Scene, node: str) -> None:
    """See that a coordinator with a third loss is held down, and says so to those who ask."""
    for job in ("mine", "only"):
        await scene.apply(
            name=job,
            source=f"a:data/{job}",
            targets=[f"b:data/{job}"],
            placement={"nodes": [node], "fallback": job == "mine"},
        )
    only = await until(lambda: scene.owner("only"), "an owner, as a last resort")
    mine = await until(lambda: scene.owner("mine"), "another owner")
    assert only[0] == node
    assert mine[0] != node
    why = "it lost its jobs 3 times within 10 min"
    shown = (await scene.ok("coordinator", "list", "-o", "json")).json
    (found,) = (one for one in shown if one["name"] == node)
    assert found["held_until"] > datetime.now(UTC).isoformat()
    assert why in found["held"]
    explained = (await scene.ok("job", "explain", "mine", "-o", "json")).json
    said = " ".join(explained["reasons"])
    assert f"because {node}, preferred, is held down" in said
    assert f"{node} is held down until" in said
    assert why in said


async def test_what_cannot_begin_ends_with_its_own_status(three: Scene, tmp_path: Path) -> None:
    begun = await three.baton("coordinator", "start", "--name", "c1", "--state", str(tmp_path))
    assert begun.code == 2
    assert "--etcd" in begun.err
    asked = await three.baton("coordinator", "start", "--help")
    assert asked.code == 0
    assert "--listen" in asked.out


_GUARD = "import sys; from coordinator.guardian import guard; sys.exit(guard(sys.argv[1:]))"


@pytest.mark.parametrize("how", ["dies", "hangs"])
async def test_it_survives_a_child_that_runs_out_of_memory(
    three: Scene, etcd: EtcdCluster, how: str
) -> None:
    key = f"{three.keys.prefix}hog/{how}"
    hog = (sys.executable, "-m", memory_hog.__name__, etcd.endpoints[0], key, how)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _GUARD, *hog),
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    try:
        await until(lambda: three.store.get(key), "a key under its lease")
        gone_within_s = memory_hog.TTL_S / 3

        async def gone() -> bool:
            return await three.store.get(key) is None

        await until(gone, "that the lease is revoked", gone_within_s)
        assert await process.wait() == (1 if how == "dies" else 128 + signal.SIGKILL)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
