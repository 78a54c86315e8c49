"""One chaos run: traffic, faults by a seed, everything healed, then what is left is looked at."""

import asyncio
import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from cli.chaos import history as h
from cli.chaos.checker import Job, Verdict, judge
from cli.chaos.faults import FAULTS, Fault
from cli.chaos.local import ROOT, WORKERS, Local, local
from cli.chaos.traffic import Reader, Writer, entries_of, versions_below

log = structlog.get_logger()

MIRROR = Job("mirror", WORKERS, is_one_way=True)
SYNC = Job("sync", WORKERS, is_one_way=False)
JOBS = (MIRROR, SYNC)
_SETTLE_S = 90.0
_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to do; the same plan makes the same choices."""

    seed: int
    seconds: float
    faults: tuple[Fault, ...] = FAULTS
    at_once: int = 2
    """How many faults may overlap, on members of different kinds."""
    rate: float = 20.0
    """Changes a second of each writer."""
    pause_s: tuple[float, float] = (0.2, 2.0)
    """Between faults."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a run."""

    plan: Plan
    events: Sequence[h.Any]
    verdicts: Sequence[Verdict]

    @property
    def faults(self) -> int:
        """How many faults were injected."""
        return sum(isinstance(event, h.Injected) for event in self.events)


async def run(plan: Plan, directory: Path, *, say: Callable[[str], None]) -> Report:
    """Carry out a plan on a cluster of its own in `directory`; takes its seconds and a minute more."""
    began = time.monotonic()
    lock = threading.Lock()
    events: list[h.Any] = []

    def now() -> float:
        return round(time.monotonic() - began, 6)

    def note(event: h.Any) -> None:
        with lock:
            events.append(event)

    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    async with local(directory, now=now, note=note) as cluster:
        await _Drive(plan, cluster, note, now, say).carry_out()
    events.sort(key=lambda event: event.at)  # stable: the order within a log stays
    return Report(plan, events, judge(events, JOBS))


