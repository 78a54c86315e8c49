"""Plan, rule mirror: two sorted listings in, the changes that make the target equal out.

Pure but for the spools the changes wait in. A streaming merge: memory grows with the depth of the
trees only. Another rule is another function of the same shape, that fills a `Plan`.
"""

import stat
from collections.abc import Callable, Iterable, Iterator

from syncengine.attributes import same
from syncengine.changes import (
    MakeDirectory,
    MakeLink,
    MakeSpecial,
    MakeSymlink,
    Remove,
    SetDirectory,
    SetMetadata,
    WriteFile,
)
from syncengine.linked import LinkGroups
from syncengine.model import PRETENDED, Compare, Entry, Kind, Problem, RunOptions, What
from syncengine.names import order_key
from syncengine.phases import Phase, Plan, Summary
from syncengine.renames import sequence
from syncengine.scope import Scope
from syncengine.stretches import Item, Stretch

__all__ = ["Phase", "Plan", "Summary", "plan_mirror"]

_SETUID_SETGID = stat.S_ISUID | stat.S_ISGID
_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755
_FILE, _DIRECTORY, _SYMLINK, _EXCLUDED = Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.EXCLUDED
_LEFT_ALONE = frozenset({Kind.SPECIAL, _EXCLUDED})


def plan_mirror(  # noqa: PLR0913 - each answers another question
    source: Iterable[Item],
    target: Iterable[Item],
    options: RunOptions,
    *,
    is_complete: Callable[[], bool],
    source_member: str = "",
    target_member: str = "",
    spool_folder: str | None = None,
    stamp: str = "",
    scope: Scope | None = None,
) -> Plan:
    """Merge two listings into the plan that makes the target equal to the source.

    Of a target that is listed with grafts, the plan begins with the renames that these show; `stamp`
    is the time of the run, for names in between where things change places. Of listings in a `scope`
    nothing is concluded beyond it; see `Plan.narrow`.
    `is_complete` is asked once, after the source has been read to its end: whether that was all of
    it. Raises what the iterables raise, and OSError when a spool cannot be written; the plan's
    files are closed then.
    """
    plan = Plan(options, spool_folder)
    try:
        merge = MirrorMerge(plan, source_member, target_member, scope)
        merge.run(source, target)
        for change in sequence(merge.moved, stamp):
            plan.renames.append(change)
        whole = is_complete()
        plan.seal(is_complete=whole)
        left_out = len(plan.in_way) + len(plan.extras)
        if not whole and left_out:
            detail = f"{left_out} deletes left out: the source was not seen whole"
            plan.problems.append(Problem(b"", target_member, What.SKIPPED, detail))
    except BaseException:
        plan.close()
        raise
    return plan


class Level:
    """A directory, at either side or both, on the way from the top to where the merge is."""

    __slots__ = (
        "below",
        "changed",
        "displaced",
        "ignored",
        "keeps",
        "makes_way",
        "replacement",
        "source",
        "target",
    )

    def __init__(self, path: bytes, source: Entry | None, target: Entry | None) -> None:
        self.below = path + b"/" if path else b""
        self.source = source
        self.target = target
        self.changed = False
        """An entry directly in it is made, replaced or removed."""
        self.keeps = False
        """It holds, at the target, something that is left alone: it cannot be removed."""
        self.ignored = False
        """Nothing below is looked at: at the other side, what is left alone has its place."""
        self.displaced = False
        """It is made where phase 1 removes something."""
        self.makes_way = b""
        """It is removed in phase 1, for this path of the source."""
        self.replacement: Entry | None = None
        """What the source has in place of this very directory."""


class Side:
    """One listing as a merge reads it: stretches whole where they can stay so, else entry by entry."""

    __slots__ = ("_entry", "_items", "at", "head", "passed", "stretch")

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self.passed = 0
        """How many entries have been skipped."""
        self.stretch: Stretch | None = None
        """The stretch that it is in."""
        self.at = 0
        """The place in that stretch."""
        self._entry: Entry | None = None
        self._next()

    def _next(self) -> None:
        head = self.head = next(self._items, None)
        self.at = 0
        if isinstance(head, Stretch):
            self.stretch, self._entry = head, None
        else:
            self.stretch, self._entry = None, head

    def entry(self) -> Entry | None:
        """Return the entry that it is at, None at the end."""
        if self._entry is None and self.stretch is not None:
            self._entry = self.stretch.at(self.at)
        return self._entry

    def skip(self, count: int) -> None:
        """Pass so many entries, at most what is left of a stretch."""
        self.passed += count
        self.at += count
        if self.stretch is not None and self.at < self.stretch.count:
            self._entry = None
        else:
            self._next()

    def rest(self) -> Iterator[Entry]:
        """Yield, and pass, all that is left."""
        while self.head is not None:
            if self.stretch is not None:
                self.passed += self.stretch.count - self.at
                yield from self.stretch.entries(self.at)
            else:
                self.passed += 1
                yield self.head  # type: ignore[misc]
            self._next()


