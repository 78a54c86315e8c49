"""Members of a `sync` or `exchange` job as plain values: trees, agreed records, trash, and a runner.

The model carries plans out literally, and refuses whatever a receiver would refuse: a change of what
the plan did not see, a directory that is not empty, a place that is taken, a directory that is not
there. Content is a value; each value is written once.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from syncengine.agreed import Agreed, Agreement, Graft, Sighting
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
from syncengine.joint import JointRun, MemberFacts, SyncPlan
from syncengine.model import PRETENDED, Compare, Entry, Kind, RunOptions
from syncengine.names import order_key, parent_of
from syncengine.phases import Phase, Plan
from syncengine.plan_sync import plan_sync
from syncengine.renames import GraftMap

STAMP = "20260102-030405"


@dataclass
class Node:
    """One entry of a model tree."""

    kind: Kind
    value: bytes = b""
    """Content of a file, target of a symlink."""
    mode: int = 0o644
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    version: int = 0
    """Grows with every change of the file itself: part of the fingerprint."""
    links: int = 1
    """How many paths have this very node."""
    since: int = 0
    """The version before a run touched it: what its plan knows it by."""

    def entry(self, path: bytes) -> Entry:
        is_file = self.kind is Kind.FILE
        mode = 0 if self.kind is Kind.SYMLINK else self.mode
        stamp = 0 if self.kind is Kind.DIRECTORY else self.since or self.version
        return Entry(
            path,
            self.kind,
            mode,
            self.mtime_ns,
            len(self.value) if is_file else 0,
            self.value if self.kind is Kind.SYMLINK else b"",
            self.inode << 20 | stamp << 1 | 1 << 60,
            b"",
            b"",
            self.inode,
            self.links,
            0,
            self.ctime_ns,
        )


class Refused(AssertionError):
    """The plan asks for what a receiver would refuse."""


@dataclass
class Member:
    """A tree, what it agreed to, its trash, and a clock that may be wrong."""

    name: str
    tick: Callable[[], int]
    skew: int = 0
    tree: dict[bytes, Node] = field(default_factory=dict)
    records: dict[bytes, Agreed] = field(default_factory=dict)
    trash: list[bytes] = field(default_factory=list)
    hidden: set[bytes] = field(default_factory=set)
    """Directories that cannot be read."""
    lost: set[bytes] = field(default_factory=set)
    """Values that went away in an ordinary update."""
    is_new: bool = False
    is_older: bool = False

    def __post_init__(self) -> None:
        self.tree[b""] = Node(Kind.DIRECTORY, mode=0o755, inode=self.tick())

    def now(self) -> int:
        return self.tick() + self.skew

    def children(self, path: bytes) -> list[bytes]:
        below = path + b"/" if path else b""
        return [one for one in self.tree if one and one.startswith(below) and one != path]

    def touch_parent(self, path: bytes) -> None:
        parent = self.tree.get(parent_of(path))
        if parent is None or parent.kind is not Kind.DIRECTORY:
            raise Refused(f"{self.name}: no directory for {path!r}")
        parent.mtime_ns = parent.ctime_ns = self.now()

    def count_links(self) -> None:
        """Count names, and take what there is as what plans know from here on."""
        names: dict[int, int] = {}
        for node in self.tree.values():
            names[node.inode] = names.get(node.inode, 0) + 1
        for node in self.tree.values():
            node.links, node.since = names[node.inode], 0

    # What users do

    def link(self, path: bytes, to: bytes) -> bool:
        """Make `path` a further name of the file at `to`."""
        node, parent = self.tree.get(to), self.tree.get(parent_of(path))
        if node is None or node.kind is not Kind.FILE or path in self.tree:
            return False
        if parent is None or parent.kind is not Kind.DIRECTORY:
            return False
        self.tree[path] = node
        node.ctime_ns, node.version = self.now(), node.version + 1
        self.touch_parent(path)
        return True

    def write(self, path: bytes, value: bytes, *, mtime_ns: int | None = None) -> bool:
        parent = self.tree.get(parent_of(path))
        there = self.tree.get(path)
        if parent is None or parent.kind is not Kind.DIRECTORY:
            return False
        when = self.now()
        if there is not None:
            if there.kind is not Kind.FILE:
                return False
            there.value, there.ctime_ns = value, when
            there.version += 1
            there.mtime_ns = when if mtime_ns is None else mtime_ns
            return True
        mtime = when if mtime_ns is None else mtime_ns
        self.tree[path] = Node(Kind.FILE, value, 0o644, mtime, when, self.tick())
        self.touch_parent(path)
        return True

    def make(self, path: bytes, kind: Kind, value: bytes = b"") -> bool:
        parent = self.tree.get(parent_of(path))
        if path in self.tree or parent is None or parent.kind is not Kind.DIRECTORY:
            return False
        when = self.now()
        mode = 0o755 if kind is Kind.DIRECTORY else 0
        self.tree[path] = Node(kind, value, mode, when, when, self.tick())
        self.touch_parent(path)
        return True

    def remove(self, path: bytes) -> bool:
        if not path or path not in self.tree:
            return False
        for below in self.children(path):
            del self.tree[below]
        self.tree.pop(path)
        self.touch_parent(path)
        return True

    def chmod(self, path: bytes, mode: int) -> bool:
        node = self.tree.get(path)
        if node is None or node.kind is Kind.SYMLINK:
            return False
        node.mode, node.ctime_ns = mode, self.now()
        node.version += 1
        return True

    def rename(self, path: bytes, to: bytes) -> bool:
        """Rename as a user does: over a file, never into itself."""
        node = self.tree.get(path)
        parent = self.tree.get(parent_of(to))
        inside = to == path or to.startswith(path + b"/")
        if not path or not to or node is None or inside or to in self.tree:
            return False
        if parent is None or parent.kind is not Kind.DIRECTORY:
            return False
        self._move(path, to)
        return True

    def _move(self, path: bytes, to: bytes) -> None:
        moved = [one for one in self.tree if one == path or one.startswith(path + b"/")]
        for one in moved:
            self.tree[to + one[len(path) :]] = self.tree.pop(one)
        node = self.tree[to]
        node.ctime_ns = self.now()
        node.version += 1
        self.touch_parent(path)
        self.touch_parent(to)

    # What a run sees

    def listing(
        self, *, grafts: Sequence[Graft] = (), digests: Sequence[bytes] = ()
    ) -> list[Sighting]:
        """List the member as a worker would: what is there merged with what was agreed to."""
        self.count_links()
        wanted = set(digests)
        unread = tuple(one + b"/" for one in self.hidden)
        nows: dict[bytes, Entry] = {}
        for path, node in self.tree.items():
            if not path.startswith(unread):
                nows[path] = node.entry(path)
        records = dict(self.records)
        if grafts:
            nows, records = _grafted(nows, records, grafts)
        by_inode: dict[tuple[int, Kind], bytes] = {}
        for path, one in self.records.items():
            if one.entry is not None:
                # Of several names of one file nobody can tell which went where.
                key = (one.entry.inode, one.entry.kind)
                by_inode[key] = b"" if key in by_inode else path
        sightings = []
        for path in sorted({*nows, *records}, key=order_key):
            now, agreed = nows.get(path), records.get(path)
            came_from = b""
            if now is not None and not now.came_from:
                came_from = by_inode.get((now.inode, now.kind), b"")
                if came_from == path or (came_from in nows and nows[came_from].inode == now.inode):
                    came_from = b""
                was = self.records[came_from].entry if came_from else None
                if was and was.kind is Kind.FILE and was[3:5] != now[3:5]:
                    came_from = b""
            if now is not None and path in wanted and now.kind is Kind.FILE:
                value = self.tree[now.came_from or path].value
                now = now._replace(digest=value.ljust(32, b"="))
            sightings.append(Sighting(path, now, agreed, came_from))
        return sightings

    def agree(self, agreements: Iterator[Agreement]) -> int:
        """Record what the tree bears out."""
        number = 0
        for one in agreements:
            number += 1
            if not one.number:
                self.records.pop(one.path, None)
                continue
            node = self.tree.get(one.path)
            if one.entry is None:
                if node is None:
                    self.records[one.path] = Agreed(one.number, None)
                continue
            if node is None:
                continue
            mine = node.entry(one.path)
            if (mine.kind, mine.size, mine.link) == one.entry[1:2] + one.entry[4:6]:
                mine = mine._replace(digest=one.entry.digest)
                self.records[one.path] = Agreed(one.number, mine)
        return number

    # What a run does

    def carry_out(self, plan: Plan, source: "Member", shuffle: random.Random | None = None) -> None:
        """Carry a plan out as a receiver does; `source` is whose content is sent."""
        for phase in Phase:
            changes = list(plan.phase(phase))
            if shuffle is not None:
                changes = _shuffled(changes, shuffle)
            for change in changes:
                self._carry_out(change, phase, source)

    def _check(self, path: bytes, seen: int) -> Node | None:
        node = self.tree.get(path)
        found = 0 if node is None else node.entry(path).seen
        if found != seen:
            raise Refused(f"{self.name}: {path!r} is {found}, not {seen}: {node}")
        return node

    def _carry_out(self, change: Change, phase: Phase, source: "Member") -> None:
        match change:
            case MakeDirectory(path, mode):
                assert phase is Phase.MAKE
                self._check(path, 0)
                self.tree[path] = Node(Kind.DIRECTORY, b"", mode, 0, 0, self.tick())
                self.touch_parent(path)
            case WriteFile():
                assert phase is Phase.MAKE
                self._write_file(change, source)
            case MakeSymlink(path, link, mtime_ns, seen, _, keep):
                assert phase is Phase.MAKE
                self._displace(path, seen, keep)
                self.tree[path] = Node(Kind.SYMLINK, link, 0, mtime_ns, self.now(), self.tick())
                self.touch_parent(path)
            case SetMetadata(path, kind, mode, mtime_ns, seen):
                node = self._check(path, seen)
                assert node is not None
                assert node.kind is kind
                assert seen
                node.since = node.since or node.version
                node.mode, node.mtime_ns, node.ctime_ns = mode, mtime_ns, self.now()
                node.version += 1
            case SetDirectory(path, mode, mtime_ns, seen):
                node = self.tree.get(path)
                assert phase is Phase.DIRECTORIES
                if node is None or node.kind is not Kind.DIRECTORY:
                    raise Refused(f"{self.name}: no directory {path!r} to set")
                if seen:
                    self._check(path, seen)
                node.mode, node.mtime_ns, node.ctime_ns = mode, mtime_ns, self.now()
            case Remove(path, kind, seen):
                node = self._check(path, seen)
                assert node is not None
                assert node.kind is kind
                if self.children(path):
                    raise Refused(f"{self.name}: {path!r} is not empty: {self.children(path)}")
                if kind is not Kind.DIRECTORY:
                    self.trash.append(node.value)
                del self.tree[path]
                self.touch_parent(path)
            case Rename(path, to, kind, seen):
                assert phase is Phase.RENAME
                node = self._check(path, seen)
                assert node is not None
                assert node.kind is kind
                self._check(to, 0)
                self._make_parents(to)
                # A receiver keeps account of the fingerprint, and keeps the times of the directories.
                version, ends = node.version, [self.tree[parent_of(one)] for one in (path, to)]
                times = [end.mtime_ns for end in ends]
                self._move(path, to)
                node.version = version
                for end, mtime_ns in zip(ends, times, strict=True):
                    end.mtime_ns = mtime_ns
            case MakeLink(path, to, seen):
                assert phase is Phase.MAKE
                node = self.tree.get(to)
                if node is None or node.kind is not Kind.FILE:
                    raise Refused(f"{self.name}: {to!r} is no file to link {path!r} to")
                self._displace(path, seen, b"")
                self.tree[path] = node
                self.touch_parent(path)
            case MakeSpecial():
                raise NotImplementedError

    def _make_parents(self, path: bytes) -> None:
        parent = parent_of(path)
        if parent not in self.tree:
            self._make_parents(parent)
            self.tree[parent] = Node(Kind.DIRECTORY, b"", 0o755, 0, 0, self.tick())
            self.touch_parent(parent)

    def _write_file(self, change: WriteFile, source: "Member") -> None:
        origin = change.origin or change.path
        theirs = source.tree.get(origin)
        if theirs is None or theirs.kind is not Kind.FILE:
            raise Refused(f"{source.name} has no file {origin!r} for {self.name}")
        if change.source_seen:
            if theirs.entry(origin).seen != change.source_seen:
                raise Refused(f"{source.name}: {origin!r} is not what the plan saw")
        elif (len(theirs.value), theirs.mtime_ns) != (change.size, change.mtime_ns):
            raise Refused(f"{source.name}: {origin!r} is another: {theirs} {change}")
        self._displace(change.path, change.seen, change.keep)
        self.tree[change.path] = Node(
            Kind.FILE, theirs.value, change.mode, change.mtime_ns, self.now(), self.tick()
        )
        self.touch_parent(change.path)

    def _displace(self, path: bytes, seen: int, keep: bytes) -> None:
        node = self._check(path, seen)
        if node is None:
            if keep:
                raise Refused(f"{self.name}: nothing to keep at {path!r}")
            return
        if node.kind is Kind.DIRECTORY:
            raise Refused(f"{self.name}: {path!r} is a directory")
        if keep == TO_TRASH:
            self.trash.append(node.value)
        elif keep:
            self._check(keep, 0)
            assert parent_of(keep) == parent_of(path)
            self.tree[keep] = node
        else:
            self.lost.add(node.value)


def _shuffled(changes: list[Change], shuffle: random.Random) -> list[Change]:
    """Change the order of neighbours that have nothing to do with each other."""
    for _ in range(3 * len(changes)):
        at = shuffle.randrange(len(changes) - 1) if len(changes) > 1 else 0
        pair = changes[at : at + 2]
        if len(pair) == 2 and not _depend(pair[0], pair[1]):
            changes[at : at + 2] = pair[::-1]
    return changes


def _depend(one: Change, other: Change) -> bool:
    return any(
        ours == theirs or ours.startswith(theirs + b"/") or theirs.startswith(ours + b"/")
        for ours in _paths(one)
        for theirs in _paths(other)
    )


def _paths(change: Change) -> list[bytes]:
    more = [change.to] if isinstance(change, Rename | MakeLink) else []
    if isinstance(change, WriteFile) and change.keep not in {b"", TO_TRASH}:
        more.append(change.keep)
    return [change.path, *more]


def _grafted(
    nows: dict[bytes, Entry], records: dict[bytes, Agreed], grafts: Sequence[Graft]
) -> tuple[dict[bytes, Entry], dict[bytes, Agreed]]:
    """Show a member as if renames had been done, as far as its tree can show them."""
    possible = _possible(nows, grafts)
    shown: dict[bytes, Entry] = {}
    for path, entry in nows.items():
        at = path
        while at and at not in possible:
            at = parent_of(at)
        if not at:
            shown[path] = entry
            continue
        place = possible[at] + path[len(at) :]
        shown[place] = entry._replace(path=place, came_from=path)
    for path in list(shown):
        at = parent_of(path)
        while at not in shown:
            shown[at] = Entry(at, Kind.DIRECTORY, 0o755, 0, 0, seen=PRETENDED)
            at = parent_of(at)
    places = GraftMap(grafts)
    moved: dict[bytes, Agreed] = {}
    for path, record in records.items():
        at_ = places.shown(path)
        if at_ is not None:
            assert at_ not in moved
            was = record.entry
            moved[at_] = record._replace(entry=was and was._replace(path=at_))
    return shown, moved


def _possible(nows: dict[bytes, Entry], grafts: Sequence[Graft]) -> dict[bytes, bytes]:
    """Return the grafts, from -> to, whose places are free when all of them are done."""
    by_to = {to: path for path, to in grafts if path in nows}

    def real(path: bytes, *, itself: bool) -> bytes:
        at, rest = path, b""
        while at:
            if at in by_to and (rest or itself):
                return by_to[at] + rest
            rest = b"/" + at.rpartition(b"/")[2] + rest
            at = parent_of(at)
        return path

    def is_free(to: bytes) -> bool:
        gone = set(by_to.values())
        if real(to, itself=False) in set(nows) - gone:
            return False
        at = parent_of(to)
        while True:
            place = real(at, itself=True)
            if place in nows and (place not in gone or at in by_to):
                return nows[place].kind is Kind.DIRECTORY
            at = parent_of(at)

    while bad := [to for to in by_to if not is_free(to)]:
        for to in bad:
            del by_to[to]
    return {path: to for to, path in by_to.items()}


@dataclass
class World:
    """Some members and one clock."""

    members: list[Member]
    options: RunOptions
    ticks: int = 1_000
    number: int = 0
    conflicts: list[tuple[bytes, str]] = field(default_factory=list)
    shuffle: random.Random | None = None
    """Changes the order of what does not depend on each other."""

    @classmethod
    def of(cls, count: int, options: RunOptions) -> "World":
        world = cls([], options)
        world.members = [Member(name, world.tick) for name in "abcdefg"[:count]]
        return world

    def tick(self) -> int:
        self.ticks += 1
        return self.ticks

    def plan(self, reached: Sequence[Member], runner: int) -> SyncPlan:
        """List the members until a plan is final."""
        facts = tuple(
            MemberFacts(
                f"{one.name}:r",
                one.name,
                is_complete=lambda one=one: not one.hidden,  # type: ignore[misc]
                is_new=one.is_new,
                is_older=one.is_older,
            )
            for one in reached
        )
        run = JointRun(facts, runner, self.number + 1, STAMP, total=len(self.members))
        grafts: tuple[Graft, ...] | None = None
        reads_all = self.options.compare is Compare.CHECKSUM
        digests = [list(one.tree) if reads_all else [] for one in reached]
        for _ in range(6):
            listings = [
                one.listing(grafts=grafts or (), digests=wanted)
                for one, wanted in zip(reached, digests, strict=True)
            ]
            plan = plan_sync(listings, self.options, run, grafts=grafts)
            if plan.relisting is None:
                return plan
            grafts = plan.relisting.grafts
            if not reads_all:
                digests = [list(spool) for spool in plan.relisting.digests]
            plan.close()
        raise AssertionError("the plan never becomes final")

    def run(self, *reached: Member, runner: int = 0, dies_before: Member | None = None) -> SyncPlan:
        """Carry out a run among some members, or all; the runner may die before one gets its part."""
        members = list(reached) or self.members
        plan = self.plan(members, runner)
        self.number += 1
        ours = members[runner]
        for number, one in enumerate(members):
            one.agree(plan.agreements(number, already=True))
        ours.carry_out(plan.local, ours, self.shuffle)
        for number, fetch in enumerate(plan.fetches):
            ours.carry_out(fetch, members[number], self.shuffle)
        ours.carry_out(plan.closing, ours, self.shuffle)
        for number, one in enumerate(members):
            if one is dies_before:
                return plan
            one.carry_out(plan.plans[number], ours, self.shuffle)
        for number, one in enumerate(members):
            one.count_links()
            one.agree(plan.agreements(number, already=False))
        self.conflicts = [(one.path, one.detail) for one in plan.conflicts()]
        return plan

    def picture(self, member: Member) -> dict[bytes, tuple[object, ...]]:
        """What must be alike at all members."""
        first: dict[int, bytes] = {}
        for path in sorted(member.tree, key=order_key):
            first.setdefault(member.tree[path].inode, path)
        linked = self.options.keep_hardlinks
        return {
            path: (
                *(node.kind, node.value, node.mode, node.mtime_ns),
                first[node.inode] if linked else b"",
            )
            for path, node in member.tree.items()
        }
