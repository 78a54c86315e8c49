"""Plan, rules sync and exchange: a listing of each member in, what makes all of them equal out.

Pure but for the spools. A streaming merge of all listings: memory grows with the depth of the trees
only. What becomes of a path is decided by `reconcile`; here that meets the paths above and below it:
a directory that was deleted stays when something lives in it, and only what is empty goes.
"""

from collections.abc import Iterable, Iterator, Sequence

from syncengine.agreed import Graft, Sighting
from syncengine.beside import all_as_agreed, first_of
from syncengine.conflict_names import ConflictNames
from syncengine.drafts import Drafts
from syncengine.joint import CERTAIN, Conflict, JointRun, Relisting, SyncPlan
from syncengine.joint_grafts import JointGrafts
from syncengine.levels import TOP, Level, Place
from syncengine.linked import JointLeader, JointLinks
from syncengine.model import PRETENDED, Compare, Entry, Kind, Problem, Rule, RunOptions, What
from syncengine.model import Conflict as Policy
from syncengine.reconcile import Reconciler, Verdict, members_of
from syncengine.recording import Having, Recording
from syncengine.renames import Moves, choose, sequence
from syncengine.scope import Scope
from syncengine.spool import ValueSpool

__all__ = ["plan_sync"]

_FILE, _DIRECTORY = Kind.FILE, Kind.DIRECTORY
_LEFT_ALONE = frozenset({Kind.SPECIAL, Kind.EXCLUDED})


def plan_sync(
    listings: Sequence[Iterable[Sighting]],
    options: RunOptions,
    run: JointRun,
    *,
    grafts: Sequence[Graft] | None = None,
    spool_folder: str | None = None,
    scope: Scope | None = None,
) -> SyncPlan:
    """Merge a listing of each of the run's members into the plan that makes all of them equal.

    With `grafts`, the listings show these; None looks for renames, which may end in a relisting.
    Of listings in a `scope` nothing is concluded beyond it; see `SyncPlan.narrow`.
    Reads the listings to their ends. Raises what they
    raise, and OSError when a spool cannot be written; everything is closed then.
    """
    plan = SyncPlan(options, run, spool_folder)
    merge = _Merge(plan, run, grafts, folder=spool_folder)
    merge.scope = None if scope is None or scope.is_whole else scope
    try:
        merge.run([iter(listing) for listing in listings])
        merge.finish()
    except BaseException:
        plan.close()
        raise
    finally:
        merge.drafts.close()
    return plan


