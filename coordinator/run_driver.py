"""One run as its owner drives it: sessions at every worker, one order, and then the outcome.

Fence first: the session is opened at every worker before the run is ordered. What a worker is found
doing for this very run is adopted; what it does for another is replaced by the order. The driver
outlives broken links and restarted workers within limits, and gives up with an outcome that names who
was missing. It writes nothing to etcd: recording the outcome, then settling, is the caller's.
"""

import asyncio
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import structlog

from coordinator.ledger import NotOwner
from coordinator.links import LinkDown, LinkEvent, LinkUp, Subscription, WorkerLinks
from coordinator.ownership import Ownership
from syncengine.model import Counts, Problem, What
from wire.clock import Clock
from wire.orders import (
    Assignment,
    CancelRun,
    CloseSession,
    OpenSession,
    Order,
    Outcome,
    PlannedChange,
    Progress,
    RefusalReason,
    Refused,
    RunEnded,
    RunPlanned,
    RunProgress,
    SessionOpened,
    SettleRun,
    StartRun,
)

log = structlog.get_logger()

OPEN_S = 5.0
"""How long a worker may take to open its session before the run goes on without it."""
SOURCE_AWAY_S = 15.0
"""How long a run waits for its source worker to come back."""
RESTARTS = 3
"""How often a run that a dying source worker took along is started again."""
REOPEN_S = 0.2


@dataclass(frozen=True, slots=True)
class RunOrder:
    """What is to be run."""

    assignment: Assignment
    run: str
    addresses: Mapping[str, str]
    """By worker."""
    preview: bool = False
    approved: bytes = b""


@dataclass(slots=True)
class Watchers:
    """Who hears of a run while it goes on."""

    progress: Callable[[Progress], None] = lambda _progress: None
    planned: Callable[[tuple[PlannedChange, ...]], None] = lambda _changes: None
    restarted: Callable[[str], None] = lambda _why: None


