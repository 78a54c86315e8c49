"""`baton doctor`: checks this machine and the cluster, and says what to do."""

import asyncio
import os
import resource
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio

from baton.v1.coordinator_pb2 import DiagnoseRequest, GetStatusRequest
from baton.v1.coordinator_pb2_grpc import CoordinatorStub
from cli.command import Call, remote
from cli.exits import CommandFailed, Exit
from cli.group import new_group
from cli.output import Format, human_bytes, print_json, print_table, say
from cli.settings import ClientSettings
from coordinator.clocks import apart, offset_s
from coordinator.control_convert import check_from_wire
from coordinator.convert import status_from_wire
from coordinator.views import CheckView, StatusView
from wire.channel import open_channel
from wire.credentials import Tls
from wire.identity import Role

app = new_group()

EXPIRES_SOON = timedelta(days=30)
FREE_BYTES = 1_000_000_000
_INOTIFY = (
    ("max_user_watches", 524_288, "directories"),
    ("max_user_instances", 128, "roots and programs"),
    ("max_queued_events", 16_384, "events at once"),
)
FILES = 4_096


def _nobody(settings: ClientSettings, wanted: Format, silence: CommandFailed) -> Exit:
    """Say at least what this machine is like when no coordinator answers."""
    advice = "start one, or name others with --coordinator or BATON_COORDINATORS"
    check = CheckView("coordinators", "failed", str(silence), advice)
    _print([check, *machine_checks(), *_certificates(settings)], wanted)
    return Exit.NOBODY


@remote(app, "doctor", on_nobody=_nobody)
async def doctor(call: Call) -> Exit:
    """Check this machine and the cluster: etcd, leases, clocks, certificates, limits, disk."""
    answer = await call.client.ask(call.client.stub.GetStatus, GetStatusRequest())
    status = status_from_wire(answer)
    found = await asyncio.gather(
        *(_ask(call, one.name, one.address) for one in status.coordinators)
    )
    checks = [check for part, _ in found for check in part]
    checks += clock_checks({name: offset for _, known in found for name, offset in known})
    checks += worker_checks(status)
    checks += machine_checks()
    checks += _certificates(call.settings)
    _print(checks, call.format)
    return Exit.FAILED if any(check.level == "failed" for check in checks) else Exit.DONE


async def _ask(
    call: Call, name: str, address: str
) -> tuple[list[CheckView], list[tuple[str, float]]]:
    """Have one coordinator look around; return what it found, and how far its clock is from ours."""
    async with open_channel(
        address, call.settings.credentials, (Role.COORDINATOR, name)
    ) as channel:
        stub = CoordinatorStub(channel)
        try:
            began = datetime.now(UTC)
            clock = await stub.Diagnose(
                DiagnoseRequest(clock_only=True), timeout=call.client.remaining_s
            )
            ahead_s = offset_s(began, datetime.fromisoformat(clock.now), datetime.now(UTC))
            answer = await stub.Diagnose(DiagnoseRequest(), timeout=call.client.remaining_s)
        except grpc.aio.AioRpcError as error:
            why = error.details() or error.code().name
            advice = f"is coordinator {name} up, and can it be reached from here?"
            return [CheckView(f"coordinator {name}", "failed", f"{address}: {why}", advice)], []
    checks = [CheckView(f"coordinator {name}", "ok", f"{address}, version {answer.version}", "")]
    checks += (
        CheckView(f"{check.name}, by {name}", check.level, check.detail, check.advice)
        for check in map(check_from_wire, answer.checks)
    )
    return checks, [(name, ahead_s)]


def clock_checks(offsets_s: dict[str, float]) -> list[CheckView]:
    """Compare the coordinators' clocks with each other, and with this machine's."""
    checks = []
    everybody = {**offsets_s, "this machine": 0.0}
    for one, other, apart_s in apart(everybody):
        what = f"those of {one} and {other} are {apart_s:.1f} s apart"
        advice = "let NTP (chrony) set both: runs are due by the owner's clock"
        checks.append(CheckView("clocks", "warning", what, advice))
    if not checks:
        widest = max(everybody.values()) - min(everybody.values())
        checks.append(CheckView("clocks", "ok", f"within {widest * 1000:.0f} ms", ""))
    return checks


