"""What operators ask of a job's owner: run it now, approve, cancel, preview.

Each answer says what is in the ledger already; what takes longer is done by the owner's task.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec
import structlog

from coordinator import run_records
from coordinator.job import Overlap
from coordinator.keys import instant_text
from coordinator.ledger import NotOwner, RunExists
from coordinator.owned_job import CurrentRun, RequestRefused
from coordinator.records import RunRecord
from coordinator.run_driver import RunDriver, Watchers
from coordinator.run_execution import RunExecution
from wire.orders import Outcome, PlannedChange, RunEnded

log = structlog.get_logger()

INTERRUPT_S = 30.0
"""How long a preview waits for a monitor to stop at its workers."""
_LOOK_S = 0.1
_TICK = timedelta(microseconds=1)


@dataclass(slots=True)
class Request:
    """A run asked for by hand."""

    by: str
    created: "asyncio.Future[datetime]"


@dataclass(slots=True)
class RunRequests(RunExecution):
    """Answers requests about one owned job."""

    _requests: list[Request] = field(default_factory=list)
    _ready: asyncio.Event = field(default_factory=asyncio.Event)
    """The job's past is known, or will not be."""
    _is_over: bool = False
    _preview: RunDriver | None = None
    _preview_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def request_run(self, by: str = "") -> str:
        """Create a run that is due now and return its id; raises RequestRefused.

        With a run under way and `overlap: queue` or `cancel`, the new one is in the ledger when this
        returns, and begins when that has ended. There is one such run at most: asking again is
        answered with its id.
        """
        await self._until_ready()
        if self.pause_reason:
            raise RequestRefused(
                f"job {self.name} is {self.pause_reason}: 'baton job resume {self.name}' first"
            )
        if self.ledger.full:
            raise RequestRefused(f"job {self.name}: no run can begin: {self.ledger.full}")
        running = self.current
        if running is not None and running.is_acting and running.record.monitor is not None:
            return await self._ask_audit(running)
        if running is not None and running.is_acting:
            if self.job.spec.overlap is Overlap.SKIP:
                raise RequestRefused(
                    f"job {self.name}: run {instant_text(running.instant)} is still going on; "
                    "wait for it, cancel it, or set overlap to queue or cancel"
                )
            queued = await self._queue(running, by)
            if self.job.spec.overlap is Overlap.CANCEL:
                await self._cancel_durably(running, "a run asked for by hand takes its place")
            return instant_text(queued)
        request = Request(by, asyncio.get_running_loop().create_future())
        self._requests.append(request)
        self._wake.set()
        return instant_text(await request.created)

    async def _ask_audit(self, running: CurrentRun) -> str:
        """Have a monitor compare everything now."""
        async with self._turn:
            kept = running.record.monitor
            assert kept is not None, "asked of a monitor"
            kept = msgspec.structs.replace(kept, asked=kept.asked + 1)
            running.record = msgspec.structs.replace(running.record, monitor=kept)
            await self._write((running.instant, running.record))
        self.tell_monitor(running)
        return instant_text(running.instant)

    async def _approve_monitor(self, running: CurrentRun) -> RunRecord:
        """Let a monitor carry out what it holds; it goes on meanwhile. Under the turn."""
        running.record = msgspec.structs.replace(
            running.record,
            outcome=Outcome.RUNNING,
            reason="approved by an operator",
            approved=running.record.plan,
        )
        self._phase("monitoring", running.record.reason)
        await self._write((running.instant, running.record))
        self.tell_monitor(running)
        return running.record

    async def approve(self, instant: datetime) -> RunRecord:
        """Release the held plan of a run; raises RequestRefused when there is none."""
        await self._until_ready()
        async with self._turn:
            running = self.current
            if running is not None and running.instant == instant and _is_held(running.record):
                return await self._approve_monitor(running)
            if self.held is None or self.held[0] != instant:
                raise RequestRefused(
                    f"run {instant_text(instant)} of job {self.name} does not wait for an approval"
                )
            if not self.held[1].plan:
                raise RequestRefused(
                    f"run {instant_text(instant)} of job {self.name} has no plan to approve: "
                    f"{self.held[1].reason}; mend that, then run the job again"
                )
            # Running from here on, for whoever looks: an approved run waits for nobody any more.
            record = msgspec.structs.replace(
                self.held[1],
                outcome=Outcome.RUNNING,
                reason="approved by an operator",
                approved=self.held[1].plan,
            )
            self._phase("running", record.reason)
            await self._write((instant, record))
            self.held = (instant, record)
        self._wake.set()
        return record

    async def cancel(self, instant: datetime) -> RunRecord:
        """Stop a run, or drop one that is held or waits; raises RequestRefused when it has ended."""
        await self._until_ready()
        why = "cancelled by an operator"
        running = self.current
        if running is not None and running.instant == instant and running.is_acting:
            await self._cancel_durably(running, why)
            return running.record
        async with self._turn:
            waiting = self._waiting(instant)
            if waiting is not None:
                self._forget(instant)
                record = run_records.ended(waiting, Outcome.CANCELLED, why, self.wall())
                await self._record_end(instant, record)
                self._wake.set()
                return record
        raise RequestRefused(f"run {instant_text(instant)} of job {self.name} is not going on")

    def _waiting(self, instant: datetime) -> RunRecord | None:
        """Return a run that is open and keeps no worker busy."""
        if self.current is not None and self.current.instant == instant:
            return None if self.current.is_acting else self.current.record
        runs = (run for run in (self.held, self.queued) if run is not None)
        return next((record for at, record in runs if at == instant), None)

    def _forget(self, instant: datetime) -> None:
        if self.current is not None and self.current.instant == instant:
            self.current = None
        if self.held is not None and self.held[0] == instant:
            self.held = None
        if self.queued is not None and self.queued[0] == instant:
            self.queued = None

    async def preview(
        self,
        planned: Callable[[tuple[PlannedChange, ...]], None],
        *,
        verify: bool = False,
    ) -> RunEnded:
        """Plan a run and change nothing; `planned` hears the changes. Raises RequestRefused.

        With `verify` the members are compared instead, by content, and it hears the differences. A
        run that becomes due meanwhile ends either: both would use the same session.
        """
        what = "verified" if verify else "previewed"
        await self._until_ready()
        if self._preview is not None:
            raise RequestRefused(
                f"job {self.name} is being previewed or verified already: wait for that"
            )
        running = self.current
        if running is not None and running.is_acting and running.record.monitor is None:
            raise RequestRefused(
                f"job {self.name}: run {instant_text(running.instant)} is going on; "
                f"it can be {what} when that has ended"
            )
        kind = "verify" if verify else "preview"
        run = f"{kind}-{instant_text(self.wall())}"
        order = self._order(run, preview=not verify, verify=verify)
        watchers = Watchers(planned=planned)
        with RunDriver(self.ownership, order, self.links, self.clock, watchers) as driver:
            self._preview = driver
            self._preview_over.clear()
            try:
                await self._interrupt_monitor(f"the job is being {what}")
                return await driver.drive()
            finally:
                driver.settle()
                self._preview = None
                self._preview_over.set()
                self._wake.set()

    async def _interrupt_monitor(self, why: str) -> None:
        """Have a monitor let go of the job's sessions; what changes meanwhile is kept for it.

        Raises RequestRefused when it does not stop.
        """
        running = self.current
        if running is None or not running.is_acting:
            return
        self._park(running, why)
        until = self.clock.now() + INTERRUPT_S
        while self.current is running and not _is_settled(running):
            if self.clock.now() > until:
                raise RequestRefused(f"the run of job {self.name} does not stop: try again")
            await self.until_told(_LOOK_S)

    async def _until_ready(self) -> None:
        """Wait until the job's past is known; raises NotOwner when it is this node's no more."""
        await self._ready.wait()
        if self._is_over:
            raise NotOwner(f"job {self.name} has changed hands")

    # New runs

    def _new_run(self, due: datetime, reason: str, *, by_hand: bool = False) -> RunRecord:
        return RunRecord(
            due=due,
            generation=self.job.generation,
            outcome=Outcome.RUNNING,
            reason=reason,
            begun=reason,
            started=self.wall(),
            by_hand=by_hand,
        )

    async def _queue(self, running: CurrentRun, by: str) -> datetime:
        """Put a run into the ledger that begins when the one under way has ended."""
        async with self._turn:
            if self.queued is None:
                reason = f"{asked(by)}, begins after run {instant_text(running.instant)}"
                record = self._new_run(self.wall(), reason, by_hand=True)
                record = msgspec.structs.replace(record, started=None)
                self.queued = await self._put_new(record)
            self._wake.set()
            return self.queued[0]

    async def _put_new(self, record: RunRecord) -> tuple[datetime, RunRecord]:
        """Create the record of a run; return it with the instant that is its id."""
        state, ((instant, record),) = run_records.numbered(self.state, [record])
        if record.started is not None:
            state = msgspec.structs.replace(state, last_run=instant_text(instant))
        while True:
            try:
                with self._noticing():
                    await self.ledger.create(self.ownership, instant, record, state)
            except RunExists:
                # Asked for twice in a moment, or the clock was set back and the instant comes again.
                log.warning("run_exists", job=self.name, run=instant_text(instant))
                instant += _TICK
                if record.by_hand:
                    record = msgspec.structs.replace(record, due=instant)
                state = msgspec.structs.replace(state, last_run=instant_text(instant))
            else:
                self.state = self._stored = state
                return instant, record


def _is_held(record: RunRecord) -> bool:
    return record.monitor is not None and record.outcome is Outcome.BLOCKED and bool(record.plan)


def asked(by: str) -> str:
    """Say why a run by hand began."""
    return f"asked for by {by}" if by else "asked for"


def _is_settled(running: CurrentRun) -> bool:
    """Whether the workers have been told to forget the run."""
    return not running.is_acting and running.driver is None
