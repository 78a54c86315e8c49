"""A real etcd that is full, slow, or lets nobody in, under real coordinators and workers."""

import asyncio
import contextlib
import itertools
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.embedded_etcd import ClusterOptions, EtcdCluster, start_etcd, wheel_etcdctl
from coordinator.errors import StoreFull
from coordinator.etcd_store import EtcdStore
from tests.cluster.harness import Scene, scene_on, until
from tests.cluster.trees import check_equal, put
from wire.children import bound_to_us

pytestmark = pytest.mark.timeout(180)

QUOTA = 4 << 20
FILLER = 256 << 10
PASSWORD = "secret"
FLUSHES = "fsync,fdatasync"


@pytest.fixture
async def small(fast_dir: Path, tmp_path: Path) -> AsyncIterator[Scene]:
    """One coordinator and two workers on an etcd of their own with a small quota."""
    options = ClusterOptions(extra=(f"--quota-backend-bytes={QUOTA}",))
    async with (
        start_etcd(fast_dir / tmp_path.name, options=options) as etcd,
        scene_on(etcd, tmp_path / "small", coordinators=1, workers=("a", "b")) as scene,
    ):
        yield scene


async def etcdctl(etcd: EtcdCluster, *arguments: str) -> str:
    program = wheel_etcdctl()
    assert program is not None
    command = [str(program), "--endpoints", etcd.endpoints[0], *arguments]
    done = await asyncio.to_thread(
        subprocess.run, command, check=True, capture_output=True, text=True, timeout=30
    )
    return str(done.stdout)


async def fill(store: EtcdStore) -> None:
    """Write until etcd takes no more."""
    for number in itertools.count():
        await store.put(f"/filler/{number}", bytes(FILLER))


@pytest.fixture
async def slow(fast_dir: Path, tmp_path: Path) -> AsyncIterator[Scene]:
    """Two coordinators and two workers on an etcd of their own, whose disk can be made slow."""
    async with (
        start_etcd(fast_dir / tmp_path.name) as etcd,
        scene_on(etcd, tmp_path / "slow", coordinators=2, workers=("a", "b")) as scene,
    ):
        yield scene


