"""Scan: a tree as a sorted stream of entries.

Depth-first, a directory before what it holds, children by name bytes. Memory grows with the largest
single directory and with the depth, not with the tree.
"""

import os
import stat
import sys
from collections.abc import Iterable, Iterator

from blake3 import blake3

from syncengine.abilities import Abilities, probe
from syncengine.agreed import Graft
from syncengine.details import Details
from syncengine.directories import OPEN_DIRECTORY, Directories
from syncengine.entries import EntryMaker, fingerprint
from syncengine.errors import RootReadOnly
from syncengine.filters import ALWAYS, DIRECTORIES, OTHERS, Bounds, Filters, Rules
from syncengine.grafts import Grafts
from syncengine.inplace import undo_all
from syncengine.leavings import remove_leavings
from syncengine.model import (
    NOT_LOOKED_AT,
    PRETENDED,
    RESERVED_NAME,
    TEMPORARY_PREFIX,
    Entry,
    Kind,
    Problem,
    What,
)
from syncengine.names import MAX_NAME, MAX_PATH, is_reserved, join
from syncengine.scope import Scope
from syncengine.stretch_scan import DirectoryLooker
from syncengine.stretches import Item, Stretch, unfolded
from syncengine.tree import Tree

__all__ = ["OPEN_FILE", "fingerprint", "scan", "scan_is_complete", "scan_stretches"]

OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
"""Flags to read a file that may have become anything: never follow, hang, or take a terminal."""

_HELD_LEVELS = 64
_PART = 16_384
"""Entries of one directory that are held at once, about."""
_CHOSEN = b"/"
"""No name: stands for those entries of a directory that a scope names, as a part of it."""
_READ_BYTES = 1 << 20
_SETUID_SETGID = stat.S_ISUID | stat.S_ISGID
_ENCODING, _ENCODE_ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
"""What os.fsencode uses, without a call of Python for every name."""

_FEW_DETAILS = Details()
_FILE, _DIRECTORY = Kind.FILE, Kind.DIRECTORY


def scan_is_complete(problems: Iterable[Problem]) -> bool:
    """Say whether a scan that noted `problems` saw everything there was."""
    return all(problem.what is not What.UNREADABLE for problem in problems)


def scan(  # noqa: PLR0913 - each answers another question
    tree: Tree,
    *,
    problems: list[Problem],
    member: str,
    digests: bool = False,
    keep_setuid: bool = False,
    clean_temporaries: bool = False,
    scope: Scope | None = None,
    details: Details = _FEW_DETAILS,
    grafts: Iterable[Graft] = (),
    filters: Filters | None = None,
) -> Iterator[Entry]:
    """Yield the top (path b"") and everything below it, in tree order; blocks on the disk.

    `digests` reads every file. Setuid and setgid bits of files are left out, and named as SKIPPED,
    unless `keep_setuid`; scan a target with `keep_setuid=True`, so that bits to be removed show.
    `clean_temporaries` removes what a killed run left, for the one writer of a target; an older
    version that it had just displaced goes to the trash. What cannot be read is added to `problems`
    as UNREADABLE and makes the scan incomplete; what vanishes while it is looked at is not there.

    What `filters` hide is given out once, as Kind.EXCLUDED, and not entered.

    With a `scope`, only what it covers and the directories on the way are looked at, as if the whole
    tree had been scanned and the rest left out: two scans in one scope make a plan for just that. It
    costs what the scope comes to: a directory is listed only if it is deep there. What is below a
    path that is gone, or no directory any more, is not there.

    With `grafts`, what can be renamed so is shown at its new path, `came_from` telling the real one,
    in directories that are PRETENDED where they are missing; see `grafts`. Both ends of a graft are
    in the scope, deep.
    """
    asked = tuple(grafts)
    moving = (path for graft in asked for path in graft)
    found = _scan(
        tree,
        problems,
        member,
        details,
        filters,
        None if scope is None or scope.is_whole else scope.deepened(moving),
        keep_setuid=keep_setuid,
        clean_temporaries=clean_temporaries,
    )
    found.digests = digests
    found.asked_grafts = asked
    return unfolded(found.items())


