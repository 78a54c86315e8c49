"""`baton up` as people use it: real processes, real etcd, a real directory."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from wire.ports import quiet_ports

START_S = 40.0


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


class Up:
    """A running `baton up`."""

    def __init__(self, process: asyncio.subprocess.Process, ports: list[int]) -> None:
        self.process = process
        self.at = ("--coordinator", f"127.0.0.1:{ports[0]}")
        self.said = ""

    async def until(self, words: str) -> None:
        assert self.process.stderr is not None
        while words not in self.said:
            line = (await asyncio.wait_for(self.process.stderr.readline(), START_S)).decode()
            assert line, f"ended with: {self.said}"
            self.said += line

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), START_S)


@asynccontextmanager
async def up(home: Path, ports: list[int], *arguments: str) -> AsyncIterator[Up]:
    names = ("--listen", "--http", "--worker-listen")
    pairs = zip(names, ports, strict=True)
    where = [text for name, port in pairs for text in (name, f"127.0.0.1:{port}")]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "up", *where, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HOME": str(home)},
    )
    running = Up(process, ports)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_one_command_is_a_cluster_that_survives_a_restart(
    baton: Any, home: Path, tmp_path: Path
) -> None:
    ports = quiet_ports(3)
    source, target = tmp_path / "source", tmp_path / "target"
    for directory in (source, target):
        directory.mkdir()
    (source / "file").write_text("content")
    data = ("--data", str(tmp_path / "data"))
    roots = ("--root", f"a={source}", "--root", f"b={target}")
    async with up(home, ports, *data, *roots) as running:
        await running.until("ready")
        base = ("job", "add", "j", "--rule", "mirror", "--source", "local:a")
        assert (await baton(*base, "--target", "local:b", *running.at)).code == 0
        ended = await baton("job", "run", "j", "--wait", "-o", "json", *running.at)
        assert ended.code == 0, ended.err
        assert ended.json["files_copied"] == 1
        assert (target / "file").read_text() == "content"
        pids = children(running.process.pid)
        assert len(pids) == 3
        began = time.monotonic()
        assert await running.end(signal.SIGINT) == 0
        assert time.monotonic() - began < 8
        assert running.process.stdout is not None
        page = (await running.process.stdout.read()).decode()
        assert page == f"status page: http://127.0.0.1:{ports[1]}/\n"
        assert not any(is_alive(pid) for pid in pids)
    async with up(home, ports, *data) as running:
        await running.until("ready")
        ended = await baton("job", "show", "j", "-o", "json", *running.at)
        assert ended.json["last_outcome"] == "succeeded"
        ended = await baton("worker", "show", "local", "-o", "json", *running.at)
        assert [root["name"] for root in ended.json["roots"]] == ["a", "b"]
        pids = children(running.process.pid)
        await running.end(signal.SIGKILL)
        deadline = time.monotonic() + 20
        while any(is_alive(pid) for pid in pids):
            assert time.monotonic() < deadline, "a process outlived the one that started it"
            await asyncio.sleep(0.05)


@pytest.mark.timeout(180)
async def test_a_process_that_ends_ends_all_and_says_why(home: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [*quiet_ports(2), taken.getsockname()[1]]
        async with up(home, ports, "--data", str(tmp_path / "data")) as running:
            await running.until("another process listens there already")
            assert "worker local ended before it was ready" in running.said
            assert await asyncio.wait_for(running.process.wait(), START_S) == 1


@pytest.mark.timeout(180)
async def test_etcd_that_ends_ends_all_and_says_so(home: Path, tmp_path: Path) -> None:
    async with up(home, quiet_ports(3), "--data", str(tmp_path / "data")) as running:
        await running.until("ready")
        (etcd,) = [pid for pid in children(running.process.pid) if name_of(pid) == "etcd"]
        os.kill(etcd, signal.SIGKILL)
        await running.until("etcd ended")
        assert await asyncio.wait_for(running.process.wait(), START_S) == 1


@pytest.mark.timeout(180)
async def test_a_second_one_at_the_same_port_takes_nothing_from_the_first(
    baton: Any, home: Path, tmp_path: Path
) -> None:
    ports = quiet_ports(3)
    async with up(home, ports, "--data", str(tmp_path / "first")) as first:
        await first.until("ready")
        again = [ports[0], *quiet_ports(2)]
        async with up(home, again, "--data", str(tmp_path / "second")) as second:
            await second.until("another process listens there already")
            assert await asyncio.wait_for(second.process.wait(), START_S) == 1
        ended = await baton("status", "-o", "json", *first.at)
        assert (ended.code, ended.err) == (0, "")


async def test_wrong_options_are_refused_before_anything_starts(baton: Any, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    for arguments, said in (
        (("--root", "a"), "--root"),
        (("--root", f"a={tmp_path}"), "lies in root a"),
        (("--listen", "x"), "HOST:PORT"),
    ):
        ended = await baton("up", *data, *arguments)
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.err
    assert not os.path.exists(tmp_path / "data" / "etcd")  # noqa: ASYNC240  (one stat)
