"""Plan, rule mirror: two sorted listings in, the changes that make the target equal out.

Pure but for the spools the changes wait in. A streaming merge: memory grows with the depth of the
trees only. Another rule is another function of the same shape, that fills a `Plan`.
"""

import stat
from collections.abc import Callable, Iterable, Iterator

from syncengine.changes import (
    MakeDirectory,
    MakeSymlink,
    Remove,
    SetDirectory,
    SetMetadata,
    WriteFile,
)
from syncengine.model import Compare, Entry, Kind, MirrorOptions, Problem, What
from syncengine.names import order_key
from syncengine.phases import Phase, Plan, Summary

__all__ = ["Phase", "Plan", "Summary", "plan_mirror"]

_SETUID_SETGID = stat.S_ISUID | stat.S_ISGID
_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755
_FILE, _DIRECTORY, _SYMLINK, _SPECIAL = Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.SPECIAL


def plan_mirror(
    source: Iterable[Entry],
    target: Iterable[Entry],
    options: MirrorOptions,
    *,
    is_complete: Callable[[], bool],
    source_member: str = "",
    target_member: str = "",
    spool_folder: str | None = None,
) -> Plan:
    """Merge two listings into the plan that makes the target equal to the source.

    `is_complete` is asked once, after the source has been read to its end: whether that was all of
    it. Raises what the iterables raise, and OSError when a spool cannot be written; the plan's
    files are closed then.
    """
    plan = Plan(options, spool_folder)
    try:
        merge = _Mirror(plan, source_member, target_member)
        merge.run(iter(source), iter(target))
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


class _Level:
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
        """Nothing below is looked at: at the other side, a special file has its place."""
        self.displaced = False
        """It is made where phase 1 removes something."""
        self.makes_way = b""
        """It is removed in phase 1, for this path of the source."""
        self.replacement: Entry | None = None
        """What the source has in place of this very directory."""