def scan_stretches(
    tree: Tree,
    *,
    problems: list[Problem],
    member: str,
    keep_setuid: bool = False,
    clean_temporaries: bool = False,
    details: Details = _FEW_DETAILS,
    filters: Filters | None = None,
) -> Iterator[Item]:
    """Scan as `scan` does, and leave plain files together in stretches: much faster where nobody asks
    for their entries.
    """
    found = _scan(
        tree,
        problems,
        member,
        details,
        filters,
        keep_setuid=keep_setuid,
        clean_temporaries=clean_temporaries,
    )
    if not details.inodes and found.bounds is None:
        found.looker = DirectoryLooker(found.maker)
    return found.items()


def _scan(
    tree: Tree,
    problems: list[Problem],
    member: str,
    details: Details,
    filters: Filters | None,
    scope: Scope | None = None,
    *,
    keep_setuid: bool,
    clean_temporaries: bool,
) -> "_Scan":
    if clean_temporaries and tree.read_only:
        raise RootReadOnly("a tree that is opened to be read cannot be cleaned")
    if clean_temporaries:
        undo_all(tree)
    abilities = Abilities()
    if details.is_applied_to:
        abilities = probe(tree, may_write=clean_temporaries, anew=scope is None)
    found = _Scan(tree, problems, member, details, keep_setuid=keep_setuid, abilities=abilities)
    found.clean = clean_temporaries
    found.wanted = scope.wanted() if scope is not None else None
    if filters is not None and not filters.is_empty:
        found.filters = filters
        found.bounds = filters.bounds if filters.has_limits else None
    return found


def _excluded(path: bytes, seen: int) -> Entry:
    return Entry(path, Kind.EXCLUDED, 0, 0, 0, b"", seen)


