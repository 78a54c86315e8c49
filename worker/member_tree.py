"""A member's tree at this worker: opened below its root, and judged by what is remembered of it.

Every method blocks on the disk: call them from a thread.
"""

import asyncio
import collections
import contextlib
import dataclasses
import os
import stat
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from syncengine.abilities import probe
from syncengine.agreed import Agreement, Graft, Sighting
from syncengine.chunk_index import ChunkIndex
from syncengine.content import read_digest, sightings_with_digests, with_digests
from syncengine.details import Details
from syncengine.directories import Directories
from syncengine.errors import PathMissing, RootMissing
from syncengine.filters import Filters
from syncengine.flush import FlushedPaths
from syncengine.lineage import Lineage, lineage_of
from syncengine.marker import MarkerState, advance_marker, check_marker
from syncengine.model import Compare, Entry, Hold, HoldReason, Problem, RunOptions
from syncengine.other_names import find_names
from syncengine.phases import Plan
from syncengine.scan import scan, scan_stretches
from syncengine.scope import Scope
from syncengine.stretches import Item
from syncengine.trash import expire_trash
from syncengine.tree import Tree
from syncengine.wall import Wall, machine_wall
from wire.orders import Assignment, Member
from worker.agreed_store import AgreedStore, AgreedStores, Whose, sightings
from worker.agreements import borne_out
from worker.journal import Journal
from worker.leavings import Leavings
from worker.roots import Roots
from worker.source_records import (
    find_moves,
    names_beside,
    remember,
    remember_names,
    remembered_names,
)

UNKNOWN = -1
"""Entries before: there was no run yet."""

_PREPARED_S = 3_600.0
_MOST_PREPARED = 1_000


class _Marking:
    """Who waits for a root's next marker."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Held while a marker is written."""
        self.covered = 0
        """Whoever asked up to here has one that was begun after that."""
        self.asked = 0
        self._asking = threading.Lock()

    def ask(self) -> int:
        """Return the place of a run among those that asked."""
        with self._asking:
            self.asked += 1
            return self.asked


