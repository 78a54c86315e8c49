"""What every run has in common at the worker that carries it out, whatever its rule.

A run lists the members, plans, lets the guards judge, previews or carries the plan out, and starts anew
a few times with what changed under its hands. Here are its order and its token, what it has come to at
each member, its progress and its result. The rules are in `one_way` and `n_way`.
"""

import abc
import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import structlog

from syncengine.changes import Change
from syncengine.errors import EngineError, SharedTree
from syncengine.lineage import Lineage, is_shared
from syncengine.model import Counts, Hold, Problem, What
from syncengine.phases import Plan
from syncengine.sender import Sender, SendResult
from wire.clock import Clock
from wire.orders import (
    Assignment,
    Member,
    Outcome,
    Progress,
    Report,
    RunEnded,
    RunPlanned,
    RunProgress,
    StartRun,
)
from wire.token import Token
from worker.channels import Channels
from worker.errors import PeerRefused
from worker.fence import Fence, Gate
from worker.member_tree import MemberTree, MemberTrees
from worker.peer import Peer
from worker.peer_listing import PeerFailed
from worker.planned import planned_changes
from worker.receiving import receiver_for
from worker.threads import in_own_thread
from worker.uses import Uses

log = structlog.get_logger()

PASSES = 3
"""How often a run is planned anew when a member changed under its hands."""
PROGRESS_S = 0.2
REPORTED_PROBLEMS = 100
"""How many problems a run names, each with a path of up to 4 KiB; the rest it counts."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run needs of the worker that carries it out."""

    worker: str
    trees: MemberTrees
    uses: Uses
    channels: Channels
    clock: Clock
    fence: Fence
    """Of the job: who changes a tree of this very worker passes it too."""
    report: Callable[[Report], None]


@dataclass(slots=True)
class Part:
    """What a run has come to at one member."""

    member: Member
    peer: Peer | None
    """The way there; None for the tree that the run itself works in."""
    why_away: Problem | None = None
    """That it cannot be reached, or no longer."""
    holds: tuple[Hold, ...] = ()
    lineage: Lineage = ()
    counts: Counts = field(default_factory=Counts)
    problems: list[Problem] = field(default_factory=list)
    """Of this pass."""
    retry: list[bytes] = field(default_factory=list)
    """What changed under its hands in this pass."""
    is_equal: bool = False
    """Whether it has become what the run makes it."""

    @property
    def name(self) -> str:
        """The member as the job names it."""
        return str(self.member)

    def begin_pass(self) -> None:
        """Forget what the pass before had against it."""
        self.problems.clear()
        self.retry.clear()
        self.holds = ()
        self.is_equal = False

    def failed(self, error: PeerFailed) -> None:
        """Go on without the member."""
        log.warning("member_failed", member=self.name, why=str(error))
        self.counts.add(error.sent)
        self.is_equal = False
        self.why_away = Problem(b"", self.name, What.UNREACHABLE, str(error))

    @contextlib.contextmanager
    def reaching(self) -> Iterator[None]:
        """Note it when the member fails within the block, and go on after it."""
        try:
            yield
        except PeerFailed as error:
            self.failed(error)

    def note(self, sent: SendResult) -> None:
        """Take what became of a push."""
        self.counts.add(sent.counts)
        self.problems += sent.problems
        self.retry += sent.retry
        failing = any(problem.what.fails for problem in self.problems)
        self.is_equal = sent.is_complete and not failing and not sent.retry

    def all_problems(self) -> list[Problem]:
        """Return everything that speaks against the member now."""
        detail = "changed at the target while the run went on"
        changed = [Problem(path, self.name, What.TARGET_CHANGED, detail) for path in self.retry]
        away = [self.why_away] if self.why_away is not None else []
        return [*away, *self.problems, *changed]


def peer_of(job: str, order: StartRun, member: Member, around: Surroundings) -> Peer:
    """Return the way to a member for a run; connects to nobody yet."""
    return Peer(job, order.run, order.token, member, around.channels, around.clock)


