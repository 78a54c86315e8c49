"""A disk as a value: what programs see of it, what was flushed, and what a power cut may leave.

Every change is a record in a log. What is seen is the log applied to the state at its beginning; what
a cut at some step leaves is the records that were flushed by then, and of the others whatever a chooser
lets through. So one run on such a disk gives the outcome of a cut at each of its steps.

The rules of loss are harsher than those of any journalling file system: each name, each write and each
attribute that was not flushed is kept or lost by itself, a write may be torn; a rename is kept or lost
as a whole. Flushing a file keeps its content and attributes, not its name; flushing a directory keeps
the names in it, and a rename between two directories once both have been flushed. One mercy, which
every journal shows: nothing is moved into a directory that was lost itself, and no directory is
removed from which something was not moved away after all.
"""

import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = 1

Change = tuple[int, bytes, int | None]
"""Directory, name in it, and what the name stands for from now on."""


@dataclass(slots=True)
class Node:
    """An inode."""

    ino: int
    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    links: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    data: bytearray = field(default_factory=bytearray)
    link: bytes = b""
    entries: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[str, bytes] = field(default_factory=dict)

    def copy(self) -> "Node":
        # Written out, since a cut at every step copies many.
        return Node(
            self.ino,
            self.mode,
            self.uid,
            self.gid,
            self.rdev,
            self.links,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.data[:],
            self.link,
            dict(self.entries),
            dict(self.xattrs),
        )


Nodes = dict[int, Node]


@dataclass(frozen=True, slots=True)
class Born:
    """An inode that no name stands for yet."""

    node: Node
    when: int


@dataclass(frozen=True, slots=True)
class Named:
    """Names that change together, or not at all."""

    changes: tuple[Change, ...]
    when: int
    gone: int | None = None
    """The directory that this removed: flushing that it is gone flushes what left it before."""


@dataclass(frozen=True, slots=True)
class Wrote:
    """Content put into a file."""

    ino: int
    offset: int
    data: bytes
    when: int


@dataclass(frozen=True, slots=True)
class Sized:
    """A file made shorter or longer."""

    ino: int
    size: int
    when: int


@dataclass(frozen=True, slots=True)
class Attributes:
    """Attributes set; an xattr's name stands with its value, None for its removal."""

    ino: int
    values: tuple[tuple[str, int], ...]
    when: int
    xattr: tuple[str, bytes | None] | None = None


@dataclass(frozen=True, slots=True)
class Flushed:
    """One inode flushed; all of the disk without one."""

    ino: int | None


@dataclass(frozen=True, slots=True)
class Note:
    """A remark of the test: what was acknowledged at this moment."""

    text: str


Record = Born | Named | Wrote | Sized | Attributes | Flushed | Note
Chooser = Callable[[Record], Record | None]
"""What is left of a record that was not flushed: all, a part, or nothing."""


def copy_nodes(nodes: Nodes) -> Nodes:
    return {ino: node.copy() for ino, node in nodes.items()}


def new_nodes() -> Nodes:
    """Return an empty file system."""
    now = time.time_ns()
    root = Node(ROOT, stat.S_IFDIR | 0o755, os.geteuid(), os.getegid(), links=2)
    root.atime_ns = root.mtime_ns = root.ctime_ns = now
    return {ROOT: root}


def apply(nodes: Nodes, record: Record) -> None:
    """Carry out one record; one about an inode that was lost does nothing."""
    match record:
        case Born(node):
            nodes[node.ino] = node.copy()
        case Named(changes, when):
            _name(nodes, changes, when)
        case Wrote(ino, offset, data, when):
            if ino in nodes:
                content = nodes[ino].data
                content.extend(bytes(max(0, offset - len(content))))
                content[offset : offset + len(data)] = data
                nodes[ino].mtime_ns = nodes[ino].ctime_ns = when
        case Sized(ino, size, when):
            if ino in nodes:
                content = nodes[ino].data
                del content[size:]
                content.extend(bytes(size - len(content)))
                nodes[ino].mtime_ns = nodes[ino].ctime_ns = when
        case Attributes(ino, values, when, xattr):
            if ino in nodes:
                for name, value in values:
                    setattr(nodes[ino], name, value)
                if xattr is not None:
                    nodes[ino].xattrs.pop(xattr[0], None)
                    if xattr[1] is not None:
                        nodes[ino].xattrs[xattr[0]] = xattr[1]
                nodes[ino].ctime_ns = when
        case _:
            pass


def _name(nodes: Nodes, changes: tuple[Change, ...], when: int) -> None:
    for folder, name, ino in changes:
        if folder not in nodes:
            continue
        entries = nodes[folder].entries
        before = entries.pop(name, None)
        if before is not None and before in nodes:
            nodes[before].links -= 1
            nodes[before].ctime_ns = when
        if ino is not None and ino in nodes:
            entries[name] = ino
            nodes[ino].links += 1
            nodes[ino].ctime_ns = when
        nodes[folder].mtime_ns = nodes[folder].ctime_ns = when


# What a cut leaves of what was not flushed


def nothing(_record: Record) -> None:
    """Lose all of it."""
    return


def everything(record: Record) -> Record:
    """Lose none of it: the machine stopped, the disk did not."""
    return record


def names_only(record: Record) -> Record | None:
    """Keep names, lose content and attributes: files of no length after a rename."""
    return record if isinstance(record, Named) else None