class MirrorMerge:
    def __init__(
        self, plan: Plan, source_member: str, target_member: str, scope: Scope | None = None
    ) -> None:
        self.plan = plan
        self._scope = None if scope is None or scope.is_whole else scope
        self.options = plan.options
        self.source_member = source_member
        self.target_member = target_member
        self.links = LinkGroups()
        self.moved: list[Entry] = []
        """What the target shows at another path than where it lies."""
        self._levels: list[Level] = []
        self._trusts_times = self.options.compare is Compare.MTIME

    def run(self, source: Iterable[Item], target: Iterable[Item]) -> None:
        ours, theirs = Side(source), Side(target)
        top = theirs.entry()
        self.links.can_be = top is None or top.links > 0
        while ours.head is not None and theirs.head is not None:
            if ours.stretch is not None and theirs.stretch is not None:
                alike = self._alike_stretches(ours, theirs)
                if alike:
                    ours.skip(alike)
                    theirs.skip(alike)
                    continue
            mine, other = ours.entry(), theirs.entry()
            assert mine is not None
            assert other is not None
            our_path, their_path = mine.path, other.path
            if our_path == their_path:
                if not self._alike(mine, other):
                    self._meet(our_path, mine, other)
                ours.skip(1)
                theirs.skip(1)
            elif order_key(our_path) < order_key(their_path):
                self._meet(our_path, mine, None)
                ours.skip(1)
            else:
                self._meet(their_path, None, other)
                theirs.skip(1)
        for mine in ours.rest():
            self._meet(mine.path, mine, None)
        for other in theirs.rest():
            self._meet(other.path, None, other)
        while self._levels:
            self._leave()
        self.plan.parted = self.links.parted()
        # Both begin with their top, which is not counted.
        summary = self.plan.summary
        summary.source_entries = max(0, ours.passed - 1 - summary.source_hidden)
        summary.target_entries = max(0, theirs.passed - 1 - summary.target_hidden)

    def _alike_stretches(self, ours: Side, theirs: Side) -> int:
        """Return how many files of both stretches are alike in the sense of `_alike`."""
        if not self._trusts_times or ours.stretch is None or theirs.stretch is None:
            return 0
        return ours.stretch.alike(ours.at, theirs.stretch, theirs.at)

    def _alike(self, ours: Entry, theirs: Entry) -> bool:
        """Say whether two files are alike in all that any option looks at: the common case.

        Such a pair needs no place among the directories either: what is met next shows which of
        them have been left.
        """
        return (
            ours.kind is _FILE
            and ours[1:5] == theirs[1:5]
            and self._trusts_times
            and not ours.mode & _SETUID_SETGID
            and ours.attributes == theirs.attributes
            and ours.links == theirs.links == 1
            and not theirs.came_from
        )

    def _skip(self, path: bytes, member: str, detail: str) -> None:
        self.plan.problems.append(Problem(path, member, What.SKIPPED, detail))

    def _name(self, entry: Entry, member: str) -> None:
        """Name a special file; what the filters hide is nobody's surprise."""
        if entry.kind is Kind.SPECIAL:
            self._skip(entry.path, member, "a special file, left alone")

    def _meet(self, path: bytes, ours: Entry | None, theirs: Entry | None) -> None:
        """Take one path, that is at either side or both."""
        levels = self._levels
        while levels and not path.startswith(levels[-1].below):
            self._leave()
        # The top has no parent; a level of its own takes the notes that nobody reads.
        parent = levels[-1] if levels else Level(b"", None, None)
        if theirs is not None and theirs.came_from:
            self._meet_moved(theirs, ours, is_ignored=parent.ignored)
        if ours is not None and ours.links > 1 and ours.kind is _FILE:
            self.plan.linked.append(path)
            self.links.count(ours)
        if parent.ignored or _EXCLUDED in {ours and ours.kind, theirs and theirs.kind}:
            self.plan.summary.source_hidden += ours is not None
            self.plan.summary.target_hidden += theirs is not None
        if parent.ignored:
            if _DIRECTORY in {ours and ours.kind, theirs and theirs.kind}:
                self._enter(ours, theirs, parent).ignored = True
        elif ours is None or theirs is None or (path and theirs.seen == PRETENDED):
            self._one_sided(ours, theirs, parent)
        elif ours.kind in _LEFT_ALONE or theirs.kind in _LEFT_ALONE:
            self._leave_alone(ours, theirs, parent)
        elif ours.kind is theirs.kind is _DIRECTORY:
            self._enter(ours, theirs, parent)
        elif ours.kind is _DIRECTORY:
            self._file_becomes_directory(ours, theirs, parent)
        elif theirs.kind is _DIRECTORY:
            self._directory_becomes_file(ours, theirs, parent)
        else:
            self._compare(ours, theirs, parent)

    def _meet_moved(self, theirs: Entry, ours: Entry | None, *, is_ignored: bool) -> None:
        """Take what a graft shows here. Where nothing is compared, nobody would see to it."""
        self.moved.append(theirs)
        is_left_alone = not _LEFT_ALONE.isdisjoint({theirs.kind, ours and ours.kind})
        if not is_ignored and not is_left_alone:
            self.plan.grafted.add(theirs.came_from)

    def _one_sided(self, ours: Entry | None, theirs: Entry | None, parent: Level) -> None:
        """Take a path that only one side has, or where the target will have a directory."""
        if theirs is None:
            assert ours is not None
            self._new(ours, parent)
        elif theirs.seen != PRETENDED:
            self._extra(theirs, parent)
        else:
            parent.changed = True
            if ours is not None and ours.kind is _DIRECTORY:
                self._needs_all(ours)
                self._enter(ours, None, parent)
            else:
                # What was renamed to below it has moved on since: see `Plan.grafted`.
                self._enter(ours, theirs, parent).ignored = True

    def _needs_all(self, directory: Entry) -> None:
        """Note a directory that the other side lacks: all of it is to be made, or to go.

        The highest of them are enough: what is below them comes with them.
        """
        narrow, path = self.plan.narrow, directory.path
        if self._scope is None or self._scope.is_deep_at(path):
            return
        if not narrow or not path.startswith(narrow[-1] + b"/"):
            narrow.append(path)

    def _enter(self, ours: Entry | None, theirs: Entry | None, parent: Level) -> Level:
        entry = ours or theirs
        assert entry is not None
        level = Level(entry.path, ours, theirs)
        level.displaced, level.makes_way = parent.displaced, parent.makes_way
        self._levels.append(level)
        return level

    def _leave(self) -> None:
        """Come back from a directory: everything in it is known now."""
        level = self._levels.pop()
        if level.ignored:
            return
        if level.source is not None:
            self._finish_directory(level, level.source, level.target)
            return
        gone = level.target
        assert gone is not None
        parent = self._levels[-1] if self._levels else Level(b"", None, None)
        if level.keeps:
            parent.keeps = True
            if level.replacement is not None:
                detail = "not replaced: the directory here holds what is left alone"
                self._skip(gone.path, self.target_member, detail)
            return
        parent.changed = True
        self._remove(gone, level.makes_way)
        if level.replacement is not None:
            self._make(level.replacement, None, displaced=True)

    def _extra(self, theirs: Entry, parent: Level) -> None:
        """Take a path that only the target has."""
        if theirs.kind in _LEFT_ALONE:
            parent.keeps = True
            self._name(theirs, self.target_member)
        elif theirs.kind is _DIRECTORY:
            self._needs_all(theirs)
            self._enter(None, theirs, parent)
        else:
            parent.changed = True
            self._remove(theirs, parent.makes_way)

    def _new(self, ours: Entry, parent: Level) -> None:
        """Take a path that only the source has."""
        if ours.kind in _LEFT_ALONE:
            self._name(ours, self.source_member)
            return
        if ours.kind is _DIRECTORY:
            self._needs_all(ours)
            self._enter(ours, None, parent)
        if ours.path:
            parent.changed = True
            self._make(ours, None, displaced=parent.displaced)

    def _leave_alone(self, ours: Entry, theirs: Entry, parent: Level) -> None:
        """Leave a path alone on both sides, since one of them has there what no job covers."""
        self._name(ours, self.source_member)
        self._name(theirs, self.target_member)
        if _DIRECTORY in {ours.kind, theirs.kind}:
            self._enter(ours, theirs, parent).ignored = True

    def _file_becomes_directory(self, ours: Entry, theirs: Entry, parent: Level) -> None:
        parent.changed = True
        self._needs_all(ours)
        self._remove(theirs, ours.path)
        self._make(ours, None, displaced=True)
        self._enter(ours, None, parent).displaced = True

    def _directory_becomes_file(self, ours: Entry, theirs: Entry, parent: Level) -> None:
        self._needs_all(theirs)
        level = self._enter(None, theirs, parent)
        level.replacement, level.makes_way = ours, ours.path

    def _compare(self, ours: Entry, theirs: Entry, parent: Level) -> None:
        """Take a path where both sides have a file or a symlink."""
        if ours.kind is not theirs.kind or not self._same_content(ours, theirs):
            parent.changed = True
            self._make(ours, theirs, displaced=False)
            return
        if ours.kind is _FILE:
            leader = self.links.leader(ours)
            if leader is not None:
                if leader.inode_there != theirs.inode or not theirs.inode:
                    parent.changed = True
                    self._make(ours, theirs, displaced=False)
                return
            if self.links.must_split(ours, theirs):
                parent.changed = True
                self._make(ours, theirs, displaced=False)
                return
            self.links.lead(ours, theirs, is_displaced=False)
        mode = theirs.mode if ours.kind is _SYMLINK else self._mode(ours, theirs)
        mtime_ns = ours.mtime_ns if self.options.keep_times else theirs.mtime_ns
        attributes = b"" if same(ours.attributes, theirs.attributes) else ours.attributes
        if mode != theirs.mode or mtime_ns != theirs.mtime_ns or attributes:
            self.plan.changes.append(
                SetMetadata(ours.path, ours.kind, mode, mtime_ns, theirs.seen, attributes)
            )

    def _same_content(self, ours: Entry, theirs: Entry) -> bool:
        if ours.kind is not _FILE:
            return ours.link == theirs.link and ours.device == theirs.device
        if ours.size != theirs.size:
            return False
        if self.options.compare is Compare.CHECKSUM:
            # What could not be read, or changed meanwhile, has no digest.
            return ours.digest == theirs.digest != b""
        if self.options.keep_times:
            return ours.mtime_ns == theirs.mtime_ns
        # Without times a copy is younger than its source until the source is edited.
        return ours.mtime_ns <= theirs.mtime_ns

    def _mode(self, ours: Entry, theirs: Entry | None) -> int:
        if not self.options.keep_mode:
            if theirs is not None and theirs.kind is ours.kind:
                return theirs.mode
            return _DIRECTORY_MODE if ours.kind is _DIRECTORY else _FILE_MODE
        if ours.kind is _FILE and not self.options.keep_setuid:
            return ours.mode & ~_SETUID_SETGID
        return ours.mode

    def _make(self, ours: Entry, theirs: Entry | None, *, displaced: bool) -> None:
        plan = self.plan
        spool = plan.replacements if displaced else plan.changes
        seen = 0 if theirs is None else theirs.seen
        path, mtime_ns, attributes = ours.path, ours.mtime_ns, ours.attributes
        if ours.kind is _FILE:
            leader = self.links.leader(ours)
            if leader is not None:
                spool = plan.replacements if leader.is_displaced else spool
                spool.append(MakeLink(path, leader.path, seen))
                return
            self.links.lead(ours, None, is_displaced=displaced)
            if ours.links > 1 and not self.links.can_be:
                detail = "a file of its own for each name: there are no hard links here"
                problem = Problem(path, self.target_member, What.NOT_KEPT, detail)
                plan.problems.append(problem)
            mode = self._mode(ours, theirs)
            spool.append(WriteFile(path, ours.size, mode, mtime_ns, ours.seen, seen, attributes))
            plan.summary.files += 1
            plan.summary.bytes += ours.size
        elif ours.kind is _SYMLINK:
            spool.append(MakeSymlink(path, ours.link, mtime_ns, seen, attributes))
        elif ours.kind is _DIRECTORY:
            spool.append(MakeDirectory(path, self._mode(ours, None)))
        else:
            mode = self._mode(ours, theirs)
            change = MakeSpecial(path, ours.kind, mode, mtime_ns, ours.device, seen, attributes)
            spool.append(change)

    def _remove(self, theirs: Entry, makes_way: bytes) -> None:
        spool = self.plan.in_way if makes_way else self.plan.extras
        spool.append(Remove(theirs.path, theirs.kind, theirs.seen, makes_way))

    def _finish_directory(self, level: Level, ours: Entry, theirs: Entry | None) -> None:
        mode = self._mode(ours, theirs)
        attributes = ours.attributes
        if theirs is None:
            differs, seen = False, 0
        else:
            if same(attributes, theirs.attributes):
                attributes = b""
            differs = (
                mode != theirs.mode
                or (self.options.keep_times and ours.mtime_ns != theirs.mtime_ns)
                or attributes != b""
            )
            seen = theirs.seen
        # Also without times: to write in it, its owner may have had to be given the right to.
        if theirs is None or differs or level.changed:
            self.plan.directories.append(
                SetDirectory(ours.path, mode, ours.mtime_ns, seen, differs, attributes)
            )
