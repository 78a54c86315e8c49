"""Many jobs that become due within one minute: how late their runs begin and end, and what they cost."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc.aio

from baton.v1 import coordinator_pb2 as pb
from baton.v1.coordinator_pb2_grpc import CoordinatorStub
from benchmarks.errors import BenchmarkError
from benchmarks.takeovers import percentile
from coordinator.keys import Family, Keys
from coordinator.records import RunRecord, decode
from coordinator.store import KeyValue, Store
from wire.channel import Credentials, open_channel
from wire.identity import Role

SPAN_S = 60.0
"""Over how long the jobs become due."""
LEAD_S = 30.0
"""How long before that they are defined."""
URGENT = "urgent"
"""The job that is asked for while all others become due."""
_LOOK_S = 5.0
_ASK_S = 1.0
_ANSWER_S = 60.0

HOW = """\
*Due over a minute*: so many jobs are due once, evenly over a minute; each copies one small file between
two roots of the worker, which takes part in as many runs at once as it does unless told otherwise. By
the ledger, the *start* is late by the time from the instant at which a run is due to the beginning of
its first attempt, which is recorded before a worker hears of it; what the attempt then waits for room
at the worker is in the *end*, late by the time from the instant to the run's end. *CPU* is user and
system time of all processes of a kind from the first instant to the last end, by the runs that ended.
*An answer* is a coordinator's to `job show`, once a second meanwhile. *A run of priority 100* is asked
for in the middle of the minute; all others have priority 0. *Load* is the average of the minute before.
"""


@dataclass(slots=True)
class Wave:
    """What became of the runs that were due within one minute."""

    runs: int
    in_ledger: int = 0
    """Instants that have a record; each has one at most, since it is the record's key."""
    succeeded: int = 0
    not_ended: int = 0
    """When the measuring gave up."""
    start_s: list[float] = field(default_factory=list)
    """p50, p99 and the most; so are the others."""
    end_s: list[float] = field(default_factory=list)
    took_s: float = 0.0
    """From the first instant to the last end."""
    cpu_ms: dict[str, float] = field(default_factory=dict)
    """Of one run, by kind of process."""
    answer_s: list[float] = field(default_factory=list)
    urgent_s: float = 0.0
    """From asking for the run of high priority to its end; 0 when it did not end."""
    load: float = 0.0

    def rows(self) -> list[str]:
        """Return the lines of the table in docs/benchmarks.md."""
        name = f"{self.runs:,} jobs due over a minute"
        every = sum(self.cpu_ms.values())
        parts = ", ".join(f"{kind} {value:.1f}" for kind, value in self.cpu_ms.items())
        urgent = f"{self.urgent_s:.1f} s" if self.urgent_s else "did not end"
        ended = f"{self.succeeded:,} succeeded, {self.not_ended:,} had not ended"
        rate = (self.in_ledger - self.not_ended) / max(self.took_s, 1.0)
        return [
            f"| {name}: start, late by, p50, p99, most | {_three(self.start_s)} | p99 1 s |",
            f"| in the ledger, of {self.runs:,} instants | {self.in_ledger:,}; {ended} | all |",
            f"| end, late by, p50, p99, most | {_three(self.end_s)} | |",
            f"| first instant to last end | {self.took_s:.0f} s, {rate:.0f} runs a second | |",
            f"| CPU of a run | {every:.1f} ms ({parts}) | |",
            f"| an answer meanwhile, p50, p99, most | {_three(self.answer_s)} | |",
            f"| a run of priority 100 meanwhile, asked for to ended | {urgent} | |",
            f"| load of the machine before | {self.load:.1f} | |",
        ]


def _three(values: list[float]) -> str:
    return ", ".join(f"{value:.3f} s" for value in values) or "-"


def _shares(values: list[float]) -> list[float]:
    return [percentile(values, share) for share in (0.5, 0.99, 1.0)] if values else []