class _Drive:
    """The parts of one run."""

    def __init__(
        self,
        plan: Plan,
        cluster: Local,
        note: Callable[[h.Any], None],
        now: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._cluster = cluster
        self._note = note
        self._now = now
        self._say = say
        self._dice = random.Random(plan.seed)  # noqa: S311 - replayable is the point
        self._number = 0
        self._busy: set[str] = set()

    async def carry_out(self) -> None:
        cluster = self._cluster
        await self._apply()
        watching = asyncio.create_task(cluster.watch_owners(frozenset(job.name for job in JOBS)))
        traffic = self._traffic()
        try:
            for one in traffic:
                one.start()
            await self._trouble()
        finally:
            await asyncio.gather(*(asyncio.to_thread(one.stop) for one in traffic))
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        self._say("faults are over: waiting for members to become equal")
        await self._settle()
        await self._look()

    def _top(self, job: Job, worker: str) -> Path:
        return self._cluster.root(worker) / job.name

    def _traffic(self) -> list[Writer | Reader]:
        found: list[Writer | Reader] = []
        for job in JOBS:
            for worker in job.members:
                top = self._top(job, worker)
                top.mkdir(exist_ok=True)
                found.append(Reader(worker, top, note=self._note, now=self._now))
            for worker in job.members[:1] if job.is_one_way else job.members:
                scratch = self._cluster.directory / f"{worker}-files" / f"scratch-{job.name}"
                found.append(
                    Writer(
                        job.name,
                        worker,
                        self._top(job, worker),
                        scratch,
                        number=len(found),
                        seed=self._plan.seed,
                        rate=self._plan.rate,
                        note=self._note,
                        now=self._now,
                    )
                )
        return found

    async def _apply(self) -> None:
        shared: dict[str, Any] = {
            "lease_ttl": "2s",
            "trigger": {"every": "2s"},
            "safety": {"max_delete": "off", "max_delete_files": "off", "keep_replaced": True},
            "retries": {"attempts": 1},
        }
        members = [f"{worker}:{ROOT}/{{}}" for worker in WORKERS]
        source, *targets = [member.format(MIRROR.name) for member in members]
        mirror = {"name": MIRROR.name, "rule": "mirror", "source": source, "targets": targets}
        sync = {
            "name": SYNC.name,
            "rule": "sync",
            "members": [member.format(SYNC.name) for member in members],
        }
        for worker in WORKERS:
            for job in JOBS:
                self._top(job, worker).mkdir(parents=True, exist_ok=True)
        await self._cluster.apply({**mirror, **shared})
        await self._cluster.apply({**sync, **shared})

    # Trouble

    async def _trouble(self) -> None:
        until = self._now() + self._plan.seconds
        under_way: set[asyncio.Task[None]] = set()
        try:
            while self._now() < until:
                ended = {task for task in under_way if task.done()}
                under_way -= ended
                for task in ended:
                    task.result()
                if len(under_way) < self._plan.at_once:
                    fault = self._dice.choice(self._plan.faults)
                    target, lasts_s = fault.choose(self._dice)
                    if self._is_free(fault, target):
                        self._busy |= set(fault.touches(target))
                        under_way.add(asyncio.create_task(self._hit(fault, target, lasts_s)))
                await asyncio.sleep(self._dice.uniform(*self._plan.pause_s))
        finally:
            await asyncio.gather(*under_way)

    def _is_free(self, fault: Fault, target: str) -> bool:
        """Say whether those whom it hits, and another of their kind, are well."""
        kinds = {name[0] for name in fault.touches(target)}
        return not any(busy[0] in kinds for busy in self._busy)

    async def _hit(self, fault: Fault, target: str, lasts_s: float) -> None:
        self._number += 1
        number = self._number
        self._note(
            h.Injected(
                at=self._now(),
                number=number,
                fault=fault.name,
                target=target,
                stops_coordination=fault.stops_coordination,
            )
        )
        self._say(f"{self._now():7.1f} s  {number}: {fault.name} {target} for {lasts_s:.1f} s")
        try:
            await fault.inject(self._cluster, target)
            await asyncio.sleep(lasts_s)
        finally:
            await fault.heal(self._cluster, target)
            self._note(h.Healed(at=self._now(), number=number))
            self._busy -= set(fault.touches(target))

    # Afterwards

    async def _settle(self) -> None:
        """Run every job until it succeeds, then note what one more run moves."""
        for job in JOBS:
            # What the schedule began goes to its end; nothing of it comes between what we look at.
            deadline = time.monotonic() + _SETTLE_S
            while (await self._run(job))["outcome"] != "succeeded":
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(_AGAIN_S)
            run = await self._run(job)
            moved = sum(
                run.get(key, 0)
                for key in ("files_copied", "files_updated", "files_deleted", "files_renamed")
            )
            self._note(
                h.FinalRun(
                    at=self._now(), job=job.name, outcome=str(run.get("outcome")), moved=moved
                )
            )

    async def _run(self, job: Job) -> dict[str, Any]:
        """Run a job once; return the run, or why there is none."""
        code, out, err = await self._cluster.try_baton(
            "job", "run", job.name, "--wait", "-o", "json"
        )
        if out.strip():
            found: dict[str, Any] = json.loads(out)
            return found
        return {"outcome": f"none ({code}: {err.strip()[-300:]})"}

    async def _look(self) -> None:
        """Note the trees, the ledgers, and what lies beside the roots."""
        for name in WORKERS:
            self._cluster.harvest(name)
        for job in JOBS:
            for worker in job.members:
                trash = self._cluster.root(worker) / ".baton" / "trash"
                versions = [
                    version
                    for date in (trash.iterdir() if trash.exists() else ())
                    for version in versions_below(date / job.name)
                ]
                self._note(
                    h.FinalTree(
                        at=self._now(),
                        job=job.name,
                        member=worker,
                        entries=entries_of(self._top(job, worker)),
                        trash=versions,
                    )
                )
        _, out, _ = await self._cluster.try_baton("ledger", "verify", "-o", "json")
        for one in json.loads(out)["jobs"]:
            self._note(
                h.Proved(
                    at=self._now(),
                    job=one["job"],
                    records=one["records"],
                    findings=[finding["what"] for finding in one["findings"]],
                )
            )
        self._cluster.look_beside()
