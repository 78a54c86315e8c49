"""Scan: a tree as a sorted stream of entries.

Depth-first, a directory before what it holds, children by name bytes. Memory grows with the largest
single directory and with the depth, not with the tree.
"""

import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator

from blake3 import blake3

from syncengine.directories import OPEN_DIRECTORY, Directories
from syncengine.errors import RootReadOnly
from syncengine.model import RESERVED_NAME, TEMPORARY_PREFIX, Entry, Kind, Problem, What
from syncengine.names import MAX_NAME, MAX_PATH, check_path, is_reserved, join
from syncengine.operations import displaced_name
from syncengine.trash import Trash
from syncengine.tree import Tree, remove_tree

OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
"""Flags to read a file that may have become anything: never follow, hang, or take a terminal."""

_HELD_LEVELS = 64
_READ_BYTES = 1 << 20
_SETUID_SETGID = stat.S_ISUID | stat.S_ISGID
_MASK = (1 << 64) - 1
_ENCODING, _ENCODE_ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
"""What os.fsencode uses, without a call of Python for every name."""

_FILE, _DIRECTORY, _SYMLINK, _SPECIAL = Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.SPECIAL


def fingerprint(status: os.stat_result) -> int:
    """Return the 64 bits that tell one version of an entry from another; never 0.

    Directories by identity alone (their times change with every child), the rest also by size,
    mtime and ctime. For comparisons by the machine that made it: a tuple of integers hashes alike
    in every process of one Python.
    """
    form = stat.S_IFMT(status.st_mode)
    if form == stat.S_IFDIR:
        return hash((status.st_dev, status.st_ino, form)) & _MASK or 1
    return (
        hash(
            (
                status.st_dev,
                status.st_ino,
                form,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
            )
        )
        & _MASK
        or 1
    )


def scan_is_complete(problems: Iterable[Problem]) -> bool:
    """Say whether a scan that noted `problems` saw everything there was."""
    return all(problem.what is not What.UNREADABLE for problem in problems)


def scan(
    tree: Tree,
    *,
    problems: list[Problem],
    member: str,
    digests: bool = False,
    keep_setuid: bool = False,
    clean_temporaries: bool = False,
    within: Iterable[bytes] | None = None,
) -> Iterator[Entry]:
    """Yield the top (path b"") and everything below it, in tree order; blocks on the disk.

    `digests` reads every file. Setuid and setgid bits of files are left out, and named as SKIPPED,
    unless `keep_setuid`; scan a target with `keep_setuid=True`, so that bits to be removed show.
    `clean_temporaries` removes what a killed run left, for the one writer of a target; an older
    version that it had just displaced goes to the trash. What cannot be read is added to `problems`
    as UNREADABLE and makes the scan incomplete; what vanishes while it is looked at is not there.

    With `within`, only these paths, what is below them and the directories on the way to them are
    looked at: two scans within the same paths make a plan for just these. A path whose parent is
    gone should come with that parent. Raises MalformedFrame for a forbidden path.
    """
    if clean_temporaries and tree.read_only:
        raise RootReadOnly("a tree that is opened to be read cannot be cleaned")
    run = _Scan(tree, problems, member)
    run.digests, run.keep_setuid, run.clean = digests, keep_setuid, clean_temporaries
    if within is not None:
        run.wanted = _wanted(within)
    return run.entries()


def _wanted(within: Iterable[bytes]) -> dict[bytes, set[bytes] | None]:
    """Return, by directory, the names to look at; None for all names, and all below."""
    wanted: dict[bytes, set[bytes] | None] = {}
    for path in within:
        check_path(path)
        wanted[path] = None
    for path in list(wanted):
        at = path
        while at:
            at, _, name = at.rpartition(b"/")
            names = wanted.setdefault(at, set())
            if names is None:
                break
            names.add(name)
    return wanted or {b"": set()}


class _Level:
    """One directory on the way down: its children still to be given out, last first."""

    __slots__ = ("children", "fd", "is_whole", "path", "seen")

    def __init__(self, path: bytes, fd: int, seen: int) -> None:
        self.path = path
        self.fd = fd
        self.seen = seen
        self.is_whole = False
        """Whether everything below is looked at, when the scan is `within` some paths."""
        self.children: list[Entry] = []