class MemberRun(abc.ABC):
    """One run at the worker that carries it out. `execute` once; `renew` and `progress` meanwhile."""

    def __init__(self, assignment: Assignment, order: StartRun, around: Surroundings) -> None:
        """Prepare; nothing happens before `execute`."""
        self.assignment = assignment
        self.options = assignment.options
        self.order = order
        self.around = around
        self.phase = "scan"
        self.scanned = 0
        self.own_problems: list[Problem] = []
        """What the run has met that belongs to no part of it."""
        self.token = order.token
        self.parts: list[Part] = []
        self._lineages: dict[str, Lineage] = {}

    def part(self, member: Member, *, is_own: bool = False) -> Part:
        """Make the part of one member."""
        if is_own:
            return Part(member, None)
        order, around = self.order, self.around
        return Part(member, peer_of(self.assignment.job, order, member, around))

    def lies(self, name: str, lineage: Lineage) -> None:
        """Note where a member's tree lies; raises SharedTree when another has files in common."""
        for other, theirs in self._lineages.items():
            if other != name and is_shared(lineage, theirs):
                raise SharedTree(
                    f"{name} and {other} are one directory, or one lies in the other: "
                    "members of a job must share nothing"
                )
        self._lineages[name] = lineage

    @property
    def reached(self) -> list[Part]:
        """The parts that nothing is wrong with so far."""
        return [part for part in self.parts if part.why_away is None]

    def renew(self, token: Token) -> None:
        """Go on under a newer token: every member is shown it."""
        self.token = token
        for part in self.parts:
            if part.peer is not None:
                part.peer.renew(token)

    def update(self, order: StartRun) -> None:
        """Take nothing from an order that came twice."""
        log.debug("order_came_twice", run=order.run)

    def cancelled(self) -> RunEnded:
        """Return how far it came, after `execute` was cancelled."""
        return self.result(Outcome.CANCELLED)

    async def execute(self) -> RunEnded:
        """Carry the run out; whatever goes wrong with trees and members is in the result."""
        reporter = asyncio.create_task(self._report_progress())
        try:
            return await self.outcome_of_it()
        finally:
            reporter.cancel()
            for part in self.parts:
                if part.peer is not None:
                    await part.peer.close()
            self.close()

    async def outcome_of_it(self) -> RunEnded:
        """Carry it out, and take what goes wrong into the result."""
        try:
            return await self.carry_out()
        except (EngineError, OSError, PeerRefused) as error:
            where = self.own_name
            self.own_problems.append(Problem(b"", where, What.UNREADABLE, str(error)))
            return self.result(Outcome.FAILED)

    async def locally(self, opened: MemberTree, plan: Plan, gate: Gate) -> SendResult:
        """Carry out a plan that needs no content in a tree of this very worker."""
        member = str(opened.member)
        sender = Sender(opened.opened, plan, member=member, target_member=member)

        def carry_out() -> SendResult:
            receiver = receiver_for(opened, self.options, gate)
            try:
                for frame in sender.frames():
                    for reply in receiver.feed(frame):
                        sender.on_reply(reply)
                for reply in receiver.finish():
                    sender.on_reply(reply)
            finally:
                receiver.abort()
            return sender.result()

        def stop() -> None:
            sender.abort()
            # Not here: whoever publishes a slice holds the gate's lock.
            threading.Thread(target=gate.close, daemon=True).start()

        sent = await in_own_thread(carry_out, stop=stop)
        sent.counts.bytes_sent = 0  # nothing went over any wire
        return sent

    @abc.abstractmethod
    async def carry_out(self) -> RunEnded:
        """List, plan, judge, and do what the rule says."""

    @property
    @abc.abstractmethod
    def own_name(self) -> str:
        """The member whose tree the run works in."""

    @abc.abstractmethod
    def totals(self) -> tuple[int, int]:
        """Return how many files are to be sent, and their bytes; zeros before there is a plan."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of plans."""

    async def preview(
        self,
        plans: Iterable[tuple[str, Iterable[Change]]],
        holds: tuple[Hold, ...],
        digest: bytes,
    ) -> RunEnded:
        """Tell what the plans would change, and change nothing."""
        loop = asyncio.get_running_loop()
        stopped = threading.Event()

        def tell() -> None:
            for changes in planned_changes(plans):
                if stopped.is_set():
                    return
                planned = RunPlanned(self.assignment.job, self.order.run, changes)
                loop.call_soon_threadsafe(self.around.report, planned)

        await in_own_thread(tell, stop=stopped.set)
        outcome = Outcome.BLOCKED if holds else self.outcome(planned_only=True)
        return self.result(outcome, holds, digest if holds else b"")

    # Results

    def problems(self) -> Iterator[Problem]:
        """Yield everything that the run names, what fails it first."""
        found = [
            *self.own_problems,
            *(problem for part in self.parts for problem in part.all_problems()),
        ]
        yield from (problem for problem in found if problem.what.fails)
        yield from (problem for problem in found if not problem.what.fails)

    def outcome(self, *, planned_only: bool = False) -> Outcome:
        """Return how the run ends, by what it has met."""
        failing = any(problem.what.fails for problem in self.problems())
        complete = planned_only or all(part.is_equal for part in self.parts)
        return Outcome.FAILED if failing or not complete else Outcome.SUCCEEDED

    def counts(self) -> Counts:
        """Return what has been done, at all members."""
        counts = Counts(files_scanned=self.scanned)
        for part in self.parts:
            counts.add(part.counts)
        return counts

    def result(
        self, outcome: Outcome, holds: tuple[Hold, ...] = (), digest: bytes = b""
    ) -> RunEnded:
        """Return the run's end as its owner hears of it."""
        problems = list(self.problems())
        own_fails = any(problem.what.fails for problem in self.own_problems)
        written = {str(member) for member in self.assignment.written}
        behind = tuple(
            part.name
            for part in self.parts
            if part.name in written and (own_fails or not part.is_equal)
        )
        return RunEnded(
            self.assignment.job,
            self.order.run,
            outcome,
            self.counts(),
            tuple(problems[:REPORTED_PROBLEMS]),
            len(problems),
            holds,
            digest,
            behind,
        )

    async def _report_progress(self) -> None:
        while True:
            await self.around.clock.sleep(PROGRESS_S)
            done = self.counts()
            for part in self.parts:
                if part.peer is not None:
                    done.add(part.peer.counts())
            files, size = self.totals()
            progress = Progress(done, files, size, self.phase)
            self.around.report(RunProgress(self.assignment.job, self.order.run, progress))
