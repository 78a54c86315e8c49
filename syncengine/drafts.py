"""The changes of a joint plan while it is made: for each member, in the spools of its plans.

Here it is decided where a change goes: into the plan of a member, or, at the runner, into what it can
do by itself or what it must fetch. Deletes wait until it is known which members were seen whole, with
what takes their place; conflict copies wait until it is known which names are free.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec
from blake3 import blake3

from syncengine.attributes import same
from syncengine.changes import (
    TO_TRASH,
    Change,
    MakeDirectory,
    MakeLink,
    MakeSpecial,
    MakeSymlink,
    Remove,
    Rename,
    SetDirectory,
    SetMetadata,
    WriteFile,
)
from syncengine.conflict_names import ConflictNames
from syncengine.joint import CERTAIN, SyncPlan
from syncengine.linked import JointLeader, JointLinks
from syncengine.model import PRETENDED, Entry, Kind, Problem, What
from syncengine.phases import Plan
from syncengine.reconcile import Reconciler, Verdict, members_of
from syncengine.spool import Spool, ValueSpool

_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755
_FILE, _DIRECTORY, _SYMLINK = Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK


class _Removal(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A delete that waits for what it rests on."""

    change: Remove
    rests_on: int


class _Copy(msgspec.Struct, frozen=True, array_like=True):
    """A version that loses, and waits for its name."""

    path: bytes
    had_by: int
    version: Entry
    """As the first of those has it."""
    places: list[tuple[int, int]]
    """Members that rename what they have, with its fingerprint."""
    files: list[tuple[int, int, WriteFile]]
    """What takes the place at others, with the member and where its content comes from."""
    links: list[tuple[int, MakeSymlink]]
    displaced: int
    """Members whose directory is made where something has to go first."""