@contextlib.asynccontextmanager
async def slow_disk(pid: int, delay_s: float) -> AsyncIterator[None]:
    """Have every flush of a process to its disk take so much longer; skips where nobody may trace it."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    delay = f"inject={FLUSHES}:delay_enter={delay_s * 1e6:.0f}"
    tracer = await asyncio.create_subprocess_exec(
        *bound_to_us([strace, "-f", "-q", "-o", "/dev/null", "-p", str(pid)]),
        *("-e", f"trace={FLUSHES}", "-e", delay),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await until(lambda: _is_traced(pid) or tracer.returncode is not None, "strace to attach")
        if tracer.returncode is not None:
            assert tracer.stderr is not None
            said = (await tracer.stderr.read()).decode(errors="replace")
            assert "not permitted" in said, said
            pytest.skip(f"processes may not be traced here: {said.strip()}")
        yield
    finally:
        if tracer.returncode is None:
            tracer.terminate()  # it lets go of the process, which goes on
        await tracer.wait()


def _is_traced(pid: int) -> bool:
    """Whether every thread of a process has a tracer."""
    statuses = [task.joinpath("status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return all("\nTracerPid:\t0\n" not in status for status in statuses)


@pytest.mark.timeout(600)
async def test_a_slow_disk_costs_time_keeps_leases_and_is_named(slow: Scene) -> None:
    source, target = slow.roots["a"], slow.roots["b"]
    put(source / "one", "1")
    await slow.apply(
        name="tick", source="a:data", targets=["b:data"], trigger={"every": "1s"}, lease_ttl="20s"
    )
    await until((target / "one").exists, "the first run")
    owner = await slow.owner("tick")
    assert owner is not None
    at_owner = ("--coordinator", slow.cluster.members[owner[0]].listen)
    (member,) = slow.etcd.members

    async def said() -> bool:
        return "ms for a write" in (await slow.ok("status", *at_owner)).out

    assert not await said()
    async with slow_disk(member.pid, 0.3):
        put(source / "two", "2")
        await until((target / "two").exists, "a run on a slow etcd", 60)
        await until(said, "status to say that etcd is slow", 60)
        found = await slow.baton("doctor", "-o", "json", "--timeout", "60")
        disk = next(
            one for one in found.json["checks"] if one["name"] == f"etcd's disk, by {owner[0]}"
        )
        assert (disk["level"], "a disk of its own" in disk["advice"]) == ("warning", True), disk
        assert await slow.owner("tick") == owner, "the lease was lost for slowness"
        # A takeover takes some writes longer, and no more.
        assert await slow.cluster.members[owner[0]].stop() == 0

        async def taken() -> bool:
            now = await slow.owner("tick")
            return now is not None and now[0] != owner[0]

        await until(taken, "a takeover on a slow etcd", 60)
        put(source / "three", "3")
        await until((target / "three").exists, "a run of the next owner", 60)

    async def is_well() -> bool:
        return "ms for a write" not in (await slow.ok("status")).out

    await until(is_well, "status to say no more of it", 60)
    put(source / "four", "4")
    await until((target / "four").exists, "a run on a sound etcd", 60)
    check_equal(source, target)

    async def proved() -> bool:
        return bool((await slow.baton("ledger", "verify", "-o", "json")).json["ok"])

    await until(proved, "every instant in the ledger", 30)


async def test_a_full_etcd_holds_runs_up_and_all_goes_on_when_there_is_room(small: Scene) -> None:
    source, target = small.roots["a"], small.roots["b"]
    put(source / "one", "1")
    await small.apply(
        name="tick", source="a:data", targets=["b:data"], trigger={"every": "1s"}, lease_ttl="5s"
    )
    await until((target / "one").exists, "the first run")
    owner = await small.owner("tick")
    with pytest.raises(StoreFull, match="etcdctl alarm disarm"):
        await fill(small.store)

    async def said() -> bool:
        return "etcd's database is at its quota" in (await small.ok("status")).out

    await until(said, "status to say that etcd is full", 30)
    refused = await small.baton("job", "run", "tick")
    assert (refused.code, "etcdctl compact --physical" in refused.err) == (1, True), refused
    found = await small.baton("doctor", "-o", "json", "--timeout", "30")
    failed = {one["name"]: one for one in found.json["checks"] if one["level"] == "failed"}
    assert (found.code, "NOSPACE" in failed["etcd version, by c1"]["detail"]) == (1, True)
    await asyncio.sleep(6)  # longer than the lease
    assert await small.owner("tick") == owner, "renewals need no room"

    await etcdctl(small.etcd, "del", "--prefix", "/filler/")
    revision = (await small.store.range("/filler/")).revision
    await etcdctl(small.etcd, "compact", "--physical", str(revision))
    await etcdctl(small.etcd, "defrag")
    await etcdctl(small.etcd, "alarm", "disarm")
    put(source / "three", "3")
    await until((target / "three").exists, "a run after there was room", 30)
    assert await small.owner("tick") == owner
    check_equal(source, target)

    async def proved() -> bool:
        return bool((await small.baton("ledger", "verify", "-o", "json")).json["ok"])

    await until(proved, "every instant in the ledger", 30)

    async def is_well() -> bool:
        return "at its quota" not in (await small.ok("status")).out

    await until(is_well, "status to say no more of it", 10)


async def test_a_coordinator_that_may_not_write_its_prefix_says_what_to_do(
    fast_dir: Path, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    async with start_etcd(fast_dir / tmp_path.name) as etcd:
        for command in (
            ("user", "add", f"root:{PASSWORD}"),
            ("user", "grant-role", "root", "root"),
            ("user", "add", f"baton:{PASSWORD}"),
            ("role", "add", "other"),
            ("role", "grant-permission", "other", "readwrite", "--prefix=true", "/other/"),
            ("user", "grant-role", "baton", "other"),
            ("auth", "enable"),
        ):
            await etcdctl(etcd, *command)
        async with scene_on(etcd, tmp_path / "none", coordinators=0, workers=()) as scene:
            ended = await scene.baton(
                *("coordinator", "start", "--name", "c1", "--etcd", etcd.endpoints[0]),
                *("--state", str(tmp_path / "state"), "--listen", "127.0.0.1:0"),
                *("--http", "127.0.0.1:0", "--etcd-user", "baton"),
                *("--etcd-password-file", str(password), "--insecure"),
                env={"BATON_TLS": "", "BATON_COORDINATORS": ""},
            )
    assert ended.code == 5, ended
    assert "etcd does not let user baton read and write under /baton/v1/" in ended.err
    assert "etcdctl role grant-permission ROLE readwrite --prefix=true /baton/v1/" in ended.err