class RunDriver:
    """Drives one run. Use as a context manager; leaving it hangs up without ending the sessions."""

    def __init__(
        self,
        owned: Ownership,
        order: RunOrder,
        links: WorkerLinks,
        clock: Clock,
        watchers: Watchers,
    ) -> None:
        """Prepare; nothing is said to anybody before `drive`."""
        self._owned = owned
        self._order = order
        self._links = links
        self._clock = clock
        self._watchers = watchers
        self._source = order.assignment.source.worker
        targets = order.assignment.targets
        self._workers = tuple(dict.fromkeys((self._source, *(t.worker for t in targets))))
        self._events: asyncio.Queue[tuple[str, LinkEvent]] = asyncio.Queue()
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

    def __enter__(self) -> Self:
        """Subscribe to every worker's link."""
        for worker in self._workers:
            link = self._links.to(worker, self._order.addresses[worker])
            self._subscriptions[worker] = link.subscribe(
                self._owned.job,
                self._owned.session,
                functools.partial(self._deliver, worker),
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

    def _deliver(self, worker: str, event: LinkEvent) -> None:
        self._events.put_nowait((worker, event))

    def cancel(self) -> None:
        """Have the source stop the run, once it can be told; `drive` returns the outcome."""
        self._is_cancelled = True
        if self._is_ordered:
            self._say_cancel()

    def settle(self) -> None:
        """The outcome is recorded: let the workers forget the run and end their sessions."""
        job, token = self._owned.job, self._owned.token
        self._say(self._source, SettleRun(job, token, self._order.run))
        for worker in self._workers:
            self._say(worker, CloseSession(job, token))

    async def drive(self) -> RunEnded:
        """Carry the run to its end; raises NotOwner when a worker knows a newer owner."""
        began = self._clock.now()
        self._away_since = began
        while True:
            try:
                async with asyncio.timeout(0.5):
                    worker, event = await self._events.get()
            except TimeoutError:
                pass
            else:
                ended = await self._hear(worker, event)
                if ended is not None:
                    return self._with_missing(ended)
            now = self._clock.now()
            if self._away_since is not None and now - self._away_since > SOURCE_AWAY_S:
                return self._source_missing()
            if self._restarts > RESTARTS:
                return self._given_up()
            is_time = now - began > OPEN_S
            if self._source in self._opened and not self._is_ordered:
                waiting = set(self._workers) - self._opened - self._refusing.keys()
                if self._is_cancelled:
                    return self._ended(Outcome.CANCELLED)
                if is_time or not waiting:
                    self._start()

    async def _hear(self, worker: str, event: LinkEvent) -> RunEnded | None:
        match event:
            case LinkUp():
                self._open(worker)
            case LinkDown(why):
                self._down(worker, why)
            case SessionOpened() if event.token == self._owned.token:
                self._up(worker, event)
            case RunProgress(run=self._order.run, progress=progress):
                self._last = progress
                self._watchers.progress(progress)
            case RunPlanned(run=self._order.run, changes=changes):
                self._watchers.planned(changes)
            case RunEnded(run=self._order.run) if worker == self._source:
                if not self._is_of_before_the_approval(event):
                    return event
                self._is_ordered = False
            case Refused():
                return await self._refused(worker, event)
            case _:
                pass
        return None

    def _down(self, worker: str, why: str) -> None:
        self._opened.discard(worker)
        self._away[worker] = why
        if worker == self._source and self._away_since is None:
            self._away_since = self._clock.now()

    def _up(self, worker: str, opened: SessionOpened) -> None:
        self._opened.add(worker)
        self._away.pop(worker, None)
        self._refusing.pop(worker, None)
        if worker == self._source:
            self._away_since = None
            self._adopt(opened)

    def _open(self, worker: str) -> None:
        lease = f"{self._owned.session.lease_id:x}"
        self._say(worker, OpenSession(self._order.assignment, self._owned.token, lease))

    def _is_of_before_the_approval(self, ended: RunEnded) -> bool:
        """Whether this is the hold that was approved, told again because nobody settled it."""
        is_old = not self._has_started and ended.outcome is Outcome.BLOCKED
        return is_old and bool(ended.plan) and ended.plan == self._order.approved

    def _say_cancel(self) -> None:
        self._say(self._source, CancelRun(self._owned.job, self._owned.token, self._order.run))

    def _start(self) -> None:
        order = self._order
        self._is_ordered = self._has_started = True
        self._say(
            self._source,
            StartRun(self._owned.job, self._owned.token, order.run, order.preview, order.approved),
        )

    def _adopt(self, opened: SessionOpened) -> None:
        """Judge what the source is doing: our run, nothing, or something to be replaced."""
        generation = self._order.assignment.generation
        if opened.run == self._order.run and opened.generation == generation:
            if not self._is_ordered:
                log.info("run_adopted", job=self._owned.job, run=opened.run)
            self._is_ordered = True
            if self._is_cancelled:
                self._say_cancel()
            return
        if self._is_ordered:
            self._restarts += 1
            self._watchers.restarted(f"worker {self._source} lost the run")
        self._is_ordered = False

    async def _refused(self, worker: str, refused: Refused) -> RunEnded | None:
        if refused.token != self._owned.token:
            return None
        match refused.reason:
            case RefusalReason.STALE_TOKEN:
                raise NotOwner(f"worker {worker}: {refused.detail}")
            case RefusalReason.EXPIRED | RefusalReason.NO_SESSION:
                # The deadline passed while nobody extended it: begin again at this worker.
                self._opened.discard(worker)
                self._is_ordered = self._is_ordered and worker != self._source
                await self._clock.sleep(REOPEN_S)
                self._open(worker)
                return None
            case _:
                self._refusing[worker] = refused.detail
                if worker != self._source:
                    return None
                problem = Problem(
                    b"", str(self._order.assignment.source), What.UNREACHABLE, refused.detail
                )
                return self._failed(problem)

    def _source_missing(self) -> RunEnded:
        why = self._away.get(self._source, "it does not answer")
        source = self._order.assignment.source
        address = self._order.addresses[self._source]
        detail = f"worker {self._source} at {address} cannot be reached: {why}"
        return self._failed(Problem(b"", str(source), What.UNREACHABLE, detail))

    def _given_up(self) -> RunEnded:
        source = self._order.assignment.source
        detail = f"worker {self._source} restarted {self._restarts} times during the run"
        return self._failed(Problem(b"", str(source), What.UNREACHABLE, detail))

    def _failed(self, problem: Problem) -> RunEnded:
        outcome = Outcome.CANCELLED if self._is_cancelled else Outcome.FAILED
        return self._ended(outcome, problem)

    def _ended(self, outcome: Outcome, *problems: Problem) -> RunEnded:
        """Return an outcome that we know without the source."""
        return RunEnded(
            self._owned.job,
            self._order.run,
            outcome,
            self._last.done,
            problems,
            len(problems),
            behind=tuple(str(target) for target in self._order.assignment.targets),
        )

    def _with_missing(self, ended: RunEnded) -> RunEnded:
        """Put what we know of refusing targets beside what the source saw of them."""
        problems = list(ended.problems)
        for target in self._order.assignment.targets:
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
