"""A worker: the real sessions, fence and gates; its journal and its trees are in memory."""

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from syncengine.model import Counts, Problem, What
from tests.simulation.loop import Process
from tests.simulation.network import Line, Pipe
from wire.orders import (
    Assignment,
    Extend,
    Hello,
    Member,
    OpenSession,
    Order,
    Outcome,
    Pulse,
    Report,
    RunEnded,
    StartRun,
)
from wire.token import Token
from worker.fence import Gate
from worker.link import PULSE_S
from worker.sessions import Session, Sessions

if TYPE_CHECKING:
    from tests.simulation.world import World
    from worker.journal import Journal
    from worker.roots import Roots

SLICES = 3
"""How many slices a run publishes at each target."""
_PARK_LOOK_S = 0.25
_PUSH_S = 3.0
"""After how long without an answer a push has failed."""


class MemoryJournal:
    """What survives a worker's death: the tokens accepted."""

    def __init__(self, worker: "SimulatedWorker") -> None:
        self.accepted: dict[tuple[str, str], Token] = {}
        self._worker = worker

    def tokens(self, job: str, roots: Sequence[str]) -> dict[str, Token]:
        found = ((root, self.accepted.get((job, root))) for root in roots)
        return {root: token for root, token in found if token is not None}

    def accept(self, job: str, roots: Sequence[str], token: Token) -> None:
        for root in roots:
            self._worker.world.checks.accepted(self._worker.name, job, root, token)
            self.accepted[job, root] = token

    def accepted_cluster(self) -> None:
        """No etcd was ever replaced."""


class _Root:
    read_only = False


class _Roots:
    """Every root is there, and may be written."""

    names = ("data",)

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> _Root:
        return _Root()


@dataclass(eq=False, slots=True)
class _Link:
    """The way back to one coordinator."""

    pipe: Pipe
    worker: "SimulatedWorker"
    is_open: bool = True

    def send(self, report: Report) -> None:
        if isinstance(report, Pulse):
            report = self.worker.pulse()  # the stamp is the moment of sending
        self.pipe.send(report)

    def keep_pulsing(self) -> None:
        if self.is_open:
            self.send(Pulse(0))
            self.worker.world.loop.call_later(PULSE_S, self.keep_pulsing)


