"""What the kernel's events mean: which paths change, which directories come, go and move.

For one thread. A directory that comes or moves is journaled at once, with the index; all else waits
in `Settling`.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from syncengine.names import is_reserved
from worker.watching.clocks import Clocks
from worker.watching.index import UNSURE, TreeIndex
from worker.watching.inotify import (
    IN_ATTRIB,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_IGNORED,
    IN_ISDIR,
    IN_MODIFY,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_Q_OVERFLOW,
    IN_UNMOUNT,
    Event,
)
from worker.watching.journal import Change, ChangeJournal, Rename
from worker.watching.settling import Settling
from worker.watching.store import Store
from worker.watching.survey import Survey
from worker.watching.tops import Tops
from worker.watching.watched_tree import Node, WatchedTree

PAIR_S = 0.02
"""How long the second half of a rename is waited for. The kernel queues both at once, so they are only
ever parted by the end of what it let us read."""

_MOST_RENAMES = 10_000
_ROOT_GONE = IN_IGNORED | IN_UNMOUNT | IN_DELETE_SELF | IN_MOVE_SELF


class EventsLost(Exception):
    """What events told is not enough any more: what happened has to be found in the tree."""


class QueueOverflowed(EventsLost):
    """The kernel, or memory, dropped events."""


class RootGone(Exception):
    """The root was unmounted, removed or renamed."""


@dataclass(frozen=True, slots=True)
class _Half:
    """The first half of a rename."""

    node: Node
    """The directory that it was in."""
    name: bytes
    path: bytes
    child: Node | None
    """The directory itself, if it is one that was seen; it has no place until the second half."""
    is_directory: bool
    at: float
    until: float


class Events:
    """Turns events into changes. Whoever calls `take` sees to what settled."""

    def __init__(
        self,
        tree: WatchedTree,
        tops: Tops,
        survey: Survey,
        settling: Settling,
        store: Store,
        index: TreeIndex,
        journal: ChangeJournal,
        clocks: Clocks,
    ) -> None:
        """Begin with no rename half told."""
        self._tree = tree
        self._tops = tops
        self._survey = survey
        self._settling = settling
        self._store = store
        self._index = index
        self._journal = journal
        self._clocks = clocks
        self._halves: dict[int, _Half] = {}
        self.renames: dict[bytes, Rename] = {}
        """Renames of other things than directories, by new path, until that settles."""
        self.changed: dict[bytes, float] = {}
        """Paths whose place in the index is out of date, and since when (monotonic)."""

    def next_due(self) -> float | None:
        """Return when half a rename is given up, if there is one."""
        return min((half.until for half in self._halves.values()), default=None)

    def take(self, events: Iterable[Event]) -> None:
        """Take events in their order; raises EventsLost, RootGone and JournalUnusable."""
        now, at = self._clocks.monotonic(), self._clocks.wall()
        last: Node | None = None
        directory = prefix = b""
        for wd, mask, cookie, name in events:
            if mask & IN_Q_OVERFLOW:
                raise QueueOverflowed("the kernel's queue of events overflowed")
            node = self._tree.by_wd.get(wd)
            if node is None:
                continue
            if not name:
                self._of_itself(node, wd, mask, now, at)
                last = None
                continue
            if node is not last:
                directory = node.path
                prefix = directory + b"/" if directory else b""
                last = node
            if (name.startswith(b".baton") and is_reserved(name)) or not (
                self._tops.is_all or self._tops.concerns(directory, name)
            ):
                continue
            path = prefix + name
            self.changed.setdefault(path, now)
            if mask & (IN_MODIFY | IN_CLOSE_WRITE):
                self._settling.touch(path, now, at, is_end=bool(mask & IN_CLOSE_WRITE))
                continue
            self.changed.setdefault(directory, now)
            self._of_entry(node, path, Event(wd, mask, cookie, name), now, at)
            last = None

    def _of_entry(self, node: Node, path: bytes, event: Event, now: float, at: float) -> None:
        """Take an event that is more than a write: an entry came, went, moved, or has other metadata."""
        _, mask, cookie, name = event
        is_directory = bool(mask & IN_ISDIR)
        if mask & IN_ATTRIB:
            self._settling.touch(path, now, at, is_end=None)
            if is_directory and path in self._survey.troubles:
                self._look_again(node, name, at)
        elif mask & IN_MOVED_FROM:
            child = self._tree.take_out(node, name)
            self._halves[cookie] = _Half(node, name, path, child, is_directory, at, now + PAIR_S)
        elif mask & IN_MOVED_TO:
            self._moved_to(node, path, event, now, at)
        elif mask & IN_DELETE:
            self._settling.touch(path, now, at, is_end=True, is_deep=is_directory)
            child = (node.children or {}).get(name)
            if child is not None:
                self._tree.drop(child)
        elif mask & IN_CREATE and is_directory:
            self.enter(node, name, path, at)
        elif mask & IN_CREATE:
            self._settling.touch(path, now, at, is_end=False)

    def _of_itself(self, node: Node, wd: int, mask: int, now: float, at: float) -> None:
        """Take an event of a watched directory that its own watch tells."""
        if node is self._tree.root:
            if mask & _ROOT_GONE:
                raise RootGone("it was unmounted, removed or renamed")
            if mask & IN_ATTRIB:
                self._settling.touch(b"", now, at, is_end=True)
            return
        if mask & IN_UNMOUNT:
            # What lies under the mount shows now; its directory was told nothing of it.
            path = node.path
            self._settling.touch(path, now, at, is_end=True, is_deep=True)
            parent = node.parent
            if parent is not None:
                self._survey.push(parent, at)
        if mask & IN_IGNORED:
            self._tree.ignored(wd)

    def _look_again(self, node: Node, name: bytes, at: float) -> None:
        child = (node.children or {}).get(name)
        if child is not None:
            self._survey.push(child, at)

    def enter(self, node: Node, name: bytes, path: bytes, at: float) -> None:
        """Take a directory that is new: all of it is pending, and looked at once it is watched."""
        with self._store.transaction():
            row = self._index.get(node.number, name)
            number = row.child if row is not None and row.child else 0
            child = self._tree.enter(node, name, number or self._index.new_number())
            self._index.put(node.number, [(name, UNSURE, child.number)])
            self._survey.told |= self._journal.add([Change(path, at, is_deep=True)])
        self._survey.push(child, at)

    def _moved_to(self, node: Node, path: bytes, event: Event, now: float, at: float) -> None:
        _, mask, cookie, name = event
        is_directory = bool(mask & IN_ISDIR)
        half = self._halves.pop(cookie, None)
        there = (node.children or {}).get(name)
        if half is None:
            if there is not None:
                self._tree.drop(there)
            if is_directory:
                self.enter(node, name, path, at)
            else:
                self._settling.touch(path, now, at, is_end=True)
            return
        if not is_directory:
            self._settling.touch(half.path, now, half.at, is_end=True)
            self._settling.touch(path, now, at, is_end=True)
            self._note(Rename(half.path, path, is_directory=False))
            return
        self._moved_directory(half, node, name, path, now, at)

    def _note(self, rename: Rename) -> None:
        before = self.renames.pop(rename.old, None)
        if before is not None:
            rename = rename._replace(old=before.old)
        if rename.old != rename.new and len(self.renames) < _MOST_RENAMES:
            self.renames[rename.new] = rename

    def _moved_directory(
        self, half: _Half, node: Node, name: bytes, path: bytes, now: float, at: float
    ) -> None:
        if not (self._tops.is_all or (self._tops.holds(half.path) and self._tops.holds(path))):
            raise EventsLost(f"{os.fsdecode(path)} moved between what is watched and what is not")
        child = half.child
        if child is None or not self._is_at(child, path):
            # Never seen, or moved on since: the event that tells so is still to come.
            self._give_up(half, now)
            self.enter(node, name, path, at)
            return
        with self._store.transaction():
            self._index.move(half.node.number, half.name, node.number, name)
            self._tree.move(child, node, name)
            if self._index.get(node.number, name) is None:
                self._index.put(node.number, [(name, UNSURE, child.number)])
            changes = [Change(half.path, half.at, is_deep=True), Change(path, at, is_deep=True)]
            renames = [Rename(half.path, path, is_directory=True)]
            self._survey.told |= self._journal.add(changes, renames)
        self._survey.push(child, at)  # what was to be looked at below it had no place for a moment

    def _is_at(self, child: Node, path: bytes) -> bool:
        """Say whether the directory that a node watches lies at a path now."""
        if child.wd < 0:
            return False
        try:
            fd = self._tree.open_path(path)
        except OSError:
            return False
        try:
            return self._tree.inotify.watch(fd) == child.wd
        except OSError:
            return False
        finally:
            os.close(fd)

    def give_up_halves(self, *, all_of_them: bool = False) -> None:
        """Take what was renamed, and not into what is watched, as removed."""
        if not self._halves:
            return
        now = self._clocks.monotonic()
        for cookie, half in list(self._halves.items()):
            if all_of_them or half.until <= now:
                del self._halves[cookie]
                self._give_up(half, now)

    def _give_up(self, half: _Half, now: float) -> None:
        self._settling.touch(half.path, now, half.at, is_end=True, is_deep=half.is_directory)
        if half.child is not None:
            self._tree.drop(half.child)

    def waits_for(self, path: bytes) -> bool:
        """Say whether something about a path is still to be told to the journal."""
        return path in self._settling or any(half.path == path for half in self._halves.values())