class _Merge:
    def __init__(
        self, plan: SyncPlan, run: JointRun, grafts: Sequence[Graft] | None, *, folder: str | None
    ) -> None:
        self.plan = plan
        self.scope: Scope | None = None
        """What the listings show, unless it is everything."""
        self._count = len(plan.members)
        self._recording = Recording(plan, run)
        self._rules = Reconciler(plan.options, plan.members, plan.runner)
        self._stamp = run.stamp
        self._names = ConflictNames(run.stamp)
        self.drafts = Drafts(plan, self._rules, folder)
        self._everyone = self.drafts.everyone
        self._trash = plan.options.conflict is Policy.NEWEST
        self._levels: list[Level] = []
        self._seen = [0] * self._count
        self._hidden = [0] * self._count
        self._all_seen = 0
        """Entries that were seen at each member, beside those."""
        self._digests = tuple(ValueSpool(folder, list[bytes]) for _ in plan.members)
        self._moves = self._looked_for(grafts)
        self._grafts = JointGrafts(tuple(grafts or ()), self._count)
        self._may_skip = (
            plan.options.compare is Compare.MTIME
            and not any(one.is_older for one in plan.members)
            and not grafts
        )
        self._has_grafts = bool(grafts)
        self._keep_times = plan.options.keep_times
        self._links_files = plan.options.keep_hardlinks
        self._links = JointLinks()

    def _looked_for(self, grafts: Sequence[Graft] | None) -> tuple[Moves, ...]:
        if grafts is not None or self.plan.options.rule is Rule.EXCHANGE:
            return ()
        return tuple(Moves() for _ in self.plan.members)

    # The merge

    def run(self, listings: Sequence[Iterator[Sighting]]) -> None:
        """Read all listings to their ends."""
        heads = [next(listing, None) for listing in listings]
        while True:
            here = first_of(heads)
            if here is None:
                break
            path, members = here
            sightings = [
                heads[member] if members >> member & 1 else None for member in range(self._count)
            ]
            for member in members_of(members):
                heads[member] = next(listings[member], None)
            self._names.note(path)
            if (
                self._may_skip
                and members == self._everyone
                and all_as_agreed(sightings, keep_times=self._keep_times)
                and not (self._levels and self._levels[-1].is_ignored)
            ):
                self._all_seen += 1
                continue
            self._take(path, sightings)
        while self._levels:
            self._leave()

    def _take(self, path: bytes, sightings: Sequence[Sighting | None]) -> None:
        nows = [None if sighting is None else sighting.now for sighting in sightings]
        agreeds = [None if sighting is None else sighting.agreed for sighting in sightings]
        place = Place(path, nows, agreeds)
        if path:
            for member, now in enumerate(nows):
                if now is not None:
                    seen = self._hidden if now.kind is Kind.EXCLUDED else self._seen
                    seen[member] += 1
        for moves, sighting in zip(self._moves, sightings, strict=False):
            if sighting is not None:
                moves.note(path, sighting.now, sighting.came_from)
        pretended = 0
        if self._has_grafts:
            pretended = self._graft(place, nows)
        levels = self._levels
        while levels and not path.startswith(levels[-1].below):
            self._leave()
        parent = levels[-1] if levels else Level(TOP)
        if parent.is_ignored:
            if parent.forgets:
                self._recording.forget(place)
        elif any(now is not None and now.kind in _LEFT_ALONE for now in nows):
            self._leave_alone(place, parent)
        else:
            self._look_for_narrow(place)
            self._reconcile(place, parent, pretended)

    def _look_for_narrow(self, place: Place) -> None:
        """Note a directory that is to be made, or to go, at some member: with all that it holds.

        The highest of them are enough.
        """
        path, narrow = place.path, self.plan.narrow
        if self.scope is None or self.scope.is_deep_at(path):
            return
        if narrow and path.startswith(narrow[-1] + b"/"):
            return
        is_here = [now is not None and now.kind is _DIRECTORY for now in place.nows]
        was_there = (agreed and agreed.entry for agreed in place.agreeds)
        is_known = any(entry and entry.kind is _DIRECTORY for entry in was_there)
        if (is_known or any(is_here)) and not all(is_here):
            narrow.append(path)

    def _reconcile(self, place: Place, parent: Level, pretended: int) -> None:
        path, nows, agreeds = place
        verdict = self._rules.decide(nows, agreeds, parent.certain)
        for member in members_of(verdict.undecided):
            self._digests[member].append(path)
        version = verdict.version
        if verdict.is_suppressed and verdict.otherwise is None:
            self._suppress(place, verdict, parent)
        elif version is not None and version.kind is _DIRECTORY:
            level = self._enter(place, parent)
            level.verdict, level.pretended = verdict, pretended
            if verdict.otherwise is None or not path:
                self._establish()
            elif verdict.otherwise.version is not None and not level.makes_way:
                level.makes_way = path
        else:
            self._settle(place, verdict, parent)

    def _enter(self, place: Place, parent: Level) -> Level:
        level = Level(place)
        level.displaced = parent.displaced
        level.certain = parent.certain
        for member, now in enumerate(place.nows):
            if now is not None and now.kind is not _DIRECTORY:
                level.certain |= 1 << member
        if not parent.is_alive:
            level.makes_way = parent.makes_way
        self._levels.append(level)
        return level

    def _graft(self, place: Place, nows: list[Entry | None]) -> int:
        """Take note of a path of listings with grafts.

        Returns where a directory is only pretended: it is taken out of `nows`, those of the place, to
        be decided as if it were not there.
        """
        before = self._grafts.look(place)
        pretended = 0
        for member, (now, agreed) in enumerate(zip(nows, place.agreeds, strict=True)):
            if now is not None and now.seen == PRETENDED:
                nows[member] = None
                pretended |= 1 << member
            if before and agreed is not None and agreed.entry is not None:
                # What was agreed to where it came from is over.
                self._recording.moved(member, before)
        return pretended

    # What is left alone

    def _leave_alone(self, place: Place, parent: Level) -> None:
        """Leave a path alone at all members, since one has there what the job does not cover."""
        for member, now in enumerate(place.nows):
            if now is None:
                continue
            parent.keeps |= 1 << member
            if now.kind is Kind.SPECIAL:
                name = self.plan.members[member].name
                self.plan.problems.append(
                    Problem(place.path, name, What.SKIPPED, "a special file, left alone")
                )
        self._recording.forget(place)
        level = self._enter(place, parent)
        level.is_ignored = level.forgets = True

    def _suppress(self, place: Place, verdict: Verdict, parent: Level) -> None:
        self._conflict(place.path, verdict)
        for member, now in enumerate(place.nows):
            if now is not None:
                parent.keeps |= 1 << member
        self._enter(place, parent).is_ignored = True

    def _conflict(self, path: bytes, verdict: Verdict) -> None:
        if verdict.detail:
            self.plan.found.append(Conflict(path, verdict.detail))

    # Directories

    def _establish(self) -> bool:
        """Make it certain that every directory down to here is one, everywhere.

        False when one of them cannot be: its conflict is suppressed.
        """
        for number, level in enumerate(self._levels):
            if level.is_ignored:
                self._ignore_from(number)
                return False
            if level.is_alive:
                continue
            verdict = level.verdict
            assert verdict is not None
            level.is_alive = True
            self._conflict(level.path, verdict)
            if verdict.is_suppressed:
                self._ignore_from(number)
                return False
            self._make_directory(level, self._levels[number - 1] if number else Level(TOP), verdict)
        return True

    def _ignore_from(self, number: int) -> None:
        for level in self._levels[number:]:
            level.is_ignored = True

    def _make_directory(self, level: Level, parent: Level, verdict: Verdict) -> None:
        version = verdict.version
        assert version is not None
        level.displaced = parent.displaced
        losers = 0
        for mask in verdict.losers:
            losers |= mask
        for member, now in enumerate(level.place.nows):
            bit = 1 << member
            if now is not None and now.kind is _DIRECTORY:
                continue
            if now is not None and not losers & bit:
                self.drafts.remove(member, now, level.path, CERTAIN)
                level.displaced |= bit
            parent.changed |= bit
            if level.path and not level.pretended & bit:
                displaced = bool(level.displaced & bit)
                self.drafts.make_directory(member, version, is_displaced=displaced)
        if losers:
            parent.changed = self._everyone
            self.drafts.keep_copies(verdict, level.place.nows, parent.displaced, trash=self._trash)

    def _leave(self) -> None:
        """Come back from a directory: everything in it is known now."""
        level = self._levels.pop()
        verdict = level.verdict
        if level.is_ignored or verdict is None:
            return
        if not level.is_alive:
            self._give_up(level, verdict)
            return
        having = []
        for member, now in enumerate(level.place.nows):
            is_here = now is not None and now.kind is _DIRECTORY
            is_set = self.drafts.set_directory(
                member,
                verdict,
                now if is_here else None,
                changed=bool(level.changed >> member & 1),
            )
            expected = self.drafts.expected(member, verdict, now)
            having.append(self._having(member, level.place, verdict, expected, already=not is_set))
        self._recording.present(level.path, verdict, having)

    def _give_up(self, level: Level, verdict: Verdict) -> None:
        """Remove a directory in which nothing lives, and put in its place what shall be there."""
        instead = verdict.otherwise
        assert instead is not None
        parent = self._levels[-1] if self._levels else Level(TOP)
        makes_way = level.makes_way
        gone = 0
        for member, now in enumerate(level.place.nows):
            if now is None or now.kind is not _DIRECTORY:
                continue
            if level.keeps >> member & 1:
                parent.keeps |= 1 << member
                if instead.version is not None:
                    detail = "not replaced: the directory here holds what is left alone"
                    name = self.plan.members[member].name
                    self.plan.problems.append(Problem(level.path, name, What.SKIPPED, detail))
                continue
            gone |= 1 << member
            parent.changed |= 1 << member
            self.drafts.remove(member, now, makes_way, instead.rests_on)
        if instead.version is None:
            self._recording.absent(level.place, instead, skip=level.keeps)
        else:
            self._put(level.place, instead, parent, gone=gone, skip=level.keeps)

    # Everything else

    def _settle(self, place: Place, verdict: Verdict, parent: Level) -> None:
        """Carry out a verdict about what is no directory anywhere."""
        if verdict.version is not None:
            self._put(place, verdict, parent)
            return
        makes_way = b"" if parent.is_alive else parent.makes_way
        for member, now in enumerate(place.nows):
            if now is not None:
                parent.changed |= 1 << member
                self.drafts.remove(member, now, makes_way, verdict.rests_on)
        self._recording.absent(place, verdict)

    def _put(
        self, place: Place, verdict: Verdict, parent: Level, *, gone: int = 0, skip: int = 0
    ) -> None:
        """Let every member have a version; where a directory is `gone`, it takes its place."""
        if not self._establish():
            return
        nows = place.nows
        self._conflict(place.path, verdict)
        losers = 0
        for mask in verdict.losers:
            losers |= mask
        displaced = parent.displaced | gone
        leader = self._leader(nows, verdict, displaced, losers)
        having = []
        for member, now in enumerate(nows):
            bit = 1 << member
            if skip & bit:
                continue
            already = False
            if leader is not None and not (self._links.unable | losers) & bit:
                already = self.drafts.link(member, verdict, now, leader, displaced)
                parent.changed |= 0 if already else bit
            elif verdict.have & bit:
                assert now is not None
                already = not self.drafts.set_metadata(member, verdict, now)
            elif not losers & bit:
                is_displaced = bool(displaced & bit)
                self.drafts.set_content(member, verdict, nows, is_displaced=is_displaced)
                parent.changed |= bit
            expected = self.drafts.expected(member, verdict, now)
            having.append(self._having(member, place, verdict, expected, already=already))
        self._recording.present(place.path, verdict, having)
        if losers:
            parent.changed = self._everyone
            self.drafts.keep_copies(
                verdict,
                nows,
                parent.displaced,
                trash=self._trash,
                leader=leader if not self._links.unable & losers else None,
            )

    def _leader(
        self, nows: Sequence[Entry | None], verdict: Verdict, displaced: int, losers: int
    ) -> JointLeader | None:
        version = verdict.version
        if not self._links_files or version is None or version.kind is not _FILE:
            return None
        return self._links.meet(version, nows, verdict.have, displaced=displaced, losers=losers)

    def _having(
        self, member: int, place: Place, verdict: Verdict, expected: Entry, *, already: bool
    ) -> Having:
        """Return what a member has at a path in the end, to agree to."""
        # Within a graft the member may have it, by now, at the path that it is to be renamed from.
        is_inside = self._grafts.is_inside
        has_record = place.agreeds[member] is not None and not is_inside
        is_recorded = has_record and bool(verdict.number and verdict.current >> member & 1)
        return Having(member, expected, already and not is_inside, is_recorded)

    # The end

    def finish(self) -> None:
        """Seal everything, now that it is known which members were seen whole."""
        plan = self.plan
        plan.is_complete = tuple(member.is_complete() for member in plan.members)
        complete = sum(is_whole << member for member, is_whole in enumerate(plan.is_complete))
        plan.found.seal()
        for member, summary in enumerate(plan.summaries):
            entries = self._all_seen + self._seen[member]
            summary.source_entries = summary.target_entries = entries
            summary.source_hidden = summary.target_hidden = self._hidden[member]
            summary.is_complete = plan.is_complete[member]
        for member, shown in enumerate(self._grafts.shown):
            self.drafts.rename(member, sequence(shown, self._stamp))
        for copy in self.drafts.finish(self._names, self._links, complete):
            self._recording.copy(copy)
        for already, later in plan.recorded:
            already.seal()
            later.seal()
        for spool in self._digests:
            spool.seal()
        plan.relisting = self._relisting()

    def _relisting(self) -> Relisting | None:
        """Say whether the members must list themselves again, and how."""
        wanted = self._grafts.wanted
        refused = self._grafts.refused()
        if refused:
            wanted = tuple(graft for graft in wanted if graft not in refused)
        moved = choose([moves.found for moves in self._moves], with_rings=False)
        if refused or moved:
            return Relisting(
                moved or wanted, tuple(ValueSpool(None, list[bytes]) for _ in self._seen)
            )
        if any(len(spool) for spool in self._digests):
            return Relisting(wanted, self._digests)
        return None