class _Level:
    """One directory on the way down: its children still to be given out, last first."""

    __slots__ = ("children", "fd", "is_whole", "names", "path", "real", "rules", "seen")

    def __init__(self, path: bytes, fd: int, seen: int, rules: Rules | None) -> None:
        self.path = path
        self.real = path
        """Where it lies: another path than that where a graft shows it."""
        self.fd = fd
        self.seen = seen
        self.is_whole = False
        """Whether everything below is looked at, when the scan has a scope."""
        self.rules = rules
        """The filters that can match here; None when there are none at all."""
        self.children: list[Item] = []
        self.names: list[bytes] = []
        """Names not yet looked at, last first: of a very large directory, whose entries together
        would take several times the memory that their names do."""

    def close(self) -> None:
        """Let go of the directory."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Scan:
    def __init__(
        self,
        tree: Tree,
        problems: list[Problem],
        member: str,
        details: Details,
        *,
        keep_setuid: bool,
        abilities: Abilities,
    ) -> None:
        self.tree = tree
        self.problems = problems
        self.member = member
        self.keep_setuid = keep_setuid
        self.digests = self.clean = False
        self.wanted: dict[bytes, set[bytes] | None] | None = None
        self.details = details
        self.maker = EntryMaker(
            details, self._problem, keep_setuid=keep_setuid, abilities=abilities
        )
        self.asked_grafts: tuple[Graft, ...] = ()
        self.grafts: Grafts | None = None
        self.filters: Filters | None = None
        self.bounds: Bounds | None = None
        self.looker: DirectoryLooker | None = None
        """Where plain files are left together in stretches."""
        self._levels: list[_Level] = []

    def items(self) -> Iterator[Item]:
        levels = self._levels
        walk = Directories(self.tree.top_fd, limit=8)
        try:
            if self.asked_grafts:
                self.grafts = Grafts(walk, self.asked_grafts)
            self._walk = walk
            top = self.maker.top(self.tree.top_fd)
            yield top
            rules = self.filters.top() if self.filters is not None else None
            # Opened anew: a duplicate would share its place in the list with every other scan of
            # the same tree, and two at once would each see a part.
            fd = os.open(b".", OPEN_DIRECTORY, dir_fd=self.tree.top_fd)
            levels.append(_Level(b"", fd, top.seen, rules))
            self._read(levels[-1])
            while levels:
                level = levels[-1]
                children = level.children
                while children:
                    entry = children.pop()
                    if isinstance(entry, Stretch):
                        yield entry
                    elif entry.kind is _DIRECTORY:
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
                    self._go_on(level)
        finally:
            for level in levels:
                level.close()
            levels.clear()
            walk.close()

    def _problem(self, path: bytes, what: What, detail: str) -> None:
        self.problems.append(Problem(path, self.member, what, detail))

    def _fd(self, level: _Level) -> int:
        """Return the level's descriptor, walking to it again when it had been let go."""
        if level.fd < 0:
            fd = os.dup(self._walk.fd(level.real))
            if fingerprint(os.fstat(fd)) != level.seen:
                os.close(fd)
                raise FileNotFoundError(f"{os.fsdecode(level.path)} is another directory now")
            level.fd = fd
        return level.fd

    def _descend(self, level: _Level, entry: Entry) -> bool:
        """Enter a directory; False when it cannot be read or is gone."""
        if entry.seen == PRETENDED and self.grafts is not None:
            below = _Level(entry.path, -1, PRETENDED, self._rules(level, entry))
            self._graft(below)
            self._levels.append(below)
            return True
        try:
            parent, name = self._locate(level, entry)
            fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
        except OSError as error:
            # Gone, or something else by now: what it held was listed by nobody, so nothing may be
            # concluded from its absence.
            self._problem(
                entry.path, What.UNREADABLE, f"cannot open the directory: {error.strerror}"
            )
            return False
        below = _Level(entry.path, fd, entry.seen, self._rules(level, entry))
        below.is_whole = level.is_whole
        if self.grafts is not None:
            below.real = entry.came_from or join(level.real, name)
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

    def _rules(self, level: _Level, entry: Entry) -> Rules | None:
        """Return the filters that can match in a directory of this one, by where it is shown."""
        if level.rules is None:
            return None
        return level.rules.below(entry.path[len(level.path) + 1 :] if level.path else entry.path)

    def _locate(self, level: _Level, entry: Entry) -> tuple[int, bytes]:
        """Return where an entry really is: the descriptor of its directory, and its name there."""
        if entry.came_from:
            parent, _, name = entry.came_from.rpartition(b"/")
            return self._walk.fd(parent), name
        return self._fd(level), entry.path[len(level.path) + 1 :] if level.path else entry.path

    def _read(self, level: _Level) -> None:
        """List one directory and look at what is in it, or at the first part of it."""
        names, hidden = self._shown(level)
        if len(names) > _PART and not hidden and self.grafts is None:
            level.names = names
            self._read_on(level)
        elif self.looker is not None and not hidden:
            self._look_at_stretches(self.looker, level, level.fd, names)
        else:
            self._look(level, level.fd, names, hidden)

    def _go_on(self, level: _Level) -> None:
        """Look at the next part of a very large directory; of any other, go back up."""
        if level.names:
            self._read_on(level)
        else:
            self._levels.pop().close()

    def _read_on(self, level: _Level) -> None:
        try:
            fd = self._fd(level)
        except OSError as error:
            self._problem(level.path, What.UNREADABLE, f"cannot read on: {error.strerror}")
            level.names.clear()
            return
        names = level.names[-_PART:]
        del level.names[-_PART:]
        if self.looker is not None:
            self._look_at_stretches(self.looker, level, fd, names)
        else:
            self._look(level, fd, names, {})

    def _look_at_stretches(
        self, looker: DirectoryLooker, level: _Level, fd: int, names: list[bytes]
    ) -> None:
        """Stat what is in a directory, last name first, and leave plain files together."""
        prefix = level.path + b"/" if level.path else b""
        self.maker.enter(fd, names[-1] if level.names else b"")
        found, newest = looker.look(prefix, fd, names[::-1])
        level.children.extend(reversed(found))
        self._complete(level, len(prefix), newest)

    def _look(self, level: _Level, fd: int, names: list[bytes], hidden: dict[bytes, int]) -> None:
        """Stat what is in a directory, each file an entry."""
        prefix = level.path + b"/" if level.path else b""
        keep_setuid = self.keep_setuid
        add = level.children.append
        lstat = os.lstat
        maker = self.maker
        reader = maker.reader
        maker.enter(fd, self._part(level, names))
        is_plain = not (self.details.hardlinks or self.details.inodes)
        attributes = b""
        newest = 0
        uid = gid = -1
        for name in names:
            try:
                status = lstat(name, dir_fd=fd)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._problem(prefix + name, What.UNREADABLE, f"cannot stat: {error.strerror}")
                continue
            path = prefix + name
            if status.st_mode & 0o170000 != 0o100000:
                other = maker.other(path, name, fd, status)
                if other is not None:
                    add(other)
                continue
            mode = status.st_mode & 0o7777
            if mode & _SETUID_SETGID and not keep_setuid:
                mode = maker.without_setuid(path, mode)
            seen = fingerprint(status)
            if reader is not None:
                if status.st_ctime_ns > newest:  # noqa: PLR1730 - max() costs three times as much
                    newest = status.st_ctime_ns
                if status.st_uid != uid or status.st_gid != gid:
                    uid, gid = status.st_uid, status.st_gid
                    attributes = reader.plain(_FILE, uid, gid)
            entry = Entry(
                path,
                _FILE,
                mode,
                status.st_mtime_ns,
                status.st_size,
                b"",
                seen,
                b"",
                attributes,
            )
            if is_plain or (status.st_nlink == 1 and not self.details.inodes):
                add(entry)
            else:
                add(maker.detailed(entry, status))
        if hidden or self.bounds is not None:
            self._hide(level, hidden)
        self._complete(level, len(prefix), newest)

    def _part(self, level: _Level, names: list[bytes]) -> bytes:
        """Return what tells these names of a directory from the rest of them, if there is one."""
        if self.wanted is not None and not level.is_whole:
            return _CHOSEN
        return names[-1] if level.names else b""

    def _complete(self, level: _Level, at: int, newest: int) -> None:
        """Add what the loop left out: attributes beside the owner, and what is grafted here."""
        reader, marks = self.maker.reader, self.maker.marks
        if reader is not None:
            marks.append(max(newest, *marks, 0))
            for path in reader.complete(level.fd, at, level.children, marks):
                self._problem(path, What.UNREADABLE, "cannot read the extended attributes")
        if self.grafts is not None:
            self._graft(level)

    def _graft(self, level: _Level) -> None:
        """Add to a directory what is shown in it, and lies elsewhere."""
        assert self.grafts is not None
        added = self.grafts.children(level.path)
        present = {entry.path for entry in level.children} if added else set()
        for name, source in added.items():
            path = join(level.path, name)
            if path in present:
                continue  # RACE: it came since it was looked whether the place is free
            if not source:
                level.children.append(self.maker.pretended(path))
                continue
            parent, _, leaf = source.rpartition(b"/")
            try:
                fd = self._walk.fd(parent)
                entry = self.maker.one(path, leaf, fd)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._problem(path, What.UNREADABLE, f"cannot stat: {error.strerror}")
                continue
            if entry is not None:
                level.children.append(entry._replace(came_from=source))
        if added:
            level.children.sort(key=lambda entry: entry.path, reverse=True)

    def _shown(self, level: _Level) -> tuple[list[bytes], dict[bytes, int]]:
        """Return the names to look at, last first, and what the filters hide of some form there."""
        names = self._names(level)
        hidden = level.rules.hidden(names) if level.rules is not None else {}
        if hidden and (self.wanted is None or level.is_whole):
            # Not even looked at: what cannot be is a common reason to filter it.
            names = [name for name in names if hidden.get(name) != ALWAYS]
        return names, hidden

    def _hide(self, level: _Level, hidden: dict[bytes, int]) -> None:
        """Show what filters and limits hide of a directory as what is left alone."""
        children = level.children
        at = len(level.path) + 1 if level.path else 0
        if self.bounds is not None:
            smallest, largest, oldest_ns, youngest_ns = self.bounds
            for number, entry in enumerate(children):
                if (
                    isinstance(entry, Entry)
                    and entry[1] is _FILE
                    and not (
                        smallest <= entry[4] <= largest and oldest_ns <= entry[3] <= youngest_ns
                    )
                ):
                    children[number] = _excluded(entry.path, entry.seen)
        if not hidden:
            return
        for number, entry in enumerate(children):
            if isinstance(entry, Stretch):  # made only where nothing is hidden
                continue
            form = DIRECTORIES if entry.kind is _DIRECTORY else OTHERS
            if hidden.get(entry.path[at:], 0) & form:
                children[number] = _excluded(entry.path, entry.seen)
        if self.wanted is None or level.is_whole:
            always = [name for name, forms in hidden.items() if forms == ALWAYS]
            children += [_excluded(join(level.path, name), NOT_LOOKED_AT) for name in always]
            children.sort(key=lambda entry: entry.path, reverse=True)

    def _names(self, level: _Level) -> list[bytes]:
        """List one directory, last name first; deals with the reserved names on the way."""
        if self.wanted is not None and not level.is_whole:
            chosen = self.wanted.get(level.path)
            if chosen is not None:
                return self._stay(level, sorted(chosen, reverse=True))
            level.is_whole = True
        try:
            listed = os.listdir(level.fd)  # noqa: PTH208 - by descriptor
        except OSError as error:
            self._problem(level.path, What.UNREADABLE, f"cannot list: {error.strerror}")
            return []
        names: list[bytes] = []
        while listed:  # bit by bit: a million names need not be there in both forms at once
            names += [name.encode(_ENCODING, _ENCODE_ERRORS) for name in listed[-_PART:]]
            del listed[-_PART:]
        # Sorted as bytes: the order of decoded names is not the same everywhere.
        names.sort(reverse=True)
        # All that is reserved begins so; one look at each name is all that most directories need.
        suspects = [name for name in names if name.startswith(RESERVED_NAME)]
        if suspects and self.clean:
            temporaries = [name for name in suspects if name.startswith(TEMPORARY_PREFIX)]
            if temporaries:
                remove_leavings(self.tree, level.fd, level.path, temporaries)
        names = self._stay(level, names)
        longest = MAX_PATH - len(level.path) - 1
        if longest < MAX_NAME or suspects:
            names = [name for name in names if not is_reserved(name)]
            for name in names:
                if len(name) > longest:
                    self._problem(level.path, What.UNREADABLE, f"too long a path: {name!r}")
            names = [name for name in names if len(name) <= longest]
        return names

    def _stay(self, level: _Level, names: list[bytes]) -> list[bytes]:
        """Leave out the names of what is shown elsewhere."""
        if self.grafts is None:
            return names
        gone = self.grafts.gone
        return [name for name in names if join(level.real, name) not in gone]

    def _digested(self, level: _Level, entry: Entry) -> Entry | None:
        """Read a file and give its entry with the digest; None when it vanished.

        A file that changes while it is read has no digest, and so differs from everything.
        """
        try:
            parent, name = self._locate(level, entry)
            fd = os.open(name, OPEN_FILE, dir_fd=parent)
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