class MemberTrees:
    """Opens members of jobs below the configured roots, and keeps what is remembered of those."""

    def __init__(
        self,
        roots: Roots,
        journal: Journal,
        agreed: AgreedStores,
        chunks: ChunkIndex | None = None,
        wall: Wall = machine_wall,
    ) -> None:
        """Serve these roots; `chunks` is what is remembered of their files."""
        self.wall = wall
        self._chunks = chunks
        self._roots = roots
        self._journal = journal
        self._agreed = agreed
        self.leavings = Leavings(journal)
        self._lock = threading.Lock()
        self._markings: dict[str, _Marking] = {}
        """By root."""
        self._prepared: dict[tuple[str, str], float] = {}
        """By member and run, in seconds of the epoch when it was prepared for that run."""

    def open_source(self, member: Member) -> "MemberTree":
        """Open a tree to be read; raises EngineError, and PathMissing where there never was one."""
        return self._open(member, is_target=False, create=False)

    def open_target(self, member: Member, *, create: bool = False) -> "MemberTree":
        """Open a tree to be written; without `create` a path that never was is an empty tree."""
        return self._open(member, is_target=True, create=create)

    def _open(self, member: Member, *, is_target: bool, create: bool) -> "MemberTree":
        root = self._roots[member.root]
        known = self._journal.known_root(member.root)
        number = self._journal.entries(member.root, member.path)
        before = UNKNOWN if number is None else number
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
                lineage = _lineage_to_be(bytes(root.path), member.path)
                return MemberTree(self, member, None, None, (), before, lineage)
            raise
        tree.wall = self.wall
        lineage = lineage_of(tree.root_fd, member.path)
        if self._chunks is not None:
            tree.chunks = self._chunks.of(member.root)
        try:
            state = check_marker(tree, known, member=str(member))
        except BaseException:
            tree.close()
            raise
        return MemberTree(self, member, tree, state, state.holds, before, lineage)

    def mark(self, member: Member, tree: Tree, state: MarkerState) -> None:
        """Write the marker of this run; what was held has been approved when this is called.

        Runs that ask while one marker is written share the next.
        """
        marking = self._markings.setdefault(member.root, _Marking())
        place = marking.ask()
        with marking.lock:
            if place <= marking.covered and not state.holds:
                return
            covers = marking.asked
            known = self._journal.known_root(member.root)
            # Another job may have used the root since it was looked at.
            fresh = check_marker(tree, known, member=str(member)) if not state.holds else state
            marked = advance_marker(tree, fresh, known, accept=bool(state.holds))
            self._journal.remember_root(member.root, marked, is_new=bool(state.holds))
            marking.covered = covers

    def is_prepared(self, member: Member, run: str) -> bool:
        """Say whether a member was prepared for a run, and not long ago."""
        at = self._prepared.get((str(member), run))
        return at is not None and abs(self.wall() - at) < _PREPARED_S

    def note_prepared(self, member: Member, run: str) -> None:
        """Take it that a member is prepared for a run now."""
        with self._lock:
            self._prepared.pop((str(member), run), None)
            self._prepared[str(member), run] = self.wall()
            if len(self._prepared) > _MOST_PREPARED:
                del self._prepared[next(iter(self._prepared))]

    def whose(self, job: Assignment, member: Member, root_id: str | None = None) -> Whose:
        """Return whose agreements those of a member are, at the root as it is known now."""
        if root_id is None:
            known = self._journal.known_root(member.root)
            root_id = known.root_id if known is not None else ""
        return Whose(job.job, str(member), root_id, job.made)

    @property
    def agreed(self) -> AgreedStores:
        """What members agreed to."""
        return self._agreed

    def remember(self, member: Member, entries: int) -> None:
        """Remember how many entries the member has now."""
        if self._journal.known_root(member.root) is not None:
            self._journal.remember_entries(member.root, member.path, entries)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What the paths of a scope are at a member."""

    scope: Scope
    """That scope, with those paths deep that are no directories here, so that another member shows
    all of what it may have there."""
    linked: dict[int, int] = dataclasses.field(default_factory=dict)
    """Inodes of files that have several names, and how many."""
    gone: list[bytes] = dataclasses.field(default_factory=list)
    """Paths at which nothing is."""


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
        lineage: Lineage = (),
    ) -> None:
        """Take what `MemberTrees` found."""
        self.lineage = lineage
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

    def _filters(self, options: RunOptions) -> Filters:
        """Compile what the job leaves alone; ages count from now, by this machine's clock."""
        now_ns = int(self._trees.wall() * 1e9)
        return Filters(options.filters, options.limits, now_ns=now_ns)

    def is_empty(self) -> bool:
        """Say whether there is a tree, and nothing in it that anybody but Baton put there."""
        return self.tree is not None and self.tree.is_empty()

    def scan_source(
        self, options: RunOptions, problems: list[Problem], *, scope: Scope | None = None
    ) -> Iterator[Entry]:
        """Scan as the source of a one-way run."""
        return scan(
            self.opened,
            problems=problems,
            member=str(self.member),
            digests=options.compare is Compare.CHECKSUM,
            keep_setuid=options.keep_setuid,
            filters=self._filters(options),
            details=Details.of(options),
            scope=scope,
        )

    def scan_source_stretches(self, options: RunOptions, problems: list[Problem]) -> Iterator[Item]:
        """Scan as the source of a one-way run, plain files in stretches where no content is read."""
        if options.compare is Compare.CHECKSUM:
            return self.scan_source(options, problems)
        return scan_stretches(
            self.opened,
            problems=problems,
            member=str(self.member),
            keep_setuid=options.keep_setuid,
            filters=self._filters(options),
            details=Details.of(options),
        )

    def scan_target_stretches(self, options: RunOptions, problems: list[Problem]) -> Iterator[Item]:
        """Scan as the target of a one-way run, plain files in stretches where no content is read."""
        if options.compare is Compare.CHECKSUM:
            return self.scan_target(options, problems)
        return scan_stretches(
            self.opened,
            problems=problems,
            member=str(self.member),
            keep_setuid=True,
            clean_temporaries=True,
            filters=self._filters(options),
            details=Details.of(options, is_target=True),
        )

    def scan_target(
        self,
        options: RunOptions,
        problems: list[Problem],
        *,
        grafts: Sequence[Graft] = (),
        scope: Scope | None = None,
    ) -> Iterator[Entry]:
        """Scan as a target, or as what is source and target at once.

        What a killed run left behind is removed on the way.
        """
        one_way = options.rule.is_one_way
        return scan(
            self.opened,
            problems=problems,
            member=str(self.member),
            digests=options.compare is Compare.CHECKSUM,
            keep_setuid=True,
            clean_temporaries=True,
            filters=self._filters(options),
            details=Details.of(options, is_target=one_way, is_member=not one_way),
            grafts=grafts,
            scope=scope,
        )

    @contextlib.asynccontextmanager
    async def agreed_to(self, job: Assignment | None) -> AsyncIterator[AgreedStore | None]:
        """Hold open what was agreed to at this very root, to be read; None when nothing is of use.

        Where the marker is in doubt nothing is: whoever approves that takes the member as a new one.
        """
        store = None
        if job is not None and self._state is not None and not self._state.holds:
            whose = self._trees.whose(job, self.member, self._state.root_id)
            store = await asyncio.to_thread(self._trees.agreed.open, whose, reading=True)
        try:
            yield store
        finally:
            if store is not None:
                await asyncio.to_thread(store.close)

    def sightings(
        self,
        options: RunOptions,
        problems: list[Problem],
        store: AgreedStore | None,
        *,
        grafts: Sequence[Graft] = (),
        digests_of: Iterable[bytes] = (),
        scope: Scope | None = None,
    ) -> Iterator[Sighting]:
        """Scan beside what was agreed to; `grafts` as if done, the files at `digests_of` read.

        Raises AgreedStoreLost when the store turns out to be damaged.
        """
        with contextlib.closing(self.opened.directories()) as directories:
            at = _Places(directories)
            seen = sightings(
                self.scan_target(options, problems, grafts=grafts, scope=scope),
                store,
                grafts=grafts,
                scope=scope,
                is_gone=at.is_gone,
            )
            yield from sightings_with_digests(seen, iter(digests_of), at.digest)

    def entries(
        self, options: RunOptions, problems: list[Problem], digests_of: Iterable[bytes]
    ) -> Iterator[Entry]:
        """Scan as a target, the files at `digests_of` read, and everything flushed at the end."""
        with contextlib.closing(self.opened.directories()) as directories:
            flushed = FlushedPaths(directories)
            at = _Places(directories)

            def digest(entry: Entry) -> bytes:
                found = at.digest(entry)
                flushed.add(entry.came_from or entry.path)
                return found

            scanned = self.scan_target(options, problems)
            yield from with_digests(scanned, iter(digests_of), digest)
            flushed.finish()

    def agree(self, job: Assignment, agreements: Iterable[Agreement]) -> int:
        """Record what the tree bears out, durably; return how many agreements that were (I3)."""
        store = self._trees.agreed.open(self._trees.whose(job, self.member))
        assert store is not None, "opened to be written"
        with store, contextlib.closing(self.opened.directories()) as directories:
            able = probe(self.opened, may_write=True)
            reader = Details.of(job.options, is_member=True).reader(able)
            held = borne_out(
                directories, agreements, job.options, holds_modes=able.modes, reader=reader
            )
            return store.write(held)

    def find_moves(self, store: AgreedStore, plan: Plan) -> list[Graft]:
        """Return what a plan makes anew and was at another path of this source before."""
        with contextlib.closing(self.opened.directories()) as directories:
            return find_moves(directories, store, plan)

    def names_of(
        self, job: Assignment, inodes: Mapping[int, int], outside: dict[int, int]
    ) -> list[bytes]:
        """Return the names of these inodes, by how many each has, as far as they lie in the tree.

        Those that are remembered; unless these are all, those that a walk finds, which are
        remembered then. `outside` knows of inodes that have names elsewhere, by their number, and
        learns: while that stays, no walk finds more.
        """
        if self._state is None or self._state.holds:
            return []
        store = self._trees.agreed.open(self._trees.whose(job, self.member))
        assert store is not None, "opened to be written"
        with store, contextlib.closing(self.opened.directories()) as directories:
            found = set(remembered_names(directories, store, inodes))
            left = dict(inodes)
            for inode, _ in found:
                left[inode] -= 1
            walked = {i: inodes[i] for i in left if left[i] > 0 and outside.get(i) != inodes[i]}
            if walked:
                paths = list(find_names(self.opened, walked))
                remember_names(directories, store, paths, store.number + 1)
                found.update(remembered_names(directories, store, walked))
                there = collections.Counter(inode for inode, _ in found)
                outside.update((i, links) for i, links in walked.items() if there[i] < links)
        return [path for _, path in found]

    def found(self, scope: Scope) -> "Found":
        """Look at what a scope names here."""
        deep: list[bytes] = []
        gone: list[bytes] = []
        linked: dict[int, int] = {}
        with contextlib.closing(self.opened.directories()) as directories:
            for path in scope.shallow:
                parent, _, name = path.rpartition(b"/")
                try:
                    status = os.lstat(name, dir_fd=directories.fd(parent)) if name else None
                except OSError:
                    gone.append(path)  # or not to be had: the scan will tell
                    continue
                if status is None or stat.S_ISDIR(status.st_mode):
                    continue
                deep.append(path)
                if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
                    linked[status.st_ino] = status.st_nlink
        return Found(scope.deepened([*deep, *gone]), linked, gone)

    def names_beside(self, store: AgreedStore, gone: Iterable[bytes]) -> list[bytes]:
        """Return what is still there of the files of which these names are gone."""
        with contextlib.closing(self.opened.directories()) as directories:
            return list(names_beside(directories, store, gone))

    def remember_entries(self, job: Assignment, plan: Plan, *, with_names: bool = False) -> None:
        """Record what a plan changed, as it is here: to recognize it when it is renamed.

        `with_names` also which files have several names, whether these were changed or not.
        """
        store = self._trees.agreed.open(self._trees.whose(job, self.member))
        assert store is not None, "opened to be written"
        with store, contextlib.closing(self.opened.directories()) as directories:
            number = store.number + 1
            remember(directories, store, plan, number)
            if with_names:
                remember_names(directories, store, plan.linked, number)

    def mark(self) -> None:
        """Write the root's marker for this run, once; raises MarkerError."""
        if self._state is not None and not self._is_marked:
            self._is_marked = True
            self._trees.mark(self.member, self.opened, self._state)

    def is_prepared(self, run: str) -> bool:
        """Say whether the tree was prepared for a run already, and nothing speaks against it."""
        return not self.holds and self._trees.is_prepared(self.member, run)

    def note_prepared(self, run: str) -> None:
        """Take it that the tree is prepared for a run."""
        self._trees.note_prepared(self.member, run)

    def remember(self, entries: int) -> None:
        """Remember how many entries there are after this run."""
        self._trees.remember(self.member, entries)

    def note_written(self, job: str) -> None:
        """Note that a job writes here, before it does, should this worker die of it."""
        self._trees.leavings.note(job, self.member)

    def expire_trash(self, trash_s: int) -> None:
        """Remove what lay long enough in the root's trash."""
        expire_trash(self.opened, trash_s, self._trees.wall())

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


def _lineage_to_be(root: bytes, path: bytes) -> Lineage:
    """Return where a path will lie that is not there yet."""
    with Tree.open(root, read_only=True) as tree:
        return lineage_of(tree.root_fd, path)


class _Places:
    """Looks at single paths of a tree."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories

    def is_gone(self, entry: Entry, path: bytes) -> bool:
        """Say whether an entry is not at this path any more."""
        parent, _, name = path.rpartition(b"/")
        try:
            return os.lstat(name, dir_fd=self._directories.fd(parent)).st_ino != entry.inode
        except OSError:
            return True

    def digest(self, entry: Entry) -> bytes:
        """Read a file where it lies, which is not where a listing with grafts shows it."""
        return read_digest(self._directories, entry.came_from or entry.path, entry.seen)