class SimulatedWorker:
    """One worker, through all of its lives."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.journal = MemoryJournal(self)
        self.process: Process
        self.sessions: Sessions
        self.start()

    def start(self) -> None:
        """Begin a life."""
        self.process = Process(self.world.loop, self.name)
        self.process.context.run(self._begin)

    def _begin(self) -> None:
        self._gates: dict[tuple[str, str, str], Gate] = {}
        self.sessions = Sessions(
            worker=self.name,
            roots=cast("Roots", _Roots()),
            journal=cast("Journal", self.journal),
            clock=self.world.clock,
            starts_run=lambda session, order: SimulatedRun(self, session, order),
        )
        self.process.start(self.sessions.reap())

    def pulse(self) -> Pulse:
        return Pulse(int(self.world.clock.now() * 1e9))

    def accept(self, line: Line, answers: Pipe) -> _Link:
        """A coordinator has connected."""
        link = _Link(answers, self)
        link.keep_pulsing()
        return link

    def take(self, order: Order, link: _Link) -> None:
        """Hear an order."""
        if not isinstance(order, Extend | Hello):
            job = order.assignment.job if isinstance(order, OpenSession) else order.job
            self.world.trace.add(self.name, f"hears {type(order).__name__} {job} {order.token}")
        self.sessions.take(order, link)

    def hung_up(self, link: _Link) -> None:
        """A line to a coordinator is over."""
        link.is_open = False
        self.sessions.link_gone(link)

    # What the source of a run asks of a target

    def asked_to_publish(
        self,
        order: StartRun,
        badge: Token,
        member: Member,
        push: str,
        answer: "asyncio.Future[str]",
    ) -> None:
        """Publish a slice if the badge allows it, waiting for as long as it does not yet."""
        self.process.start(self._publish(order, badge, member, push, answer))

    def shown(self, job: str, push: str, badge: Token) -> None:
        """Give a push that is under way a newer badge, as `PeerService.RenewBadge`."""
        session = self.sessions.get(job)
        gate = self._gates.get((job, push, self.name))
        if session is not None and session.token == badge and gate is not None:
            gate.renew(badge)

    async def _publish(
        self,
        order: StartRun,
        badge: Token,
        member: Member,
        push: str,
        answer: "asyncio.Future[str]",
    ) -> None:
        said = await self._try_to_publish(order, badge, member, push)
        source = self.world.workers[push.partition("/")[0]]
        self.world.network.pass_on(
            (self.name, source.name),
            source.process,
            lambda: None if answer.done() else answer.set_result(said),
        )

    async def _try_to_publish(
        self, order: StartRun, badge: Token, member: Member, push: str
    ) -> str:
        session = self.sessions.get(order.job)
        if session is None or session.token != badge:
            return "not now"
        key = (order.job, push, self.name)
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = Gate(session.fence, badge)
        else:
            gate.renew(badge)
        for _ in range(20):
            if gate._is_decided():
                break
            await asyncio.sleep(_PARK_LOOK_S)
        else:
            return "parked for too long"
        with gate.publishing():
            self.world.checks.published(self, order.job, member.root, order.run, gate.badge)
        return "done"


class SimulatedRun:
    """What a source does: slice after slice at target after target."""

    def __init__(self, worker: SimulatedWorker, session: Session, order: StartRun) -> None:
        self._worker = worker
        self._world = worker.world
        self._assignment: Assignment = session.assignment
        self._order = order
        self.token = order.token
        self._push = f"{worker.name}/{order.run}/{self._world.count()}"
        self._counts = Counts()
        self._behind = [str(target) for target in self._assignment.targets]

    def renew(self, token: Token) -> None:
        """Go on under a newer token, and show it to every target."""
        self.token = token
        job = self._order.job
        for target in self._assignment.targets:
            worker = self._world.workers[target.worker]
            self._world.network.pass_on(
                (self._worker.name, worker.name),
                worker.process,
                functools.partial(worker.shown, job, self._push, token),
            )

    def update(self, order: StartRun) -> None:
        """Take nothing: only a monitor does."""

    def cancelled(self) -> RunEnded:
        return self._ended(Outcome.CANCELLED, ())

    async def execute(self) -> RunEnded:
        problems = []
        for target in self._assignment.targets:
            if await self._push_to(target):
                self._behind.remove(str(target))
            else:
                problems.append(Problem(b"", str(target), What.UNREACHABLE, "no answer"))
        return self._ended(Outcome.FAILED if problems else Outcome.SUCCEEDED, tuple(problems))

    async def _push_to(self, target: Member) -> bool:
        random = self._world.loop.random
        for _ in range(SLICES):
            await asyncio.sleep(random.uniform(0.02, 0.4))
            until = self._world.clock.now() + _PUSH_S
            while (said := await self._ask(target)) != "done":
                if self._world.clock.now() >= until or said == "lost":
                    return False
                await asyncio.sleep(0.1)
            self._counts.files_copied += 1
        return True

    async def _ask(self, target: Member) -> str:
        loop = self._world.loop
        answer: asyncio.Future[str] = loop.create_future()
        timer = loop.call_later(
            _PUSH_S, lambda: None if answer.done() else answer.set_result("lost")
        )
        worker = self._world.workers[target.worker]
        self._world.network.pass_on(
            (self._worker.name, worker.name),
            worker.process,
            functools.partial(
                worker.asked_to_publish, self._order, self.token, target, self._push, answer
            ),
        )
        try:
            return await answer
        finally:
            timer.cancel()

    def _ended(self, outcome: Outcome, problems: tuple[Problem, ...]) -> RunEnded:
        return RunEnded(
            self._order.job,
            self._order.run,
            outcome,
            self._counts,
            problems,
            len(problems),
            behind=tuple(self._behind),
        )
