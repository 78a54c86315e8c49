"""One run as its owner drives it: sessions at every worker, one order, and then the outcome.

Fence first: the session is opened at every worker before the run is ordered. One worker, the runner,
gets the order: of a one-way rule the source's, else the first member's that can be reached. What a
worker is found doing for this very run is adopted; what it does for another is replaced by the order.
The driver outlives broken links and restarted workers within limits, and gives up with an outcome that
names who was missing. It writes nothing to etcd: recording the outcome, then settling, is the caller's.

A runner that dies takes its run along. Of `sync` and `exchange` the run is given to the next member
that can be reached, since every member keeps its own agreed state and can begin anew; a source is
waited for. The old runner may be alive, cut off from us but not from the members. It does no harm: a
member lets only the worker that listed it last change it, and every change is checked against what
the plan saw (I6). When it can be reached again it is told to stop.
"""

import asyncio
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import structlog

from coordinator.ledger import TokenRefused
from coordinator.links import LinkDown, LinkEvent, LinkUp, Subscription, WorkerLinks
from coordinator.ownership import Ownership
from coordinator.run_room import RunRoom, waits_at
from syncengine.model import Counts, Problem, What
from wire.clock import Clock
from wire.orders import (
    Assignment,
    CancelRun,
    CloseSession,
    LeaveRoom,
    Monitor,
    Monitored,
    OpenSession,
    Order,
    Outcome,
    PlannedChange,
    Progress,
    RefusalReason,
    Refused,
    RoomAt,
    RunEnded,
    RunPlanned,
    RunProgress,
    SessionOpened,
    SettleRun,
    StartRun,
    WantRoom,
)

log = structlog.get_logger()

OPEN_S = 5.0
"""How long a worker may take to open its session before the run goes on without it."""
SOURCE_AWAY_S = 15.0
"""How long a run waits for its runner to come back when no other worker can take its place."""
RUNNER_AWAY_S = 3.0
"""How long it waits when another can."""
RESTARTS = 3
"""How often a run that a dying runner took along is started again."""
REOPEN_S = 0.2
REFUSED_AGAIN_S = 5.0
"""After how long a monitor asks a worker again that refused its session: somebody may have mended it."""
LOOK_S = 0.5
"""How often a run looks whether it waits for somebody for too long."""
QUIET_LOOK_S = 10.0
"""The same while all of its workers are there and it waits only for what they tell."""
ROOM_LOOK_S = 5.0
"""How often a run that waits for room at its coordinator looks, beside when it is told."""


@dataclass(frozen=True, slots=True)
class RunOrder:
    """What is to be run."""

    assignment: Assignment
    run: str
    addresses: Mapping[str, str]
    """By worker."""
    preview: bool = False
    approved: bytes = b""
    number: int = 0
    """Grows with every run of the job."""
    verify: bool = False
    monitor: Monitor | None = None
    priority: int = 0
    time_limit_s: float = 0.0
    """0 for no limit."""

    @property
    def needs_room(self) -> bool:
        """Whether it counts among runs that have room: who only looks waits for nobody, nor does a
        monitor, which would keep its room for ever.
        """
        return not (self.preview or self.verify or self.monitor is not None)


@dataclass(frozen=True, slots=True)
class Queueing:
    """With what a run begins to wait for room."""

    room: RunRoom
    """At this coordinator."""
    waited_s: float = 0.0
    has_room: bool = False
    """It has room here, be there any: a run that was found at the workers."""
    is_under_way: bool = False
    """It has room everywhere: it was found going on."""


@dataclass(slots=True)
class Watchers:
    """Who hears of a run while it goes on."""

    progress: Callable[[Progress], None] = lambda _progress: None
    planned: Callable[[tuple[PlannedChange, ...]], None] = lambda _changes: None
    restarted: Callable[[str], None] = lambda _why: None
    monitored: Callable[[Monitored], None] = lambda _told: None
    unseen: Callable[[str], None] = lambda _why: None
    """Nobody hears of a monitor any more, and why."""
    waits: Callable[[str, str], None] = lambda _why, _worker: None
    """Why it waits for room, empty when it does not any more, and at which worker, if it is one."""


