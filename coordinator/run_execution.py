"""One attempt at a run: from its record in the ledger to its end, a hold, or the wait for the next.

While it goes on, it is watched: a pause, windows that close, a cancel, and with `overlap: cancel` the
next due instant stop it at a safe point, which is wherever its workers are between two batches.
"""

import asyncio
from collections.abc import Collection
from datetime import datetime, timedelta

import msgspec

from coordinator import attempts, monitors, run_records, timetable
from coordinator.job import Overlap
from coordinator.keys import instant_text
from coordinator.owned_job import CurrentRun, OwnedJob
from coordinator.records import AttemptRecord, RunRecord, WaitRecord
from coordinator.run_driver import Queueing, RunDriver, RunOrder, Watchers
from coordinator.run_order import UnknownWorker, run_order
from wire.orders import Monitor, Monitored, Outcome, Progress, RunEnded

NEWS_S = 0.5
"""How long passes at least between two records of a monitor, when there is news."""
COUNTS_S = 5.0
"""The same while only what it has counted grows."""
KEEP_S = 60.0
"""How often it is written that a monitor with nothing to tell is there."""
WAITS_SHOWN_S = 0.5
"""From when on it is written that a run waits for room: most wait for a moment only."""
_LOOK_S = 30.0
"""How often a wall clock that may be set is looked at."""
_PHASES = {Outcome.BLOCKED: "blocked", Outcome.FAILED: "failed"}


