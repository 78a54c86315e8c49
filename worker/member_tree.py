"""A member's tree at this worker: opened below its root, and judged by what is remembered of it.

Every method blocks on the disk: call them from a thread.
"""

import dataclasses
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from syncengine.errors import PathMissing, RootMissing
from syncengine.marker import KnownRoot, MarkerState, advance_marker, check_marker
from syncengine.model import Compare, Entry, Hold, HoldReason, MirrorOptions, Problem
from syncengine.scan import scan
from syncengine.trash import expire_trash
from syncengine.tree import Tree
from wire.orders import Member
from worker.journal import Journal
from worker.roots import Roots

UNKNOWN = -1
"""Entries before: there was no run yet."""


class MemberTrees:
    """Opens members of jobs below the configured roots, and keeps what is remembered of those."""

    def __init__(self, roots: Roots, journal: Journal) -> None:
        """Serve these roots."""
        self._roots = roots
        self._journal = journal
        self._lock = threading.Lock()

    def open_source(self, member: Member) -> "MemberTree":
        """Open a tree to be read; raises EngineError, and PathMissing where there never was one."""
        return self._open(member, is_target=False, create=False)

    def open_target(self, member: Member, *, create: bool = False) -> "MemberTree":
        """Open a tree to be written; without `create` a path that never was is an empty tree."""
        return self._open(member, is_target=True, create=create)

    def _open(self, member: Member, *, is_target: bool, create: bool) -> "MemberTree":
        root = self._roots[member.root]
        known = self._journal.known_root(member.root)
        before = known.entries.get(member.path, UNKNOWN) if known is not None else UNKNOWN
        try:
            tree = Tree.open(
                bytes(root.path), member.path, create_sub=create, read_only=root.read_only
            )
        except (RootMissing, PathMissing) as error:
            # What was there once and is gone is no empty tree: nothing is deleted because of it.
            if isinstance(error, RootMissing) or before > 0:
                hold = Hold(HoldReason.ROOT_MISSING, str(member), str(error))
                return MemberTree(self, member, None, None, (hold,), before)
            if is_target:
                return MemberTree(self, member, None, None, (), before)
            raise
        try:
            state = check_marker(tree, known, member=str(member))
        except BaseException:
            tree.close()
            raise
        return MemberTree(self, member, tree, state, state.holds, before)

    def mark(self, member: Member, tree: Tree, state: MarkerState) -> None:
        """Write the marker of this run; what was held has been approved when this is called."""
        with self._lock:
            known = self._journal.known_root(member.root)
            # Another job may have used the root since it was looked at.
            fresh = check_marker(tree, known, member=str(member)) if not state.holds else state
            marked = advance_marker(tree, fresh, known, accept=bool(state.holds))
            self._journal.remember_root(member.root, marked)

    def remember(self, member: Member, entries: int) -> None:
        """Remember how many entries the member has now."""
        with self._lock:
            known = self._journal.known_root(member.root)
            if known is None:
                return
            changed: KnownRoot = dataclasses.replace(
                known, entries={**known.entries, member.path: entries}
            )
            self._journal.remember_root(member.root, changed)


class MemberTree:
    """One opened member. A context manager; `tree` is None when there is nothing to open."""

    def __init__(
        self,
        trees: MemberTrees,
        member: Member,
        tree: Tree | None,
        state: MarkerState | None,
        holds: tuple[Hold, ...],
        entries_before: int,
    ) -> None:
        """Take what `MemberTrees` found."""
        self.member = member
        self.tree = tree
        self.holds = holds
        self.entries_before = entries_before
        self._trees = trees
        self._state = state
        self._is_marked = False

    @property
    def opened(self) -> Tree:
        """The tree, where there must be one."""
        assert self.tree is not None, "judged before"
        return self.tree

    def free_bytes(self) -> int:
        """Return the room left, 0 when there is no tree."""
        return self.tree.free_bytes() if self.tree is not None else 0

    def scan_source(self, options: MirrorOptions, problems: list[Problem]) -> Iterator[Entry]:
        """Scan as the source of a run."""
        return scan(
            self.opened,
            problems=problems,
            member=str(self.member),
            digests=options.compare is Compare.CHECKSUM,
            keep_setuid=options.keep_setuid,
        )

    def scan_target(self, options: MirrorOptions, problems: list[Problem]) -> Iterator[Entry]:
        """Scan as a target: what a killed run left behind is removed on the way."""
        return scan(
            self.opened,
            problems=problems,
            member=str(self.member),
            digests=options.compare is Compare.CHECKSUM,
            keep_setuid=True,
            clean_temporaries=True,
        )

    def mark(self) -> None:
        """Write the root's marker for this run, once; raises MarkerError."""
        if self._state is not None and not self._is_marked:
            self._is_marked = True
            self._trees.mark(self.member, self.opened, self._state)

    def remember(self, entries: int) -> None:
        """Remember how many entries there are after this run."""
        self._trees.remember(self.member, entries)

    def expire_trash(self, trash_s: int, now: float) -> None:
        """Remove what lay long enough in the root's trash; `now` in seconds of the epoch."""
        expire_trash(self.opened, trash_s, now)

    def close(self) -> None:
        """Close the tree."""
        if self.tree is not None:
            self.tree.close()

    def __enter__(self) -> Self:
        """Use it in a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()
