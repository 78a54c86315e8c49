"""What cannot work is refused, or fails, in words that name it, with the exit code for scripts."""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cli.local_cluster import Member
from coordinator.embedded_etcd import EtcdCluster
from tests.cluster.harness import Ended, Scene, run_baton, scene_on, until
from tests.cluster.trees import check_equal, picture, put, temporaries
from wire.authority import init_ca, issue
from wire.identity import Role
from wire.ports import quiet_address, quiet_ports

pytestmark = pytest.mark.timeout(180)


async def ended_by_itself(member: Member) -> tuple[int, str]:
    """Start a process that cannot begin; return its exit status and its last words."""
    await member.start()
    async with asyncio.timeout(60):
        status = await member.wait()
    return status, member.log.read_text()


async def test_no_etcd_at_start_names_whom_it_tried(steady: Scene) -> None:
    port = quiet_ports(1)[0]
    member = steady.cluster.add_coordinator("lonely")
    del steady.cluster.members["lonely"]
    at = member.arguments.index("--etcd") + 1
    member.arguments[at] = f"http://127.0.0.1:{port}"
    status, said = await ended_by_itself(member)
    assert status == 4
    assert f"127.0.0.1:{port}" in said
    assert "etcd cannot be reached" in said
    assert "Traceback" not in said


async def test_nobody_answers_and_the_command_says_who_was_tried(tmp_path: Path) -> None:
    ports = quiet_ports(2)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    env = {"BATON_COORDINATORS": ",".join(addresses), "HOME": str(tmp_path)}
    ended = await run_baton("status", "--insecure", env=env)
    assert (ended.code, ended.out) == (4, "")
    assert all(address in ended.err for address in addresses)
    assert "Traceback" not in ended.err


async def apply(scene: Scene, **spec: Any) -> Ended:
    document = {"rule": "mirror", "trigger": {"manual": True}, **spec}
    text = json.dumps(document).encode()
    return await scene.baton("job", "apply", "-f", "-", stdin=text)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"source": "nobody:data"}, ("source", "no worker nobody", "baton worker add nobody")),
        ({"targets": ["b:data/x", "no:data"]}, ("targets[1]", "no worker no")),
        ({"source": "a:nope"}, ("source", "exports no root nope", "data")),
        ({"rule": "miror"}, ("rule", "mirror")),
        ({"targets": []}, ("targets",)),
        ({"sauce": 1}, ("sauce",)),
        ({"targets": ["a:data/wrong"]}, ("targets[0]",)),
        ({"targets": ["a:data/wrong/below"]}, ("targets[0]",)),
        ({"targets": ["b:data/x", "b:data/x/y"]}, ("targets",)),
        ({"lease_ttl": "1s"}, ("lease_ttl", "2s")),
        ({"name": "No Label"}, ("name",)),
        ({"targets": ["b:data/../up"]}, ("targets[0]",)),
    ],
)
async def test_a_job_that_cannot_work_is_refused_by_field(
    steady: Scene, spec: dict[str, Any], said: tuple[str, ...]
) -> None:
    base = {"name": "wrong", "source": "a:data/wrong", "targets": ["b:data/wrong"]}
    ended = await apply(steady, **{**base, **spec})
    assert ended.code == 2, ended
    for words in said:
        assert words in ended.err, ended.err
    assert "Traceback" not in ended.err


async def test_two_jobs_may_not_write_the_same_files(steady: Scene) -> None:
    await steady.apply(name="writer", source="a:data/w1", targets=["b:data/shared"])
    for target in ("b:data/shared", "b:data/shared/below", "b:data"):
        ended = await apply(steady, name="second", source="a:data/w2", targets=[target])
        assert ended.code == 2, ended
        assert "writer" in ended.err
        assert target in ended.err
    ended = await apply(steady, name="back", source="b:data/shared", targets=["a:data/w1"])
    assert ended.code == 2
    assert "loop" in ended.err


async def test_a_name_belongs_to_one_worker(steady: Scene) -> None:
    ended = await steady.baton("worker", "add", "a", "127.0.0.1:1")
    assert ended.code == 2
    assert steady.cluster.members["a"].listen in ended.err
    await steady.ok("worker", "add", "a", steady.cluster.members["a"].listen)


async def test_what_is_used_cannot_be_removed_and_what_is_not_there_is_said(steady: Scene) -> None:
    await steady.apply(name="user", source="c:data", targets=["b:data/user"])
    ended = await steady.baton("worker", "remove", "c")
    assert (ended.code, "user" in ended.err) == (2, True)
    for command in (
        ("job", "show", "nothing"),
        ("job", "run", "nothing"),
        ("job", "delete", "nothing"),
        ("run", "show", "user", "2026-01-01T00:00:00.000000Z"),
        ("run", "show", "user", "yesterday"),
        ("worker", "show", "nothing"),
        ("worker", "test", "nothing"),
    ):
        ended = await steady.baton(*command)
        assert (ended.code, ended.out) == (2, ""), (command, ended)


