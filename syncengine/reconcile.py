"""Reconcile: what becomes of one path, given what each member has there and what it agreed to.

A pure function; docs/design.md, "How members are reconciled", says the same in words. Members are
numbers, sets of members are bit masks.
"""

import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from syncengine.agreed import Agreed
from syncengine.attributes import merge
from syncengine.attributes import same as same_attributes
from syncengine.joint import CERTAIN, MemberFacts
from syncengine.model import Compare, Conflict, Entry, Kind, Rule, RunOptions

_SETUID_SETGID = stat.S_ISUID | stat.S_ISGID
_FILE, _DIRECTORY, _SYMLINK = Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK
_DEVICES = frozenset({Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE})


def members_of(mask: int) -> Iterator[int]:
    """Yield the members of a mask, in their order."""
    member = 0
    while mask >> member:
        if mask >> member & 1:
            yield member
        member += 1


@dataclass(slots=True)
class Verdict:
    """The outcome for one path."""

    version: Entry | None = None
    """What all members are to have, with merged metadata; None: nothing."""
    holder: int = -1
    """The member whose content that is."""
    have: int = 0
    """The members that have this content."""
    number: int = 0
    """Of the run in which it was agreed to; 0: in this one."""
    losers: tuple[int, ...] = ()
    """The members that had each of the versions that lose against it."""
    detail: str = ""
    """What is in conflict, when something is."""
    is_suppressed: bool = False
    """Nothing is to be done, nothing agreed to."""
    rests_on: int = CERTAIN
    """Of a delete: the members that nothing was seen at."""
    undecided: int = 0
    """Members of which only a digest of the content tells whether they differ."""
    otherwise: "Verdict | None" = None
    """Of a directory: what happens instead when nothing lives below it."""
    current: int = 0
    """The members that are as the newest agreement says."""
    agreed: Entry | None = None
    """What that agreement says."""
    bases: Sequence[Entry | None] = ()
    """For each member what it agreed to itself, if that was in the run of the newest agreement."""


@dataclass(slots=True)
class _Case:
    """What is found out about one path on the way to its verdict."""

    nows: Sequence[Entry | None]
    number: int = 0
    """Of the newest agreement; 0 when nobody agreed to anything."""
    agreed: Entry | None = None
    """What it says, as seen at a member that still has it where there is one."""
    current: int = 0
    have: int = 0
    """Members whose content is that of the newest agreement."""
    bases: list[Entry | None] = field(default_factory=list)
    """For each member what it agreed to itself, where that is the newest agreement."""
    edits: list[int] = field(default_factory=list)
    deletes: int = 0
    touched: int = 0
    """Members that changed metadata alone."""
    unaware: list[int] = field(default_factory=list)
    """Members that lost their records, and have what was agreed to."""
    has_newer: bool = False
    """Somebody changed what was agreed to last."""
    has_older: bool = False
    """Somebody changed something older, or knows of no agreement."""
    revived: int = 0
    """Members that changed what the others had agreed to delete."""
    groups: list[list[int]] = field(default_factory=list)
    """The versions that contend: the members that have each."""
    undecided: int = 0


