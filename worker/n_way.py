"""A run of rules sync and exchange, at one member's worker: the runner.

Every member lists itself with what it agreed to; a joint plan says what makes all equal. The runner
first makes its own tree the outcome, with content fetched from the members that have it, and then
pushes to every other member from there. At last each records what it agrees to.

What members agree to is recorded only when more than half of them take part. Two halves of a job that
could not see each other would else both go on from their own agreements, and the later one would pass
for the successor of the other. So their trees become equal, but what they agreed to stays where it
was, and when they meet again, what both changed is a conflict.
"""

import asyncio
import collections
import contextlib
import functools
import itertools
import threading
from collections.abc import Iterator, Mapping

import msgspec
import structlog
from blake3 import blake3

from syncengine.agreed import Agreement, Graft, Sighting
from syncengine.errors import EngineError
from syncengine.joint import SyncPlan, is_enough
from syncengine.model import Counts, Hold, Problem, What
from syncengine.names import parent_of
from syncengine.phases import Plan
from syncengine.plan_sync import plan_sync
from syncengine.scan import scan_is_complete
from syncengine.scope import Scope
from wire.orders import Assignment, Outcome, RunEnded, StartRun
from wire.token import Token
from worker.agreed_store import AgreedStoreLost
from worker.fence import Gate
from worker.joint_entries import JointEntries
from worker.joint_pass import (
    Again,
    Pass,
    Seen,
    joint_run,
    sightings_of,
    stop_listing,
)
from worker.member_tree import MemberTree
from worker.peer import Peer
from worker.peer_listing import PeerFailed
from worker.receiving import check_unchanged, prepared, receiver_for
from worker.run import PASSES, MemberRun, Part, Surroundings
from worker.threads import in_own_thread, in_thread
from worker.uses import Listed, Use

log = structlog.get_logger()

RELISTINGS = 6
"""How often members list themselves again for one plan: for renames, then for digests."""
WIDENINGS = 8
"""How often besides, because the scope of a pass turned out to be too narrow."""
_NAMED_CONFLICTS = 10_000
_AGREED_AT_ONCE = 5_000


