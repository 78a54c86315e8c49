"""What the owner of one job does: wait for what is due, run it, record it.

One task per owned job. It is cancelled when the ownership ends; a run that is under way then goes on
at the workers, and the next owner finds it in the ledger and adopts it.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime

import msgspec
import structlog

from coordinator import run_records, timetable
from coordinator.errors import CoordinatorError
from coordinator.ledger import LedgerMoved, NotOwner, TokenRefused
from coordinator.owned_job import CurrentRun, RequestRefused, utc_now
from coordinator.records import MonitorRecord, MoveRecord, RunRecord
from coordinator.run_requests import Request, RunRequests, asked
from coordinator.timetable import Patience, Todo
from coordinator.wall_watch import WallWatch
from wire.orders import Outcome

__all__ = ["CurrentRun", "JobOwner", "RequestRefused", "utc_now"]

log = structlog.get_logger()

PARK_S = 5.0
"""How long a restart waits for a run to stop at its workers."""
_PARK_LOOK_S = 0.1
_ADOPT_LOOK_S = 0.002
HAND_OVER_S = 1.0
"""How long an owner that stops may take to write down that it does."""
_LOOK_S = 30.0
"""How often a wall clock that may be set is looked at."""


@dataclass(slots=True)
class JobOwner(RunRequests):
    """Owns one job on behalf of `node`, for as long as `own` runs."""

    is_leaving: bool = False
    """Nothing new is begun: the job is about to be given up."""
    _is_known: bool = False
    """The state is the ledger's."""
    _walls: WallWatch | None = None

    # The task

    async def own(self) -> None:
        """Do the job's work until cancelled; returns when the ownership turns out to be over."""
        self._is_over = False
        try:
            while True:
                try:
                    await self._begin()
                    while not self._is_behind:
                        self._wake.clear()
                        if not await self._do_next():
                            await self._sleep()
                except LedgerMoved as error:
                    log.info("ledger_moved", job=self.name, why=str(error), then="it is read again")
        except TokenRefused as error:
            log.info("ownership_over", job=self.name, why=str(error))
            await self._show_refusal(error)
        except NotOwner as error:
            log.info("ownership_over", job=self.name, why=str(error))
        finally:
            self._is_over = True
            self._ready.set()  # nobody may wait here for what does not come
            requests, self._requests = self._requests, []
            for request in requests:
                if not request.created.done():
                    request.created.set_exception(NotOwner(f"job {self.name} has changed hands"))

    async def _show_refusal(self, error: TokenRefused) -> None:
        """Say why a job that is ours does not go on; when it is another's by now, nothing is written."""
        if not self.ownership.is_held:
            return
        self._phase(
            "waiting",
            f"{error}. If etcd was set back to a backup, 'baton worker accept {error.worker}' "
            "lets that worker take tokens of what it is now",
        )
        running = self.current
        runs = []
        if running is not None and running.is_acting and running.record.attempts:
            if running.driver is not None and running.driver.is_under_way:
                record = run_records.close_attempt(running.record, str(error), self.wall())
            else:  # whom nobody obeyed made no attempt; it asks again every few seconds
                record = msgspec.structs.replace(
                    running.record, attempts=running.record.attempts[:-1]
                )
            record = msgspec.structs.replace(record, reason=self.state.reason)
            runs.append((running.instant, record))
        try:
            async with asyncio.timeout(HAND_OVER_S), self._turn:
                await self._write(*runs)
        except (TimeoutError, CoordinatorError) as refused:
            log.info("refusal_not_recorded", job=self.name, why=str(refused))

    async def hand_over(self, reason: str = "stopped") -> None:
        """Write down that this owner gives the job up, and why.

        Called after `own` was cancelled, before the release.
        """
        if not self.ownership.is_held or not self._is_known:
            return
        try:
            # A request may be writing: what it writes must not be written over.
            async with asyncio.timeout(HAND_OVER_S), self._turn:
                try:
                    await self._record_hand_over(reason)
                except LedgerMoved:
                    await self._recall()
                    await self._record_hand_over(reason)
        except (TimeoutError, CoordinatorError) as error:
            log.warning("hand_over_not_recorded", job=self.name, why=str(error))

    async def _record_hand_over(self, reason: str) -> None:
        running = self.current
        is_acting = running is not None and running.is_acting
        if reason == "stopped" and not is_acting:
            return  # many jobs at once, while a host goes down
        now = self.wall()
        self.state = msgspec.structs.replace(
            self.state, moved=MoveRecord(node=self.node, reason=reason, at=now)
        )
        runs = []
        if running is not None and running.is_acting:
            why = f"{self.node} handed the job over: {reason}"
            runs.append((running.instant, run_records.close_attempt(running.record, why, now)))
        await self._write(*runs)

    @property
    def is_at_safe_point(self) -> bool:
        """Whether giving the job up would interrupt nothing."""
        running = self.current
        # A monitor is adopted as it goes on: no moment would ever be better.
        is_acting = running is not None and running.is_acting and running.record.monitor is None
        busy = is_acting or self._requests or self._preview is not None or self._turn.locked()
        return self._ready.is_set() and not busy

    async def until_adopted(self) -> None:
        """Wait until this owner gives orders for what it found going on; raises NotOwner."""
        await self._until_ready()
        running = self.current
        while self.current is running and running is not None and running.is_acting:
            if running.driver is not None and (running.driver.is_under_way or running.waits[0]):
                return
            await self.clock.sleep(_ADOPT_LOOK_S)

    async def prepare_restart(self, reason: str) -> None:
        """Stop what goes on, so that the next owner begins it afresh; waits for that, not for long."""
        await self._until_ready()
        self.is_leaving = True
        running = self.current
        if running is not None and running.is_acting:
            if running.record.monitor is not None:
                await self._cancel_durably(running, reason)
            else:
                self._park(running, reason)
            try:
                async with asyncio.timeout(PARK_S):
                    while self.current is running and running.is_acting:
                        await self.until_told(_PARK_LOOK_S)
            except TimeoutError:
                log.warning("run_not_stopped", job=self.name, then="the next owner adopts it")
        async with self._turn:
            waiting = self.current
            if waiting is not None and not waiting.is_acting:
                waiting.record = msgspec.structs.replace(waiting.record, again_at=None)
                await self._write((waiting.instant, waiting.record))
            if self.state.phase == "failed":
                self._phase("idle", "")

    async def _begin(self) -> None:
        """Recall what the ledger knows; requests wait for that."""
        self._ready.clear()
        async with self._turn:
            await self._recall()
        self._is_known = True
        self._ready.set()

    async def _recall(self) -> None:
        self._is_behind = False
        memory = await self.ledger.recall(self.name)
        self.state = self._stored = memory.state
        self.current = self.held = self.queued = None
        self._walls = WallWatch(self.wall, self.clock)
        queued = [run for run in memory.open_runs if run[1].is_queued]
        begun = [run for run in memory.open_runs if not run[1].is_queued]
        for at, record in (*begun[:-1], *queued[:-1]):
            why = "a later run took over"
            await self._write((at, run_records.ended(record, Outcome.FAILED, why, self.wall())))
        self.queued = queued[-1] if queued else None
        if begun:
            at, record = begun[-1]
            if record.outcome is Outcome.BLOCKED and record.monitor is None:
                self.held = begun[-1]
            else:
                record = run_records.close_attempt(record, "its owner was lost", self.wall())
                self.current = CurrentRun(at, record, is_found=bool(record.attempts))
                self.current.not_before = self.clock.now() + self.remaining_wait(record)

    async def _do_next(self) -> bool:
        """Do one thing that is due; return whether there was one."""
        if self.is_leaving:
            return False
        if self.current is not None and self._may_act(self.current):
            while self._preview is not None:
                self._preview.cancel()
                await self._preview_over.wait()
            await self._execute(self.current)
            return True
        if self.held is not None and self.held[1].approved and not self.pause_reason:
            instant, record = self.held
            self.held = None
            self.current = CurrentRun(instant, record)
            return True
        if self.queued is not None and not self.pause_reason:
            await self._begin_queued()
            return True
        if self._requests:
            await self._serve(self._requests[0])
            return True
        return await self._do_scheduled()

    def _may_act(self, running: CurrentRun) -> bool:
        """Whether a run is to be carried on now; one that acts is, be it to be stopped."""
        if running.is_acting:
            return True
        if self._is_interrupted(running):
            return False
        is_time = running.record.cancelled or self.clock.now() >= running.not_before
        return bool(is_time) and not self.why_not_now(running.record)[0]

    def _is_interrupted(self, running: CurrentRun) -> bool:
        """Whether a monitor waits for a preview to end; other runs end it."""
        return running.record.monitor is not None and self._preview is not None

    async def _begin_queued(self) -> None:
        async with self._turn:
            if self.queued is None or (self.held is not None and self.held[1].approved):
                return
            instant, record = self.queued
            await self._end_held()
            await self._end_parked()
            self.queued = None
            self.current = CurrentRun(instant, record)

    async def _serve(self, request: Request) -> None:
        """Create the run that somebody asked for."""
        reason = asked(request.by)
        if not self.job.spec.open_times.is_open(self.wall()):
            reason = f"{reason}, {timetable.OUTSIDE}"
        record = self._new_run(self.wall(), reason, by_hand=True)
        created = await self._create(record)
        if created is not None:
            self._requests.remove(request)
            if not request.created.done():
                request.created.set_result(created)

    async def _do_scheduled(self) -> bool:
        if self._walls is None or self.pause_reason:
            return False
        todo = self._look_at_the_clock()
        if isinstance(todo, Patience):
            self.state = msgspec.structs.replace(self.state, was_paused=False)
            return False
        self._walls.forget()
        if todo.passed:
            await self._pass_over(todo)
        if todo.instant is not None:
            record = self._new_run(todo.instant, todo.reason)
            if self.job.spec.trigger.realtime is not None:
                record = msgspec.structs.replace(record, monitor=MonitorRecord())
            await self._create(record)
        return True

    def _look_at_the_clock(self) -> Todo | Patience:
        assert self._walls is not None, "the task has begun"
        self.next_due()
        if self.current is not None and self.current.record.monitor is not None:
            return Patience(None)  # one that rests is the one that is due
        return timetable.look(self.job, self.state, self.wall(), self._walls.set_ahead_at())

    async def _pass_over(self, todo: Todo) -> None:
        """Record instants that came and went without a run."""
        async with self._turn:
            state, records = run_records.numbered(self.state, todo.passed)
            state = msgspec.structs.replace(state, was_paused=False)
            await self.ledger.add(self.ownership, state, records)
            self.state = self._stored = state

    async def _sleep(self) -> None:
        """Wait for a request, a change, or the next due instant; show when that is."""
        patience = Patience(None)
        if self.pause_reason:
            self.state = msgspec.structs.replace(self.state, was_paused=True)
        elif self._walls is not None:
            found = self._look_at_the_clock()
            patience = found if isinstance(found, Patience) else Patience(self.wall())
        await self._show(patience)
        waits = []
        if patience.until is not None:
            waits.append(max(0.0, (patience.until - self.wall()).total_seconds()) + 0.001)
        if self.current is not None and not self._is_interrupted(self.current):
            why, until = self.why_not_now(self.current.record)
            if until is not None:
                waits.append(max(0.0, (until - self.wall()).total_seconds()) + 0.001)
            elif not why:
                waits.append(max(0.0, self.current.not_before - self.clock.now()) + 0.001)
        try:
            # Short sleeps, so that a wall clock that is set shows soon.
            async with asyncio.timeout(min([*waits, _LOOK_S]) if waits else None):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _show(self, patience: Patience) -> None:
        """Have the state say for what the job waits."""
        phase, reason = self.state.phase, self.state.reason
        if self.pause_reason:
            phase, reason = "paused", self.pause_reason
        elif self.current is not None:
            phase, reason = "waiting", self.current.record.reason
        elif patience.reason:
            phase, reason = "waiting", patience.reason
        elif self.held is not None:
            phase, reason = "blocked", self.held[1].reason
        elif phase in {"waiting", "paused"}:
            phase, reason = ("failed" if self.state.last_outcome == "failed" else "idle"), ""
        async with self._turn:
            self.state = msgspec.structs.replace(
                self.state, phase=phase, reason=reason, next_due=patience.until
            )
            if self.state != self._stored:
                await self._write()

    # New runs

    async def _create(self, record: RunRecord) -> datetime | None:
        """Put a new run into the ledger before anything acts; return its instant.

        None when the run that waited was approved in the meantime: that one goes first.
        """
        async with self._turn:
            if self.held is not None and self.held[1].approved:
                return None
            await self._end_held()
            await self._end_parked()
            is_monitor = record.monitor is not None
            self._phase("monitoring" if is_monitor else "running", record.reason)
            # With its first attempt, which comes at once: one write less for every run.
            instant, record = await self._put_new(self._with_attempt(record))
            self.current = CurrentRun(instant, record, is_begun=True)
            return instant
