"""One pass from a source to one target: list it, plan, let the guards judge, push.

`TargetPass` is what a run with one source does at each target, for the whole tree or for a part of it.
`OneWayPasses` does such passes again and again over one channel, as a monitor needs them.
"""

import asyncio
import functools
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import structlog

from syncengine.agreed import Graft
from syncengine.errors import EngineError
from syncengine.guard import Before, Scoped, Tide, judge
from syncengine.model import Counts, Hold, Problem, Rule, What
from syncengine.phases import Plan
from syncengine.plan import plan_mirror
from syncengine.plan_copy import plan_copy
from syncengine.renames import choose, followed
from syncengine.scan import scan_is_complete
from syncengine.scope import MAX_PATHS, Scope
from syncengine.shared_scan import SharedScan
from syncengine.wall import stamp_of
from wire.orders import Assignment, Member, StartRun
from wire.peer_convert import ListHeader
from wire.token import Token
from worker.agreed_store import AgreedStoreLost
from worker.errors import PeerRefused
from worker.member_tree import UNKNOWN, Found, MemberTree
from worker.moving import by_content, files_of
from worker.passes import PassResult, digest_of, told, unequal
from worker.peer import Peer
from worker.peer_listing import Listing
from worker.run import Part, Surroundings
from worker.source_records import is_worth_remembering
from worker.threads import in_own_thread, in_thread

if TYPE_CHECKING:
    from syncengine.stretches import Item

log = structlog.get_logger()

RELISTINGS = 4
"""How often a target is listed for one plan because of renames: some show when others are known."""
_WIDENINGS = 8
"""How often because the scope turned out to be too narrow."""