class NWayRun(MemberRun):
    """A run of rule sync or exchange."""

    def __init__(
        self,
        assignment: Assignment,
        order: StartRun,
        around: Surroundings,
        *,
        peers: Mapping[str, Peer] | None = None,
        scope: Scope | None = None,
        entries: JointEntries | None = None,
    ) -> None:
        """Prepare; nothing happens before `execute`.

        For a pass over a `scope`: with the `peers` to go by, and how many entries each member had.
        """
        super().__init__(assignment, order, around)
        mine = next(m for m in assignment.members if m.worker == around.worker)
        if peers is None:
            self.parts = [self.part(m, is_own=m is mine) for m in assignment.members]
        else:
            self.parts = [Part(m, peers.get(str(m))) for m in assignment.members]
        self.scope = scope if scope is not None else Scope.whole()
        """What of the trees the run is about; it may turn out that this takes more."""
        self.is_majority = False
        """Whether those that took part may agree to anything."""
        self.changes: collections.Counter[str] = collections.Counter()
        """By member, how many changes the plans had that were carried out."""
        self._entries = entries if entries is not None else JointEntries()
        self._own = next(part for part in self.parts if part.peer is None)
        self._gate = Gate(around.fence, order.token)
        self._pass: Pass | None = None
        self._conflicts: dict[bytes, str] = {}
        self._more_conflicts = 0
        self._failed_paths: set[bytes] = set()
        self._is_cut_short = False
        """Whether a member that was to send content has failed in this pass."""
        self._renewing: set[asyncio.Task[None]] = set()

    @property
    def own_name(self) -> str:
        """The member that the runner works in."""
        return self._own.name

    def renew(self, token: Token) -> None:
        """Go on under a newer token, in our own tree too."""
        super().renew(token)
        renewing = asyncio.create_task(asyncio.to_thread(self._gate.renew, token))
        self._renewing.add(renewing)
        renewing.add_done_callback(self._renewing.discard)

    def totals(self) -> tuple[int, int]:
        """Return the files to be sent, and their bytes."""
        if self._pass is None:
            return 0, 0
        summaries = [plan.summary for plan in self._pass.plan.all_plans()]
        return sum(one.files for one in summaries), sum(one.bytes for one in summaries)

    def close(self) -> None:
        """Let go of the plan."""
        if self._pass is not None:
            self._pass.plan.close()
            self._pass = None

    def counts(self) -> Counts:
        """Return what has been done, at all members."""
        counts = super().counts()
        counts.conflicts = len(self._conflicts) + self._more_conflicts
        return counts

    def problems(self) -> Iterator[Problem]:
        """Yield everything that the run names, conflicts last."""
        yield from super().problems()
        for path, detail in self._conflicts.items():
            yield Problem(path, "", What.CONFLICT, detail)

    async def carry_out(self) -> RunEnded:
        """Make all members equal."""
        job = self.assignment.job
        use = Use(self.order.run, self._gate)
        key = (job, self._own.name)
        await self.around.uses.begin(key, use)
        try:
            return await self._passes()
        finally:
            self.around.uses.end(key, use)

    async def _passes(self) -> RunEnded:
        for number in range(PASSES):
            for part in self.parts:
                part.begin_pass()
            self.own_problems.clear()
            self._failed_paths.clear()
            self._is_cut_short = False
            with await self._opened(create=False) as opened:
                now = await self._plan(opened)
                holds = await in_thread(self._holds, now)
                digest = self._digest(now, holds)
                if self.order.preview:
                    await in_thread(self._note_conflicts, now.plan)
                    return await self.preview(self._shown(now), holds, digest)
                if holds and not (number == 0 and digest == self.order.approved):
                    return self.result(Outcome.BLOCKED, holds, digest)
                if len(now.seen) == 1:
                    break  # with nobody to agree with, there is nothing to do
            with await self._opened(create=True) as again:
                check_unchanged(again, Listed(self.order.run, self.around.worker, opened.holds))
                await in_thread(prepared, again, self.options, self.order.run)
                await self._do(now, again)
            if not any(part.retry for part in self.parts):
                break
            log.info("planned_anew", number=number + 1)
        return self.result(self.outcome())

    async def _opened(self, *, create: bool) -> MemberTree:
        trees, member = self.around.trees, self._own.member
        return await asyncio.to_thread(trees.open_target, member, create=create)

    # Planning

    async def _plan(self, opened: MemberTree) -> Pass:
        """List and plan, until the plan is final; members that fail meanwhile are left out."""
        self.phase = "plan"
        grafts: tuple[Graft, ...] | None = None
        wanted: dict[str, Iterator[bytes]] = {}
        widenings = 0 if self.scope.is_whole else WIDENINGS
        for _ in range(RELISTINGS + widenings + len(self.parts)):
            try:
                now = await self._list_and_plan(opened, grafts, wanted)
            except Again:
                wanted = {}
                continue
            relisting = now.plan.relisting
            if now.plan.narrow and not self.scope.is_whole:
                # The new plan asks anew for what this one asks for.
                self.scope = self.scope.deepened(now.plan.narrow)
                now.plan.close()
                self.close()
                grafts, wanted = None, {}
                continue
            if relisting is None:
                self.close()
                self._pass = now
                return now
            # What is asked for lies in the plan that asks: it is closed when the next one is there.
            self.close()
            self._pass = now
            grafts = relisting.grafts
            self.scope = self.scope.deepened(path for graft in grafts for path in graft)
            wanted = {
                one.part.name: iter(paths)
                for one, paths in zip(now.seen, relisting.digests, strict=False)
            }
        raise EngineError("the members kept changing while they were compared")

    async def _list_and_plan(
        self,
        opened: MemberTree,
        grafts: tuple[Graft, ...] | None,
        wanted: dict[str, Iterator[bytes]],
    ) -> Pass:
        shown = grafts or ()
        async with contextlib.AsyncExitStack() as stack:
            asked = [
                self._list_own(stack, opened, shown, wanted.get(part.name))
                if part.peer is None
                else self._list(stack, part, shown, wanted.get(part.name))
                for part in self.reached
            ]
            seen = [one for one in await asyncio.gather(*asked) if one is not None]
            for one in seen:
                lineage = one.listing.header.lineage if one.listing else opened.lineage
                self.lies(one.part.name, lineage)
            merge = functools.partial(self._merge, seen, grafts)
            # An error must not pass through the listings: each would take it for its own.
            plan, error = await in_own_thread(merge, stop=lambda: stop_listing(seen))
        if error is not None:
            raise error
        assert plan is not None
        for one in seen:
            self._note_listing(one)
        self.scanned = max(summary.source_entries for summary in plan.summaries)
        return Pass(plan, seen)

    async def _list(
        self,
        stack: contextlib.AsyncExitStack,
        part: Part,
        grafts: tuple[Graft, ...],
        wanted: Iterator[bytes] | None,
    ) -> Seen | None:
        assert part.peer is not None
        scope = None if self.scope.is_whole else self.scope
        asking = part.peer.listing(sightings=True, grafts=grafts, digests_of=wanted, scope=scope)
        try:
            listing = await asking.__aenter__()
        except PeerFailed as error:
            part.failed(error)
            return None
        stack.push_async_exit(asking)
        header = listing.header
        return Seen(
            part,
            header.holds,
            header.entries_before,
            header.agreed_number,
            sightings_of(part, listing),
            listing.is_complete,
            listing,
            header.is_empty,
        )

    async def _list_own(
        self,
        stack: contextlib.AsyncExitStack,
        opened: MemberTree,
        grafts: tuple[Graft, ...],
        wanted: Iterator[bytes] | None,
    ) -> Seen:
        store = await stack.enter_async_context(opened.agreed_to(self.assignment))
        number = await in_thread(lambda: store.number) if store is not None else 0
        problems: list[Problem] = []
        sightings: Iterator[Sighting] = iter(())
        if opened.tree is not None:
            sightings = opened.sightings(
                self.options,
                problems,
                store,
                grafts=grafts,
                digests_of=wanted or (),
                scope=None if self.scope.is_whole else self.scope,
            )
        own = self._own
        own.problems.clear()

        def is_complete() -> bool:
            own.problems[:] = problems
            return scan_is_complete(problems)

        is_empty = await in_thread(opened.is_empty)
        return Seen(
            own,
            opened.holds,
            opened.entries_before,
            number,
            sightings,
            is_complete,
            is_empty=is_empty,
        )

    def _merge(
        self, seen: list[Seen], grafts: tuple[Graft, ...] | None
    ) -> tuple[SyncPlan | None, Exception | None]:
        """Read all listings beside each other. For a thread of its own: it blocks."""
        run = joint_run(
            seen,
            number=self.order.number,
            now=self.around.trees.wall(),
            own=self._own,
            members=len(self.parts),
        )
        try:
            return plan_sync(
                [one.sightings for one in seen],
                self.options,
                run,
                grafts=grafts,
                scope=self.scope,
            ), None
        except AgreedStoreLost as lost:
            whose = self.around.trees.whose(self.assignment, self._own.member)
            self.around.trees.agreed.drop(whose, str(lost))
            return None, Again()
        except (Again, EngineError, OSError) as error:
            return None, error
        finally:
            for one in seen:
                close = getattr(one.sightings, "close", None)
                if close is not None:
                    close()

    def _note_listing(self, one: Seen) -> None:
        listing = one.listing
        if listing is None:
            return
        one.part.counts.bytes_sent += listing.bytes_received
        one.part.problems[:] = listing.end.problems if listing.end is not None else ()

    def _holds(self, now: Pass) -> tuple[Hold, ...]:
        found: list[Hold] = []
        for one in now.seen:
            found += self._entries.judge(
                now,
                one,
                self.options.safety,
                is_whole=self.scope.is_whole,
                at=self.around.clock.now(),
            )
        return tuple(dict.fromkeys(found))

    def _digest(self, now: Pass, holds: tuple[Hold, ...]) -> bytes:
        """Return what an operator approves: these changes of these members, despite these holds."""
        digest = blake3()
        for hold in holds:
            digest.update(f"{hold.reason.value}\0{hold.member}\0".encode())
        for one in now.seen:
            digest.update(f"{one.part.name}\0".encode())
        digest.update(now.plan.digest)
        return digest.digest()

    def _shown(self, now: Pass) -> list[tuple[str, Plan]]:
        plan, own = now.plan, self._own.name
        mine = [plan.local, *plan.fetches, plan.closing]
        others = [(one.part.name, plan.plans[now.index(one.part)]) for one in now.seen]
        return [*((own, part) for part in mine), *(each for each in others if each[0] != own)]

    # Doing

    async def _to_remember(self, now: Pass, one: Seen) -> int | None:
        is_whole = self.scope.is_whole
        return await in_thread(self._entries.to_remember, now, one, is_whole=is_whole)

    def plans(self) -> list[Plan]:
        """Return all plans of the last pass."""
        return list(self._pass.plan.all_plans()) if self._pass is not None else []

    @property
    def is_cut_short(self) -> bool:
        """Whether the last pass did not come to its end, so that nobody can tell what it left out."""
        return self._is_cut_short or (self._pass is None)

    async def _do(self, now: Pass, opened: MemberTree) -> None:
        for name, plan in self._shown(now):
            self.changes[name] += len(plan)
        self.own_problems += now.plan.problems
        self._note_conflicts(now.plan)
        self.is_majority = is_majority = 2 * len(now.seen) > len(self.parts)
        if is_majority:
            await self._agree_all(now, opened, already=True)
        self.phase = "fetch"
        if not await self._gather(now, opened):
            # INVARIANT I8: what could not be had may be what a delete would take the last copy of.
            for plan in now.plan.plans:
                plan.summary.is_complete = False
        self.phase = "push"
        others = [one for one in now.seen if one.part.peer is not None]
        await asyncio.gather(
            *(self._push(now, opened, one.part) for one in others if one.part.why_away is None)
        )
        own = next(one for one in now.seen if one.part is self._own)
        entries = await self._to_remember(now, own)
        if entries is not None:
            await in_thread(opened.remember, entries)
        await in_thread(
            self._entries.note,
            now,
            is_whole=self.scope.is_whole,
            at=self.around.clock.now(),
            is_approved=bool(self.order.approved),
        )
        # Whatever of a fetch that broke off is missing here, nobody can tell by its path.
        # INVARIANT I7: what too few have by now would be known to them alone; see `recording`.
        if is_majority and not self._is_cut_short and self._are_enough(now):
            self._failed_paths = {
                problem.path
                for part in self.reached
                for problem in part.all_problems()
                if problem.what.fails
            }
            await self._agree_all(now, opened, already=False)

    def _note_conflicts(self, plan: SyncPlan) -> None:
        for path, detail in plan.conflicts():
            if path in self._conflicts:
                continue
            if len(self._conflicts) < _NAMED_CONFLICTS:
                self._conflicts[path] = detail
                log.warning("conflict", path=path, detail=detail)
            else:
                self._more_conflicts += 1

    async def _gather(self, now: Pass, opened: MemberTree) -> bool:
        """Make our own tree the outcome; say whether everything that this needed could be had."""
        own, plan = self._own, now.plan
        own.is_equal = True
        await self._locally(opened, plan.local)
        for one in now.seen:
            wanted = plan.fetches[now.index(one.part)]
            if wanted.is_empty:
                continue
            if one.part.why_away is None and one.part.peer is not None:
                await self._fetch(one.part, wanted, opened)
            if one.part.why_away is not None:
                self._is_cut_short, own.is_equal = True, False
        is_clean = own.is_equal
        if not is_clean:
            plan.closing.summary.is_complete = False
        await self._locally(opened, plan.closing)
        return is_clean

    async def _locally(self, opened: MemberTree, plan: Plan) -> None:
        """Carry out a plan in our own tree that needs no content."""
        if plan.is_empty:
            return
        own = self._own
        sent = await self.locally(opened, plan, self._gate)
        was_equal = own.is_equal
        own.note(sent)
        own.is_equal = own.is_equal and was_equal

    async def _fetch(self, part: Part, wanted: Plan, opened: MemberTree) -> None:
        own = self._own
        assert part.peer is not None
        was_equal, own.is_equal = own.is_equal, False
        with part.reaching():
            receiver = await asyncio.to_thread(receiver_for, opened, self.options, self._gate)
            fetched = await part.peer.fetch(wanted, opened.opened, receiver)
            own.note(fetched.result)
            for problem in fetched.problems:
                # What is gone there is planned anew, like what changed where it was to be published.
                if problem.what is What.TARGET_CHANGED:
                    part.retry.append(problem.path)
                else:
                    part.problems.append(problem)
            own.is_equal = own.is_equal and was_equal and not fetched.problems

    async def _push(self, now: Pass, opened: MemberTree, part: Part) -> None:
        assert part.peer is not None
        number = now.index(part)
        with part.reaching():
            plan = now.plan.plans[number]
            entries = await self._to_remember(now, now.seen[number])
            part.note(await part.peer.push(opened.opened, plan, self._own.name, entries))
            part.is_equal = part.is_equal and self._own.is_equal

    # Agreeing

    def _are_enough(self, now: Pass) -> bool:
        """Say whether every majority of the job has one of those that have come to the end."""
        return is_enough(sum(one.part.why_away is None for one in now.seen), len(self.parts))

    def _has_failed(self, path: bytes) -> bool:
        """Say whether a path failed somewhere, or what it lies in: of that only the top is told."""
        failed = self._failed_paths
        while failed and path:
            if path in failed:
                return True
            path = parent_of(path)
        return False

    async def _agree_all(self, now: Pass, opened: MemberTree, *, already: bool) -> None:
        parts = [one.part for one in now.seen if one.part.why_away is None]
        await asyncio.gather(*(self._agree(now, opened, part, already=already) for part in parts))

    async def _agree(self, now: Pass, opened: MemberTree, part: Part, *, already: bool) -> None:
        number = now.index(part)
        if not already and b"" in self._failed_paths:
            return  # something failed that nobody can put a path to
        if next(now.plan.agreements(number, already=already), None) is None:
            return

        unkept = {one.path for one in part.problems if one.what is What.NOT_KEPT}

        def agreements() -> Iterator[Agreement]:
            return (
                msgspec.structs.replace(one, as_is=True)
                if not already and (one.path in unkept or b"" in unkept)
                else one
                for one in now.plan.agreements(number, already=already)
                if not self._has_failed(one.path)
            )

        if part.peer is not None:
            with part.reaching():
                await part.peer.agree(agreements)
            return
        stopped = threading.Event()

        def record() -> None:
            left = agreements()
            while not stopped.is_set() and (batch := list(itertools.islice(left, _AGREED_AT_ONCE))):
                with self._gate.publishing():
                    opened.agree(self.assignment, batch)

        await in_own_thread(record, stop=stopped.set)
