"""`python -m benchmarks.failover`: measure how fast the next coordinator claims a job, fault by fault.

Writes `benchmarks/failover.json`, which the writer of docs/benchmarks.md includes.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.takeovers import FAULTS, Fault, Lane, NoTakeover, percentile
from coordinator.embedded_etcd import EtcdCluster, start_etcd
from coordinator.errors import CoordinatorError

RESULTS = Path(__file__).with_name("failover.json")
_START_S = 6.0

_HOW = """\
From the fault to the next owner's claim, as a watch on a real etcd of three members sees it; three real
coordinators with mutual TLS on the same machine. Each trial is one fault at a random moment and begins
with all coordinators up (and with hold-down switched off, which all of them would earn). *Cut off* is
guardian and coordinator frozen at once, so that etcd hears nothing more and no connection is closed: the
lease must expire, and etcd itself adds 0 to 0.5 s. When etcd's leader dies too, the next leader first
renews every lease once. The goals are for p99 of the first two rows, for the maximum of the others.

Published by others for the same question: SureSync's schedulers notice a dead one after 2 to 10 minutes.
"""


@dataclass(slots=True)
class Row:
    """What was measured of one fault, in seconds."""

    name: str
    title: str
    ttl_s: int
    goal_s: float
    samples: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def at(self, share: float) -> float:
        """Return a percentile; not a number when nothing was measured."""
        return percentile(self.samples, share) if self.samples else float("nan")


async def measure(
    faults: Sequence[Fault], trials: int, lanes: int, say: Callable[[str], None]
) -> list[Row]:
    """Run so many trials of each fault; raises BenchmarkError, CoordinatorError."""
    rows = []
    left_s = sum(_about_s(fault, trials, lanes) for fault in faults)
    for fault in faults:
        say(f"{fault.name}: {trials} trials; about {left_s / 60:.0f} min to the end of all")
        began = time.monotonic()
        row = Row(fault.name, fault.title, fault.ttl_s, fault.goal_s)
        await _measure_one(fault, row, trials, min(lanes, fault.lanes, trials))
        rows.append(row)
        say(f"  {as_text(row)} (took {time.monotonic() - began:.0f} s)")
        left_s -= _about_s(fault, trials, lanes)
    return rows


def _about_s(fault: Fault, trials: int, lanes: int) -> float:
    share = max(1, fault.lanes) / max(1, min(fault.lanes, lanes, trials))
    return _START_S + trials * fault.about_s * share


async def _measure_one(fault: Fault, row: Row, trials: int, lanes: int) -> None:
    """Share the trials of one fault among lanes, on an etcd that nothing else uses."""
    left = trials

    async def work(etcd: EtcdCluster, home: Path, number: int) -> None:
        nonlocal left
        async with Lane(etcd, home / f"lane{number}", number, fault.ttl_s).running() as lane:
            while left > 0:
                left -= 1
                try:
                    row.samples.append(await lane.trial(fault))
                except NoTakeover as failed:
                    row.failed.append(str(failed))
                    return

    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(_directory()))
        etcd = await stack.enter_async_context(start_etcd(home / "etcd", 3))
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(lanes):
                    tasks.create_task(work(etcd, home, number))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group


def _directory() -> tempfile.TemporaryDirectory[str]:
    shm = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="baton-failover-", dir=shm if shm.is_dir() else None)


def as_text(row: Row) -> str:
    """Return one row for a terminal."""
    failed = f", {len(row.failed)} without a takeover" if row.failed else ""
    return (
        f"{row.name:21} p50 {row.at(0.5):6.3f} s, p99 {row.at(0.99):6.3f} s, "
        f"max {row.at(1.0):6.3f} s, goal {row.goal_s:g} s, {len(row.samples)} trials{failed}"
    )


def as_markdown(results: dict[str, Any]) -> str:
    """Return the section of docs/benchmarks.md for what `main` wrote."""
    lines = [
        "## Failover",
        "",
        f"Written by `{results['command']}` on {results['day']}.",
        "",
        "| what happens | p50 | p99 | maximum | goal | trials |",
        "|---|---|---|---|---|---|",
    ]
    for plain in results["rows"]:
        row = Row(**plain)
        trials = f"{len(row.samples)}" + (f", {len(row.failed)} failed" if row.failed else "")
        lines.append(
            f"| {row.title} | {row.at(0.5):.3f} s | {row.at(0.99):.3f} s | {row.at(1.0):.3f} s "
            f"| {row.goal_s:g} s | {trials} |"
        )
    return "\n".join([*lines, "", _HOW])


def section() -> str:
    """Return the section for what was measured last; empty when nothing was."""
    if not RESULTS.exists():
        return ""
    return as_markdown(json.loads(RESULTS.read_text(encoding="utf-8")))


def main() -> int:
    """Run what the command line asks for; 1 when a takeover did not come, or a trial could not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failover", description=__doc__)
    names = [fault.name for fault in FAULTS]
    parser.add_argument("--trials", type=int, default=100, help="of every fault [100]")
    parser.add_argument("--fault", action="append", choices=names, help="only this; repeatable")
    parser.add_argument("--lanes", type=int, default=4, help="clusters at once where it may be [4]")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"JSON [{RESULTS}]")
    arguments = parser.parse_args()
    faults = [fault for fault in FAULTS if not arguments.fault or fault.name in arguments.fault]
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        trials, lanes = max(1, arguments.trials), max(1, arguments.lanes)
        rows = asyncio.run(measure(faults, trials, lanes, say))
    except (BenchmarkError, CoordinatorError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    results = {
        "command": " ".join(["python -m benchmarks.failover", *sys.argv[1:]]),
        "day": datetime.now(UTC).strftime("%Y-%m-%d"),
        "rows": [asdict(row) for row in rows],
    }
    arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(results))
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