class RunExecution(OwnedJob):
    """Carries runs of one job on."""

    __slots__ = ()

    async def _execute(self, running: CurrentRun) -> None:
        """Make an attempt, and record how it ended."""
        queueing = self._queueing(running)
        if running.is_begun:
            running.is_begun = False
        else:
            async with self._turn:
                await self._begin_attempt(running)
        try:
            order = self._order(
                instant_text(running.instant),
                approved=bytes.fromhex(running.record.approved),
                monitor=self._monitor_of(running.record),
            )
        except UnknownWorker as error:
            async with self._turn:
                record = run_records.ended(running.record, Outcome.FAILED, str(error), self.wall())
                await self._finish(running, record, self.job.spec.written)
            return
        watchers = Watchers(
            progress=lambda progress: _set_progress(running, progress),
            monitored=lambda told: self._note_monitor(running, told),
            unseen=lambda why: self._lose_sight(running, why),
            waits=lambda why, worker: self._set_waits(running, why, worker),
        )
        with RunDriver(self.ownership, order, self.links, self.clock, watchers, queueing) as driver:
            running.driver = driver
            if running.record.cancelled:
                driver.cancel()
            ended = await self._drive(driver, running)
            async with self._turn:
                record = run_records.outcome_of(running.record, ended, self.wall())
                await self._finish(running, record, ended.behind)
            driver.settle()
        running.driver = None
        async with self._turn:
            self.state = self._stored = await self.ledger.trim(
                self.ownership, self.state, self.wall()
            )

    def _queueing(self, running: CurrentRun) -> Queueing:
        """Return what a run brings along to where it waits for room."""
        record, waited_s = running.record, 0.0
        if record.waits is not None:
            waited_s = max(0.0, (self.wall() - record.waits.since).total_seconds())
        is_found = running.is_found and running.is_acting
        running.is_found = False
        running.waits = ("", "") if record.waits is None else (record.reason, record.waits.worker)
        return Queueing(
            self.room,
            waited_s,
            # Who waits at a worker may have room at another: it must not wait here as well.
            has_room=is_found and (record.waits is None or bool(record.waits.worker)),
            is_under_way=is_found and record.waits is None,
        )

    def _set_waits(self, running: CurrentRun, why: str, worker: str) -> None:
        if running.waits != (why, worker):
            if not running.waits[0]:
                running.waits_from = self.clock.now()
            running.waits = why, worker
            self._look.set()

    async def _show_waits(self, running: CurrentRun) -> None:
        """Have the ledger say that a run waits for room, or does not any more."""
        why, worker = running.waits
        record = running.record
        if self._until_waits_show(running) > 0:
            return
        if why:
            since = record.waits.since if record.waits is not None else self.wall()
            reason, waits = why, WaitRecord(since=since, worker=worker)
        else:
            reason, waits = record.begun, None
        if (record.reason, record.waits) == (reason, waits) or (waits, record.waits) == (
            None,
            None,
        ):
            return
        async with self._turn:
            running.record = msgspec.structs.replace(running.record, reason=reason, waits=waits)
            self._phase("waiting" if why else "running", reason)
            await self._write((running.instant, running.record))

    def _until_waits_show(self, running: CurrentRun) -> float:
        """Return in how many seconds the ledger is to say that a run waits; 0 when it is not news."""
        if not running.waits[0] or running.record.waits is not None:
            return 0.0
        return max(0.0, running.waits_from + WAITS_SHOWN_S - self.clock.now())

    async def _begin_attempt(self, running: CurrentRun) -> None:
        running.progress, running.parking = None, ""
        running.record = self._with_attempt(running.record)
        is_monitor = running.record.monitor is not None
        self._phase("monitoring" if is_monitor else "running", running.record.reason)
        await self._write((running.instant, running.record))

    def _with_attempt(self, record: RunRecord) -> RunRecord:
        """Return a run's record with another attempt, that begins now."""
        now = self.wall()
        attempt = AttemptRecord(owner=self.node, token=str(self.ownership.token), started=now)
        began = record.started or now
        return msgspec.structs.replace(
            record,
            outcome=Outcome.RUNNING,
            started=began,
            planned_from=now if record.is_parked else record.planned_from or began,
            attempts=(*record.attempts, attempt),
            holds=(),
            is_parked=False,
            again_at=None,
        )

    async def _drive(self, driver: RunDriver, running: CurrentRun) -> RunEnded:
        """Drive an attempt to its end, or until there is a reason to stop it."""
        beside = [asyncio.create_task(self._watch(running))]
        if running.record.monitor is not None:
            beside.append(asyncio.create_task(self._keep_record(running)))
        try:
            return await driver.drive()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _watch(self, running: CurrentRun) -> None:
        """Stop a run when it must not go on."""
        began = self.wall()
        while not running.parking and not running.record.cancelled:
            self._look.clear()
            await self._show_waits(running)
            why, until = self.why_not_now(running.record)
            if running.record.monitor is not None:
                if running.record.generation != self.job.generation:
                    why = "the job was changed"
                if why:
                    await self._cancel_durably(running, why)
                    return
            if why:
                self._park(running, why, until)
                return
            now = self.wall()
            due = self._due_during(began)
            if due is not None and due <= now:
                await self._cancel_durably(running, "the next run was due")
                return
            span = None if running.record.by_hand else self.job.spec.open_times.opening(now)
            looks = [at for at in (due, span and span[1]) if at is not None]
            delays = [(at - now).total_seconds() + 0.001 for at in looks]
            delays += [wait_s for wait_s in [self._until_waits_show(running)] if wait_s > 0]
            try:
                async with asyncio.timeout(min([*delays, _LOOK_S])):
                    await self._look.wait()
            except TimeoutError:
                pass

    def _due_during(self, began: datetime) -> datetime | None:
        """Return the instant that ends a run with `overlap: cancel`."""
        job = self.job
        if job.spec.overlap is not Overlap.CANCEL:
            return None
        due = timetable.comes_during(job, self.state, began)
        return due if due is not None and job.spec.open_times.is_open(due) else None

    def _park(self, running: CurrentRun, why: str, until: datetime | None = None) -> None:
        """Stop a run for now."""
        running.parking, running.parked_until = why, until
        running.stop()

    async def _cancel_durably(self, running: CurrentRun, why: str) -> None:
        """End a run: in the ledger first, so that the next owner does if this one dies."""
        async with self._turn:
            if self.current is not running:
                return
            running.record = msgspec.structs.replace(running.record, cancelled=why)
            await self._write((running.instant, running.record))
        running.stop()

    # Monitors

    def _monitor_of(self, record: RunRecord) -> Monitor | None:
        """Return how the run of this record follows changes, None when it is to end."""
        realtime = self.job.spec.trigger.realtime
        if record.monitor is None or realtime is None:
            return None
        return Monitor(realtime.settle.seconds, realtime.audit.seconds, record.monitor.asked)

    def _note_monitor(self, running: CurrentRun, told: Monitored) -> None:
        """Take what a worker told of a monitor; `_keep_record` writes it."""
        now = self.wall()
        running.record = monitors.noted(running.record, told)
        self.state = monitors.standing(self.state, running.record, told, now)
        running.has_news.set()

    def _lose_sight(self, running: CurrentRun, why: str) -> None:
        if running.record.monitor is not None:
            self.state = monitors.lost_sight(self.state, why)
            running.has_news.set()

    def tell_monitor(self, running: CurrentRun) -> None:
        """Have the worker hear what was asked of its monitor; it is in the record already."""
        if running.driver is not None:
            running.driver.tell(
                approved=bytes.fromhex(running.record.approved),
                monitor=self._monitor_of(running.record),
            )

    async def _keep_record(self, running: CurrentRun) -> None:
        """Write how a monitor stands: soon when somebody may wait for it, never for every change."""
        written = self.clock.now()
        while True:
            try:
                async with asyncio.timeout(KEEP_S):
                    await running.has_news.wait()
            except TimeoutError:
                if self.state.followed:
                    self.state = monitors.seen_alive(self.state, self.wall())
            running.has_news.clear()
            is_urgent = monitors.is_urgent(self._stored, self.state)
            rest_s = (NEWS_S if is_urgent else COUNTS_S) - (self.clock.now() - written)
            if rest_s > 0:
                await self._unless_urgent(running, rest_s)
            async with self._turn:
                await self._write((running.instant, running.record))
            written = self.clock.now()
            self._tell()

    async def _unless_urgent(self, running: CurrentRun, rest_s: float) -> None:
        """Let a moment pass, a shorter one once there is something that somebody may wait for."""
        until = self.clock.now() + rest_s
        while (left_s := until - self.clock.now()) > 0:
            await self.clock.sleep(min(left_s, NEWS_S))
            if monitors.is_urgent(self._stored, self.state):
                return
        running.has_news.clear()

    async def _finish(
        self, running: CurrentRun, record: RunRecord, behind: Collection[str]
    ) -> None:
        """Record how a run stands after an attempt."""
        now = self.wall()
        good = record.outcome is Outcome.SUCCEEDED
        outcome = record.outcome
        up_to_date = dict(self.state.up_to_date)
        if record.monitor is not None:
            self.state = monitors.lost_sight(self.state, "")
            up_to_date = dict(self.state.up_to_date)
        elif outcome in {Outcome.SUCCEEDED, Outcome.FAILED} and record.planned_from:
            for target in self.job.spec.written:
                if good or target not in behind:
                    up_to_date[target] = record.planned_from
        self.state = msgspec.structs.replace(self.state, up_to_date=up_to_date)
        if outcome in {Outcome.CANCELLED, Outcome.BLOCKED} and record.cancelled:
            record = run_records.ended(record, Outcome.CANCELLED, record.cancelled, now)
        elif outcome is Outcome.CANCELLED and running.parking:
            open_again = msgspec.structs.replace(running.record, counts=record.counts)
            record = attempts.parked(open_again, running.parking, running.parked_until, now)
        elif outcome is Outcome.FAILED:
            record = attempts.after_failure(self.job, record, now, self.next_due())
        if record.is_parked:
            await self._wait_for_next(running, record)
            return
        self.state = msgspec.structs.replace(
            self.state,
            phase=_PHASES.get(record.outcome, "idle"),
            reason="" if good else record.reason,
            last_run=instant_text(running.instant),
            last_outcome=record.outcome.value,
            last_success=record.planned_from if good else self.state.last_success,
            last_began=record.started,
            last_ended=now,
        )
        self.current = None
        self.held = (running.instant, record) if record.outcome is Outcome.BLOCKED else None
        self.state = msgspec.structs.replace(self.state, next_due=self.next_due())
        await self._write((running.instant, record))
        self._tell()

    async def _wait_for_next(self, running: CurrentRun, record: RunRecord) -> None:
        """Keep a run between two attempts."""
        running.record = record
        wait_s = 0.0
        if record.again_at is not None and not running.parking:
            wait_s = (record.again_at - self.wall()).total_seconds()
        running.not_before = self.clock.now() + wait_s
        self._phase("waiting", record.reason)
        await self._write((running.instant, record))
        self._tell()

    def _order(
        self,
        run: str,
        *,
        preview: bool = False,
        approved: bytes = b"",
        verify: bool = False,
        monitor: Monitor | None = None,
    ) -> RunOrder:
        """Return what the workers are told; raises UnknownWorker."""
        return run_order(
            self.job,
            self.catalog.workers,
            run,
            preview=preview,
            approved=approved,
            verify=verify,
            monitor=monitor,
        )

    def remaining_wait(self, record: RunRecord) -> float:
        """Return how long an open run of the ledger waits for its next attempt, in seconds.

        Never longer than the job's retries ask for, wherever the wall clock has gone.
        """
        if record.again_at is None or not record.failures:
            return 0.0
        longest = self.job.spec.attempts_of(by_hand=record.by_hand).delay_s(record.failures)
        left = record.again_at - self.wall()
        return min(max(left, timedelta(0)).total_seconds(), longest)


def _set_progress(running: CurrentRun, progress: Progress) -> None:
    running.progress = progress