async def test_a_worker_under_the_name_of_another_is_not_believed(steady: Scene) -> None:
    address = steady.cluster.members["b"].listen
    ended = await steady.baton("worker", "add", "imposter", address)
    assert ended.code == 0
    assert "not reached" in ended.err
    tested = await steady.baton("worker", "test", "imposter")
    assert tested.code == 4
    assert address in tested.err
    await steady.ok("worker", "remove", "imposter")


async def test_a_second_process_is_told_what_it_collides_with(
    steady: Scene, tmp_path: Path
) -> None:
    members = steady.cluster.members
    first, coordinator = members["a"], members["c1"]

    def like(member: Member, name: str, **changes: str) -> Member:
        arguments = list(member.arguments)
        for option, value in changes.items():
            arguments[arguments.index(f"--{option}") + 1] = value
        return Member(name, member.kind, arguments, tmp_path / f"{name}.log")

    elsewhere = {"listen": quiet_address(), "state": str(tmp_path / "state")}
    status, said = await ended_by_itself(like(first, "state", listen=quiet_address()))
    assert (status, "is in use by another process" in said) == (2, True), said
    taken = {**elsewhere, "listen": first.listen, "root": f"other={tmp_path}/other"}
    (tmp_path / "other").mkdir()
    without_spares = like(first, "port", **taken)
    end = without_spares.arguments.index("--root") + 2
    rest = without_spares.arguments[end:]
    while "--root" in rest:
        at = rest.index("--root")
        del rest[at : at + 2]
    without_spares.arguments[end:] = rest
    status, said = await ended_by_itself(without_spares)
    assert (status, "another process listens there already" in said) == (1, True), said
    status, said = await ended_by_itself(like(first, "root", **elsewhere))
    assert (status, "is served by another worker process" in said) == (1, True), said
    status, said = await ended_by_itself(like(coordinator, "name", **elsewhere))
    assert (status, "coordinator c1 is running already" in said) == (1, True), said
    assert coordinator.listen in said
    (one,) = (await steady.ok("coordinator", "list", "-o", "json")).json
    assert one["address"] == coordinator.listen


async def test_only_operators_command_and_only_of_this_authority(
    steady: Scene, tmp_path: Path
) -> None:
    worker = steady.cluster.directory / "tls" / f"{Role.WORKER}-a"
    for command in (("status",), ("job", "list"), ("job", "delete", "x")):
        ended = await steady.baton(*command, "--tls", str(worker))
        assert (ended.code, ended.out) == (5, ""), (command, ended)
        assert "worker/a" in ended.err
    init_ca(tmp_path / "ca", "local")
    issue(tmp_path / "ca", Role.OPERATOR, "stranger", tmp_path / "stranger")
    ended = await steady.baton("status", "--tls", str(tmp_path / "stranger"))
    assert (ended.code, ended.out) == (5, ""), ended
    assert "authority" in ended.err
    ended = await steady.baton("status", env={"BATON_TLS": ""})
    assert ended.code in {4, 5}
    assert "Traceback" not in ended.err


async def test_a_target_that_is_exported_read_only_is_refused_at_both_times(pair: Scene) -> None:
    member = pair.cluster.members["b"]
    await pair.apply(name="ro", source="a:data", targets=["b:data"])
    put(pair.roots["a"] / "file", "x")
    await member.stop()
    at = member.arguments.index("--root") + 1
    member.arguments[at] += ":ro"
    await pair.cluster.start("b")
    began = time.monotonic()
    ended = await pair.baton("job", "run", "ro", "--wait", "-o", "json")
    assert time.monotonic() - began < 10, "what is refused is not waited for"
    assert (ended.code, ended.json["outcome"]) == (1, "failed")
    assert "exported read-only" in ended.json["errors"][0]["detail"]
    again = await apply(pair, name="other", source="a:data", targets=["b:data"])
    assert again.code == 2
    assert "read-only and cannot be a target" in again.err
    assert os.listdir(pair.roots["b"]) == []


async def test_a_worker_that_no_longer_exports_a_root_fails_the_run_by_name(pair: Scene) -> None:
    member = pair.cluster.members["a"]
    await pair.apply(name="gone", source="a:data", targets=["b:data"])
    await member.stop()
    at = member.arguments.index("--root") + 1
    member.arguments[at] = member.arguments[at].replace("data=", "renamed=")
    await pair.cluster.start("a")
    ended = await pair.baton("job", "run", "gone", "--wait", "-o", "json")
    assert (ended.code, ended.json["outcome"]) == (1, "failed")
    assert "exports no root 'data'" in ended.json["errors"][0]["detail"]
    assert "renamed" in ended.json["errors"][0]["detail"]


