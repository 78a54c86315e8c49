"""What the owner of one job does: wait for what is due, run it, record it.

One task per owned job. It is cancelled when the ownership ends; a run that is under way then goes on
at the workers, and the next owner finds it in the ledger and adopts it.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
import structlog

from coordinator import run_records
from coordinator.catalog import Catalog, Job
from coordinator.errors import CoordinatorError
from coordinator.job import From, Overlap
from coordinator.keys import instant_text
from coordinator.ledger import Ledger, NotOwner, RunExists
from coordinator.links import WorkerLinks
from coordinator.ownership import Ownership
from coordinator.records import AttemptRecord, RunRecord, StateRecord
from coordinator.run_driver import RunDriver, RunOrder, Watchers
from coordinator.run_order import UnknownWorker, run_order
from coordinator.schedule import Due, next_due, what_is_due
from wire.clock import Clock
from wire.orders import Outcome, PlannedChange, Progress, RunEnded

log = structlog.get_logger()

HAND_OVER_S = 1.0
"""How long an owner that stops may take to write down that it does."""


class RequestRefused(CoordinatorError):
    """The job cannot do what was asked of it now; the sentence says why and what to do."""


def utc_now() -> datetime:
    """Return the wall clock, for due instants and display only."""
    return datetime.now(UTC)


@dataclass(slots=True)
class CurrentRun:
    """The run that is under way at this owner."""

    instant: datetime
    record: RunRecord
    driver: RunDriver | None = None
    progress: Progress | None = None
    is_cancelled: bool = False


@dataclass(slots=True)
class _Request:
    """A run asked for by hand."""

    created: "asyncio.Future[datetime]"


@dataclass(slots=True)
class JobOwner:
    """Owns one job on behalf of `node`, for as long as `own` runs."""

    node: str
    ownership: Ownership
    catalog: Catalog
    ledger: Ledger
    links: WorkerLinks
    clock: Clock
    wall: Callable[[], datetime] = utc_now
    state: StateRecord = field(default_factory=StateRecord)
    current: CurrentRun | None = None
    held: tuple[datetime, RunRecord] | None = None
    """The run that waits for an approval."""
    _known: Job | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _requests: list[_Request] = field(default_factory=list)
    _ready: asyncio.Event = field(default_factory=asyncio.Event)
    _is_over: bool = False
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the run that waits for an approval is released, dropped or replaced."""
    _preview: RunDriver | None = None
    _preview_over: asyncio.Event = field(default_factory=asyncio.Event)
    _told: asyncio.Event = field(default_factory=asyncio.Event)
    _last_began: datetime | None = None
    """When the run that ended last had begun, if it ended here."""

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

    def abandon(self) -> None:
        """The job was deleted: let the workers drop what they do for it."""
        if self.current is not None and self.current.driver is not None:
            self.current.driver.settle()

    async def until_told(self, timeout_s: float) -> None:
        """Wait until a run has ended or is held, or for `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._told.wait()
        except TimeoutError:
            pass

    # What the API asks

    async def request_run(self) -> str:
        """Create a run that is due now and return its id; raises RequestRefused."""
        await self._until_ready()
        running = self.current
        if running is not None:
            match self.job.spec.overlap:
                case Overlap.SKIP:
                    raise RequestRefused(
                        f"job {self.name}: run {instant_text(running.instant)} is still going on; "
                        "wait for it, cancel it, or set overlap to queue or cancel"
                    )
                case Overlap.CANCEL:
                    self._cancel_current(running)
                case Overlap.QUEUE:
                    pass
        request = _Request(asyncio.get_running_loop().create_future())
        self._requests.append(request)
        self._wake.set()
        return instant_text(await request.created)

    async def approve(self, instant: datetime) -> RunRecord:
        """Release the held plan of a run; raises RequestRefused when there is none."""
        await self._until_ready()
        async with self._turn:
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
            await self.ledger.write(self.ownership, self.state, [(instant, record)])
            self.held = (instant, record)
        self._wake.set()
        return record

    async def cancel(self, instant: datetime) -> RunRecord:
        """Stop a run, or drop one that is held; raises RequestRefused when it has ended."""
        await self._until_ready()
        async with self._turn:
            if self.current is not None and self.current.instant == instant:
                self._cancel_current(self.current)
                return self.current.record
            if self.held is not None and self.held[0] == instant:
                record = run_records.ended(
                    self.held[1], Outcome.CANCELLED, "cancelled by an operator", self.wall()
                )
                self.held = None
                await self._record(instant, record)
                return record
        raise RequestRefused(f"run {instant_text(instant)} of job {self.name} is not going on")

    async def preview(self, planned: Callable[[tuple[PlannedChange, ...]], None]) -> RunEnded:
        """Plan a run and change nothing; `planned` hears the changes. Raises RequestRefused.

        A run that becomes due meanwhile ends the preview: both would use the same session.
        """
        await self._until_ready()
        if self.current is not None:
            raise RequestRefused(
                f"job {self.name}: run {instant_text(self.current.instant)} is going on; "
                "preview it when it has ended"
            )
        if self._preview is not None:
            raise RequestRefused(f"job {self.name} is being previewed already: wait for that")
        run = f"preview-{instant_text(self.wall())}"
        order = self._order(run, preview=True)
        watchers = Watchers(planned=planned)
        with RunDriver(self.ownership, order, self.links, self.clock, watchers) as driver:
            self._preview = driver
            self._preview_over.clear()
            try:
                return await driver.drive()
            finally:
                driver.settle()
                self._preview = None
                self._preview_over.set()

    async def _until_ready(self) -> None:
        """Wait until the job's past is known; raises NotOwner when it is this node's no more."""
        await self._ready.wait()
        if self._is_over:
            raise NotOwner(f"job {self.name} has changed hands")

    # The task

    async def own(self) -> None:
        """Do the job's work until cancelled; returns when the ownership turns out to be over."""
        self._is_over = False
        try:
            await self._begin()
            while True:
                self._wake.clear()
                if not await self._do_next():
                    await self._sleep()
        except NotOwner as error:
            log.info("ownership_over", job=self.name, why=str(error))
        finally:
            self._is_over = True
            self._ready.set()  # nobody may wait here for what does not come
            requests, self._requests = self._requests, []
            for request in requests:
                if not request.created.done():
                    request.created.set_exception(NotOwner(f"job {self.name} has changed hands"))

    async def hand_over(self) -> None:
        """Write down that this owner stops; called after `own` was cancelled, before the release."""
        running = self.current
        if running is None or not self.ownership.is_held:
            return
        record = run_records.close_attempt(
            running.record, f"{self.node} handed the job over", self.wall()
        )
        try:
            async with asyncio.timeout(HAND_OVER_S):
                await self.ledger.write(self.ownership, self.state, [(running.instant, record)])
        except (TimeoutError, CoordinatorError) as error:
            log.warning("hand_over_not_recorded", job=self.name, why=str(error))

    async def _begin(self) -> None:
        memory = await self.ledger.recall(self.name)
        self.state = memory.state
        self.current = self.held = None
        *superseded, last = memory.open_runs or (None,)
        for run in superseded:
            if run is not None:
                at, record = run
                await self._record(
                    at,
                    run_records.ended(record, Outcome.FAILED, "a later run took over", self.wall()),
                )
        if last is not None:
            at, record = last
            if record.outcome is Outcome.BLOCKED:
                self.held = last
            else:
                record = run_records.close_attempt(record, "its owner was lost", self.wall())
                self.current = CurrentRun(at, record)
        self._ready.set()

    async def _do_next(self) -> bool:
        """Do one thing that is due; return whether there was one."""
        if self.current is not None:
            while self._preview is not None:
                self._preview.cancel()
                await self._preview_over.wait()
            await self._execute(self.current)
            return True
        if self.held is not None and self.held[1].approved:
            instant, record = self.held
            self.held = None
            self.current = CurrentRun(instant, record)
            return True
        if self._requests:
            request = self._requests[0]
            created = await self._create(self.wall(), "asked for")
            if created is not None:
                self._requests.remove(request)
                if not request.created.done():
                    request.created.set_result(created)
            return True
        return await self._do_scheduled()

    async def _do_scheduled(self) -> bool:
        now = self.wall()
        due = what_is_due(self.job.spec, self._next_due(), now)
        if due.instant is None and not due.passed_over:
            return False
        is_skipping = self.job.spec.overlap is Overlap.SKIP and self._last_began is not None
        if due.instant is not None and is_skipping and self._overlapped(due.instant):
            due = Due(None, (*due.passed_over, due.instant))
        if due.passed_over:
            await self._pass_over(due.passed_over)
        if due.instant is not None:
            await self._create(due.instant, "due by the schedule", scheduled=due.instant)
        return True

    async def _pass_over(self, instants: Iterable[datetime]) -> None:
        """Record instants that came and went without a run."""
        passed = list(instants)
        records = []
        for at in passed:
            overlapped = self._overlapped(at)
            outcome = Outcome.SKIPPED if overlapped else Outcome.MISSED
            reason = "the run before was still going on" if overlapped else "nobody ran it in time"
            record = RunRecord(
                due=at, generation=self.job.generation, outcome=outcome, reason=reason, ended=at
            )
            records.append((at, record))
        self.state = msgspec.structs.replace(self.state, last_due=passed[-1])
        await self.ledger.write(self.ownership, self.state, records)

    def _overlapped(self, at: datetime) -> bool:
        """Whether an instant came while the run before went on."""
        began, ended = self._last_began, self.state.last_ended
        return ended is not None and at <= ended and (began is None or began < at)

    def _next_due(self) -> datetime | None:
        return next_due(
            self.job.spec,
            anchor=self.job.record.changed_at,
            last_due=self.state.last_due,
            last_ended=self.state.last_ended,
        )

    async def _sleep(self) -> None:
        """Wait for a request, a change, or the next due instant; show when that is."""
        due = self._next_due()
        if due != self.state.next_due:
            self.state = msgspec.structs.replace(self.state, next_due=due)
            await self.ledger.write(self.ownership, self.state)
        delay_s = None if due is None else max(0.0, (due - self.wall()).total_seconds())
        try:
            # Short sleeps, so that a wall clock that is set shows soon.
            async with asyncio.timeout(None if delay_s is None else min(delay_s + 0.001, 30.0)):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _create(
        self, instant: datetime, reason: str, *, scheduled: datetime | None = None
    ) -> datetime | None:
        """Put a new run into the ledger before anything acts; return its instant.

        None when the run that waited was approved in the meantime: that one goes first.
        """
        async with self._turn:
            if self.held is not None and self.held[1].approved:
                return None
            await self._replace_held()
            while True:
                try:
                    await self._put_new(instant, reason, scheduled)
                except RunExists:
                    log.warning("run_exists", job=self.name, run=instant_text(instant))
                    if scheduled is not None:
                        self.state = msgspec.structs.replace(self.state, last_due=scheduled)
                        return instant
                    instant += timedelta(microseconds=1)  # asked for twice, or the clock was set
                else:
                    return instant

    async def _replace_held(self) -> None:
        if self.held is not None:
            at, record = self.held
            self.held = None
            why = "a later run planned anew and took its place"
            await self._record(at, run_records.ended(record, Outcome.BLOCKED, why, self.wall()))

    async def _put_new(self, instant: datetime, reason: str, scheduled: datetime | None) -> None:
        record = RunRecord(
            due=instant,
            generation=self.job.generation,
            outcome=Outcome.RUNNING,
            reason=reason,
            started=self.wall(),
        )
        state = msgspec.structs.replace(
            self.state, phase="running", reason=reason, last_run=instant_text(instant)
        )
        if scheduled is not None:
            state = msgspec.structs.replace(state, last_due=scheduled)
        await self.ledger.create(self.ownership, instant, record, state)
        self.state = state
        self.current = CurrentRun(instant, record)

    async def _execute(self, running: CurrentRun) -> None:
        """Carry a run to its end, or to a hold, and record it."""
        instant = running.instant
        token = str(self.ownership.token)
        attempt = AttemptRecord(owner=self.node, token=token, started=self.wall())
        running.record = msgspec.structs.replace(
            running.record,
            outcome=Outcome.RUNNING,
            started=running.record.started or self.wall(),
            attempts=(*running.record.attempts, attempt),
            holds=(),
        )
        self._phase("running", running.record.reason)
        await self.ledger.write(self.ownership, self.state, [(instant, running.record)])
        try:
            order = self._order(
                instant_text(instant), approved=bytes.fromhex(running.record.approved)
            )
        except UnknownWorker as error:
            await self._finish(
                running, run_records.ended(running.record, Outcome.FAILED, str(error), self.wall())
            )
            return
        watchers = Watchers(progress=lambda progress: _set_progress(running, progress))
        with RunDriver(self.ownership, order, self.links, self.clock, watchers) as driver:
            running.driver = driver
            if running.is_cancelled:
                driver.cancel()
            ended = await self._drive(driver, running)
            record = run_records.outcome_of(running.record, ended, self.wall())
            await self._finish(running, record, ended)
            driver.settle()
        await self.ledger.trim(self.ownership)

    async def _drive(self, driver: RunDriver, running: CurrentRun) -> RunEnded:
        """Drive a run to its end, or, with `overlap: cancel`, until the next one is due."""
        if self.job.spec.overlap is not Overlap.CANCEL:
            return await driver.drive()
        watching = asyncio.create_task(self._cancel_when_due(running))
        try:
            return await driver.drive()
        finally:
            watching.cancel()

    async def _cancel_when_due(self, running: CurrentRun) -> None:
        began = self.wall()
        while True:
            due = self._next_due()
            every = self.job.spec.trigger.every
            if due is None or every is None or self.job.spec.trigger.counts_from is From.END:
                return
            if due <= began:  # missed before the run: no reason to end it
                step = timedelta(seconds=every.seconds)
                due += ((began - due) // step + 1) * step
            delay_s = (due - self.wall()).total_seconds()
            if delay_s <= 0:
                self._cancel_current(running)
                return
            await self.clock.sleep(min(delay_s + 0.001, 30.0))

    async def _finish(
        self, running: CurrentRun, record: RunRecord, ended: RunEnded | None = None
    ) -> None:
        """Record how a run stands now."""
        text = instant_text(running.instant)
        blocked = record.outcome is Outcome.BLOCKED
        good = record.outcome is Outcome.SUCCEEDED
        phase = {Outcome.BLOCKED: "blocked", Outcome.FAILED: "failed"}.get(record.outcome, "idle")
        behind = () if good else (ended.behind if ended else tuple(self.job.spec.targets))
        up_to_date = dict(self.state.up_to_date)
        if record.outcome in {Outcome.SUCCEEDED, Outcome.FAILED} and record.started:
            for target in self.job.spec.targets:
                if target not in behind:
                    up_to_date[target] = record.started
        self.state = msgspec.structs.replace(
            self.state,
            phase=phase,
            reason=record.reason,
            last_run=text,
            last_outcome=record.outcome.value,
            last_success=record.started if good else self.state.last_success,
            last_ended=self.wall(),
            up_to_date=up_to_date,
        )
        self.current = None
        self._last_began = record.started
        self.held = (running.instant, record) if blocked else None
        self.state = msgspec.structs.replace(self.state, next_due=self._next_due())
        await self.ledger.write(self.ownership, self.state, [(running.instant, record)])
        self._told.set()
        self._told = asyncio.Event()

    def _order(self, run: str, *, preview: bool = False, approved: bytes = b"") -> RunOrder:
        """Return what the workers are told; raises UnknownWorker."""
        return run_order(self.job, self.catalog.workers, run, preview=preview, approved=approved)

    def _phase(self, phase: str, reason: str) -> None:
        self.state = msgspec.structs.replace(self.state, phase=phase, reason=reason)

    def _cancel_current(self, running: CurrentRun) -> None:
        running.is_cancelled = True
        if running.driver is not None:
            running.driver.cancel()

    async def _record(self, instant: datetime, record: RunRecord) -> None:
        if self.held is None and self.current is None:
            self._phase("idle", "")
        await self.ledger.write(self.ownership, self.state, [(instant, record)])


def _set_progress(running: CurrentRun, progress: Progress) -> None:
    running.progress = progress
