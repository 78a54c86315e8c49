"""A run with one source, at the source's worker: list every target, plan, let the guards judge, push.

Nothing is pushed anywhere before every target that can be reached was planned and no guard objects.
Targets do not wait for each other. What changed under the run's hands is planned anew, a few times.
"""

import asyncio
import contextlib
import functools
from collections.abc import Iterable

import structlog

from syncengine.changes import Change
from syncengine.model import Hold, Problem, Rule, What
from syncengine.phases import Plan
from syncengine.shared_scan import SharedScan
from syncengine.wall import stamp_of
from wire.orders import Assignment, Outcome, RunEnded, StartRun
from wire.token import Token
from worker.fence import Gate
from worker.member_tree import MemberTree
from worker.moving import by_content, files_of, plan_everything_away, plan_taking_away
from worker.one_way_pass import TargetPass, remember_entries
from worker.passes import digest_of
from worker.peer_listing import Listing, PeerFailed
from worker.run import PASSES, MemberRun, Part, Surroundings
from worker.threads import in_own_thread, in_thread

log = structlog.get_logger()


class OneWayRun(MemberRun):
    """A run of rule mirror, copy or move."""

    def __init__(self, assignment: Assignment, order: StartRun, around: Surroundings) -> None:
        """Prepare; nothing happens before `execute`."""
        super().__init__(assignment, order, around)
        self.parts = [self.part(target) for target in assignment.targets]
        self._passes = {part.name: TargetPass(assignment, part, around) for part in self.parts}
        self._gate: Gate | None = None
        self._compares_content = False
        """Whether files are compared by content, whatever the options say."""
        self._stamp = stamp_of(around.trees.wall())
        self._renewing: set[asyncio.Task[None]] = set()

    @property
    def own_name(self) -> str:
        """The source."""
        return str(self.assignment.source)

    def totals(self) -> tuple[int, int]:
        """Return the files to be sent, and their bytes."""
        summaries = [one.plan.summary for one in self._passes.values() if one.plan is not None]
        return sum(one.files for one in summaries), sum(one.bytes for one in summaries)

    def close(self) -> None:
        """Let go of the plans."""
        for one in self._passes.values():
            one.close()

    def _plan_for(self, part: Part) -> Plan:
        plan = self._passes[part.name].plan
        assert plan is not None, "of a part that was reached"
        return plan

    async def carry_out(self) -> RunEnded:
        """Make the targets what the rule says."""
        trees = self.around.trees
        with await asyncio.to_thread(trees.open_source, self.assignment.source) as source:
            if source.tree is None:
                return self.result(Outcome.BLOCKED, source.holds)
            self.lies(self.own_name, source.lineage)
            for number in range(PASSES):
                await self._plan_all(source)
                for part in self.reached:
                    self.lies(part.name, part.lineage)
                holds = self._holds(source)
                digest = digest_of(holds, self._shown())
                if self.order.preview:
                    shown = [*self._shown(), *self._shown_at_source(source)]
                    return await self.preview(shown, holds, digest)
                if holds and not (number == 0 and digest == self.order.approved):
                    return self.result(Outcome.BLOCKED, holds, digest)
                await in_thread(source.mark)
                self.phase = "push"
                await asyncio.gather(*(self._push(source, part) for part in self.reached))
                if await self._is_done(source) or number == PASSES - 1:
                    break
                log.info("planned_anew", number=number + 1)
            await self._remember_entries(source)
            await in_thread(source.remember, self.scanned)
            return self.result(self.outcome())

    def _shown(self) -> Iterable[tuple[str, Plan]]:
        return [(part.name, self._plan_for(part)) for part in self.reached]

    def _shown_at_source(self, source: MemberTree) -> Iterable[tuple[str, Iterable[Change]]]:
        """Return what a `move` takes away, unless a target is away or has something in the way."""
        if self.options.rule is not Rule.MOVE or len(self.reached) < len(self.parts):
            return ()
        stays = {problem.path for part in self.parts for problem in part.problems}
        stays |= {problem.path for problem in self.own_problems}
        return [(self.own_name, plan_everything_away(source, self.options, stays))]

    # Planning

    async def _plan_all(self, source: MemberTree) -> None:
        self.phase = "plan"
        self.own_problems.clear()
        self.close()
        reached = self.reached
        options = by_content(self.options) if self._compares_content else self.options
        shared = None
        if len(reached) > 1:
            shared = SharedScan(functools.partial(source.scan_source_stretches, options))
        try:
            await asyncio.gather(*(self._plan(source, part, shared) for part in reached))
        finally:
            if shared is not None:
                await asyncio.to_thread(shared.close)

    async def _plan(self, source: MemberTree, part: Part, shared: SharedScan | None) -> None:
        made = self._passes[part.name]
        await made.make(
            source, stamp=self._stamp, compares_content=self._compares_content, shared=shared
        )
        self.scanned = max(self.scanned, made.scanned)
        self._add_problems(made.source_problems)

    async def _remember_entries(self, source: MemberTree) -> None:
        """Keep in mind what the source has, so that it is recognized when it is renamed."""
        plans = [self._plan_for(part) for part in self.reached if part.is_equal]
        if self.options.rule is Rule.MIRROR and plans:
            await remember_entries(source, self.assignment, max(plans, key=len))

    def _add_problems(self, problems: Iterable[Problem]) -> None:
        known = set(self.own_problems)
        self.own_problems += [problem for problem in problems if problem not in known]

    def _holds(self, source: MemberTree) -> tuple[Hold, ...]:
        found = [*source.holds, *(hold for part in self.reached for hold in part.holds)]
        return tuple(dict.fromkeys(found))

    # Pushing

    async def _push(self, source: MemberTree, part: Part) -> None:
        await self._passes[part.name].push(source, self._plan_for(part).summary.source_entries)

    async def _is_done(self, source: MemberTree) -> bool:
        """Do what a pass ends with; say whether the run needs no further one."""
        has_changed = any(part.retry for part in self.parts)
        if self.options.rule is not Rule.MOVE:
            return not has_changed
        differing = await self._take_away(source)
        if differing and not self._compares_content:
            # As old and as large as the source's, and not the same: only content tells them apart.
            self._compares_content = True
            return False
        return not has_changed

    # Taking away

    async def _take_away(self, source: MemberTree) -> int:
        """Remove at the source what every target has, once all have been reached.

        Return how many files a target has otherwise.
        """
        if len(self.reached) < len(self.parts):
            return 0
        self.phase = "remove"
        problems: list[Problem] = []
        async with contextlib.AsyncExitStack() as stack:
            asked = [self._list_again(stack, source, part) for part in self.parts]
            listings = [one for one in await asyncio.gather(*asked) if one is not None]
            if len(listings) < len(self.parts):
                return 0
            compare = functools.partial(plan_taking_away, source, listings, self.options, problems)
            try:
                plan, differing = await in_own_thread(compare, stop=lambda: _stop(listings))
            except PeerFailed as error:
                detail = f"nothing was taken away: {error}"
                self._add_problems([Problem(b"", self.own_name, What.UNREACHABLE, detail)])
                return 0
        self._add_problems(problems)
        with plan:
            self._gate = Gate(self.around.fence, self.token)
            sent = await self.locally(source, plan, self._gate)
        # What changed in the last moment stays until a later run, and is no problem.
        self._add_problems(sent.problems)
        return differing

    async def _list_again(
        self, stack: contextlib.AsyncExitStack, source: MemberTree, part: Part
    ) -> Listing | None:
        assert part.peer is not None
        asking = part.peer.listing(digests_of=files_of(source, self.options))
        try:
            listing = await asking.__aenter__()
        except PeerFailed as error:
            part.failed(error)
            return None
        stack.push_async_exit(asking)
        return listing

    def renew(self, token: Token) -> None:
        """Go on under a newer token, at the source too."""
        super().renew(token)
        if self._gate is not None:
            renewing = asyncio.create_task(asyncio.to_thread(self._gate.renew, token))
            self._renewing.add(renewing)
            renewing.add_done_callback(self._renewing.discard)


def _stop(listings: Iterable[Listing]) -> None:
    for listing in listings:
        listing.stop()