def worker_checks(status: StatusView) -> list[CheckView]:
    """Look at the workers as a coordinator sees them: reachable, with room."""
    checks = []
    for worker in status.workers:
        name = f"worker {worker.name}"
        if not worker.reachable:
            advice = f"is it up at {worker.address}? 'baton worker test {worker.name}'"
            checks.append(CheckView(name, "failed", worker.reason, advice))
            continue
        away = [root.name for root in worker.roots if not root.available]
        full = [root for root in worker.roots if root.available and root.free_bytes < FREE_BYTES]
        if away:
            what = f"cannot open its roots {', '.join(away)}"
            checks.append(CheckView(name, "failed", what, "are they mounted, and readable?"))
        for root in full:
            what = f"root {root.name} has {human_bytes(root.free_bytes)} left"
            checks.append(CheckView(name, "warning", what, "make room, or runs will fail"))
        dull = [root for root in worker.roots if root.watch.phase == "degraded"]
        for root in dull:
            what = f"root {root.name} is not watched as it should be: {root.watch.reason}"
            advice = "changes are found by scans until then"
            checks.append(CheckView(name, "warning", what, advice))
        if not away and not full and not dull:
            checks.append(CheckView(name, "ok", f"{worker.address}, {len(worker.roots)} roots", ""))
    return checks


def machine_checks() -> list[CheckView]:
    """Look at the limits of this machine that a worker or coordinator here would meet."""
    checks = []
    checks += _watch_limits()
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = files == resource.RLIM_INFINITY or files >= FILES
    advice = "" if enough else f"LimitNOFILE={FILES} in the service's unit, or ulimit -n"
    checks.append(CheckView("open files", "ok" if enough else "warning", f"limit {files}", advice))
    home = Path.home()
    place = home if home.is_dir() else Path("/")  # users of services may have no home
    disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    level = "ok" if free >= FREE_BYTES else "warning"
    what = f"{human_bytes(free)} free at {place}"
    checks.append(CheckView("disk", level, what, "" if level == "ok" else "make room"))
    return checks


def _watch_limits() -> list[CheckView]:
    checks = []
    for limit, least, what in _INOTIFY:
        found = _number(Path("/proc/sys/fs/inotify") / limit)
        if found is None:
            continue
        enough = found >= least
        advice = "" if enough else f"sysctl fs.inotify.{limit}={least} for large trees"
        level = "ok" if enough else "warning"
        checks.append(CheckView("watch limit", level, f"{found} {what}", advice))
    return checks


def _certificates(settings: ClientSettings) -> list[CheckView]:
    credentials = settings.credentials
    if not isinstance(credentials, Tls):
        return [CheckView("certificate", "ok", "none: an insecure cluster on this machine", "")]
    left = credentials.not_after - datetime.now(UTC)
    what = f"yours is good until {credentials.not_after:%Y-%m-%d}"
    if left > EXPIRES_SOON:
        return [CheckView("certificate", "ok", what, "")]
    return [CheckView("certificate", "warning", what, "'baton ca issue' makes a new one")]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _print(checks: Iterable[CheckView], wanted: Format) -> None:
    checks = list(checks)
    worst = [check for check in checks if check.level != "ok"]
    if wanted is Format.JSON:
        is_ok = not any(check.level == "failed" for check in checks)
        print_json({"ok": is_ok, "checks": [asdict(check) for check in checks]})
        return
    print_table(
        ("check", "result", "found", "what to do"),
        ((one.name, one.level, one.detail, one.advice) for one in checks),
    )
    say(
        f"{len(checks)} checks, {len(worst)} to look at"
        if worst
        else f"{len(checks)} checks, all well"
    )
