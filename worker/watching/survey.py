"""Looking at directories: each gets its watch, is listed, and is compared with the index.

What differs goes to the journal in the transaction that changes the index. It is how watching begins,
how a new directory is entered (its watch stands before it is listed, so nothing made in it is missed),
and how what was not told is found again: a stat scan, bit by bit between events. For one thread.
"""

import errno
import os
import stat
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from syncengine.names import MAX_PATH, is_reserved
from syncengine.wall import Wall
from worker.watching.index import TOP, UNSURE, TreeIndex, look_of
from worker.watching.journal import Change, ChangeJournal
from worker.watching.store import Store
from worker.watching.tops import Tops
from worker.watching.watched_tree import Node, WatchedTree

if TYPE_CHECKING:
    from worker.watching.pending import Consumer

_DRAIN_EVERY = 512
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class Trouble(Enum):
    """Why a directory is not watched."""

    NO_WATCH = auto()
    """The kernel gives no more watches."""
    UNREADABLE = auto()


@dataclass(frozen=True, slots=True)
class Look:
    """A directory that is to be looked at."""

    node: Node
    since: float
    """No change that is found there happened before, in seconds of the epoch."""


class Survey:
    """The directories still to be looked at, and those that could not be watched."""

    def __init__(
        self,
        tree: WatchedTree,
        tops: Tops,
        store: Store,
        index: TreeIndex,
        journal: ChangeJournal,
        wall: Wall,
    ) -> None:
        """Begin with nothing to look at."""
        self._tree = tree
        self._tops = tops
        self._store = store
        self._index = index
        self._journal = journal
        self._wall = wall
        self._stack: list[Look] = []
        self.troubles: dict[bytes, tuple[Trouble, str]] = {}
        """Directories without a watch, and why."""
        self.unsure: list[bytes] = []
        """Entries that are too young to be told from a later version, since somebody took them."""
        self.told: set[Consumer] = set()
        """Those who have news, since somebody took them."""
        self.found = 0
        """Differences that were found."""

    def is_over(self) -> bool:
        """Say whether there is nothing left to look at."""
        return not self._stack

    def push(self, node: Node, since: float) -> None:
        """Look at a directory and all below it, before everything else."""
        self._stack.append(Look(node, since))

    def step(self) -> None:
        """Look at one directory; raises JournalUnusable."""
        look = self._stack.pop()
        node, path = look.node, look.node.path
        if self._tree.find(path) is not node:
            return  # dropped meanwhile
        try:
            fd = self._tree.open_path(path)
        except OSError as error:
            self._cannot_open(node, path, error)
            return
        try:
            if not self._watch(node, path, fd):
                return
            listed = self._list(fd, self._tops.names(path), path)
            own = os.fstat(fd) if node is self._tree.root else None
        except OSError as error:
            if error.errno not in _GONE:
                self.troubles[path] = (Trouble.UNREADABLE, error.strerror or str(error))
            return
        finally:
            os.close(fd)
        if own is not None:
            self._compare_root(look, own)
        self._compare(look, path, listed)

    def _compare_root(self, look: Look, status: os.stat_result) -> None:
        """Compare what the root itself looks like: there is no directory above it."""
        seen = look_of(status, int(self._wall() * 1e9))
        row = self._index.get(0, b"")
        if row is not None and row.seen == seen and seen != UNSURE:
            return
        at = min(max(look.since, status.st_ctime_ns / 1e9), self._wall())
        with self._store.transaction():
            self._index.put(0, [(b"", seen, TOP)])
            self.told |= self._journal.add([Change(b"", at)])
        if seen == UNSURE:
            self.unsure.append(b"")

    def _cannot_open(self, node: Node, path: bytes, error: OSError) -> None:
        if error.errno not in _GONE:
            self.troubles[path] = (Trouble.UNREADABLE, error.strerror or str(error))
            return
        if node is self._tree.root:
            raise error
        # Whoever removed it has been, or will be, told of by its directory; when nobody is told
        # (events were lost) that directory is looked at as well.
        self.troubles.pop(path, None)
        self._tree.drop(node)

    def _watch(self, node: Node, path: bytes, fd: int) -> bool:
        """Watch a directory; say whether to look into it."""
        try:
            self._tree.watch(node, fd)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.ENOMEM}:
                self.troubles[path] = (Trouble.NO_WATCH, error.strerror or str(error))
                return True
            self.troubles[path] = (Trouble.UNREADABLE, error.strerror or str(error))
            return error.errno not in _GONE
        self.troubles.pop(path, None)
        return True

    def _list(self, fd: int, names: frozenset[bytes] | None, path: bytes) -> list["_Found"]:
        """List a directory; what vanishes meanwhile is not there. Events are taken in between."""
        now_ns = int(self._wall() * 1e9)
        listed = sorted(names) if names is not None else [*map(os.fsencode, os.listdir(fd))]
        longest = MAX_PATH - len(path) - 1
        found: list[_Found] = []
        for number, name in enumerate(listed):
            if number % _DRAIN_EVERY == 0:
                self._tree.inotify.drain()
            if name.startswith(b".baton") and is_reserved(name):
                continue
            try:
                status = os.lstat(name, dir_fd=fd)
            except FileNotFoundError:
                continue
            if len(name) <= longest:
                is_directory = stat.S_ISDIR(status.st_mode)
                seen = look_of(status, now_ns)
                found.append(_Found(name, is_directory, seen, status.st_ctime_ns))
        return found

    def _compare(self, look: Look, path: bytes, listed: list["_Found"]) -> None:
        node, index = look.node, self._index
        prefix = path + b"/" if path else b""
        now = self._wall()
        rows = index.of(node.number)
        nodes = node.children or {}
        changes: list[Change] = []
        puts: list[tuple[bytes, int, int]] = []
        below: list[Node] = []
        for name, is_directory, seen, ctime_ns in listed:
            row = rows.pop(name, None)
            child = row.child if row is not None else 0
            if row is None or row.seen != seen or seen == UNSURE or is_directory != bool(child):
                is_deep = is_directory != bool(child)
                if child and not is_directory:
                    index.remove(node.number, name)
                    child = 0
                elif is_directory and not child:
                    child = nodes[name].number if name in nodes else index.new_number()
                at = min(max(look.since, ctime_ns / 1e9), now)
                changes.append(Change(prefix + name, at, is_deep))
                puts.append((name, seen, child))
                if seen == UNSURE:
                    self.unsure.append(prefix + name)
            if is_directory:
                below.append(self._tree.enter(node, name, child))
        changes += (
            Change(prefix + name, look.since, bool(row.child)) for name, row in rows.items()
        )
        present = {one.name for one in below}
        for gone in [one for name, one in (node.children or {}).items() if name not in present]:
            self._tree.drop(gone)
        self._stack += [Look(child, look.since) for child in below]
        if not changes:
            return
        self.found += len(changes)
        with self._store.transaction():
            for name in rows:
                index.remove(node.number, name)
            index.put(node.number, puts)
            self.told |= self._journal.add(changes)


class _Found(NamedTuple):
    """One entry as it was listed."""

    name: bytes
    is_directory: bool
    seen: int
    ctime_ns: int
