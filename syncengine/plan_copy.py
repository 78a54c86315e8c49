"""Plan, rules copy and move: what a target lacks or has otherwise, and nothing that it has beside.

The merge is that of `mirror`, which knows how things are compared and made; here no delete comes out
of it. For `move`, `plan_removals` says afterwards which source files every target has for certain.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from syncengine.changes import Remove
from syncengine.model import (
    CopyWhen,
    Entry,
    Kind,
    Problem,
    Rule,
    RunOptions,
    What,
)
from syncengine.names import order_key
from syncengine.phases import Plan
from syncengine.plan import Level, MirrorMerge, Side
from syncengine.scope import Scope
from syncengine.stretches import Item

__all__ = ["plan_copy", "plan_removals"]

_FILE, _DIRECTORY = Kind.FILE, Kind.DIRECTORY
_LEFT_ALONE = frozenset({Kind.SPECIAL, Kind.EXCLUDED})


def plan_copy(
    source: Iterable[Item],
    target: Iterable[Item],
    options: RunOptions,
    *,
    is_complete: Callable[[], bool],
    source_member: str = "",
    target_member: str = "",
    spool_folder: str | None = None,
    scope: Scope | None = None,
) -> Plan:
    """Merge two listings into the plan that gives the target what the source has.

    As `plan_mirror`, but nothing is removed: a directory in the way of a file, or the other way
    round, is a problem of the plan (NOT_WRITTEN), and what is below it is left out.
    """
    plan = Plan(options, spool_folder)
    try:
        merge = _Copy(plan, source_member, target_member, scope)
        merge.run(source, target)
        plan.seal(is_complete=is_complete())
    except BaseException:
        plan.close()
        raise
    return plan


class _Copy(MirrorMerge):
    def __init__(
        self, plan: Plan, source_member: str, target_member: str, scope: Scope | None
    ) -> None:
        super().__init__(plan, source_member, target_member, scope)
        when = plan.options.copy_when if plan.options.rule is Rule.COPY else CopyWhen.DIFFERING
        self._is_always = when is CopyWhen.ALWAYS
        self._is_newer = when is CopyWhen.NEWER

    def _alike(self, ours: Entry, theirs: Entry) -> bool:
        return not self._is_always and super()._alike(ours, theirs)

    def _alike_stretches(self, ours: Side, theirs: Side) -> int:
        return 0 if self._is_always else super()._alike_stretches(ours, theirs)

    def _extra(self, theirs: Entry, parent: Level) -> None:
        if theirs.kind is _DIRECTORY:
            self._enter(None, theirs, parent).ignored = True

    def _file_becomes_directory(self, ours: Entry, theirs: Entry, parent: Level) -> None:
        self._is_in_the_way("a directory is to be made where a file is", ours, theirs, parent)

    def _directory_becomes_file(self, ours: Entry, theirs: Entry, parent: Level) -> None:
        self._is_in_the_way(
            "a directory is in the way of what is no directory", ours, theirs, parent
        )

    def _is_in_the_way(self, detail: str, ours: Entry, theirs: Entry, parent: Level) -> None:
        self.plan.problems.append(Problem(ours.path, self.target_member, What.NOT_WRITTEN, detail))
        self._enter(ours, theirs, parent).ignored = True

    def _compare(self, ours: Entry, theirs: Entry, parent: Level) -> None:
        if self._is_newer and theirs.kind is _FILE and not self._may_follow(ours, theirs):
            return
        if self._is_always and ours.kind is _FILE:
            parent.changed = True
            self._make(ours, theirs, displaced=False)
        else:
            super()._compare(ours, theirs, parent)

    def _may_follow(self, ours: Entry, theirs: Entry) -> bool:
        """Say whether the source's is later; of one time and content, it may differ in mode."""
        if ours.mtime_ns == theirs.mtime_ns:
            return ours.kind is theirs.kind and self._same_content(ours, theirs)
        return ours.mtime_ns > theirs.mtime_ns


def plan_removals(
    source: Iterable[Entry],
    targets: Sequence[Iterable[Entry]],
    options: RunOptions,
    *,
    spool_folder: str | None = None,
) -> Plan:
    """Return the deletes at the source of a `move`: what every target is seen to have.

    The listings are made after the push, the targets' content being durable, with digests of all
    regular files: one without a digest stays. Directories stay, and so does what is left alone.
    The deletes name the source's entries by their fingerprints, so what changes later stays too.
    Without targets nothing is removed. Raises what the iterables raise, and OSError.
    """
    plan = Plan(options, spool_folder)
    try:
        theirs = [_Cursor(target) for target in targets]
        for ours in source:
            if ours.path:
                plan.summary.source_entries += 1
            if ours.kind is _DIRECTORY or ours.kind in _LEFT_ALONE or not theirs:
                continue
            found = [cursor.at(ours.path) for cursor in theirs]
            if all(_is_there(ours, one) for one in found):
                plan.extras.append(Remove(ours.path, ours.kind, ours.seen))
        plan.summary.target_entries = plan.summary.source_entries
        plan.seal(is_complete=True)
    except BaseException:
        plan.close()
        raise
    return plan


class _Cursor:
    """Reads a listing up to a path."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries: Iterator[Entry] = iter(entries)
        self._head = next(self._entries, None)

    def at(self, path: bytes) -> Entry | None:
        """Return the entry at a path, which is later in tree order than the one asked for before."""
        key = order_key(path)
        while self._head is not None and order_key(self._head.path) < key:
            self._head = next(self._entries, None)
        head = self._head
        return head if head is not None and head.path == path else None


def _is_there(ours: Entry, theirs: Entry | None) -> bool:
    """Say whether a target has what the source has, beyond doubt."""
    if theirs is None or ours.kind is not theirs.kind:
        return False
    if ours.kind is _FILE:
        return ours.size == theirs.size and ours.digest == theirs.digest != b""
    return ours.link == theirs.link and ours.device == theirs.device