class Reconciler:
    """Decides the paths of one run, one by one."""

    def __init__(self, options: RunOptions, members: Sequence[MemberFacts], runner: int) -> None:
        self._exchange = options.rule is Rule.EXCHANGE
        self._policy = options.conflict
        self._checksum = options.compare is Compare.CHECKSUM
        self._keep_times = options.keep_times
        self._keep_mode = options.keep_mode
        self._keep_setuid = options.keep_setuid
        self._names = [one.name for one in members]
        self._is_new = [one.is_new for one in members]
        self._is_older = [one.is_older for one in members]
        self._has_older = any(self._is_older)
        self._runner = runner

    # Comparing

    def mode(self, entry: Entry) -> int:
        """Return the mode as far as the job carries it."""
        if not self._keep_mode:
            return 0
        if entry.kind is _FILE and not self._keep_setuid:
            return entry.mode & ~_SETUID_SETGID
        return entry.mode

    def same_content(self, one: Entry, other: Entry) -> bool | None:
        """Say whether two entries have the same content; None when only a digest could tell."""
        if one.kind is not other.kind:
            return False
        if one.kind is _FILE:
            return self._same_file(one, other)
        if one.kind is _SYMLINK:
            return one.link == other.link
        return one.kind not in _DEVICES or one.device == other.device

    def _same_file(self, one: Entry, other: Entry) -> bool | None:
        if one.size != other.size:
            return False
        if one.digest and other.digest:
            return one.digest == other.digest
        if not one.size:
            return True
        if self._checksum:
            return False
        return True if one.mtime_ns == other.mtime_ns else None

    def same_metadata(self, one: Entry, other: Entry) -> bool:
        """Say whether mode, time and attributes of two entries of one kind are the same."""
        return (
            self.mode(one) == self.mode(other)
            and (one.mtime_ns == other.mtime_ns or not self._keep_times)
            and same_attributes(one.attributes, other.attributes)
        )

    def is_unchanged(self, now: Entry | None, was: Entry | None) -> bool:
        """Say whether a member has what it had."""
        if now is None or was is None:
            return now is was
        return self._stayed(now, was) and self.same_metadata(now, was)

    def _stayed(self, now: Entry, was: Entry) -> bool:
        """Say whether the content at a member is what it was there."""
        if now.kind is _FILE is was.kind and not (now.digest and was.digest):
            # At one member another time means another content, as long as nobody read it.
            return now.size == was.size and (now.mtime_ns == was.mtime_ns or not now.size)
        return bool(self.same_content(now, was))

    # Deciding

    def decide(
        self, nows: Sequence[Entry | None], agreeds: Sequence[Agreed | None], certain: int = 0
    ) -> Verdict:
        """Return what becomes of a path, of which no member's entry is to be left alone.

        `certain` has the members of which it is certain that nothing is there.
        """
        if not any(agreeds):
            only = [member for member, now in enumerate(nows) if now is not None]
            if len(only) == 1:
                # New at one member: the common case of all that change something.
                version = nows[only[0]]
                assert version is not None
                if version.came_from:
                    version = version._replace(came_from=b"")
                return Verdict(version, only[0], 1 << only[0])
        case = self._look(nows, agreeds)
        self._group(case)
        verdict = self._contend(case) if case.groups else self._nobody_edited(case, certain)
        if not verdict.is_suppressed and (
            verdict.version is None or verdict.version.kind is not _DIRECTORY
        ):
            holders = [m for m, now in enumerate(nows) if now and now.kind is _DIRECTORY]
            if holders:
                verdict = self._unless_empty(case, holders, verdict)
        # Of who has shown a digest, no further listing tells more: what that left open differs.
        verdict.undecided = _mask(
            member
            for member in members_of(case.undecided)
            if (now := nows[member]) is not None and not now.digest
        )
        verdict.current, verdict.agreed = case.current, case.agreed
        verdict.bases = [
            agreed.entry if agreed and agreed.number == case.number and not older else None
            for agreed, older in zip(agreeds, self._is_older, strict=True)
        ]
        return verdict

    # What each member did

    def _look(self, nows: Sequence[Entry | None], agreeds: Sequence[Agreed | None]) -> _Case:
        """Find the newest agreement, and what each member did since its own."""
        case = _Case(nows, bases=[None] * len(nows))
        if self._has_older:
            agreeds = [
                None if older else agreed
                for agreed, older in zip(agreeds, self._is_older, strict=True)
            ]
        for now, agreed in zip(nows, agreeds, strict=True):
            if agreed is None or agreed.number < case.number:
                continue
            unchanged = self.is_unchanged(now, agreed.entry)
            if agreed.number > case.number or (unchanged and not case.current):
                case.number, case.current = agreed.number, int(unchanged)
                case.agreed = now if unchanged else agreed.entry
        case.current = 0
        for member, agreed in enumerate(agreeds):
            if agreed is None:
                self._look_at_stranger(case, member)
            else:
                self._look_at(case, member, agreed)
        if case.unaware and (case.edits or case.deletes):
            # They do not know what the others agreed to: what they have is a version of its own.
            case.edits = sorted(case.edits + case.unaware)
            case.has_older = True
        return case

    def _look_at_stranger(self, case: _Case, member: int) -> None:
        """Look at a member without a record of the path."""
        now = case.nows[member]
        if now is None:
            return
        same = self.same_content(now, case.agreed) if case.agreed is not None else False
        if same:
            case.have |= 1 << member
            if self._is_new[member] or self._is_older[member]:
                case.unaware.append(member)
            return
        if same is None:
            case.undecided |= 1 << member
            for other, theirs in enumerate(case.nows):
                case.undecided |= (theirs is case.agreed) << other
        case.edits.append(member)
        case.has_older = True

    def _look_at(self, case: _Case, member: int, agreed: Agreed) -> None:
        now, was, bit = case.nows[member], agreed.entry, 1 << member
        is_newest = self._is_newest(agreed, case)
        if is_newest:
            case.bases[member] = was
        if now is None:
            if was is None:
                case.current |= bit if is_newest else 0
            elif not self._exchange:
                case.deletes |= bit
                self._note_base(case, is_newest=is_newest)
            return
        if was is not None and self._stayed(now, was):
            if is_newest:
                case.have |= bit
                if not self.same_metadata(now, was):
                    case.touched |= bit
                elif agreed.number == case.number:
                    case.current |= bit
                return
            if agreed.number < case.number:
                return  # it is behind, and has no say
            # Two runs had one number, neither with the members of the other: nobody knows both.
        elif case.agreed is not None and self.same_content(now, case.agreed):
            case.have |= bit
            return
        case.edits.append(member)
        self._note_base(case, is_newest=is_newest)
        if case.agreed is None and was is not None:
            case.revived |= bit

    @staticmethod
    def _note_base(case: _Case, *, is_newest: bool) -> None:
        if is_newest:
            case.has_newer = True
        else:
            case.has_older = True

    def _is_newest(self, agreed: Agreed, case: _Case) -> bool:
        """Say whether a member agreed to just what was agreed to last."""
        if agreed.entry is None or case.agreed is None:
            return agreed.entry is case.agreed
        same = self.same_content(agreed.entry, case.agreed)
        # Of one run they have one content, though the times may be of different coarseness.
        return same is not False if agreed.number == case.number else bool(same)

    # Which versions contend

    def _group(self, case: _Case) -> None:
        """Put edits of the same content together; each group is a version."""
        versions = [[member] for member in case.edits]
        if case.has_older and not case.has_newer and case.have:
            # Compared with something older, what was agreed to last is an edit itself.
            versions.append(list(members_of(case.have)))
        for members in versions:
            ours = case.nows[members[0]]
            assert ours is not None
            for group in case.groups:
                theirs = case.nows[group[0]]
                assert theirs is not None
                same = self.same_content(ours, theirs)
                if same:
                    group += [member for member in members if member not in group]
                    break
                if same is None:
                    case.undecided |= 1 << members[0] | 1 << group[0]
            else:
                case.groups.append(members)

    def _rank(self, case: _Case, group: Sequence[int]) -> tuple[bool, bool, int, int]:
        """Order versions: directories first, older sides last, by time, as listed."""
        nows = [now for member in group if (now := case.nows[member]) is not None]
        return (
            nows[0].kind is not _DIRECTORY,
            all(self._is_older[member] for member in group),
            -max(now.mtime_ns for now in nows),
            min(group),
        )

    def _contend(self, case: _Case) -> Verdict:
        groups = sorted(case.groups, key=lambda group: self._rank(case, group))
        winner, losing = groups[0], groups[1:]
        if losing and self._policy is Conflict.SUPPRESS:
            return Verdict(is_suppressed=True, detail=self._differ(groups))
        verdict = self._merged(case, winner)
        verdict.losers = tuple(_mask(group) for group in losing)
        if losing:
            verdict.detail = self._differ(groups)
        elif case.deletes:
            verdict.detail = self._lives(case.deletes, _mask(winner))
        elif case.revived and not self._exchange:
            verdict.detail = f"deleted by the others, changed at {self._at(case.revived)}"
        return verdict

    def _nobody_edited(self, case: _Case, certain: int) -> Verdict:
        if case.have:
            if not case.deletes:
                verdict = self._merged(case, list(members_of(case.have)))
                verdict.number = 0 if case.touched else case.number
                return verdict
            if case.touched and case.agreed and case.agreed.kind is not _DIRECTORY:
                verdict = self._merged(case, list(members_of(case.have)))
                verdict.detail = self._lives(case.deletes, case.touched)
                return verdict
        elif self._exchange:
            return self._comes_back(case)
        if case.agreed is None:
            return Verdict(number=case.number)
        rests_on = case.deletes | (CERTAIN if case.deletes & certain else 0)
        return Verdict(rests_on=rests_on or CERTAIN)

    def _comes_back(self, case: _Case) -> Verdict:
        """Return the verdict that what any member still has comes back to those without it."""
        present = [member for member, now in enumerate(case.nows) if now is not None]
        if not present:
            return Verdict(number=case.number if case.agreed is None else 0)
        return self._merged(case, [min(present, key=lambda member: self._rank(case, [member]))])

    def _unless_empty(self, case: _Case, holders: list[int], instead: Verdict) -> Verdict:
        """Return the verdict of a directory that stays if anything lives below it."""
        verdict = self._merged(case, holders)
        verdict.otherwise = instead
        versions = [_mask(group) for group in case.groups]
        if instead.version is not None and not versions:
            versions = [case.have or 1 << instead.holder]
        if versions:
            verdict.losers = tuple(versions)
            verdict.detail = self._differ([holders, *(members_of(mask) for mask in versions)])
            verdict.is_suppressed = self._policy is Conflict.SUPPRESS
        return verdict

    # Merging metadata

    def _merged(self, case: _Case, members: Sequence[int]) -> Verdict:
        """Return the verdict that the content of `members` wins, with the metadata of all."""
        holder = self._runner if self._runner in members else members[0]
        content = case.nows[holder]
        assert content is not None
        # Who changed metadata alone has a say in these, whoever changed the content.
        touched = [
            member
            for member in members_of(case.touched)
            if member not in members and _kind(case.nows[member]) is content.kind
        ]
        version = content._replace(
            mode=self._pick(case, content, [*members, *touched], "mode"),
            attributes=self._pick(case, content, [*members, *touched], "attributes"),
            mtime_ns=self._pick(case, content, members, "mtime_ns"),
            inode=0,
            links=1,
            ctime_ns=0,
            came_from=b"",
        )
        return Verdict(version, holder, _mask(members))

    def _pick(self, case: _Case, content: Entry, members: Sequence[int], name: str) -> Any:
        """Return one attribute: of those that changed it the one with the newest ctime."""
        agreed = case.agreed if _kind(case.agreed) is content.kind else None
        changed = self._changed(case, agreed, members, name)
        if not changed:
            return getattr(agreed or content, name)
        if name != "attributes" or agreed is None:
            return getattr(changed[0][0], name)
        # Owner, each extended attribute and ACL are attributes of their own. What a member could
        # not hold when it agreed is missing from its base as well, and so is no change of its own.
        was = agreed.attributes
        edits = [
            now.attributes
            if base is None or base.attributes == was
            else merge(base.attributes, now.attributes, was, prefer_mine=True)
            for now, base in changed
        ]
        attributes = edits[0]
        for other in edits[1:]:
            attributes = merge(was, attributes, other, prefer_mine=True)
        return attributes

    def _changed(
        self, case: _Case, agreed: Entry | None, members: Sequence[int], name: str
    ) -> list[tuple[Entry, Entry | None]]:
        """Return the entries of members that changed an attribute, the newest ctime first.

        Each with what the member agreed to itself, or the newest agreement.
        """
        changed: list[tuple[tuple[bool, int], Entry, Entry | None]] = []
        for member in members:
            now = case.nows[member]
            assert now is not None
            base = case.bases[member]
            if base is None or base.kind is not now.kind:
                base = agreed
            if base is None or not self._has_same(now, base, name):
                rank = (self._is_older[member], -(now.ctime_ns or now.mtime_ns))
                changed.append((rank, now, base))
        changed.sort(key=lambda one: one[0])
        return [(now, base) for _, now, base in changed]

    def _has_same(self, now: Entry, base: Entry, name: str) -> bool:
        if name == "mode":
            return self.mode(now) == self.mode(base)
        if name == "attributes":
            return same_attributes(now.attributes, base.attributes)
        return now.mtime_ns == base.mtime_ns

    # Words

    def _at(self, members: int) -> str:
        return " and ".join(self._names[member] for member in members_of(members))

    def _lives(self, deleted: int, changed: int) -> str:
        return f"deleted at {self._at(deleted)}, changed at {self._at(changed)}: the change lives"

    def _differ(self, groups: Iterable[Iterable[int]]) -> str:
        return "changed differently at " + ", ".join(self._at(_mask(group)) for group in groups)


def _mask(members: Iterable[int]) -> int:
    return sum(1 << member for member in members)


def _kind(entry: Entry | None) -> Kind | None:
    return None if entry is None else entry.kind