class _Mirror:
    def __init__(self, plan: Plan, source_member: str, target_member: str) -> None:
        self.plan = plan
        self.options = plan.options
        self.source_member = source_member
        self.target_member = target_member
        self._levels: list[_Level] = []
        self._trusts_times = self.options.compare is Compare.MTIME

    def run(self, source: Iterator[Entry], target: Iterator[Entry]) -> None:
        ours_seen = theirs_seen = 0
        ours, theirs = next(source, None), next(target, None)
        while ours is not None and theirs is not None:
            our_path, their_path = ours.path, theirs.path
            if our_path == their_path:
                if not self._alike(ours, theirs):
                    self._meet(our_path, ours, theirs)
                ours_seen, theirs_seen = ours_seen + 1, theirs_seen + 1
                ours, theirs = next(source, None), next(target, None)
            elif order_key(our_path) < order_key(their_path):
                self._meet(our_path, ours, None)
                ours_seen, ours = ours_seen + 1, next(source, None)
            else:
                self._meet(their_path, None, theirs)
                theirs_seen, theirs = theirs_seen + 1, next(target, None)
        while ours is not None:
            self._meet(ours.path, ours, None)
            ours_seen, ours = ours_seen + 1, next(source, None)
        while theirs is not None:
            self._meet(theirs.path, None, theirs)
            theirs_seen, theirs = theirs_seen + 1, next(target, None)
        while self._levels:
            self._leave()
        # Both begin with their top, which is not counted.
        self.plan.summary.source_entries = max(0, ours_seen - 1)
        self.plan.summary.target_entries = max(0, theirs_seen - 1)

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
        )

    def _skip(self, path: bytes, member: str, detail: str) -> None:
        self.plan.problems.append(Problem(path, member, What.SKIPPED, detail))

    def _meet(self, path: bytes, ours: Entry | None, theirs: Entry | None) -> None:
        """Take one path, that is at either side or both."""
        levels = self._levels
        while levels and not path.startswith(levels[-1].below):
            self._leave()
        # The top has no parent; a level of its own takes the notes that nobody reads.
        parent = levels[-1] if levels else _Level(b"", None, None)
        if parent.ignored:
            if _DIRECTORY in {ours and ours.kind, theirs and theirs.kind}:
                self._enter(ours, theirs, parent).ignored = True
        elif ours is None:
            assert theirs is not None
            self._extra(theirs, parent)
        elif theirs is None:
            self._new(ours, parent)
        elif ours.kind is _SPECIAL or theirs.kind is _SPECIAL:
            self._special(ours, theirs, parent)
        elif ours.kind is theirs.kind is _DIRECTORY:
            self._enter(ours, theirs, parent)
        elif ours.kind is _DIRECTORY:
            self._file_becomes_directory(ours, theirs, parent)
        elif theirs.kind is _DIRECTORY:
            level = self._enter(None, theirs, parent)
            level.replacement, level.makes_way = ours, ours.path
        else:
            self._compare(ours, theirs, parent)

    def _enter(self, ours: Entry | None, theirs: Entry | None, parent: _Level) -> _Level:
        entry = ours or theirs
        assert entry is not None
        level = _Level(entry.path, ours, theirs)
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
        parent = self._levels[-1] if self._levels else _Level(b"", None, None)
        if level.keeps:
            parent.keeps = True
            if level.replacement is not None:
                detail = "not replaced: the directory here holds special files"
                self._skip(gone.path, self.target_member, detail)
            return
        parent.changed = True
        self._remove(gone, level.makes_way)
        if level.replacement is not None:
            self._make(level.replacement, None, displaced=True)

    def _extra(self, theirs: Entry, parent: _Level) -> None:
        """Take a path that only the target has."""
        if theirs.kind is _SPECIAL:
            parent.keeps = True
            self._skip(theirs.path, self.target_member, "a special file, left alone")
        elif theirs.kind is _DIRECTORY:
            self._enter(None, theirs, parent)
        else:
            parent.changed = True
            self._remove(theirs, parent.makes_way)

    def _new(self, ours: Entry, parent: _Level) -> None:
        """Take a path that only the source has."""
        if ours.kind is _SPECIAL:
            self._skip(ours.path, self.source_member, "a special file, left alone")
            return
        if ours.kind is _DIRECTORY:
            self._enter(ours, None, parent)
        if ours.path:
            parent.changed = True
            self._make(ours, None, displaced=parent.displaced)

    def _special(self, ours: Entry, theirs: Entry, parent: _Level) -> None:
        """Leave a path alone on both sides, since one of them has a special file there."""
        if ours.kind is _SPECIAL:
            self._skip(ours.path, self.source_member, "a special file, left alone")
        if theirs.kind is _SPECIAL:
            self._skip(theirs.path, self.target_member, "a special file, left alone")
        if _DIRECTORY in {ours.kind, theirs.kind}:
            self._enter(ours, theirs, parent).ignored = True

    def _file_becomes_directory(self, ours: Entry, theirs: Entry, parent: _Level) -> None:
        parent.changed = True
        self._remove(theirs, ours.path)
        self._make(ours, None, displaced=True)
        self._enter(ours, None, parent).displaced = True

    def _compare(self, ours: Entry, theirs: Entry, parent: _Level) -> None:
        """Take a path where both sides have a file or a symlink."""
        if ours.kind is not theirs.kind or not self._same_content(ours, theirs):
            parent.changed = True
            self._make(ours, theirs, displaced=False)
            return
        mode = theirs.mode if ours.kind is _SYMLINK else self._mode(ours, theirs)
        mtime_ns = ours.mtime_ns if self.options.keep_times else theirs.mtime_ns
        if mode != theirs.mode or mtime_ns != theirs.mtime_ns:
            self.plan.changes.append(SetMetadata(ours.path, ours.kind, mode, mtime_ns, theirs.seen))

    def _same_content(self, ours: Entry, theirs: Entry) -> bool:
        if ours.kind is _SYMLINK:
            return ours.link == theirs.link
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
            return _FILE_MODE if ours.kind is _FILE else _DIRECTORY_MODE
        if ours.kind is _FILE and not self.options.keep_setuid:
            return ours.mode & ~_SETUID_SETGID
        return ours.mode

    def _make(self, ours: Entry, theirs: Entry | None, *, displaced: bool) -> None:
        plan = self.plan
        spool = plan.replacements if displaced else plan.changes
        seen = 0 if theirs is None else theirs.seen
        if ours.kind is _FILE:
            mode = self._mode(ours, theirs)
            spool.append(WriteFile(ours.path, ours.size, mode, ours.mtime_ns, ours.seen, seen))
            plan.summary.files += 1
            plan.summary.bytes += ours.size
        elif ours.kind is _SYMLINK:
            spool.append(MakeSymlink(ours.path, ours.link, ours.mtime_ns, seen))
        else:
            spool.append(MakeDirectory(ours.path, self._mode(ours, None)))

    def _remove(self, theirs: Entry, makes_way: bytes) -> None:
        spool = self.plan.in_way if makes_way else self.plan.extras
        spool.append(Remove(theirs.path, theirs.kind, theirs.seen, makes_way))

    def _finish_directory(self, level: _Level, ours: Entry, theirs: Entry | None) -> None:
        mode = self._mode(ours, theirs)
        if theirs is None:
            differs, seen = False, 0
        else:
            differs = mode != theirs.mode or (
                self.options.keep_times and ours.mtime_ns != theirs.mtime_ns
            )
            seen = theirs.seen
        # Also without times: to write in it, its owner may have had to be given the right to.
        if theirs is None or differs or level.changed:
            self.plan.directories.append(
                SetDirectory(ours.path, mode, ours.mtime_ns, seen, differs)
            )