def contents_only(record: Record) -> Record | None:
    """Keep content and attributes, lose names."""
    return None if isinstance(record, Named) else record


def lengths_only(record: Record) -> Record | None:
    """Keep names and lengths, and zeros where content should be."""
    if isinstance(record, Wrote):
        return replace(record, data=bytes(len(record.data)))
    return record


def by_chance(seed: int) -> Chooser:
    """Keep, tear and lose each by itself."""
    dice = random.Random(seed)

    def choose(record: Record) -> Record | None:
        roll = dice.random()
        if roll < 0.4:
            return None
        if isinstance(record, Wrote) and roll < 0.6:
            return replace(record, data=record.data[: dice.randrange(len(record.data) + 1)])
        return record

    return choose


CHOOSERS: dict[str, Chooser] = {
    "nothing": nothing,
    "everything": everything,
    "names only": names_only,
    "contents only": contents_only,
    "lengths only": lengths_only,
}


def after_cut(base: Nodes, log: list[Record], step: int, choose: Chooser) -> Nodes:
    """Return what is there after a power cut just before `log[step]`."""
    nodes = copy_nodes(base)
    everything_at = -1
    flushed_at: dict[int, int] = {}
    gone: dict[int, list[int]] = {}
    for number, record in enumerate(log[:step]):
        if isinstance(record, Named) and record.gone is not None:
            gone.setdefault(record.changes[0][0], []).append(record.gone)
        if isinstance(record, Flushed):
            if record.ino is None:
                everything_at = number
            else:
                for ino in _with_gone(record.ino, gone):
                    flushed_at[ino] = number
    for number, record in enumerate(log[:step]):
        if (
            isinstance(record, Born)
            or _is_of_a_symlink(record, nodes)
            or number < everything_at
            or all(flushed_at.get(ino, -1) > number for ino in _inodes(record))
        ):
            apply(nodes, record)
        else:
            left = choose(record)
            if left is not None and not _breaks_a_journal(left, nodes):
                apply(nodes, left)
    return nodes


def _with_gone(ino: int, gone: dict[int, list[int]]) -> Iterator[int]:
    yield ino
    for below in gone.pop(ino, ()):
        yield from _with_gone(below, gone)


def _breaks_a_journal(record: Record, nodes: Nodes) -> bool:
    if not isinstance(record, Named):
        return False
    placed = {ino for _, _, ino in record.changes}
    for folder, name, _ in record.changes:
        there = nodes[folder].entries.get(name)
        if there is not None and there not in placed and nodes[there].entries:
            return True
    if len({folder for folder, _, _ in record.changes}) == 1:
        return False
    reached = {node.ino for _, node in walk(nodes)}
    return any(folder not in reached for folder, _, _ in record.changes)


def _is_of_a_symlink(record: Record, nodes: Nodes) -> bool:
    """Say whether a record sets attributes of a symlink, which no call can flush by itself."""
    return isinstance(record, Attributes) and stat.S_ISLNK(nodes[record.ino].mode)


def _inodes(record: Record) -> list[int]:
    """Return the inodes that must be flushed before a record is safe."""
    match record:
        case Named(changes):
            return [folder for folder, _, _ in changes]
        case Wrote(ino) | Sized(ino) | Attributes(ino):
            return [ino]
        case _:
            return []


def walk(nodes: Nodes, ino: int = ROOT, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """Yield everything that has a name, the root first; a directory only under one of its names."""
    seen: set[int] = set()
    left = [(path, ino)]
    while left:
        path, ino = left.pop()
        node = nodes.get(ino)
        if node is None:
            continue
        if stat.S_ISDIR(node.mode):
            if ino in seen:
                continue  # a rename of it that was kept, after one that was lost
            seen.add(ino)
            below = path + b"/" if path else b""
            left += [(below + name, child) for name, child in sorted(node.entries.items())]
        yield path, node


def unfold(nodes: Nodes, place: Path, top: bytes = b"") -> None:
    """Make a tree of the system's own file system equal to the one below `top`; `place` is new."""
    start = ROOT
    for name in filter(None, top.split(b"/")):
        start = nodes[start].entries[name]
    base = os.fsencode(place)
    first: dict[int, bytes] = {}
    folders: list[tuple[bytes, Node]] = []
    for path, node in walk(nodes, start):
        at = os.path.join(base, path) if path else base
        times = (node.atime_ns, node.mtime_ns)
        if stat.S_ISDIR(node.mode):
            os.mkdir(at)
            folders.append((at, node))
            continue
        if node.ino in first:
            os.link(first[node.ino], at, follow_symlinks=False)
            continue
        first[node.ino] = at
        if stat.S_ISLNK(node.mode):
            os.symlink(node.link, at)
        elif stat.S_ISREG(node.mode):
            Path(os.fsdecode(at)).write_bytes(node.data)
            os.chmod(at, stat.S_IMODE(node.mode))
        else:
            os.mkfifo(at, stat.S_IMODE(node.mode))
        for attribute, value in node.xattrs.items():
            os.setxattr(at, attribute, value, follow_symlinks=False)
        os.utime(at, ns=times, follow_symlinks=False)
    for at, node in reversed(folders):
        for attribute, value in node.xattrs.items():
            os.setxattr(at, attribute, value)
        os.chmod(at, stat.S_IMODE(node.mode))
        os.utime(at, ns=(node.atime_ns, node.mtime_ns))