class TargetPass:
    """What one pass comes to at one target."""

    def __init__(
        self,
        assignment: Assignment,
        part: Part,
        around: Surroundings,
        outside: dict[int, int] | None = None,
    ) -> None:
        """Prepare; `make` comes first. `outside`: see `MemberTree.names_of`."""
        self.part = part
        self.plan: Plan | None = None
        self.scope = Scope.whole()
        """What was looked at in the end: what was asked for, or more."""
        self.source_problems: list[Problem] = []
        """What was found at the source."""
        self.entries_before = UNKNOWN
        """Of the target, as it remembers it."""
        self.scanned = 0
        self.is_cut_short = False
        """Whether the push did not come to its end."""
        self._job, self._options = assignment, assignment.options
        self._source_name = str(assignment.source)
        self._around = around
        self._stamp = ""
        self._outside = outside if outside is not None else {}

    async def make(
        self,
        source: MemberTree,
        *,
        stamp: str,
        scope: Scope | None = None,
        grafts: tuple[Graft, ...] = (),
        compares_content: bool = False,
        shared: SharedScan | None = None,
    ) -> None:
        """Plan and judge; without a plan afterwards, the part says what went wrong.

        The target is listed once more when things turn out to be renamed only, or when one side
        lacks a directory of which the scope covers a part. `shared` is a scan of the whole source, for
        the first look. Raises EngineError and OSError for what
        is wrong at the source.
        """
        self.scope = scope if scope is not None else Scope.whole()
        self.scope = self.scope.deepened(path for graft in grafts for path in graft)
        self._stamp = stamp
        relistings, widenings = RELISTINGS, _WIDENINGS
        leavings, barred = RELISTINGS, set[Graft]()
        while relistings and widenings:
            await self._list_and_plan(
                source, grafts, compares_content=compares_content, shared=shared
            )
            plan, shared = self.plan, None
            if plan is None:
                return
            wider = await self._widened(source, plan)
            if wider is not None:
                self.scope = wider
                widenings -= 1
                continue
            if self._options.rule is not Rule.MIRROR:
                return
            astray = {graft for graft in grafts if graft.path not in plan.grafted}
            if astray:
                # The source has moved on since, filters hide where it went, or the target cannot show
                # it. Without these others may go astray, or be found: in the end, none is left.
                leavings -= 1
                barred |= astray if leavings else set(grafts)
                grafts = tuple(graft for graft in grafts if graft not in barred)
                continue
            moves = await self._find_moves(source, plan) if leavings else []
            found = choose(
                [grafts, [move for move in moves if move not in barred]], with_rings=True
            )
            if len(found) <= len(grafts):
                return
            grafts = found
            self.scope = self.scope.deepened(path for graft in grafts for path in graft)
            relistings -= 1
        if not widenings:
            detail = "the trees kept changing while they were compared"
            self.source_problems.append(Problem(b"", self._source_name, What.UNSTABLE, detail))
            self.close()

    def result(
        self,
        scope: Scope,
        *,
        unequal: Scope,
        holds: tuple[Hold, ...] = (),
        digest: bytes = b"",
        more: Iterable[Problem] = (),
    ) -> PassResult:
        """Return what the pass came to, of the `scope` that it was asked for."""
        part, plan = self.part, self.plan
        counts = Counts(files_scanned=self.scanned)
        counts.add(part.counts)
        return PassResult(
            member=part.name,
            scope=scope,
            unequal=unequal,
            problems=(*more, *self.source_problems, *part.all_problems()),
            holds=holds,
            digest=digest,
            is_away=part.why_away is not None,
            changes=len(plan) if plan is not None else 0,
            counts=counts,
        )

    async def push(self, source: MemberTree, entries: int | None) -> None:
        """Carry the plan out; `entries` is what the target should remember to have, None for as is."""
        plan, part = self.plan, self.part
        assert plan is not None
        assert part.peer is not None
        with part.reaching():
            sent = await part.peer.push(source.opened, plan, self._source_name, entries)
            part.note(sent)
            self.is_cut_short = not sent.is_complete

    def close(self) -> None:
        """Let go of the plan."""
        if self.plan is not None:
            self.plan.close()
            self.plan = None

    async def _list_and_plan(
        self,
        source: MemberTree,
        grafts: tuple[Graft, ...],
        *,
        compares_content: bool,
        shared: SharedScan | None,
    ) -> None:
        self.close()
        part = self.part
        assert part.peer is not None
        part.begin_pass()
        self.source_problems = []
        problems: list[Problem] = [] if shared is None else shared.problems
        wanted = files_of(source, self._options) if compares_content else None
        scope = None if self.scope.is_whole else self.scope
        asking = part.peer.listing(grafts=grafts, digests_of=wanted, scope=scope)
        with part.reaching():
            async with asking as listing:
                merge = functools.partial(
                    self._merge, source, listing, problems, compares_content, shared
                )
                plan, is_empty = await in_own_thread(merge, stop=listing.stop)
                self.plan = plan
                part.counts.bytes_sent += listing.bytes_received
                header = listing.header
                part.lineage = header.lineage
            self.scanned = max(self.scanned, plan.summary.source_entries)
            found = [*problems, *plan.problems]
            part.problems += [one for one in found if one.member == part.name]
            self.source_problems = [one for one in found if one.member != part.name]
            self.entries_before = header.entries_before
            covered = _known(header.entries_before)
            scoped = Scoped(covered, is_empty, header.is_empty) if scope is not None else None
            part.holds = self._judged(plan, source, header, scoped)

    def _judged(
        self, plan: Plan, source: MemberTree, header: ListHeader, scoped: Scoped | None
    ) -> tuple[Hold, ...]:
        before = Before(_known(source.entries_before), _known(header.entries_before))
        if self._options.rule is Rule.MOVE:
            before = Before()  # that it is emptied is what it is for
        return tuple(
            judge(
                plan.summary,
                self._options.safety,
                source_member=self._source_name,
                target_member=self.part.name,
                before=before,
                marker_holds=header.holds,
                scoped=scoped,
            )
        )

    def _merge(
        self,
        source: MemberTree,
        listing: Listing,
        problems: list[Problem],
        compares_content: bool,  # noqa: FBT001 - of the same options for all
        shared: SharedScan | None,
    ) -> tuple[Plan, bool]:
        """Scan the source beside the target's listing, and say whether the source is empty.

        For a thread of its own: it blocks.
        """
        plan = (
            functools.partial(plan_mirror, stamp=self._stamp)
            if self._options.rule is Rule.MIRROR
            else plan_copy
        )
        options = by_content(self._options) if compares_content else self._options
        ours: Iterator[Item]
        if shared is not None:
            ours = shared.items()
        elif self.scope.is_whole:
            ours = source.scan_source_stretches(options, problems)
        else:
            ours = source.scan_source(options, problems, scope=self.scope)
        made = plan(
            ours,
            listing.items(),
            options,
            is_complete=lambda: scan_is_complete(problems),
            source_member=self._source_name,
            target_member=self.part.name,
            scope=self.scope,
        )
        return made, source.is_empty()

    async def _widened(self, source: MemberTree, plan: Plan) -> Scope | None:
        """Return the scope that it takes to plan for what this one covers; None for this one."""
        if self.scope.is_whole:
            return None
        wider = self.scope.deepened(plan.narrow)
        if not plan.narrow:
            # INVARIANT: of a file with several names a change of one is a change of all.
            wider |= Scope(deep=await self.names_of(source, plan.parted))
        if wider == self.scope:
            return None
        return wider if len(wider) <= MAX_PATHS else Scope.whole()

    # What is remembered of the source

    async def names_of(self, source: MemberTree, parted: Mapping[int, int]) -> list[bytes]:
        """Return where files lie that have several names, by inode and number of names."""
        if not parted:
            return []
        try:
            return await in_thread(source.names_of, self._job, parted, self._outside)
        except (OSError, sqlite3.Error, AgreedStoreLost) as error:
            log.warning("names_not_recognized", why=str(error))
            return []

    async def names_beside(self, source: MemberTree, gone: Sequence[bytes]) -> list[bytes]:
        """Return what is still there of files of which a name is gone."""
        if not gone:
            return []
        async with source.agreed_to(self._job) as store:
            if store is None:
                return []
            try:
                return await in_thread(source.names_beside, store, gone)
            except (OSError, sqlite3.Error, AgreedStoreLost) as error:
                log.warning("names_not_recognized", why=str(error))
                return []

    async def _find_moves(self, source: MemberTree, plan: Plan) -> list[Graft]:
        """Return what the plan makes anew and the source only renamed."""
        if not len(plan.extras) and not len(plan.in_way):
            return []  # what was renamed is gone from its old path
        async with source.agreed_to(self._job) as store:
            if store is None:
                return []
            try:
                return await in_thread(source.find_moves, store, plan)
            except (OSError, sqlite3.Error, AgreedStoreLost) as error:
                log.warning("renames_not_recognized", why=str(error))
                return []


