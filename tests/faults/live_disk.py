"""A disk in use: the calls of a file system by inode, each one checked, counted, logged and done.

It refuses what the poorest file systems lack, folds names as some do, and fails where a test wants it
to. It knows nothing of FUSE.
"""

import errno
import os
import stat
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.disk import (
    ROOT,
    Attributes,
    Born,
    Flushed,
    Named,
    Node,
    Nodes,
    Note,
    Record,
    Sized,
    Wrote,
    apply,
    copy_nodes,
    new_nodes,
)

NOREPLACE, EXCHANGE = 1, 2
MAX_NAME = 255
CHANGES = frozenset(
    {
        *("create", "mkdir", "symlink", "link", "mknod", "unlink", "rmdir", "rename"),
        *("write", "truncate", "chmod", "chown", "utimens", "setxattr", "removexattr"),
    }
)
"""What changes something; the fault `change` counts all of these together."""


def _folded_case(name: bytes) -> bytes:
    return os.fsencode(os.fsdecode(name).casefold())


def _folded_form(name: bytes) -> bytes:
    return os.fsencode(unicodedata.normalize("NFC", os.fsdecode(name)))


FOLDS: dict[str, Callable[[bytes], bytes]] = {"": bytes, "case": _folded_case, "form": _folded_form}


@dataclass(frozen=True, slots=True)
class Fault:
    """What fails: the `nth` call of a kind (or of any kind, as `change`), or all from it on."""

    call: str
    nth: int
    code: int
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Traits:
    """What this file system is like."""

    fold: str = ""
    """`case` or `form`: which names are the same to it."""
    capacity: int = 1 << 40
    xattrs: bool = True
    symlinks: bool = True
    links: bool = True
    rename_flags: bool = True
    owners: bool = True


