"""A mirror run, from its source: list every target, plan, let the guards judge, push.

Nothing is pushed anywhere before every target that can be reached was planned and no guard objects.
Targets do not wait for each other. What changed under the run's hands is planned anew, a few times.
"""

import asyncio
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import structlog
from blake3 import blake3

from syncengine.changes import (
    Change,
    MakeDirectory,
    MakeSymlink,
    Remove,
    SetDirectory,
    SetMetadata,
    WriteFile,
)
from syncengine.errors import EngineError
from syncengine.guard import Before, judge
from syncengine.model import Counts, Hold, Problem, What
from syncengine.phases import Plan
from wire.channel import Credentials
from wire.clock import Clock
from wire.orders import (
    Assignment,
    Outcome,
    PlannedChange,
    Progress,
    Report,
    RunEnded,
    RunPlanned,
    RunProgress,
    StartRun,
)
from wire.token import Token
from worker.member_tree import UNKNOWN, MemberTree, MemberTrees
from worker.target import Target, TargetFailed
from worker.threads import in_own_thread

log = structlog.get_logger()

PASSES = 3
"""How often a run is planned anew when a target changed under its hands."""
PROGRESS_S = 0.2
REPORTED_PROBLEMS = 100
"""How many problems a run names, each with a path of up to 4 KiB; the rest it counts."""
_PREVIEW_BATCH = 500


@dataclass(slots=True)
class _TargetRun:
    """What one target came to."""

    target: Target
    plan: Plan | None = None
    holds: tuple[Hold, ...] = ()
    counts: Counts = field(default_factory=Counts)
    problems: list[Problem] = field(default_factory=list)
    retry: bool = False
    is_equal: bool = False