async def test_a_file_that_always_changes_is_named_and_the_rest_is_done(steady: Scene) -> None:
    source, target = steady.root("a", "data") / "busy", steady.root("b", "data") / "busy"
    put(source / "still", "s")
    program = (
        "import os,sys,time\n"
        "fd=os.open(sys.argv[1],os.O_RDWR|os.O_CREAT)\n"
        "n=0\n"
        "while True:\n n+=1; os.pwrite(fd,b'%d'%n,n%100000); time.sleep(0.0002)\n"
    )
    busy = source / "busy"
    busy.write_bytes(b"x" * 40_000_000)
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(busy))
    try:
        await steady.apply(name="busy", source="a:data/busy", targets=["b:data/busy"])
        ended = await steady.baton("job", "run", "busy", "--wait", "-o", "json")
    finally:
        writer.kill()
        await writer.wait()
    assert (ended.code, ended.json["outcome"]) == (1, "failed"), ended
    assert [error["path"] for error in ended.json["errors"]] == ["busy"]
    assert "chang" in ended.json["errors"][0]["detail"]
    assert (target / "still").read_text() == "s"
    await steady.run_ok("busy")
    check_equal(source, target)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
async def test_a_full_target_says_how_much_is_missing_and_works_again_with_room(
    steady: Scene,
) -> None:
    source, target = steady.root("a", "data") / "full", steady.root("b", "data") / "full"
    root = steady.spare.pop()
    source, target = steady.root("a", root), steady.root("b", root)
    for number in range(12):
        put(source / f"f{number:02}", os.urandom(1 << 20))
    await mount(target, "8m")
    try:
        await steady.apply(name="full", source=f"a:{root}", targets=[f"b:{root}"])
        ended = await steady.baton("job", "run", "full", "--wait", "-o", "json")
        assert (ended.code, ended.json["outcome"]) == (1, "failed"), ended
        (error,) = [one for one in ended.json["errors"] if one["what"] == "no-space"]
        assert error["member"] == f"b:{root}"
        assert any(text.isdigit() for text in error["detail"].split()), error
        assert temporaries(target) == []
        for entry in target.iterdir():
            if entry.is_file():
                assert entry.read_bytes() == (source / entry.name).read_bytes()
        again = await steady.baton("job", "run", "full", "--wait", "-o", "json")
        assert again.json["outcome"] == "failed"
        await mount(target, "64m", "remount,")
        await steady.run_ok("full")
        check_equal(source, target)
    finally:
        process = await asyncio.create_subprocess_exec("umount", "-l", str(target))
        await process.wait()


async def mount(at: Path, size: str, more: str = "") -> None:
    process = await asyncio.create_subprocess_exec(
        *("mount", "-t", "tmpfs", "-o", f"{more}size={size}", "tmpfs", str(at))
    )
    if await process.wait():
        pytest.skip("mounting is not allowed here")


@pytest.fixture
async def reachable(etcd: EtcdCluster) -> AsyncIterator[Scene]:
    """A pair below a directory that no other run of pytest closes to everybody else."""
    with tempfile.TemporaryDirectory(prefix="baton-nobody-") as path:
        directory = Path(path) / "pair"
        async with scene_on(etcd, directory, coordinators=1, workers=("a", "b")) as scene:
            yield scene


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a worker as somebody else")
async def test_i8_unreadable_files_are_named_and_nothing_is_deleted(reachable: Scene) -> None:
    pair = reachable
    source, target = pair.roots["a"], pair.roots["b"]
    for name in ("open", "secret", "gone", "hidden/inside"):
        put(source / name, name)
    await pair.apply(name="secret", source="a:data", targets=["b:data"])
    await pair.run_ok("secret")
    (source / "gone").unlink()
    put(source / "secret", "changed", mode=0o000)
    put(source / "open", "changed")
    (source / "hidden").chmod(0o000)
    before = picture(target)
    member = pair.cluster.members["a"]
    await member.stop()
    nobody = await as_nobody(pair, member)
    try:
        ended = await pair.baton("job", "run", "secret", "--wait", "-o", "json")
        assert (ended.code, ended.json["outcome"]) == (1, "failed"), ended
        assert {"secret", "hidden"} <= {error["path"] for error in ended.json["errors"]}
        assert ended.json["files_deleted"] == 0
        after = picture(target)
        assert after[b"gone"] == before[b"gone"]
        assert after[b"hidden/inside"] == before[b"hidden/inside"]
        assert (target / "open").read_text() == "changed"
    finally:
        nobody.terminate()
        await nobody.wait()


def give_to_nobody(scene: Scene, member: Member) -> None:
    """Let nobody reach and own what a worker's process must read and write."""
    for directory in (scene.directory, scene.directory.parent):
        directory.chmod(0o755)
    home = member.log.parent
    tls = Path(member.arguments[member.arguments.index("--tls") + 1])
    for path in [home, *home.rglob("*"), tls, *tls.rglob("*"), tls.parent]:
        os.chown(path, 65534, 65534)
    (scene.roots["a"] / ".baton").chmod(0o755)
    for path in [scene.roots["a"] / ".baton", *(scene.roots["a"] / ".baton").rglob("*")]:
        os.chown(path, 65534, 65534)


async def as_nobody(scene: Scene, member: Member) -> asyncio.subprocess.Process:
    """Run a worker without any rights but its own state's; return when it answers."""
    give_to_nobody(scene, member)
    with member.log.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            *(sys.executable, "-m", "cli.main", "worker", "start", *member.arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    async def answers() -> bool:
        assert process.returncode is None, member.log.read_text()
        return (await scene.baton("worker", "test", "a")).code == 0

    try:
        await until(answers, "a worker run by nobody", 100)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return process
