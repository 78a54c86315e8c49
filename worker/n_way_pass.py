"""Passes of rules sync and exchange over a part of the members' trees, again and again."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from syncengine.agreed import Graft
from syncengine.guard import Tide
from syncengine.model import Counts, What
from syncengine.scope import Scope
from wire.orders import Assignment, Outcome, RunEnded, StartRun
from wire.token import Token
from worker.joint_entries import JointEntries
from worker.n_way import NWayRun
from worker.passes import PassResult, unequal
from worker.run import Surroundings, peer_of


class NWayPasses:
    """The passes of one run among all members of a job, carried out by the worker of one of them.

    One pass at a time: a second call waits. The ways to the other members are kept open.
    """

    def __init__(self, assignment: Assignment, order: StartRun, around: Surroundings) -> None:
        """Prepare; connects to nobody yet. `order` gives run and token."""
        self._assignment, self._order, self._around = assignment, order, around
        mine = next(m for m in assignment.members if m.worker == around.worker)
        self._peers = {
            str(member): peer_of(assignment.job, order, member, around)
            for member in assignment.members
            if member is not mine
        }
        self._entries = JointEntries({str(member): Tide() for member in assignment.members})
        self._lock = asyncio.Lock()
        self._run: NWayRun | None = None

    async def pass_over(
        self, scope: Scope, *, hints: Sequence[Graft] = (), approved: bytes = b""
    ) -> tuple[PassResult, ...]:
        """Make the members equal within `scope`; return what came of it at each, in their order.

        As a whole run does: what each agreed to says who changed what, and conflicts are decided by
        the job's rule. The guards judge each member as in a whole run, and over several passes
        together (see `guard.Tide`). A held plan changes nothing, unless its digest is `approved`.
        `hints` say what else to look at: that something was renamed the members know themselves.
        A path that could not be made equal at one member is not equal at any. Raises nothing for
        what goes wrong with trees and members: the results say it. Cancelling stops at the next
        safe point and leaves no half state.
        """
        asked = scope.deepened(path for graft in hints for path in graft)
        async with self._lock:
            together: tuple[PassResult, ...] = ()
            for piece in asked.pieces():
                if any(one.holds for one in together):
                    together = tuple(one.left_out(piece) for one in together)
                    continue
                done = await self._pass_over(piece, approved)
                together = (
                    tuple(one.with_piece(two) for one, two in zip(together, done, strict=True))
                    if together
                    else done
                )
            return together or tuple(
                PassResult(str(member), scope, Scope()) for member in self._assignment.members
            )

    def renew(self, token: Token) -> None:
        """Go on under a newer token, with the pass that is under way too."""
        self._order = replace(self._order, token=token)
        for peer in self._peers.values():
            peer.renew(token)
        if self._run is not None:
            self._run.renew(token)

    async def close(self) -> None:
        """Hang up."""
        for peer in self._peers.values():
            await peer.close()

    async def _pass_over(self, scope: Scope, approved: bytes) -> tuple[PassResult, ...]:
        # Agreements of each pass stand under a number of its own, conflict copies under its time.
        number = int(self._around.trees.wall() * 1e6)
        order = replace(self._order, approved=approved, preview=False, number=number)
        run = self._run = NWayRun(
            self._assignment,
            order,
            self._around,
            peers=self._peers,
            scope=scope,
            entries=self._entries,
        )
        try:
            ended = await run.outcome_of_it()
            return self._results(run, scope, ended)
        finally:
            self._run = None
            run.close()

    def _results(self, run: NWayRun, scope: Scope, ended: RunEnded) -> tuple[PassResult, ...]:
        is_held = ended.outcome is Outcome.BLOCKED
        problems = tuple(run.problems())
        here = [problem for problem in problems if problem.what is not What.UNREACHABLE]
        # What one of them did not see may be what a delete rests upon.
        is_blind = any(problem.what is What.UNREADABLE for problem in here)
        is_whole = is_held or is_blind or run.is_cut_short or not run.is_majority
        missing = scope if is_whole else unequal(scope, run.plans(), here)
        results: list[PassResult] = []
        for part in run.parts:
            is_away = part.why_away is not None
            counts = Counts(files_scanned=run.scanned)
            counts.add(part.counts)
            results.append(
                PassResult(
                    member=part.name,
                    scope=scope,
                    unequal=scope if is_away else missing,
                    problems=problems,
                    holds=ended.holds if is_held else (),
                    digest=ended.plan if is_held else b"",
                    is_away=is_away,
                    changes=run.changes[part.name],
                    counts=counts,
                )
            )
        return tuple(results)