class MirrorRun:
    """One run at its source worker. `execute` once; `renew` and `progress` meanwhile."""

    def __init__(
        self,
        assignment: Assignment,
        order: StartRun,
        *,
        trees: MemberTrees,
        credentials: Credentials,
        clock: Clock,
        report: Callable[[Report], None],
    ) -> None:
        """Prepare; nothing happens before `execute`."""
        self._assignment = assignment
        self._order = order
        self._trees = trees
        self._clock = clock
        self._report = report
        self._member = assignment.source
        self._phase = "scan"
        self._ended: RunEnded | None = None
        self._scanned = 0
        self._source_problems: list[Problem] = []
        self._targets = [
            _TargetRun(Target(assignment.job, order.run, order.token, member, credentials, clock))
            for member in assignment.targets
        ]

    def renew(self, token: Token) -> None:
        """Go on under a newer token: every target is shown it."""
        for one in self._targets:
            one.target.renew(token)

    def cancelled(self) -> RunEnded:
        """Return how far it came, after `execute` was cancelled."""
        return self._result(Outcome.CANCELLED)

    async def execute(self) -> RunEnded:
        """Carry the run out; whatever goes wrong with trees and targets is in the result."""
        reporter = asyncio.create_task(self._report_progress())
        try:
            with await asyncio.to_thread(self._trees.open_source, self._member) as source:
                return await self._execute(source)
        except (EngineError, OSError) as error:
            detail = str(error)
            self._source_problems.append(Problem(b"", str(self._member), What.UNREADABLE, detail))
            return self._result(Outcome.FAILED)
        finally:
            reporter.cancel()
            for one in self._targets:
                await one.target.close()
                if one.plan is not None:
                    one.plan.close()

    async def _execute(self, source: MemberTree) -> RunEnded:
        if source.tree is None:
            return self._result(Outcome.BLOCKED, source.holds)
        for number in range(PASSES):
            await self._plan_all(source)
            holds = self._holds(source)
            digest = self._digest(holds)
            if self._order.preview:
                return await self._preview(holds, digest)
            if holds and not (number == 0 and digest == self._order.approved):
                return self._result(Outcome.BLOCKED, holds, digest)
            await asyncio.to_thread(source.mark)
            self._phase = "push"
            await asyncio.gather(*(self._push(source, one) for one in self._reached()))
            if not any(one.retry for one in self._targets):
                break
            log.info("planned_anew", number=number + 1)
        await asyncio.to_thread(source.remember, self._scanned)
        return self._result(self._outcome())

    def _reached(self) -> list[_TargetRun]:
        return [one for one in self._targets if one.plan is not None]

    # Planning

    async def _plan_all(self, source: MemberTree) -> None:
        self._phase = "plan"
        self._source_problems.clear()
        await asyncio.gather(*(self._plan(source, one) for one in self._targets))

    async def _plan(self, source: MemberTree, one: _TargetRun) -> None:
        one.retry = one.is_equal = False
        one.problems = [p for p in one.problems if p.what is What.UNREACHABLE]
        if one.plan is not None:
            one.plan.close()
            one.plan = None
        elif one.problems:
            return  # not reached in the pass before
        problems: list[Problem] = []
        try:
            async with one.target.listing() as listing:
                merge = functools.partial(listing.plan, source, self._assignment.options, problems)
                one.plan = await in_own_thread(merge, stop=listing.stop)
                header = listing.header
        except TargetFailed as error:
            self._unreachable(one, error)
            return
        one.counts.bytes_sent += listing.bytes_received
        summary = one.plan.summary
        self._scanned = max(self._scanned, summary.source_entries)
        self._add_source_problems(problems)
        self._add_source_problems(one.plan.problems)
        one.holds = (
            *judge(
                summary,
                self._assignment.options.safety,
                source_member=str(self._member),
                target_member=str(one.target.member),
                before=Before(_known(source.entries_before), _known(header.entries_before)),
                marker_holds=header.holds,
            ),
        )

    def _add_source_problems(self, problems: Iterable[Problem]) -> None:
        known = set(self._source_problems)
        self._source_problems += [problem for problem in problems if problem not in known]

    def _unreachable(self, one: _TargetRun, error: TargetFailed) -> None:
        log.warning("target_failed", target=str(one.target.member), why=str(error))
        one.problems = [Problem(b"", str(one.target.member), What.UNREACHABLE, str(error))]

    def _holds(self, source: MemberTree) -> tuple[Hold, ...]:
        found = [*source.holds, *(hold for one in self._reached() for hold in one.holds)]
        return tuple(dict.fromkeys(found))

    def _digest(self, holds: tuple[Hold, ...]) -> bytes:
        """Return what an operator approves: these changes, despite these holds."""
        digest = blake3()
        for hold in holds:
            digest.update(f"{hold.reason.value}\0{hold.member}\0".encode())
        for one in self._reached():
            assert one.plan is not None
            digest.update(f"{one.target.member}\0".encode())
            digest.update(one.plan.digest)
        return digest.digest()

    async def _preview(self, holds: tuple[Hold, ...], digest: bytes) -> RunEnded:
        loop = asyncio.get_running_loop()
        stopped = threading.Event()

        def tell() -> None:
            for changes in self._planned_changes():
                if stopped.is_set():
                    return
                planned = RunPlanned(self._assignment.job, self._order.run, changes)
                loop.call_soon_threadsafe(self._report, planned)

        await in_own_thread(tell, stop=stopped.set)
        outcome = Outcome.BLOCKED if holds else self._outcome(planned_only=True)
        return self._result(outcome, holds, digest if holds else b"")

    def _planned_changes(self) -> Iterator[tuple[PlannedChange, ...]]:
        """Yield what the plans would change, in batches; blocks on the spools."""
        for one in self._reached():
            assert one.plan is not None
            member = str(one.target.member)
            shown = (_planned(change, member) for change in one.plan)
            changes = (change for change in shown if change is not None)
            while batch := tuple(itertools.islice(changes, _PREVIEW_BATCH)):
                yield batch

    # Pushing

    async def _push(self, source: MemberTree, one: _TargetRun) -> None:
        assert one.plan is not None
        try:
            sent = await one.target.push(source.opened, one.plan, str(self._member))
        except TargetFailed as error:
            one.counts.add(error.sent)
            self._unreachable(one, error)
            return
        one.counts.add(sent.counts)
        one.problems += sent.problems
        one.retry = bool(sent.retry)
        one.is_equal = sent.is_complete and not sent.problems and not sent.retry
        if sent.retry:
            self._still_changing(one, sent.retry)

    def _still_changing(self, one: _TargetRun, paths: list[bytes]) -> None:
        """Name the paths; the next pass, if there is one, clears them."""
        detail = "changed at the target while the run went on"
        member = str(one.target.member)
        one.problems += [Problem(path, member, What.TARGET_CHANGED, detail) for path in paths]

    # Results

    def _problems(self) -> list[Problem]:
        return [
            *self._source_problems,
            *(problem for one in self._targets for problem in one.problems),
        ]

    def _outcome(self, *, planned_only: bool = False) -> Outcome:
        failing = [problem for problem in self._problems() if problem.what is not What.SKIPPED]
        complete = planned_only or all(one.is_equal or one.problems for one in self._targets)
        return Outcome.FAILED if failing or not complete else Outcome.SUCCEEDED

    def _counts(self) -> Counts:
        counts = Counts(files_scanned=self._scanned)
        for one in self._targets:
            counts.add(one.counts)
        return counts

    def _result(
        self, outcome: Outcome, holds: tuple[Hold, ...] = (), digest: bytes = b""
    ) -> RunEnded:
        problems = self._problems()
        source_fails = any(one.what is not What.SKIPPED for one in self._source_problems)
        behind = tuple(
            str(one.target.member) for one in self._targets if source_fails or not one.is_equal
        )
        return RunEnded(
            self._assignment.job,
            self._order.run,
            outcome,
            self._counts(),
            tuple(problems[:REPORTED_PROBLEMS]),
            len(problems),
            holds,
            digest,
            behind,
        )

    async def _report_progress(self) -> None:
        while True:
            await self._clock.sleep(PROGRESS_S)
            done = self._counts()
            for one in self._targets:
                done.add(one.target.counts())
            plans = [one.plan.summary for one in self._reached() if one.plan is not None]
            progress = Progress(
                done,
                sum(summary.files for summary in plans),
                sum(summary.bytes for summary in plans),
                self._phase,
            )
            self._report(RunProgress(self._assignment.job, self._order.run, progress))


def _known(entries: int) -> int | None:
    return None if entries == UNKNOWN else entries


def _planned(change: Change, member: str) -> PlannedChange | None:
    """Return a change as a preview shows it; None for what merely follows from another."""
    match change:
        case MakeDirectory(path=path):
            return PlannedChange(path, member, "create", "directory", 0)
        case WriteFile(path=path, size=size, seen=seen):
            return PlannedChange(path, member, "update" if seen else "create", "file", size)
        case MakeSymlink(path=path, seen=seen):
            return PlannedChange(path, member, "update" if seen else "create", "symlink", 0)
        case SetMetadata(path=path, kind=kind):
            return PlannedChange(path, member, "metadata", kind.name.lower(), 0)
        case SetDirectory(path=path, differs=differs, seen=seen):
            if not (differs and seen):
                return None
            return PlannedChange(path, member, "metadata", "directory", 0)
        case Remove(path=path, kind=kind):
            return PlannedChange(path, member, "delete", kind.name.lower(), 0)
