"""One chaos run: traffic, faults by a seed, everything healed, then what is left is looked at."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import structlog

from cli.chaos import history as h
from cli.chaos.checker import Verdict, judge
from cli.chaos.fault import EVERYTHING, Fault
from cli.chaos.faults import FAULTS
from cli.chaos.jobs import JOBS, TRAFFIC, Traffic
from cli.chaos.local import COORDINATORS, WORKERS, Local, local
from cli.chaos.schedule import Queue, Strike, strikes
from cli.chaos.traffic import Reader, Writer
from cli.chaos.trees import empty_trash, entries_of, versions_below
from cli.exits import CommandFailed

log = structlog.get_logger()

_SETTLE_S = 120.0
_TRASH_S = 3.0
_EXPOSURE_S = 2.0
_AGAIN_S = 0.5
_BITES_S = 1.0
_LOOK_S = 0.02
_GOOD = "succeeded"


class NothingToDo(Exception):
    """No fault of the plan can be done on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to do; the same plan makes the same choices."""

    seed: int
    seconds: float
    faults: tuple[Fault, ...] = FAULTS
    at_once: int = 2
    """How many faults may overlap, on members of different kinds."""
    rate: float = 10.0
    """Changes a second of each writer."""
    most: int | None = None
    """It is over after so many faults, too."""
    strikes: tuple[Strike, ...] | None = None
    """These and no others, in place of those that the seed says for so many seconds."""


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


async def run(
    plan: Plan,
    directory: Path,
    *,
    say: Callable[[str], None],
    told: Callable[[h.Any], None] | None = None,
) -> Report:
    """Carry out a plan on a cluster of its own in `directory`; takes its seconds and a minute more.

    `told` hears every event at once, from any thread, one at a time.
    """
    began = time.monotonic()
    lock = threading.Lock()
    events: list[h.Any] = []

    def now() -> float:
        return round(time.monotonic() - began, 6)

    def note(event: h.Any) -> None:
        with lock:
            events.append(event)
            if told is not None:
                told(event)

    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    async with local(directory, now=now, note=note) as cluster:
        plan = replace(plan, faults=_possible(plan.faults, cluster, say))
        await _Drive(plan, cluster, note, now, say).carry_out()
    events.sort(key=lambda event: event.at)  # stable: the order within a log stays
    return Report(plan, events, judge(events, JOBS))


def _possible(
    faults: Sequence[Fault], cluster: Local, say: Callable[[str], None]
) -> tuple[Fault, ...]:
    """Return the faults that can be done here; raises NothingToDo when there are none."""
    why: dict[str, list[str]] = {}
    for fault in faults:
        why.setdefault(fault.available(cluster), []).append(fault.name)
    for reason, names in why.items():
        if reason:
            say(f"left out, since {reason}: {', '.join(names)}")
    if "" not in why:
        raise NothingToDo("; ".join(why))
    return tuple(fault for fault in faults if fault.name in why[""])


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
        self._number = 0
        self._busy: set[str] = set()

    async def carry_out(self) -> None:
        cluster = self._cluster
        await self._apply()
        beside = [
            asyncio.create_task(cluster.watch_owners(frozenset(job.name for job in JOBS))),
            asyncio.create_task(self._empty_trashes()),
            asyncio.create_task(self._watch_exposure()),
            asyncio.create_task(self._serve_again()),
        ]
        traffic = self._traffic()
        try:
            for one in traffic:
                one.start()
            await self._trouble()
        finally:
            await asyncio.gather(*(asyncio.to_thread(one.stop) for one in traffic))
            for task in beside:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._say("faults are over: waiting for members to become equal")
        await self._settle()
        await self._look()

    def _top(self, one: Traffic, worker: str) -> Path:
        return self._cluster.files(worker) / one.job.name

    async def _empty_trashes(self) -> None:
        """Note what is in the trashes, again and again, and make room there."""
        while True:
            await asyncio.sleep(_TRASH_S)
            for worker in WORKERS:
                trash = self._cluster.files(worker) / ".baton" / "trash"
                found = await asyncio.to_thread(empty_trash, trash)
                for job, versions in found.items():
                    self._note(h.Trashed(at=self._now(), job=job, member=worker, versions=versions))

    async def _serve_again(self) -> None:
        """Start what ended by itself, as service managers do: a guardian ends whose child hung."""
        while True:
            await asyncio.sleep(_AGAIN_S)
            kinds = {name[0] for name in self._busy}
            well = [name for name in (*COORDINATORS, *WORKERS) if name[0] not in kinds]
            await self._cluster.start(name for name in well if not self._cluster.is_running(name))

    async def _watch_exposure(self) -> None:
        """Note how far behind the targets of real-time jobs are."""
        while True:
            await asyncio.sleep(_EXPOSURE_S)
            for one in TRAFFIC:
                if one.is_realtime:
                    with contextlib.suppress(CommandFailed):
                        found = await self._cluster.api.exposure(one.job.name, _EXPOSURE_S)
                        for target, age_s in found.items():
                            self._note(
                                h.Exposed(
                                    at=self._now(),
                                    job=one.job.name,
                                    target=target,
                                    exposure_s=round(age_s, 3),
                                )
                            )

    def _traffic(self) -> list[Writer | Reader]:
        found: list[Writer | Reader] = []
        for one in TRAFFIC:
            found += [
                Reader(worker, self._top(one, worker), note=self._note, now=self._now)
                for worker in one.job.members
            ]
            for worker in one.writers:
                found.append(
                    Writer(
                        one.job.name,
                        worker,
                        self._top(one, worker),
                        self._cluster.scratch(worker) / f"scratch-{one.job.name}",
                        number=len(found),
                        seed=self._plan.seed,
                        rate=self._plan.rate,
                        note=self._note,
                        now=self._now,
                    )
                )
        return found

    async def _apply(self) -> None:
        for one in TRAFFIC:
            for worker in one.job.members:
                self._top(one, worker).mkdir(parents=True, exist_ok=True)
            await self._cluster.api.apply(one.spec())

    # Trouble

    async def _trouble(self) -> None:
        until = self._now() + self._plan.seconds
        under_way: set[asyncio.Task[None]] = set()
        coming = self._plan.strikes or strikes(self._plan.seed, self._plan.faults)
        queue = Queue(islice(coming, self._plan.most))
        try:
            while self._plan.strikes is not None or self._now() < until:
                for task in [task for task in under_way if task.done()]:
                    under_way.discard(task)
                    task.result()
                room = len(under_way) < self._plan.at_once
                strike = queue.next(self._busy, self._now()) if room else None
                if strike is not None:
                    self._busy |= set(strike.fault.touches(strike.target))
                    under_way.add(asyncio.create_task(self._hit(strike)))
                    await asyncio.sleep(strike.pause_s)
                elif under_way:
                    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                else:
                    break
        finally:
            await asyncio.gather(*under_way)

    async def _hit(self, strike: Strike) -> None:
        fault, target, lasts_s = strike.fault, strike.target, strike.lasts_s
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
            ends = time.monotonic() + lasts_s
            seen = await self._has_bitten(fault, target)
            self._note(h.Bitten(at=self._now(), number=number, seen=seen))
            await asyncio.sleep(max(0.0, ends - time.monotonic()))
        finally:
            await fault.heal(self._cluster, target)
            self._note(h.Healed(at=self._now(), number=number))
            self._busy -= set(fault.touches(target))

    async def _has_bitten(self, fault: Fault, target: str) -> bool:
        """Look whether it has an effect; signals take their time on a busy machine."""
        deadline = time.monotonic() + _BITES_S
        while not await fault.verify(self._cluster, target):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    # Afterwards

    async def _settle(self) -> None:
        """Wait until members are equal by each job's own account, then note what one more look moves."""
        await self._cluster.start(EVERYTHING)
        for one in TRAFFIC:
            await (self._settle_monitor(one) if one.is_realtime else self._settle_runs(one))

    async def _settle_runs(self, one: Traffic) -> None:
        """Run a scheduled job until it succeeds, and once more."""
        # What the schedule began goes to its end; nothing of it comes between what we look at.
        deadline = time.monotonic() + _SETTLE_S
        while (await self._run(one))[0] != _GOOD and time.monotonic() < deadline:
            await asyncio.sleep(_AGAIN_S)
        outcome, moved = await self._run(one)
        self._note(h.FinalRun(at=self._now(), job=one.job.name, outcome=outcome, moved=moved))

    async def _run(self, one: Traffic) -> tuple[str, int]:
        """Run a job once; return what came out and how many files it moved."""
        try:
            run = await self._cluster.api.run(one.job.name, _SETTLE_S)
        except (CommandFailed, TimeoutError) as failed:
            return f"none: {failed}", 0
        counts = run.counts
        moved = (
            counts.files_copied + counts.files_updated + counts.files_deleted + counts.files_renamed
        )
        return run.outcome, moved

    async def _settle_monitor(self, one: Traffic) -> None:
        """Wait until nothing waits for a target, then have everything compared."""
        deadline = time.monotonic() + _SETTLE_S
        while (why := await self._behind(one)) and time.monotonic() < deadline:
            await asyncio.sleep(_AGAIN_S)
        audits = found = 0
        try:
            run = await self._cluster.api.audit(one.job.name, _SETTLE_S)
            audits, found = run.monitor.audits, run.monitor.audit_found
        except (CommandFailed, TimeoutError) as failed:
            why = why or f"no audit: {failed}"
        self._note(
            h.FinalRun(
                at=self._now(),
                job=one.job.name,
                outcome=why or _GOOD,
                moved=0,
                audits=audits,
                audit_found=found,
            )
        )

    async def _behind(self, one: Traffic) -> str:
        try:
            return await self._cluster.api.behind(one.job.name)
        except CommandFailed as failed:
            return f"not shown: {failed}"

    async def _look(self) -> None:
        """Note the trees, the ledgers, and what lies beside the roots."""
        for name in WORKERS:
            self._cluster.harvest(name)
        for one in TRAFFIC:
            for worker in one.job.members:
                trash = self._cluster.files(worker) / ".baton" / "trash"
                versions = [
                    version
                    for date in (trash.iterdir() if trash.exists() else ())
                    for version in versions_below(date / one.job.name)
                ]
                self._note(
                    h.FinalTree(
                        at=self._now(),
                        job=one.job.name,
                        member=worker,
                        entries=entries_of(self._top(one, worker)),
                        trash=versions,
                    )
                )
        for proof in await self._cluster.api.proofs():
            self._note(
                h.Proved(
                    at=self._now(),
                    job=proof.job,
                    records=proof.records,
                    findings=[finding.what for finding in proof.findings],
                )
            )
        self._cluster.look_beside()
