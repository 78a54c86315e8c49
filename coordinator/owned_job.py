"""What the owner of a job has on its table: definition, state, the runs that are open, and the pen.

The parts that act stand on it: `run_execution` carries one run on, `job_owner` decides what comes next
and answers requests. Records of open runs are changed only under `_turn`, since two tasks write them.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from coordinator import run_records, timetable
from coordinator.catalog import Catalog, Job
from coordinator.errors import CoordinatorError
from coordinator.ledger import Ledger, LedgerMoved, NotOwner
from coordinator.links import WorkerLinks
from coordinator.ownership import Ownership
from coordinator.records import RunRecord, StateRecord
from coordinator.run_driver import RunDriver
from coordinator.run_room import RunRoom
from wire.clock import Clock
from wire.orders import Outcome, Progress


class RequestRefused(CoordinatorError):
    """The job cannot do what was asked of it now; the sentence says why and what to do."""


def utc_now() -> datetime:
    """Return the wall clock, for due instants and display only."""
    return datetime.now(UTC)


@dataclass(slots=True)
class CurrentRun:
    """The run that is under way at this owner, or between two attempts."""

    instant: datetime
    record: RunRecord
    driver: RunDriver | None = None
    progress: Progress | None = None
    not_before: float = 0.0
    """When its next attempt may begin, on the monotonic clock: a wall clock may be set meanwhile."""
    parking: str = ""
    """Why it is being stopped, to go on later."""
    parked_until: datetime | None = None
    has_news: asyncio.Event = field(default_factory=asyncio.Event)
    """Of a monitor: there is something to record."""
    waits: tuple[str, str] = ("", "")
    """Why it waits for room, empty when it has it, and at which worker."""
    waits_from: float = 0.0
    """When it began to wait, on the monotonic clock."""
    is_begun: bool = False
    """Its next attempt is in the record already: it was created with that."""
    is_found: bool = False
    """It was found in the ledger, begun by another owner, and may be going on."""

    @property
    def is_acting(self) -> bool:
        """Whether workers are, or will be, busy with it."""
        return not self.record.is_parked

    def stop(self) -> None:
        """Have the workers stop."""
        if self.driver is not None:
            self.driver.cancel()


@dataclass(slots=True)
class OwnedJob:
    """One job that `node` owns."""

    node: str
    ownership: Ownership
    catalog: Catalog
    ledger: Ledger
    links: WorkerLinks
    clock: Clock
    wall: Callable[[], datetime] = utc_now
    state: StateRecord = field(default_factory=StateRecord)
    current: CurrentRun | None = None
    queued: tuple[datetime, RunRecord] | None = None
    """The run that begins when the current one has ended."""
    held: tuple[datetime, RunRecord] | None = None
    """The run that waits for an approval."""
    room: RunRoom = field(default_factory=RunRoom)
    """Of this coordinator, for all its jobs."""
    _stored: StateRecord = field(default_factory=StateRecord)
    """The state as the ledger has it."""
    _known: Job | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _look: asyncio.Event = field(default_factory=asyncio.Event)
    """The definition has changed under a run."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while records of open runs change."""
    _is_behind: bool = False
    """The ledger knows more than we do."""
    _told: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """Which job."""
        return self.ownership.job

    @property
    def job(self) -> Job:
        """The definition as it stands now, or stood last when the job was just deleted."""
        self._known = self.catalog.jobs.get(self.name) or self._known
        if self._known is None:
            raise NotOwner(f"job {self.name} is gone")
        return self._known

    def definition_changed(self) -> None:
        """Look at the schedule anew."""
        self._wake.set()
        self._look.set()

    def abandon(self) -> None:
        """The job was deleted: let the workers drop what they do for it."""
        if self.current is not None and self.current.driver is not None:
            self.current.driver.settle()

    async def until_told(self, timeout_s: float) -> None:
        """Wait until a run has ended, is held or waits, or for `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._told.wait()
        except TimeoutError:
            pass

    # Facts that more than one part asks for

    @property
    def pause_reason(self) -> str:
        """Who paused the job, empty when nobody did."""
        paused = self.job.record.paused
        return "" if paused is None else f"paused by {paused.by}"

    def next_due(self) -> datetime | None:
        """Return the instant that the schedule has next, come or to come."""
        self.state = timetable.set_right(self.job, self.state, self.wall())
        return timetable.due_next(self.job, self.state)

    def why_not_now(self, record: RunRecord) -> tuple[str, datetime | None]:
        """Return why a run must not act now, empty when it may, and until when if that is known."""
        if self.pause_reason:
            return self.pause_reason, None
        span = None if record.by_hand else self.job.spec.open_times.opening(self.wall())
        if span is not None and span[0] > self.wall():
            return timetable.OUTSIDE, span[0]
        return "", None

    # Writing

    def _phase(self, phase: str, reason: str) -> None:
        self.state = msgspec.structs.replace(self.state, phase=phase, reason=reason)

    async def _write(self, *runs: tuple[datetime, RunRecord]) -> None:
        state = self.state
        with self._noticing():
            await self.ledger.write(self.ownership, state, runs)
        self._stored = state

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Have the task recall what is true when a write shows that the ledger has moved."""
        try:
            yield
        except LedgerMoved:
            self._is_behind = True
            self._wake.set()
            raise

    async def _record_end(self, instant: datetime, record: RunRecord) -> None:
        """Record a run that ends without acting any more."""
        if self.held is None and self.current is None:
            self._phase("idle", "")
        await self._write((instant, record))
        self._tell()

    async def _end_held(self) -> None:
        """A later run plans anew: what waits for an approval is void."""
        if self.held is not None:
            at, record = self.held
            self.held = None
            why = "a later run planned anew and took its place"
            ended = run_records.ended(record, Outcome.BLOCKED, why, self.wall())
            await self._record_end(at, ended)

    async def _end_parked(self) -> None:
        """A later run does the work of one between attempts."""
        parked = self.current
        if parked is None or parked.is_acting:
            return
        self.current = None
        outcome = Outcome.FAILED if parked.record.failures else Outcome.CANCELLED
        why = f"a later run took its place; {parked.record.reason}"
        ended = run_records.ended(parked.record, outcome, why, self.wall())
        await self._record_end(parked.instant, ended)

    def _tell(self) -> None:
        self._told.set()
        self._told = asyncio.Event()