@dataclass(frozen=True, slots=True)
class Watched:
    """What is asked and looked at while a wave goes on."""

    store: Store
    coordinators: Callable[[], list[str]]
    """The addresses of those that live."""
    operator: Credentials
    cpu_s: Callable[[], Mapping[str, float]]
    """The CPU time so far, by kind of process."""


async def measure_wave(watched: Watched, runs: int, first_due: datetime, patience_s: float) -> Wave:
    """Look at jobs that are defined already, of which the first is due then; raises BenchmarkError.

    Returns when every run has ended, or `patience_s` after the last was due.
    """
    wave = Wave(runs)
    await asyncio.sleep((first_due - datetime.now(UTC)).total_seconds())
    wave.load = os.getloadavg()[0]
    before, began = watched.cpu_s(), time.monotonic()
    answers: list[float] = []
    async with _beside(_ask(watched, answers)), _beside(_ask_urgently(watched, wave)):
        await asyncio.sleep(SPAN_S)
        while True:
            records = await _records(watched.store, first_due)
            wave.not_ended = runs - sum(run.ended is not None for run in records)
            if wave.not_ended <= 0 or time.monotonic() - began > SPAN_S + patience_s:
                break
            await asyncio.sleep(_LOOK_S)
    ends = [run.ended for run in records if run.ended is not None]
    if not ends:
        raise BenchmarkError("no run has ended")
    spent = watched.cpu_s()
    wave.took_s = (max(ends) - first_due).total_seconds()
    wave.cpu_ms = {kind: 1000 * (spent[kind] - before[kind]) / len(ends) for kind in spent}
    wave.in_ledger = len(records)
    wave.succeeded = sum(run.outcome == "succeeded" for run in records)
    starts = [run.attempts[0].started - run.due for run in records if run.attempts]
    wave.start_s = _shares([one.total_seconds() for one in starts])
    late = [run.ended - run.due for run in records if run.ended is not None]
    wave.end_s = _shares([one.total_seconds() for one in late])
    wave.answer_s = _shares(answers)
    return wave


async def _records(store: Store, since: datetime) -> list[RunRecord]:
    """Return the scheduled runs that are due from then on."""

    def decoded(kvs: tuple[KeyValue, ...]) -> list[RunRecord]:
        found = (decode(kv.value, RunRecord) for kv in kvs)
        return [run for run in found if run.due >= since and not run.by_hand]

    snapshot = await store.range(Keys().under(Family.RUNS))
    return await asyncio.to_thread(decoded, snapshot.kvs)


@asynccontextmanager
async def _beside(work: Any) -> AsyncIterator[None]:
    """Do something else during the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _ask(watched: Watched, answers: list[float]) -> None:
    """Ask for a job again and again, as an operator would; note how long the answer takes."""
    (address, *_) = watched.coordinators()
    async with open_channel(address, watched.operator, Role.COORDINATOR) as channel:
        stub = CoordinatorStub(channel)
        while True:
            asked = time.monotonic()
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.GetJob(pb.GetJobRequest(name=URGENT), timeout=_ANSWER_S)
            answers.append(time.monotonic() - asked)
            await asyncio.sleep(_ASK_S)


async def _ask_urgently(watched: Watched, wave: Wave) -> None:
    """Ask for a run of high priority in the middle, and wait for its end."""
    await asyncio.sleep(SPAN_S / 2)
    (address, *_) = watched.coordinators()
    asked = time.monotonic()
    async with open_channel(address, watched.operator, Role.COORDINATOR) as channel:
        stub = CoordinatorStub(channel)
        answer = await stub.RunJob(pb.RunJobRequest(name=URGENT), timeout=_ANSWER_S)
    while True:
        runs = await watched.store.range(Keys().runs(URGENT))
        records = {kv.key.rsplit("/", 1)[1]: decode(kv.value, RunRecord) for kv in runs.kvs}
        if answer.run in records and records[answer.run].ended is not None:
            wave.urgent_s = time.monotonic() - asked
            return
        await asyncio.sleep(0.1)