class _Scan:
    def __init__(self, tree: Tree, problems: list[Problem], member: str) -> None:
        self.tree = tree
        self.problems = problems
        self.member = member
        self.digests = self.keep_setuid = self.clean = False
        self.wanted: dict[bytes, set[bytes] | None] | None = None
        self._levels: list[_Level] = []

    def entries(self) -> Iterator[Entry]:
        levels = self._levels
        try:
            top = self._top()
            yield top
            levels.append(_Level(b"", os.dup(self.tree.top_fd), top.seen))
            self._read(levels[-1])
            while levels:
                level = levels[-1]
                children = level.children
                while children:
                    entry = children.pop()
                    if entry.kind is _DIRECTORY:
                        yield entry
                        if self._descend(level, entry):
                            break
                    elif self.digests and entry.kind is _FILE:
                        digested = self._digested(level, entry)
                        if digested is not None:
                            yield digested
                    else:
                        yield entry
                else:
                    levels.pop()
                    if level.fd >= 0:
                        os.close(level.fd)
        finally:
            for level in levels:
                if level.fd >= 0:
                    os.close(level.fd)
            levels.clear()

    def _top(self) -> Entry:
        status = os.fstat(self.tree.top_fd)
        mode = stat.S_IMODE(status.st_mode)
        return Entry(b"", _DIRECTORY, mode, status.st_mtime_ns, 0, seen=fingerprint(status))

    def _problem(self, path: bytes, what: What, detail: str) -> None:
        self.problems.append(Problem(path, self.member, what, detail))

    def _fd(self, level: _Level) -> int:
        """Return the level's descriptor, walking to it again when it had been let go."""
        if level.fd < 0:
            with contextlib.closing(Directories(self.tree.top_fd, limit=2)) as walk:
                fd = os.dup(walk.fd(level.path))
            if fingerprint(os.fstat(fd)) != level.seen:
                os.close(fd)
                raise FileNotFoundError(f"{os.fsdecode(level.path)} is another directory now")
            level.fd = fd
        return level.fd

    def _descend(self, level: _Level, entry: Entry) -> bool:
        """Enter a directory; False when it cannot be read or is gone."""
        name = entry.path[len(level.path) + 1 :] if level.path else entry.path
        try:
            fd = os.open(name, OPEN_DIRECTORY, dir_fd=self._fd(level))
        except OSError as error:
            # Gone, or something else by now: what it held was listed by nobody, so nothing may be
            # concluded from its absence.
            self._problem(
                entry.path, What.UNREADABLE, f"cannot open the directory: {error.strerror}"
            )
            return False
        below = _Level(entry.path, fd, entry.seen)
        below.is_whole = level.is_whole
        self._levels.append(below)
        if len(self._levels) > _HELD_LEVELS:
            oldest = self._levels[-_HELD_LEVELS - 1]
            if oldest.fd >= 0:
                os.close(oldest.fd)
                oldest.fd = -1
        if fingerprint(os.fstat(fd)) != entry.seen:
            self._problem(entry.path, What.UNREADABLE, "the directory was replaced during the scan")
            return True
        self._read(below)
        return True

    def _read(self, level: _Level) -> None:
        """List and stat one directory: the loop that decides the speed of every scan."""
        fd = level.fd
        prefix = level.path + b"/" if level.path else b""
        keep_setuid = self.keep_setuid
        add = level.children.append
        lstat = os.lstat
        for name in self._names(level):
            try:
                status = lstat(name, dir_fd=fd)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._problem(prefix + name, What.UNREADABLE, f"cannot stat: {error.strerror}")
                continue
            path = prefix + name
            if status.st_mode & 0o170000 != 0o100000:
                other = self._other(path, name, fd, status)
                if other is not None:
                    add(other)
                continue
            mode = status.st_mode & 0o7777
            if mode & _SETUID_SETGID and not keep_setuid:
                mode = self._without_setuid(path, mode)
            seen = fingerprint(status)
            add(Entry(path, _FILE, mode, status.st_mtime_ns, status.st_size, b"", seen))

    def _names(self, level: _Level) -> list[bytes]:
        """List one directory, last name first; deals with the reserved names on the way."""
        if self.wanted is not None and not level.is_whole:
            chosen = self.wanted.get(level.path)
            if chosen is not None:
                return sorted(chosen, reverse=True)
            level.is_whole = True
        try:
            listed = os.listdir(level.fd)  # noqa: PTH208 - by descriptor
        except OSError as error:
            self._problem(level.path, What.UNREADABLE, f"cannot list: {error.strerror}")
            return []
        # Sorted as bytes: the order of decoded names is not the same everywhere.
        names = sorted([name.encode(_ENCODING, _ENCODE_ERRORS) for name in listed], reverse=True)
        # All that is reserved begins so; one look at each name is all that most directories need.
        suspects = [name for name in names if name.startswith(RESERVED_NAME)]
        if suspects and self.clean:
            temporaries = [name for name in suspects if name.startswith(TEMPORARY_PREFIX)]
            if temporaries:
                self._clean(level, temporaries)
        longest = MAX_PATH - len(level.path) - 1
        if longest < MAX_NAME or suspects:
            names = [name for name in names if not is_reserved(name)]
            for name in names:
                if len(name) > longest:
                    self._problem(level.path, What.UNREADABLE, f"too long a path: {name!r}")
            names = [name for name in names if len(name) <= longest]
        return names

    def _other(self, path: bytes, name: bytes, fd: int, status: os.stat_result) -> Entry | None:
        """Make the entry of what is no regular file; None when it vanished."""
        seen = fingerprint(status)
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            return Entry(path, _DIRECTORY, mode, status.st_mtime_ns, 0, b"", seen)
        if not stat.S_ISLNK(status.st_mode):
            return Entry(path, _SPECIAL, mode, status.st_mtime_ns, 0, b"", seen)
        try:
            link = os.readlink(name, dir_fd=fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._problem(path, What.UNREADABLE, f"cannot read the link: {error.strerror}")
            return None
        return Entry(path, _SYMLINK, 0, status.st_mtime_ns, 0, link, seen)

    def _without_setuid(self, path: bytes, mode: int) -> int:
        self._problem(path, What.SKIPPED, "setuid and setgid bits are left out")
        return mode & ~_SETUID_SETGID

    def _clean(self, level: _Level, names: list[bytes]) -> None:
        """Remove leavings. What cannot be removed now is met again by the next scan."""
        before = os.fstat(level.fd)
        day = time.strftime("%Y-%m-%d", time.gmtime())
        with Trash(self.tree, day) as trash:
            for name in names:
                # CRASH: between an exchange and a look at what it displaced. That version may be
                # one that no plan saw, so it is kept.
                older = displaced_name(name)
                with contextlib.suppress(OSError):
                    if older is None:
                        remove_tree(level.fd, name)
                    else:
                        trash.keep(level.fd, name, join(level.path, older))
        # Cleaning is no change of the tree: the directory keeps its time.
        with contextlib.suppress(OSError):
            os.utime(level.fd, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _digested(self, level: _Level, entry: Entry) -> Entry | None:
        """Read a file and give its entry with the digest; None when it vanished.

        A file that changes while it is read has no digest, and so differs from everything.
        """
        name = entry.path[len(level.path) + 1 :] if level.path else entry.path
        try:
            fd = os.open(name, OPEN_FILE, dir_fd=self._fd(level))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._problem(entry.path, What.UNREADABLE, f"cannot read: {error.strerror}")
            return entry
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return entry
            hasher = blake3()
            while data := os.read(fd, _READ_BYTES):
                hasher.update(data)
            if fingerprint(os.fstat(fd)) != entry.seen:
                return entry
        except OSError as error:
            self._problem(entry.path, What.UNREADABLE, f"cannot read: {error.strerror}")
            return entry
        finally:
            os.close(fd)
        return entry._replace(digest=hasher.digest())