@dataclass
class LiveDisk:
    """What is seen, and the log of how it came about. Every call raises OSError."""

    traits: Traits = field(default_factory=Traits)
    nodes: Nodes = field(default_factory=new_nodes)
    base: Nodes = field(default_factory=new_nodes)
    log: list[Record] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    next_ino: int = ROOT + 1

    # What tests do

    def begin(self) -> None:
        """Take what is there as flushed, and begin a new log."""
        self.base = copy_nodes(self.nodes)
        self.log = []
        self.arm([])

    def arm(self, faults: list[Fault]) -> None:
        """Replace the faults; counting begins anew."""
        self.faults = faults
        self.counts.clear()

    def reboot(self, nodes: Nodes) -> None:
        """Become what a power cut left; inodes keep their numbers and times."""
        self.nodes = copy_nodes(nodes)
        self.begin()

    # The calls

    def _meet(self, call: str) -> None:
        for kind in (call, "change") if call in CHANGES else (call,):
            self.counts[kind] += 1
            for fault in self.faults:
                number = self.counts[kind]
                if fault.call == kind and (
                    number == fault.nth or (fault.lasting and number > fault.nth)
                ):
                    raise OSError(fault.code, os.strerror(fault.code))

    def _do(self, record: Record) -> None:
        self.log.append(record)
        apply(self.nodes, record)

    def _fail(self, code: int) -> OSError:
        return OSError(code, os.strerror(code))

    def find(self, folder: int, name: bytes) -> tuple[bytes, int] | None:
        """Return the name as it was made, and its inode."""
        node = self.nodes[folder]
        if not stat.S_ISDIR(node.mode):
            raise self._fail(errno.ENOTDIR)
        if len(name) > MAX_NAME:
            raise self._fail(errno.ENAMETOOLONG)
        if name in node.entries:
            return name, node.entries[name]
        fold = FOLDS[self.traits.fold]
        if self.traits.fold:
            for other, ino in node.entries.items():
                if fold(other) == fold(name):
                    return other, ino
        return None

    def resolve(self, path: bytes) -> Node:
        ino = ROOT
        for name in filter(None, path.split(b"/")):
            found = self.find(ino, name)
            if found is None:
                raise self._fail(errno.ENOENT)
            ino = found[1]
        return self.nodes[ino]

    def parent(self, path: bytes) -> tuple[int, bytes]:
        folder, _, name = path.rpartition(b"/")
        return self.resolve(folder).ino, name

    def make(self, call: str, path: bytes, node: Node) -> Node:
        """Make an inode and its name."""
        self._meet(call)
        if call == "symlink" and not self.traits.symlinks:
            raise self._fail(errno.EPERM)
        folder, name = self.parent(path)
        if self.find(folder, name) is not None:
            raise self._fail(errno.EEXIST)
        now = time.time_ns()
        node.ino, self.next_ino = self.next_ino, self.next_ino + 1
        node.links = 1 if stat.S_ISDIR(node.mode) else 0
        node.atime_ns = node.mtime_ns = node.ctime_ns = now
        self._do(Born(node.copy(), now))
        self._do(Named(((folder, name, node.ino),), now))
        return self.nodes[node.ino]

    def link(self, source: bytes, path: bytes) -> None:
        self._meet("link")
        if not self.traits.links:
            raise self._fail(errno.EPERM)
        node = self.resolve(source)
        folder, name = self.parent(path)
        if self.find(folder, name) is not None:
            raise self._fail(errno.EEXIST)
        self._do(Named(((folder, name, node.ino),), time.time_ns()))

    def remove(self, call: str, path: bytes) -> None:
        self._meet(call)
        folder, name = self.parent(path)
        found = self.find(folder, name)
        if found is None:
            raise self._fail(errno.ENOENT)
        node = self.nodes[found[1]]
        if call == "rmdir" and node.entries:
            raise self._fail(errno.ENOTEMPTY)
        gone = node.ino if call == "rmdir" else None
        self._do(Named(((folder, found[0], None),), time.time_ns(), gone))

    def rename(self, source: bytes, target: bytes, flags: int) -> None:
        self._meet("rename")
        if flags and (not self.traits.rename_flags or flags not in {NOREPLACE, EXCHANGE}):
            raise self._fail(errno.EINVAL)
        from_folder, from_name = self.parent(source)
        to_folder, to_name = self.parent(target)
        moved, there = self.find(from_folder, from_name), self.find(to_folder, to_name)
        if moved is None or (there is None and flags == EXCHANGE):
            raise self._fail(errno.ENOENT)
        now = time.time_ns()
        if flags == EXCHANGE and there is not None:
            changes = (from_folder, moved[0], there[1]), (to_folder, there[0], moved[1])
            self._do(Named(changes, now))
            return
        if there is not None and flags == NOREPLACE:
            raise self._fail(errno.EEXIST)
        if there is not None and there[1] != moved[1]:
            self._check_replaced(self.nodes[moved[1]], self.nodes[there[1]])
        elif there is not None and (from_folder, moved[0]) == (to_folder, to_name):
            return
        gone = ((to_folder, there[0], None),) if there is not None and there[0] != to_name else ()
        self._do(Named(((from_folder, moved[0], None), *gone, (to_folder, to_name, moved[1])), now))

    def _check_replaced(self, moved: Node, there: Node) -> None:
        if stat.S_ISDIR(there.mode) and not stat.S_ISDIR(moved.mode):
            raise self._fail(errno.EISDIR)
        if stat.S_ISDIR(moved.mode) and not stat.S_ISDIR(there.mode):
            raise self._fail(errno.ENOTDIR)
        if there.entries:
            raise self._fail(errno.ENOTEMPTY)

    def free(self) -> int:
        return max(0, self.traits.capacity - sum(len(n.data) for n in self.nodes.values()))

    def write(self, ino: int, data: bytes, offset: int) -> int:
        """Write as much as there is room for."""
        self._meet("write")
        more = max(0, offset + len(data) - len(self.nodes[ino].data))
        if more > (free := self.free()):
            data = data[: len(data) - (more - free)]
            if not data:
                raise self._fail(errno.ENOSPC)
        self._do(Wrote(ino, offset, data, time.time_ns()))
        return len(data)

    def truncate(self, ino: int, size: int) -> None:
        self._meet("truncate")
        self._do(Sized(ino, size, time.time_ns()))

    def set(self, call: str, ino: int, **values: int) -> None:
        self._meet(call)
        if call == "chown" and not self.traits.owners:
            raise self._fail(errno.EPERM)
        self._do(Attributes(ino, tuple(values.items()), time.time_ns()))

    def set_xattr(self, ino: int, name: str, value: bytes | None) -> None:
        self._meet("setxattr" if value is not None else "removexattr")
        self._check_xattrs()
        if value is None and name not in self.nodes[ino].xattrs:
            raise self._fail(errno.ENODATA)
        self._do(Attributes(ino, (), time.time_ns(), (name, value)))

    def xattrs(self, ino: int) -> dict[str, bytes]:
        self._check_xattrs()
        return self.nodes[ino].xattrs

    def _check_xattrs(self) -> None:
        if not self.traits.xattrs:
            raise self._fail(errno.EOPNOTSUPP)

    def flush(self, call: str, ino: int) -> None:
        self._meet(call)
        self._do(Flushed(ino))

    def flush_all(self) -> None:
        self._meet("syncfs")
        self._do(Flushed(None))

    def note(self, text: str) -> int:
        """Put a remark into the log; returns its step."""
        self._do(Note(text))
        return len(self.log) - 1

    def read(self, ino: int, size: int, offset: int) -> bytes:
        self._meet("read")
        return bytes(self.nodes[ino].data[offset : offset + size])

    def meet(self, call: str) -> None:
        """Count, and perhaps fail, a call that only looks."""
        self._meet(call)
