import asyncio
import json
import os
import pty
import signal
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from baton.v1 import coordinator_pb2 as pb
from cli.doctor import clock_checks, machine_checks
from tests.cli.conftest import Canned, clean_environment
from tests.cli.test_client_commands import JOB, WORKER


def diagnosed(*checks: pb.Check, ahead_s: float = 0.0) -> pb.DiagnoseResponse:
    now = datetime.now(UTC) + timedelta(seconds=ahead_s)
    return pb.DiagnoseResponse(node="c1", now=now.isoformat(), version="1", checks=checks)


def status(canned: Canned, **fields: Any) -> pb.ClusterStatus:
    info = pb.CoordinatorInfo(name="c1", address=canned.address)
    return pb.ClusterStatus(coordinators=[info], answered_by="c1", **fields)


async def examine(coordinator: Canned, baton: Any, **fields: Any) -> tuple[int, dict[str, str]]:
    coordinator.answer("GetStatus", status(coordinator, **fields))
    ended = await baton("doctor", "-o", "json", "--coordinator", coordinator.address)
    found = {check["name"]: check["level"] for check in ended.json["checks"]}
    assert ended.json["ok"] == ("failed" not in found.values())
    return ended.code, found


async def test_all_well(coordinator: Canned, baton: Any) -> None:
    leases = pb.Check(name="leases", level="ok", detail="gone after 2.1 s")
    coordinator.answer("Diagnose", diagnosed(leases))
    root = pb.WorkerRoot(name="r", path="/r", available=True, free_bytes=10**12)
    worker = pb.WorkerInfo(name="w1", address="h:1", reachable=True, roots=[root])
    code, found = await examine(coordinator, baton, workers=[worker])
    assert code == 0
    assert {found[name] for name in ("coordinator c1", "leases, by c1", "worker w1")} == {"ok"}
    text = await baton("doctor", "--coordinator", coordinator.address)
    assert text.code == 0
    assert "gone after 2.1 s" in text.out


async def test_what_is_wrong_is_named_with_advice(coordinator: Canned, baton: Any) -> None:
    bad = pb.Check(name="leases", level="failed", detail="stays", advice="check etcd's health")
    coordinator.answer("Diagnose", diagnosed(bad))
    away = pb.WorkerInfo(name="w2", address="h:2", reachable=False, reason="refused")
    code, found = await examine(coordinator, baton, workers=[WORKER, away])
    assert code == 1
    assert (found["leases, by c1"], found["worker w2"]) == ("failed", "failed")
    assert found["worker w1"] == "warning", "10 bytes are left"
    text = await baton("doctor", "--coordinator", coordinator.address)
    assert (text.code, "check etcd's health" in text.out) == (1, True)


async def test_a_coordinator_that_cannot_be_asked_is_named(coordinator: Canned, baton: Any) -> None:
    coordinator.answer("Diagnose", (grpc.StatusCode.UNAVAILABLE, "gone"))
    code, found = await examine(coordinator, baton)
    assert (code, found["coordinator c1"]) == (1, "failed")


async def test_clocks_apart_are_a_warning(coordinator: Canned, baton: Any) -> None:
    coordinator.answer("Diagnose", diagnosed(ahead_s=90))
    code, found = await examine(coordinator, baton)
    assert (code, found["clocks"]) == (0, "warning")
    (one, other) = clock_checks({"c1": 0.2, "c2": -3.0})
    assert one.detail == "those of c1 and c2 are 3.2 s apart"
    assert other.detail == "those of c2 and this machine are 3.0 s apart"
    assert [check.level for check in clock_checks({"c1": 0.2, "c2": -0.3})] == ["ok"]


async def test_without_a_coordinator_the_machine_is_checked_all_the_same(baton: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        ended = await baton("doctor", "-o", "json", "--coordinator", address, "--timeout", "2")
    assert ended.code == 4
    found = {check["name"]: check for check in ended.json["checks"]}
    assert f"{address}: connection refused" in found["coordinators"]["detail"]
    assert {check.name for check in machine_checks()} <= found.keys()


async def test_watch_needs_a_terminal(coordinator: Canned, baton: Any) -> None:
    ended = await baton("watch", "--coordinator", coordinator.address)
    assert (ended.code, ended.out) == (2, "")
    assert "use 'baton status'" in ended.err


@pytest.mark.timeout(60)
async def test_watch_shows_what_changes_and_ends_with_ctrl_c(
    coordinator: Canned, home: Path
) -> None:
    failed = pb.JobStatus()
    failed.CopyFrom(JOB)
    failed.name, failed.phase, failed.reason = "broken", "failed", "disk \x1b[31m full"
    coordinator.answer(
        "GetStatus",
        pb.ClusterStatus(jobs=[JOB], answered_by="c1"),
        (grpc.StatusCode.UNAVAILABLE, "for a moment"),
        pb.ClusterStatus(jobs=[JOB, failed], workers=[WORKER], answered_by="c1"),
    )
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "watch", "--coordinator", coordinator.address),
        stdin=theirs,
        stdout=theirs,
        stderr=asyncio.subprocess.DEVNULL,
        env={**clean_environment(home, None), "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(theirs)
    try:
        seen = b""
        while b"broken" not in seen:
            seen += await asyncio.to_thread(os.read, ours, 65_536)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    os.close(ours)
    assert b"\\x1b[31m full" in seen, "nothing steers the terminal"
    assert json.dumps("answered by c1").encode()[1:-1] in seen