class OneWayPasses:
    """The passes of one run, of rule mirror or copy, to one target.

    Of one target one pass at a time (a second call waits); those of several targets are independent.
    """

    def __init__(
        self, assignment: Assignment, order: StartRun, target: Member, around: Surroundings
    ) -> None:
        """Prepare; connects to nobody yet. `order` gives run and token."""
        self._assignment = assignment
        self._target = target
        self._around = around
        self._peer = Peer(
            assignment.job, order.run, order.token, target, around.channels, around.clock
        )
        self._lock = asyncio.Lock()
        self._tide = Tide()
        self._entries: int | None = None
        """What the job covers at the target, by what the passes did; None while nobody knows."""
        self._is_marked = False
        self._outside: dict[int, int] = {}

    async def pass_over(
        self, scope: Scope, *, hints: Sequence[Graft] = (), approved: bytes = b""
    ) -> PassResult:
        """Make the target as the source is, within `scope`; the whole tree is a scope too.

        The guards judge as in a whole run, `max_delete` against all that the job covers at the
        target, and over several passes together (see `guard.Tide`). A held plan changes nothing,
        unless its digest is `approved`. `hints` are renames that were seen at the source, in their
        order: should they be wrong they cost time, never content; their paths need not be in the
        scope. Raises nothing for what goes wrong with trees and members: the result says it.
        Cancelling stops at the next safe point and leaves no half state; what had been published is
        then not told.
        """
        grafts = choose([followed(hints)], with_rings=True)
        asked = scope.deepened(path for graft in grafts for path in graft) if grafts else scope
        if self._assignment.options.rule is not Rule.MIRROR:
            grafts = ()  # of a copy, nothing is taken away from its old path
        async with self._lock:
            together: PassResult | None = None
            for piece in asked.pieces():
                if together is not None and (together.is_away or together.holds):
                    together = together.left_out(piece)
                    continue
                here = [graft for graft in grafts if piece.covers(graft.path)]
                done = await self._pass_over(piece, tuple(here), approved)
                together = done if together is None else together.with_piece(done)
            return together or PassResult(str(self._target), scope, Scope())

    async def compare(self, scope: Scope) -> PassResult:
        """Plan as a pass over `scope` does, and change nothing; `unequal` is what it would change.

        Raises nothing for what goes wrong with trees and members: the result says it.
        """
        async with self._lock:
            return await self._pass_over(scope, (), b"", changes=False)

    def renew(self, token: Token) -> None:
        """Go on under a newer token, with the pass that is under way too."""
        self._peer.renew(token)

    def counts(self) -> Counts:
        """Return what the push that is under way has published so far."""
        return self._peer.counts()

    async def close(self) -> None:
        """Hang up."""
        await self._peer.close()

    async def _pass_over(
        self, scope: Scope, grafts: tuple[Graft, ...], approved: bytes, *, changes: bool = True
    ) -> PassResult:
        part = Part(self._target, self._peer)
        one = TargetPass(self._assignment, part, self._around, self._outside)
        source = str(self._assignment.source)
        try:
            return await self._carried_out(one, scope, grafts, approved, changes=changes)
        except (EngineError, OSError, PeerRefused) as error:
            problem = Problem(b"", source, What.UNREADABLE, str(error))
            return one.result(scope, unequal=scope, more=[problem])
        finally:
            one.close()

    async def _carried_out(
        self,
        one: TargetPass,
        scope: Scope,
        grafts: tuple[Graft, ...],
        approved: bytes,
        *,
        changes: bool,
    ) -> PassResult:
        source, found = await asyncio.to_thread(self._open, scope)
        with source:
            if source.tree is None:
                return one.result(scope, unequal=scope, holds=source.holds)
            names = await one.names_of(source, found.linked)
            names += await one.names_beside(source, found.gone)
            wider = found.scope | Scope(deep=names) if names else found.scope
            await one.make(
                source, stamp=stamp_of(self._around.trees.wall()), scope=wider, grafts=grafts
            )
            plan = one.plan
            if plan is None:
                return one.result(scope, unequal=scope)
            if not changes:
                paths = await in_thread(lambda: {change.path for change in plan})
                return one.result(scope, unequal=Scope(shallow=paths))
            entries = self._after(one, plan)
            holds = self._holds(one, source, entries)
            digest = digest_of(holds, [(one.part.name, plan)])
            if holds and digest != approved:
                return one.result(scope, unequal=scope, holds=holds, digest=digest)
            if not self._is_marked or source.holds:
                await in_thread(source.mark)
                self._is_marked = True
            if not plan.is_empty or holds or one.scope.is_whole:
                await one.push(source, told(one.entries_before, entries))
            if one.part.why_away is not None or one.is_cut_short:
                return one.result(scope, unequal=scope)
            self._note(entries, is_approved=bool(holds))
            await self._remember(source, one, plan)
            problems = [*one.source_problems, *one.part.all_problems()]
            return one.result(scope, unequal=unequal(one.scope, [plan], problems))

    def _open(self, scope: Scope) -> tuple[MemberTree, Found]:
        """Open the source, and see which paths of the scope are no directories there."""
        source = self._around.trees.open_source(self._assignment.source)
        try:
            return source, source.found(scope) if source.tree is not None else Found(scope)
        except BaseException:
            source.close()
            raise

    # How many entries there are

    def _after(self, one: TargetPass, plan: Plan) -> int | None:
        """Return how many entries the target will have."""
        summary = plan.summary
        if one.scope.is_whole:
            if self._assignment.options.rule is Rule.MIRROR:
                return summary.source_entries
            return max(summary.source_entries, summary.target_entries)
        before = self._entries
        if before is None:
            before = _known(one.entries_before)
            if before is None:
                return None
            self._tide.accept(before)
        if self._assignment.options.rule is Rule.MIRROR:
            return max(0, before + summary.source_entries - summary.target_entries)
        return before + max(0, summary.source_entries - summary.target_entries)

    def _holds(self, one: TargetPass, source: MemberTree, entries: int | None) -> tuple[Hold, ...]:
        found = [*source.holds, *one.part.holds]
        if entries is not None and not found:
            now = self._around.clock.now()
            safety = self._assignment.options.safety
            found += self._tide.judge(now, entries, safety, member=one.part.name)
        return tuple(dict.fromkeys(found))

    def _note(self, entries: int | None, *, is_approved: bool) -> None:
        self._entries = entries
        if entries is None:
            return
        if is_approved:
            self._tide.accept(entries)
        else:
            self._tide.note(self._around.clock.now(), entries)

    async def _remember(self, source: MemberTree, one: TargetPass, plan: Plan) -> None:
        """Keep in mind what the source has: for its guards, and to recognize what is renamed."""
        entries = plan.summary.source_entries
        if not one.scope.is_whole:
            entries = max(source.entries_before, 1 if entries else 0)
        if entries != source.entries_before:
            await in_thread(source.remember, entries)
        if self._assignment.options.rule is not Rule.MIRROR:
            return
        has_names = len(plan.linked) > 0
        if has_names or one.scope.is_whole or is_worth_remembering(plan):
            await remember_entries(source, self._assignment, plan, with_names=has_names)


async def remember_entries(
    source: MemberTree, job: Assignment, plan: Plan, *, with_names: bool = False
) -> None:
    """Keep in mind what the source has, so that it is recognized when it is renamed."""
    try:
        await in_thread(source.remember_entries, job, plan, with_names=with_names)
    except (OSError, sqlite3.Error, AgreedStoreLost) as error:
        log.warning("renames_will_not_be_recognized", why=str(error))


def _known(entries: int) -> int | None:
    return None if entries == UNKNOWN else entries