class RunDriver:
    """Drives one run. Use as a context manager; leaving it hangs up without ending the sessions."""

    def __init__(
        self,
        owned: Ownership,
        order: RunOrder,
        links: WorkerLinks,
        clock: Clock,
        watchers: Watchers,
        queueing: Queueing | None = None,
    ) -> None:
        """Prepare; nothing is said to anybody before `drive`."""
        self._owned = owned
        self._order = order
        self._links = links
        self._clock = clock
        self._watchers = watchers
        self._queueing = queueing or Queueing(RunRoom())
        self._waits_since = clock.now() - self._queueing.waited_s
        self._has_room: set[str] = set()
        """The workers at which it has room."""
        self._limited: set[str] = set()
        """The workers that have room for so many runs only."""
        self._in_queue = ""
        """The worker that was asked for room and gave none yet."""
        members = order.assignment.members
        self._workers = tuple(dict.fromkeys(member.worker for member in members))
        self._runner = order.assignment.runners[0]
        """Who carries the run out; may change until it is ordered, and when it goes away."""
        self._events: asyncio.Queue[tuple[str, LinkEvent | None]] = asyncio.Queue()
        """By worker what it told; None to have a look at how things stand."""
        self._subscriptions: dict[str, Subscription] = {}
        self._opened: set[str] = set()
        self._away: dict[str, str] = {}
        """By worker why its link is down: worth waiting for."""
        self._refusing: dict[str, str] = {}
        """By worker why it refuses: not worth waiting for."""
        self._is_ordered = False
        self._is_cancelled = False
        self._has_started = False
        self._restarts = 0
        self._away_since: float | None = None
        self._last = Progress(Counts())
        self._again_at: dict[str, float] = {}
        """By refusing worker when it is asked again."""

    def __enter__(self) -> Self:
        """Subscribe to every worker's link."""
        for worker in self._workers:
            link = self._links.to(worker, self._order.addresses[worker])
            self._subscriptions[worker] = link.subscribe(
                self._owned.job,
                self._owned.session,
                functools.partial(self._deliver, worker),
            )
        if self._order.needs_room:
            self._queueing.room.enter(
                self._owned.job,
                self._order.priority,
                self._waits_since,
                is_under_way=self._queueing.has_room,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Hang up; the sessions at the workers stay for the next owner."""
        for subscription in self._subscriptions.values():
            subscription.close()
        if self._order.needs_room:
            self._queueing.room.leave(self._owned.job)

    def _deliver(self, worker: str, event: LinkEvent) -> None:
        self._events.put_nowait((worker, event))

    @property
    def is_under_way(self) -> bool:
        """Whether the run goes on under our token."""
        return self._is_ordered

    def cancel(self) -> None:
        """Have the runner stop the run, once it can be told; `drive` returns the outcome."""
        self._is_cancelled = True
        self._queueing.room.wake(self._owned.job)
        self._events.put_nowait((self._runner, None))
        if self._is_ordered:
            self._say_cancel()

    def tell(self, *, approved: bytes, monitor: Monitor | None) -> None:
        """Tell a monitor of an approval, or of an audit that somebody asks for, as soon as can be."""
        self._order = replace(self._order, approved=approved, monitor=monitor)
        if self._is_ordered and not self._is_cancelled:
            self._say_start()

    def settle(self) -> None:
        """The outcome is recorded: let the workers forget the run and end their sessions."""
        job, token = self._owned.job, self._owned.token
        self._say(self._runner, SettleRun(job, token, self._order.run))
        for worker in self._workers:
            self._say(worker, CloseSession(job, token))

    async def drive(self) -> RunEnded:
        """Carry the run to its end; raises TokenRefused when a worker knows a newer owner."""
        if self._order.needs_room and not await self._has_room_here():
            return self._ended(Outcome.CANCELLED)
        began = self._clock.now()
        self._away_since = began
        while True:
            try:
                async with asyncio.timeout(self._look_s()):
                    worker, event = await self._events.get()
            except TimeoutError:
                pass
            else:
                ended = await self._hear(worker, event)
                if ended is not None:
                    return self._with_missing(ended)
            now = self._clock.now()
            self._ask_again(now)
            if self._away_since is not None:
                away_s = now - self._away_since
                if away_s > RUNNER_AWAY_S:
                    self._look_for_another()
                if away_s > SOURCE_AWAY_S and self._ends_without_runner:
                    return self._runner_missing()
            if self._restarts > RESTARTS and self._ends_without_runner:
                return self._given_up()
            if not self._is_ordered:
                ended = self._try_to_start(is_time=now - began > OPEN_S)
                if ended is not None:
                    return ended

    def _look_s(self) -> float:
        """Return how long nothing needs to be looked at that nobody tells: thousands of runs wait."""
        is_waiting = set(self._workers) != self._opened or self._again_at
        is_unsure = is_waiting or self._away_since is not None
        return LOOK_S if is_unsure else QUIET_LOOK_S

    @property
    def _ends_without_runner(self) -> bool:
        """Whether the run ends when nobody carries it out: a monitor waits, unless it is to end."""
        return self._order.monitor is None or self._is_cancelled

    def _ask_again(self, now: float) -> None:
        for worker, at in list(self._again_at.items()):
            if now >= at:
                del self._again_at[worker]
                self._open(worker)

    async def _has_room_here(self) -> bool:
        """Wait for room at this coordinator before anything is said to a worker; False: cancelled."""
        job, room = self._owned.job, self._queueing.room
        while not room.has(job):
            if self._is_cancelled:
                return False
            self._watchers.waits(room.why, "")
            await room.wait(job, ROOM_LOOK_S)
        return True

    def _has_room_at_workers(self) -> bool:
        """Ask for room at one worker after another, in the order of their names.

        What is held out of that order, since a worker came back late, is given back first: whoever
        holds room waits only for workers that come later, so nobody waits in a circle.
        """
        if not self._order.needs_room:
            return True
        here = sorted(self._opened & self._limited)
        missing = next((worker for worker in here if worker not in self._has_room), None)
        if missing is None:
            self._in_queue = ""
            return True
        if missing != self._in_queue:
            for worker in here:
                if worker > missing and (worker in self._has_room or worker == self._in_queue):
                    self._has_room.discard(worker)
                    self._say(worker, LeaveRoom(self._owned.job, self._owned.token))
            self._in_queue = missing
            self._want_room(missing)
        return False

    def _want_room(self, worker: str) -> None:
        waited_s = max(0.0, self._clock.now() - self._waits_since)
        is_under_way = self._queueing.is_under_way or self._has_started or self._is_ordered
        order = self._order
        self._say(
            worker,
            WantRoom(
                self._owned.job,
                self._owned.token,
                order.run,
                order.priority,
                waited_s,
                is_under_way,
            ),
        )

    def _hear_of_room(self, worker: str, room: RoomAt) -> None:
        if room.is_given:
            self._has_room.add(worker)
        elif worker == self._in_queue:
            self._watchers.waits(waits_at(worker, room.taken, room.limit), worker)

    def _try_to_start(self, *, is_time: bool) -> RunEnded | None:
        """Order the run when everybody who may come is there, or it is time."""
        waiting = set(self._workers) - self._opened - self._refusing.keys()
        if waiting and not is_time:
            return None
        able = [worker for worker in self._order.assignment.runners if worker in self._opened]
        if not able:
            return None
        if self._is_cancelled:
            return self._ended(Outcome.CANCELLED)
        if self._has_room_at_workers():
            self._choose(able[0])
            self._start()
        return None

    def _choose(self, runner: str) -> None:
        if runner != self._runner:
            log.info("runner_chosen", job=self._owned.job, run=self._order.run, worker=runner)
        self._runner = runner
        self._away_since = None

    def _look_for_another(self) -> None:
        """Give the run up at a runner that is away, if another worker can take its place."""
        if self._is_ordered and any(
            worker in self._opened for worker in self._order.assignment.runners
        ):
            self._lost(f"worker {self._runner} cannot be reached: {self._away.get(self._runner)}")

    def _lost(self, why: str) -> None:
        """Start the run again: its runner has lost it, or is lost with it."""
        self._restarts += 1
        self._is_ordered = False
        self._watchers.restarted(why)

    async def _hear(self, worker: str, event: LinkEvent | None) -> RunEnded | None:
        match event:
            case LinkUp():
                self._open(worker)
            case LinkDown(why):
                self._down(worker, why)
            case SessionOpened() if event.token == self._owned.token:
                self._up(worker, event)
            case RoomAt(run=self._order.run):
                self._hear_of_room(worker, event)
            case RunProgress(run=self._order.run, progress=progress):
                self._last = progress
                self._watchers.progress(progress)
            case Monitored(run=self._order.run) if worker == self._runner:
                self._watchers.monitored(event)
            case RunPlanned(run=self._order.run, changes=changes):
                self._watchers.planned(changes)
            case RunEnded(run=self._order.run):
                return self._hear_of_end(worker, event)
            case Refused():
                return await self._refused(worker, event)
            case _:
                pass
        return None

    def _hear_of_end(self, worker: str, ended: RunEnded) -> RunEnded | None:
        if ended.generation not in {0, self._order.assignment.generation}:
            # RACE: the definition changed, and then the owner: this is how the run ended under the
            # old one, told again while the new one is carried out.
            log.info("old_outcome_ignored", job=self._owned.job, run=ended.run, worker=worker)
        elif worker != self._runner:
            # Of a runner that was given up: nobody waits for its outcome.
            self._say(worker, SettleRun(self._owned.job, self._owned.token, ended.run))
        elif self._is_of_before_the_approval(ended):
            self._is_ordered = False
        else:
            return ended
        return None

    def _down(self, worker: str, why: str) -> None:
        self._closed(worker)
        self._away[worker] = why
        self._again_at.pop(worker, None)
        if worker == self._runner and self._away_since is None:
            self._away_since = self._clock.now()
        if worker == self._runner:
            self._watchers.unseen(f"worker {worker} cannot be reached: {why}")

    def _closed(self, worker: str) -> None:
        """There is no session at a worker, or none that we know of: nor is there room."""
        self._opened.discard(worker)
        self._has_room.discard(worker)
        if worker == self._in_queue:
            self._in_queue = ""

    def _up(self, worker: str, opened: SessionOpened) -> None:
        self._opened.add(worker)
        (self._limited.add if opened.room_limit else self._limited.discard)(worker)
        self._away.pop(worker, None)
        self._refusing.pop(worker, None)
        if worker == self._runner:
            self._away_since = None
        self._adopt(worker, opened)
        if self._order.needs_room and self._is_ordered and opened.room_limit:
            self._want_room(worker)  # a run that goes on is counted there

    def _open(self, worker: str) -> None:
        lease = f"{self._owned.session.lease_id:x}"
        self._say(worker, OpenSession(self._order.assignment, self._owned.token, lease))

    def _is_of_before_the_approval(self, ended: RunEnded) -> bool:
        """Whether this is the hold that was approved, told again because nobody settled it."""
        is_old = not self._has_started and ended.outcome is Outcome.BLOCKED
        return is_old and bool(ended.plan) and ended.plan == self._order.approved

    def _say_cancel(self) -> None:
        self._say(self._runner, CancelRun(self._owned.job, self._owned.token, self._order.run))

    def _start(self) -> None:
        self._is_ordered = self._has_started = True
        self._say_start()

    def _say_start(self) -> None:
        order = self._order
        self._watchers.waits("", "")
        self._say(
            self._runner,
            StartRun(
                self._owned.job,
                self._owned.token,
                order.run,
                order.preview,
                order.approved,
                order.number,
                order.verify,
                order.monitor,
                order.time_limit_s,
            ),
        )

    def _adopt(self, worker: str, opened: SessionOpened) -> None:
        """Judge what a worker is doing: our run, nothing, or something to be replaced."""
        generation = self._order.assignment.generation
        is_ours = opened.run == self._order.run and opened.generation == generation
        if worker != self._runner:
            if is_ours and self._is_ordered:
                self._say(worker, CancelRun(self._owned.job, self._owned.token, opened.run))
            if not is_ours or self._is_ordered:
                return
            self._choose(worker)
        if is_ours:
            if not self._is_ordered:
                log.info("run_adopted", job=self._owned.job, run=opened.run, worker=worker)
            self._is_ordered = True
            self._watchers.waits("", "")
            if self._is_cancelled:
                self._say_cancel()
            elif self._order.monitor is not None:
                self._say_start()  # it may not have heard of an approval or an audit
        elif self._is_ordered:
            self._lost(f"worker {worker} lost the run")

    async def _refused(self, worker: str, refused: Refused) -> RunEnded | None:
        if refused.token != self._owned.token:
            return None
        match refused.reason:
            case RefusalReason.STALE_TOKEN:
                raise TokenRefused(worker, refused.detail)
            case RefusalReason.EXPIRED | RefusalReason.NO_SESSION:
                # The deadline passed while nobody extended it: begin again at this worker.
                self._closed(worker)
                self._is_ordered = self._is_ordered and worker != self._runner
                await self._clock.sleep(REOPEN_S)
                self._open(worker)
                return None
            case _:
                self._refusing[worker] = refused.detail
                if not self._ends_without_runner:
                    self._again_at[worker] = self._clock.now() + REFUSED_AGAIN_S
                    if worker == self._runner:
                        self._watchers.unseen(refused.detail)
                    return None
                if not set(self._order.assignment.runners) <= self._refusing.keys():
                    return None
                return self._failed(self._at_runner(refused.detail))

    def _at_runner(self, detail: str) -> Problem:
        members = self._order.assignment.members
        where = next(member for member in members if member.worker == self._runner)
        return Problem(b"", str(where), What.UNREACHABLE, detail)

    def _runner_missing(self) -> RunEnded:
        why = self._away.get(self._runner, "it does not answer")
        address = self._order.addresses[self._runner]
        detail = f"worker {self._runner} at {address} cannot be reached: {why}"
        return self._failed(self._at_runner(detail))

    def _given_up(self) -> RunEnded:
        detail = f"worker {self._runner} restarted {self._restarts} times during the run"
        return self._failed(self._at_runner(detail))

    def _failed(self, problem: Problem) -> RunEnded:
        outcome = Outcome.CANCELLED if self._is_cancelled else Outcome.FAILED
        return self._ended(outcome, problem)

    def _ended(self, outcome: Outcome, *problems: Problem) -> RunEnded:
        """Return an outcome that we know without the runner."""
        return RunEnded(
            self._owned.job,
            self._order.run,
            outcome,
            self._last.done,
            problems,
            len(problems),
            behind=tuple(str(member) for member in self._order.assignment.written),
        )

    def _with_missing(self, ended: RunEnded) -> RunEnded:
        """Put what we know of refusing members beside what the runner saw of them."""
        problems = list(ended.problems)
        for target in self._order.assignment.written:
            why = self._refusing.get(target.worker) or self._away.get(target.worker)
            if why is None:
                continue
            known = Problem(b"", str(target), What.UNREACHABLE, why)
            for place, problem in enumerate(problems):
                if problem.member == str(target) and problem.what is What.UNREACHABLE:
                    problems[place] = known
                    break
        return replace(ended, problems=tuple(problems))

    def _say(self, worker: str, order: Order) -> None:
        self._subscriptions[worker].send(order)