class _LateLink(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A hard link to what takes the place of a version that loses."""

    member: int
    change: MakeLink
    is_displaced: bool


class Drafts:
    """Collects the changes of all members."""

    def __init__(self, plan: SyncPlan, rules: Reconciler, folder: str | None) -> None:
        self.plan = plan
        self._rules = rules
        self._keep_mode = plan.options.keep_mode
        self._keep_times = plan.options.keep_times
        self._runner = plan.runner
        self._folder = folder
        count = len(plan.members)
        self.everyone = (1 << count) - 1
        self._removals = tuple(ValueSpool(folder, list[_Removal]) for _ in range(count))
        self._copies = ValueSpool(folder, list[_Copy])
        self._late_links = ValueSpool(folder, list[_LateLink])

    # Where changes go

    def _own(self, member: int) -> Plan:
        """Return the plan that makes what needs no content from another member."""
        return self.plan.local if member == self._runner else self.plan.plans[member]

    def _last(self, member: int) -> Plan:
        """Return the plan that ends with deletes and directories."""
        return self.plan.closing if member == self._runner else self.plan.plans[member]

    def _supply(self, member: int, holder: int) -> Plan:
        """Return the plan that brings a member the content that `holder` has."""
        if member == self._runner:
            return self.plan.fetches[holder]
        return self.plan.plans[member]

    @staticmethod
    def _make(plan: Plan, change: Change, *, is_displaced: bool) -> None:
        (plan.replacements if is_displaced else plan.changes).append(change)
        if type(change) is WriteFile:
            plan.summary.files += 1
            plan.summary.bytes += change.size

    # One change at one member

    def rename(self, member: int, renames: Iterable[Rename]) -> None:
        """Let a member begin with renames, in their order."""
        for change in renames:
            self._own(member).renames.append(change)

    def remove(self, member: int, now: Entry, makes_way: bytes, rests_on: int) -> None:
        """Remove what a member has; `rests_on` as in Verdict."""
        change = Remove(now.path, now.kind, now.seen, makes_way)
        self._removals[member].append(_Removal(change, rests_on))

    def make_directory(self, member: int, version: Entry, *, is_displaced: bool) -> None:
        """Make a directory where nothing is (any more)."""
        change = MakeDirectory(version.path, self._mode(version, None))
        self._make(self._own(member), change, is_displaced=is_displaced)

    def set_directory(
        self, member: int, verdict: Verdict, now: Entry | None, *, changed: bool
    ) -> bool:
        """Give a directory its metadata, when it differs or something changed in it."""
        version = verdict.version
        assert version is not None
        if now is None or now.seen == PRETENDED:
            mode, mtime_ns, attributes = (
                self._mode(version, None),
                version.mtime_ns,
                version.attributes,
            )
            seen, differs, is_needed = 0, False, True
        else:
            mode, mtime_ns, attributes = self._wanted(member, verdict, now)
            seen, differs = now.seen, self._differs(now, mode, mtime_ns, attributes)
            is_needed = differs or changed
            if attributes == now.attributes:
                attributes = b""
        if is_needed:
            change = SetDirectory(version.path, mode, mtime_ns, seen, differs, attributes)
            self._last(member).directories.append(change)
        return is_needed

    def set_metadata(self, member: int, verdict: Verdict, now: Entry) -> bool:
        """Give what has the right content its metadata; say whether there was need to."""
        mode, mtime_ns, attributes = self._wanted(member, verdict, now)
        if not self._differs(now, mode, mtime_ns, attributes):
            return False
        if attributes == now.attributes:
            attributes = b""
        change = SetMetadata(now.path, now.kind, mode, mtime_ns, now.seen, attributes)
        self._own(member).changes.append(change)
        return True

    def set_content(
        self,
        member: int,
        verdict: Verdict,
        nows: Sequence[Entry | None],
        *,
        is_displaced: bool,
        keep: bytes = b"",
    ) -> None:
        """Give a member the content of the verdict, over what it has there unless that is displaced."""
        version = verdict.version
        assert version is not None
        plan = self._supply(member, verdict.holder) if version.kind is _FILE else self._own(member)
        change = self._content(
            member, verdict, nows, seen=0 if is_displaced else _seen(nows[member])
        )
        if keep and isinstance(change, WriteFile | MakeSymlink):
            change = msgspec.structs.replace(change, keep=keep)
        self._make(plan, change, is_displaced=is_displaced)

    def _content(
        self, member: int, verdict: Verdict, nows: Sequence[Entry | None], *, seen: int
    ) -> WriteFile | MakeSymlink | MakeSpecial:
        version = verdict.version
        assert version is not None
        mode = self._mode(version, nows[member])
        return self._made(version, mode, seen, self._source(member, verdict, nows))

    def _made(
        self, version: Entry, mode: int, seen: int, source: tuple[int, bytes]
    ) -> WriteFile | MakeSymlink | MakeSpecial:
        path, mtime_ns, attributes = version.path, version.mtime_ns, version.attributes
        if version.kind is _FILE:
            source_seen, origin = source
            return WriteFile(
                path,
                version.size,
                mode,
                mtime_ns,
                source_seen,
                seen,
                attributes,
                origin,
                b"",
                version.digest,
            )
        if version.kind is _SYMLINK:
            return MakeSymlink(path, version.link, mtime_ns, seen, attributes)
        return MakeSpecial(path, version.kind, mode, mtime_ns, version.device, seen, attributes)

    def _source(
        self, member: int, verdict: Verdict, nows: Sequence[Entry | None]
    ) -> tuple[int, bytes]:
        """Return the fingerprint and the place of the content that a member gets."""
        if member == self._runner:
            theirs = nows[verdict.holder]
            assert theirs is not None
            return theirs.seen, theirs.came_from
        ours = nows[self._runner]
        if not verdict.have >> self._runner & 1 or ours is None or ours.came_from:
            return 0, b""
        if self._differs(ours, *self._wanted(self._runner, verdict, ours)):
            return 0, b""  # it gets other metadata before it is read
        return ours.seen, b""

    def link(
        self, member: int, verdict: Verdict, now: Entry | None, leader: JointLeader, displaced: int
    ) -> bool:
        """Make a path a further name of the leader's file; say whether it was one already."""
        has_it = now is not None and verdict.have >> member & 1
        if has_it and now is not None and now.inode == leader.inodes[member] != 0:
            # Its metadata come with those of the leader.
            return True
        assert verdict.version is not None
        is_displaced = bool((displaced | leader.displaced) >> member & 1)
        seen = 0 if displaced >> member & 1 else _seen(now)
        change = MakeLink(verdict.version.path, leader.version.path, seen)
        if leader.late >> member & 1:
            self._late_links.append(_LateLink(member, change, is_displaced))
        else:
            # At the runner the leader's content may have to be fetched before.
            self._make(self._last(member), change, is_displaced=is_displaced)
        return False

    # Metadata

    def _mode(self, version: Entry, now: Entry | None) -> int:
        if self._keep_mode:
            return self._rules.mode(version)
        if now is not None and now.kind is version.kind:
            return now.mode
        return _DIRECTORY_MODE if version.kind is _DIRECTORY else _FILE_MODE

    def _wanted(self, member: int, verdict: Verdict, now: Entry) -> tuple[int, int, bytes]:
        """Return the metadata that a member is to have at what it has."""
        version, agreed = verdict.version, verdict.agreed
        assert version is not None
        if version[2:4] == now[2:4] and version.attributes == now.attributes:
            return now.mode, now.mtime_ns, now.attributes
        mode, mtime_ns, attributes = self._mode(version, now), version.mtime_ns, version.attributes
        base = verdict.bases[member] if verdict.bases else None
        if agreed is not None and base is not None and agreed.kind is base.kind is now.kind:
            # It may be unable to hold exactly what was agreed to: only what changed since counts,
            # there and here.
            mode_of = self._rules.mode
            if mode_of(version) == mode_of(agreed) and mode_of(now) == mode_of(base):
                mode = now.mode
            if mtime_ns == agreed.mtime_ns and now.mtime_ns == base.mtime_ns:
                mtime_ns = now.mtime_ns
            if same(attributes, agreed.attributes) and same(now.attributes, base.attributes):
                attributes = now.attributes
        if same(attributes, now.attributes):
            attributes = now.attributes
        if self._rules.mode(now) == self._rules.mode(now._replace(mode=mode)):
            mode = now.mode
        return mode, mtime_ns if self._keep_times else now.mtime_ns, attributes

    @staticmethod
    def _differs(now: Entry, mode: int, mtime_ns: int, attributes: bytes) -> bool:
        return (mode, mtime_ns, attributes) != (now.mode, now.mtime_ns, now.attributes)

    def expected(self, member: int, verdict: Verdict, now: Entry | None) -> Entry:
        """Return what a member has when all is done."""
        version = verdict.version
        assert version is not None
        if now is None or now.kind is not version.kind or not verdict.have >> member & 1:
            mode = self._mode(version, now)
            return version if mode == version.mode else version._replace(mode=mode)
        mode, mtime_ns, attributes = self._wanted(member, verdict, now)
        if (mode, mtime_ns, attributes) == (version.mode, version.mtime_ns, version.attributes):
            return version
        return version._replace(mode=mode, mtime_ns=mtime_ns, attributes=attributes)

    # Conflict copies

    def keep_copies(
        self,
        verdict: Verdict,
        nows: Sequence[Entry | None],
        displaced: int,
        *,
        trash: bool,
        leader: JointLeader | None = None,
    ) -> None:
        """Let every version that loses live on under a name of its own, or in the trash.

        What takes its place is linked to the leader, if there is one.
        """
        version = verdict.version
        assert version is not None
        for losers in verdict.losers:
            if trash and version.kind is not _DIRECTORY:
                self._discard(losers, verdict, nows)
            else:
                self._keep_copy(losers, verdict, nows, displaced, leader)

    def _discard(self, losers: int, verdict: Verdict, nows: Sequence[Entry | None]) -> None:
        assert verdict.version is not None
        for member in members_of(losers):
            now = nows[member]
            assert now is not None
            if verdict.version.kind in {_FILE, _SYMLINK}:
                self.set_content(member, verdict, nows, is_displaced=False, keep=TO_TRASH)
            else:
                self.remove(member, now, now.path, CERTAIN)
                self.set_content(member, verdict, nows, is_displaced=True)

    def _keep_copy(
        self,
        losers: int,
        verdict: Verdict,
        nows: Sequence[Entry | None],
        displaced: int,
        leader: JointLeader | None,
    ) -> None:
        version = verdict.version
        assert version is not None
        first = next(members_of(losers))
        entry = nows[first]
        assert entry is not None
        copy = _Copy(entry.path, losers, entry, [], [], [], displaced)
        for member in members_of(losers):
            now = nows[member]
            assert now is not None
            if version.kind is _DIRECTORY:
                copy.places.append((member, now.seen))
                continue
            if leader is not None:
                copy.places.append((member, now.seen))
                link = MakeLink(version.path, leader.version.path, 0)
                self._late_links.append(_LateLink(member, link, is_displaced=False))
                continue
            change = self._content(member, verdict, nows, seen=now.seen)
            if isinstance(change, WriteFile):
                copy.files.append((member, verdict.holder, change))
            elif isinstance(change, MakeSymlink):
                copy.links.append((member, change))
            else:
                copy.places.append((member, now.seen))
                self._make(
                    self._own(member), msgspec.structs.replace(change, seen=0), is_displaced=False
                )
        self._copies.append(copy)

    def _name_copies(self, names: ConflictNames, links: JointLinks) -> Iterator[Entry]:
        """Put the copies into the plans; yields each version under its new name."""
        linked: list[_LateLink] = []
        for copy in self._copies:
            first = next(members_of(copy.had_by))
            path = names.give(copy.path, self.plan.members[first].worker)
            for member, seen in copy.places:
                renames = self._own(member).renames
                renames.append(Rename(copy.path, path, copy.version.kind, seen))
            for member, holder, file in copy.files:
                keeping = msgspec.structs.replace(file, keep=path)
                self._make(self._supply(member, holder), keeping, is_displaced=False)
            for member, link in copy.links:
                self._own(member).changes.append(msgspec.structs.replace(link, keep=path))
            version = copy.version._replace(path=path, came_from=b"")
            origin = copy.version.came_from or copy.path
            leader = None
            if self.plan.options.keep_hardlinks:
                leader = links.of_copy(first, version, displaced=copy.displaced)
            for member in members_of(self.everyone & ~copy.had_by):
                if leader is not None and not links.unable >> member & 1:
                    name = MakeLink(path, leader.version.path, 0)
                    displaced = bool((copy.displaced | leader.displaced) >> member & 1)
                    linked.append(_LateLink(member, name, displaced))
                    continue
                source = (copy.version.seen, origin) if member == self._runner else (0, b"")
                change = self._made(version, self._mode(version, None), 0, source)
                plan = self._supply(member, first) if version.kind is _FILE else self._own(member)
                self._make(plan, change, is_displaced=bool(copy.displaced >> member & 1))
            yield version
        for late in (*self._late_links, *linked):
            self._make(self._last(late.member), late.change, is_displaced=late.is_displaced)

    # The end

    def finish(self, names: ConflictNames, links: JointLinks, complete: int) -> Iterator[Entry]:
        """Put everything into the plans and seal them; `complete`: the members seen whole.

        Yields the conflict copies, that every member has then.
        """
        self.plan.digest = self._digest(complete)
        yield from self._name_copies(names, links)
        for member, removals in enumerate(self._removals):
            self._settle_removals(member, removals, complete)
        for plan in self.plan.all_plans():
            plan.seal(is_complete=True)
        for member, summary in enumerate(self.plan.summaries):
            plans = [self.plan.plans[member]]
            if member == self._runner:
                plans = [self.plan.local, self.plan.closing, *self.plan.fetches]
            for plan in plans:
                summary.deletes += plan.summary.deletes
                summary.files += plan.summary.files
                summary.bytes += plan.summary.bytes

    def _digest(self, complete: int) -> bytes:
        """Return the digest of what is planned, whatever conflict copies will be called."""
        digest = blake3(complete.to_bytes(16, "little"))
        for removals in self._removals:
            digest.update(removals.seal())
        digest.update(self._copies.seal())
        digest.update(self._late_links.seal())
        digest.update(self.plan.found.seal())
        for plan in self.plan.all_plans():
            for part in plan.spools():
                digest.update(part.seal())
        return digest.digest()

    def _settle_removals(self, member: int, removals: ValueSpool[_Removal], complete: int) -> None:
        """Take over the deletes that rest on something seen, and what they make room for."""
        way, last = self._own(member).in_way, self._last(member).extras
        kept: list[bytes] = []
        blocked: set[bytes] = set()
        left_out = 0
        for removal in removals:
            change = removal.change
            below = change.path + b"/"
            holds = bool(kept) and kept[-1].startswith(below)
            while kept and kept[-1].startswith(below):
                kept.pop()
            # INVARIANT I8: nothing is deleted because of what was not seen.
            if holds or not removal.rests_on & (complete | CERTAIN):
                kept.append(change.path)
                left_out += 1
                if change.makes_way:
                    blocked.add(change.makes_way)
            else:
                (way if change.makes_way else last).append(change)
        if left_out:
            detail = f"{left_out} deletes left out: not every member was seen whole"
            name = self.plan.members[member].name
            self.plan.problems.append(Problem(b"", name, What.SKIPPED, detail))
        if blocked:
            others = (*self.plan.fetches, self.plan.closing) if member == self._runner else ()
            for plan in (self._own(member), *others):
                plan.replacements = self._unblocked(plan.replacements, blocked)
        removals.close()

    def _unblocked(self, spool: Spool, blocked: set[bytes]) -> Spool:
        left = Spool(self._folder)
        for change in spool:
            path = change.path
            while path and path not in blocked:
                path = path.rpartition(b"/")[0]
            if not path:
                left.append(change)
        spool.close()
        return left

    def close(self) -> None:
        """Let go of what waits here."""
        self._copies.close()
        self._late_links.close()
        for spool in self._removals:
            spool.close()


def _seen(now: Entry | None) -> int:
    return 0 if now is None else now.seen
