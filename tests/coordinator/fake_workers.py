"""Workers in the test's own process that speak the values of `wire.orders`, and links to them.

Only what an owner can see of a worker is here: tokens, sessions, a run that takes its time. Workers
outlive the coordinators that talk to them.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from coordinator.lease_session import LeaseSession
from coordinator.links import LinkDown, LinkEvent, LinkUp, WorkerLinks
from syncengine.model import Counts, Hold, HoldReason, Problem, What
from wire.orders import (
    Assignment,
    CancelRun,
    CloseSession,
    LeaveRoom,
    Monitored,
    OpenSession,
    Order,
    Outcome,
    PlannedChange,
    Progress,
    RefusalReason,
    Refused,
    Report,
    RoomAt,
    RunEnded,
    RunPlanned,
    RunProgress,
    SessionOpened,
    SettleRun,
    Standing,
    StartRun,
    WantRoom,
)
from wire.room import Room
from wire.token import Token


@dataclass
class FakeRoom:
    """Room at a worker whose jobs are each a `FakeWorker` here."""

    room: Room
    by_job: "dict[str, FakeWorker]" = field(default_factory=dict)

    def want(self, worker: "FakeWorker", order: WantRoom, link: "FakeLink") -> None:
        self.by_job[order.job] = worker
        worker.room_for = order.run
        if order.is_under_way:
            self.room.take(order.job)
        else:
            now = asyncio.get_running_loop().time()
            self.room.ask(order.job, order.priority, now - order.waited_s)
        given = self.give_out()
        if order.job not in given:
            self.tell(order.job)

    def leave(self, job: str) -> None:
        self.room.give_back(job)
        self.give_out()

    def give_out(self) -> list[str]:
        given = self.room.give_out()
        for job in given:
            self.tell(job)
        return given

    def tell(self, job: str) -> None:
        worker = self.by_job[job]
        worker._report(
            RoomAt(job, worker.room_for, self.room.has(job), self.room.taken, self.room.limit or 0)
        )


WAY_S = 0.002
"""How long an order or a report is on its way."""


@dataclass
class _Run:
    id: str
    generation: int
    task: "asyncio.Task[None] | None" = None
    ended: RunEnded | None = None
    life: str = ""


@dataclass
class FakeWorker:
    """One worker. Its public fields say how it behaves, and what it has heard."""

    name: str
    is_up: bool = True
    run_s: float = 1.0
    refuses: RefusalReason | None = None
    plan: bytes = b""
    """A plan that a guard holds until exactly this is approved."""
    problems: tuple[Problem, ...] = ()
    behind: tuple[str, ...] = ()
    counts: Counts = field(default_factory=lambda: Counts(files_scanned=5, files_copied=2))
    heard: list[Order] = field(default_factory=list)
    highest: Token | None = None
    assignment: Assignment | None = None
    run: _Run | None = None
    links: "list[FakeLink]" = field(default_factory=list)
    to_owner: "FakeLink | None" = None
    lives: int = 0
    """How often it began to monitor."""
    at: FakeRoom | None = None
    """Where runs wait for room; None: nobody waits."""
    room_for: str = ""

    def orders(self, kind: type[Order]) -> list[Order]:
        return [order for order in self.heard if isinstance(order, kind)]

    @property
    def starts(self) -> list[StartRun]:
        return [order for order in self.heard if isinstance(order, StartRun)]

    def die(self, why: str = "unavailable: connection refused") -> None:
        """End without a word; what ran here is gone."""
        self.is_up = False
        self._stop()
        self._leave_room()
        self.run = self.assignment = None
        for link in self.links:
            link.tell(LinkDown(why))

    def hang_up(self) -> None:
        """Break the links for a moment; the worker itself goes on."""
        for link in self.links:
            link.tell(LinkDown("unavailable: reset"))
            link.tell(LinkUp())

    def come_back(self) -> None:
        self.is_up = True
        for link in self.links:
            link.tell(LinkUp())

    def take(self, order: Order, link: "FakeLink") -> None:
        """Carry out an order."""
        if not self.is_up:
            return
        self.heard.append(order)
        match order:
            case OpenSession():
                self._open(order, link)
            case StartRun() if self._is_allowed(order, link):
                self._start(order)
            case CancelRun(run=run) if self._is_allowed(order, link):
                if self.run is not None and self.run.id == run and self.run.ended is None:
                    self._stop()
                    self._end(self.run, self._result(order.job, run, Outcome.CANCELLED))
            case SettleRun(run=run) if self._is_allowed(order, link):
                if self.run is not None and self.run.id == run and self.run.ended is not None:
                    self.run = None
            case WantRoom() if self._is_allowed(order, link):
                assert self.at is not None, "nobody asks where there is room for all"
                self.at.want(self, order, link)
            case LeaveRoom() if self._is_allowed(order, link):
                self._leave_room()
            case CloseSession() if self._is_allowed(order, link):
                self._stop()
                self._leave_room()
                self.run = self.assignment = None
            case _:
                pass

    def _open(self, order: OpenSession, link: "FakeLink") -> None:
        job, token = order.assignment.job, order.token
        if self.refuses is not None:
            self._refuse(order, job, token, self.refuses, link)
            return
        if self.highest is not None and token < self.highest:
            self._refuse(order, job, token, RefusalReason.STALE_TOKEN, link)
            return
        self.highest, self.assignment, self.to_owner = token, order.assignment, link
        run = self.run
        limit = 0 if self.at is None else self.at.room.limit or 0
        opened = SessionOpened(job, token, room_limit=limit)
        if run is not None:
            opened = SessionOpened(job, token, run.id, run.generation, limit)
        link.report(opened)
        if run is not None and run.ended is not None:
            link.report(run.ended)

    def _is_allowed(
        self,
        order: StartRun | CancelRun | SettleRun | CloseSession | WantRoom | LeaveRoom,
        link: "FakeLink",
    ) -> bool:
        reason = None
        if self.highest is not None and order.token != self.highest:
            reason = RefusalReason.STALE_TOKEN
        elif self.assignment is None:
            reason = RefusalReason.NO_SESSION
        if reason is not None:
            self._refuse(order, order.job, order.token, reason, link)
        return reason is None

    def _refuse(
        self, order: Order, job: str, token: Token, reason: RefusalReason, link: "FakeLink"
    ) -> None:
        highest = self.highest or Token(0, 0)
        detail = f"{self.name} refuses: {reason}"
        link.report(Refused(job, token, highest, type(order).__name__, reason, detail))

    def _start(self, order: StartRun) -> None:
        assert self.assignment is not None
        generation = self.assignment.generation
        run = self.run
        is_same = run is not None and (run.id, run.generation) == (order.run, generation)
        if run is not None and is_same and run.ended is None:
            return
        self._stop()
        self.run = run = _Run(order.run, generation)
        run.task = asyncio.create_task(self._go(order, run))

    async def _go(self, order: StartRun, run: _Run) -> None:
        job, half_s = order.job, self.run_s / 2
        if order.monitor is not None:
            await self._monitor(order, run)
        await asyncio.sleep(half_s)
        if order.preview:
            change = PlannedChange(b"a\xff", "w2:data", "create", "file", 3)
            self._report(RunPlanned(job, order.run, (change,)))
        else:
            self._report(
                RunProgress(job, order.run, Progress(Counts(files_copied=1), 2, 8, "push"))
            )
        await asyncio.sleep(half_s)
        outcome = Outcome.FAILED if self.problems else Outcome.SUCCEEDED
        if self.plan and order.approved != self.plan:
            outcome = Outcome.BLOCKED
        self._end(run, self._result(job, order.run, outcome))

    async def _monitor(self, order: StartRun, run: _Run) -> None:
        """Follow changes until somebody stops it; what is told is the test's to say."""
        self.lives += 1
        run.life = f"{self.name}-{self.lives}"
        self.tell_monitored()
        await asyncio.Event().wait()

    def tell_monitored(
        self, *behind_s: float | None, counts: Counts | None = None, **more: Any
    ) -> None:
        """Tell the owner how the monitor stands; the targets are in step unless said otherwise."""
        assert self.assignment is not None
        assert self.run is not None
        names = [str(member) for member in self.assignment.targets]
        ages = behind_s or tuple(0.0 for _ in names)
        members = tuple(Standing(*one) for one in zip(names, ages, strict=True))
        self._report(
            Monitored(
                self.assignment.job,
                self.run.id,
                self.run.life,
                counts or Counts(),
                members,
                **more,
            )
        )

    def _result(self, job: str, run: str, outcome: Outcome) -> RunEnded:
        blocked = outcome is Outcome.BLOCKED
        hold = Hold(HoldReason.MAX_DELETE, "w2:data", "would delete 9 of 10 files")
        return RunEnded(
            job,
            run,
            outcome,
            Counts() if blocked else self.counts,
            self.problems,
            len(self.problems),
            (hold,) if blocked else (),
            self.plan if blocked else b"",
            self.behind,
        )

    def _end(self, run: _Run, ended: RunEnded) -> None:
        run.ended = replace(ended, generation=run.generation)
        self._report(run.ended)

    def _report(self, report: Report) -> None:
        if self.to_owner is not None:
            self.to_owner.report(report)

    def _leave_room(self) -> None:
        if self.at is not None and self.assignment is not None:
            self.at.leave(self.assignment.job)

    def _stop(self) -> None:
        if self.run is not None and self.run.task is not None:
            self.run.task.cancel()


