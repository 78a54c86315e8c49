"""A worker's sessions over real files, a link that remembers, and runs that do as they are told."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from syncengine.model import Counts, Rule, RunOptions
from tests.worker.clocks import ManualClock, until
from wire.orders import (
    Assignment,
    Extend,
    Member,
    OpenSession,
    Order,
    Outcome,
    Refused,
    Report,
    RunEnded,
    SessionOpened,
    StartRun,
)
from wire.room import Room
from wire.token import Token
from worker.journal import Journal
from worker.roots import ExportedRoot, Roots
from worker.sessions import Session, Sessions

R = TypeVar("R", bound=Report)
CLUSTER = 0xC1
T1, T2, T3 = Token(CLUSTER, 10), Token(CLUSTER, 20), Token(CLUSTER, 30)
LEASE = "1f"


@dataclass
class Link:
    """Where reports go in a test."""

    reports: list[Report] = field(default_factory=list)

    def send(self, report: Report) -> None:
        self.reports.append(report)

    def of(self, kind: type[R]) -> list[R]:
        return [report for report in self.reports if isinstance(report, kind)]

    async def next(self, kind: type[R], count: int = 1) -> R:
        """Return the `count`-th report of a kind, once it is there."""
        await until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]


@dataclass
class FakeRun:
    """A run that ends when it is told to."""

    job: str
    order: StartRun
    generation: int
    end: "asyncio.Future[RunEnded]"
    tokens: list[Token] = field(default_factory=list)
    was_cancelled: bool = False
    updates: list[StartRun] = field(default_factory=list)

    async def execute(self) -> RunEnded:
        try:
            return await self.end
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise

    def update(self, order: StartRun) -> None:
        """Note that an order for this very run came."""
        self.updates.append(order)

    def renew(self, token: Token) -> None:
        self.tokens.append(token)

    def cancelled(self) -> RunEnded:
        return self.result(Outcome.CANCELLED)

    def result(self, outcome: Outcome = Outcome.SUCCEEDED) -> RunEnded:
        return RunEnded(
            self.job, self.order.run, outcome, Counts(files_copied=3), generation=self.generation
        )

    def finish(self, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        self.end.set_result(self.result(outcome))


class Workbench:
    """One worker's `Sessions` and what a test needs around it."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "w1",
        max_runs: int | None = None,
    ) -> None:
        for root in ("data", "more", "ro"):
            (directory / root).mkdir(exist_ok=True)
        self.directory = directory
        self.clock = ManualClock()
        self.journal = Journal(directory / "journal.db")
        self.roots = Roots(
            (
                ExportedRoot("data", directory / "data", read_only=False),
                ExportedRoot("more", directory / "more", read_only=False),
                ExportedRoot("ro", directory / "ro", read_only=True),
                ExportedRoot("later", directory / "later", read_only=False),
            )
        )
        self.runs: list[FakeRun] = []
        self.link = Link()
        self.sessions = Sessions(
            worker=name,
            roots=self.roots,
            journal=self.journal,
            clock=self.clock,
            starts_run=self._starts_run,
            room=Room(max_runs),
        )

    def _starts_run(self, session: Session, order: StartRun) -> FakeRun:
        end: asyncio.Future[RunEnded] = asyncio.get_running_loop().create_future()
        run = FakeRun(order.job, order, session.assignment.generation, end)
        self.runs.append(run)
        return run

    def tell(self, order: Order, link: Link | None = None) -> None:
        self.sessions.take(order, link or self.link)

    async def opened(
        self,
        token: Token = T1,
        *,
        job: str = "job",
        link: Link | None = None,
        lease: str = LEASE,
        live_s: float = 5.0,
        **what: object,
    ) -> Session:
        """Open a session and extend it."""
        link = link or self.link
        count = len(link.of(SessionOpened)) + 1
        self.tell(OpenSession(assignment(job, **what), token, lease), link)
        await link.next(SessionOpened, count)
        self.extend(live_s, link, lease)
        session = self.sessions.get(job)
        assert session is not None
        return session

    def extend(self, live_s: float = 5.0, link: Link | None = None, lease: str = LEASE) -> None:
        self.tell(Extend(lease, int(self.clock.now() * 1e9), live_s), link)

    async def started(self, token: Token = T1, run: str = "r1", job: str = "job") -> FakeRun:
        """Order a run and return it once it goes on."""
        count = len(self.runs) + 1
        self.tell(StartRun(job, token, run))
        await until(lambda: len(self.runs) >= count)
        return self.runs[-1]

    async def refusal(self, order: Order, link: Link | None = None) -> Refused:
        link = link or self.link
        count = len(link.of(Refused)) + 1
        self.tell(order, link)
        return await link.next(Refused, count)

    async def settled_down(self) -> None:
        """Wait until every order that was given has been carried out."""
        await until(lambda: not self.sessions._tasks)

    async def close(self) -> None:
        await self.sessions.close()
        self.journal.close()
        self.roots.close()


def assignment(
    job: str = "job",
    *,
    source: Member | object = None,
    targets: object = None,
    generation: object = 1,
    rule: object = Rule.MIRROR,
) -> Assignment:
    here = source if isinstance(source, Member) else Member("w1", "data", b"", "127.0.0.1:1")
    there = targets if isinstance(targets, tuple) else (Member("w2", "data", b"", "127.0.0.1:2"),)
    assert isinstance(generation, int)
    assert isinstance(rule, Rule)
    return Assignment(job, generation, (here, *there), RunOptions(rule=rule))