@dataclass
class FakeSubscription:
    """One job's share of a link, as `links.Subscription`."""

    job: str
    lease: LeaseSession
    deliver: Callable[[LinkEvent], None]
    link: "FakeLink"

    def send(self, order: Order) -> None:
        if self.lease.remaining_s() > 0:
            self.link.order(order)

    def close(self) -> None:
        if self in self.link.subscriptions:
            self.link.subscriptions.remove(self)


@dataclass
class FakeLink:
    """The link of one coordinator to one worker; `is_cut` loses all that is said."""

    worker: FakeWorker
    is_cut: bool = False
    subscriptions: list[FakeSubscription] = field(default_factory=list)
    arrival: float = 0.0

    def subscribe(
        self, job: str, lease: LeaseSession, deliver: Callable[[LinkEvent], None]
    ) -> FakeSubscription:
        subscription = FakeSubscription(job, lease, deliver, self)
        self.subscriptions.append(subscription)
        if self.worker.is_up:
            deliver(LinkUp())
        else:
            deliver(LinkDown("unavailable: connection refused"))
        return subscription

    def order(self, order: Order) -> None:
        if self.worker.is_up and not self.is_cut:
            self._later(lambda: self.worker.take(order, self))

    def report(self, report: Report) -> None:
        if self.is_cut:
            return

        def arrive() -> None:
            for one in list(self.subscriptions):
                one.deliver(report)

        self._later(arrive)

    def _later(self, arrive: Callable[[], None]) -> None:
        """Have something arrive, after whatever was said before it: timers of one moment may swap."""
        loop = asyncio.get_running_loop()
        self.arrival = max(loop.time() + WAY_S, self.arrival + 1e-6)
        loop.call_at(self.arrival, arrive)

    def tell(self, event: LinkEvent) -> None:
        for one in list(self.subscriptions):
            one.deliver(event)


class FakeLinks:
    """What a coordinator has in place of `WorkerLinks`."""

    def __init__(self, workers: Iterable[FakeWorker]) -> None:
        self._workers = {worker.name: worker for worker in workers}
        self._links: dict[str, FakeLink] = {}

    def to(self, worker: str, address: str) -> FakeLink:
        assert address == f"{worker}.example:7000"
        if worker not in self._links:
            self._links[worker] = FakeLink(self._workers[worker])
            self._workers[worker].links.append(self._links[worker])
        return self._links[worker]

    def cut(self) -> None:
        """Nothing passes any more between this coordinator and any worker."""
        for link in self._links.values():
            link.is_cut = True

    def as_links(self) -> WorkerLinks:
        return cast("WorkerLinks", self)


def unreachable(member: str, detail: str = "refused") -> Problem:
    return Problem(b"", member, What.UNREACHABLE, detail)
