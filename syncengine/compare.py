"""Compare: the sorted listings of all members of a job, and every difference between them. Pure.

An eye of its own: it shares nothing with the planners, whose work it judges. With digests in the
listings, contents are compared. What the rule of the job does not promise is no difference: of `copy`
and `move`, what only a target has.
"""

import heapq
import stat
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from syncengine.attributes import differing
from syncengine.model import CopyWhen, Entry, Kind, Rule, RunOptions
from syncengine.names import order_key

_SETUID_SETGID = stat.S_ISUID | stat.S_ISGID
_LEFT_ALONE = frozenset({Kind.SPECIAL, Kind.EXCLUDED})
_DEVICES = frozenset({Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE})


class Difference(NamedTuple):
    """What differs at one path between a member and the one that it is compared with."""

    path: bytes
    member: int
    """By its place in the listings; never that of the source."""
    what: str
    """`missing`, `extra`, `kind`, `content`, `link`, `mode`, `mtime`, `owner` and the like, or several
    with commas; `unread` when the content could not be read, or changed meanwhile."""
    kind: Kind
    size: int


class Comparison:
    """Compares the members of one job: iterate once for the differences, in tree order."""

    def __init__(self, listings: Sequence[Iterable[Entry]], options: RunOptions) -> None:
        """Compare these, the source or the member listed first being the first."""
        self._listings = listings
        self._options = options
        self._is_one_way = options.rule.is_one_way
        self._allows_more = options.rule in {Rule.COPY, Rule.MOVE}
        self.files = 0
        """Regular files that were compared so far, each counted once."""

    def __iter__(self) -> Iterator[Difference]:
        """Read all listings beside each other; raises what they raise."""
        left_alone = b"\0"  # begins no path
        numbered = [_numbered(entries, at) for at, entries in enumerate(self._listings)]
        for _, group in groupby(heapq.merge(*numbered), key=lambda one: one[0]):
            entries: list[Entry | None] = [None] * len(self._listings)
            path = b""
            for _, member, entry in group:
                entries[member] = entry
                path = entry.path
            if path.startswith(left_alone):
                continue
            if any(entry is not None and entry.kind in _LEFT_ALONE for entry in entries):
                left_alone = path + b"/"
                continue
            yield from self._at(path, entries)

    def _at(self, path: bytes, entries: list[Entry | None]) -> Iterator[Difference]:
        first = 0 if self._is_one_way else next(n for n, e in enumerate(entries) if e is not None)
        ours = entries[first]
        if ours is not None:
            self.files += ours.kind is Kind.FILE
        for member, theirs in enumerate(entries):
            if member == first:
                continue
            if ours is None:
                if theirs is not None and not self._allows_more:
                    yield Difference(path, member, "extra", theirs.kind, theirs.size)
            elif theirs is None:
                yield Difference(path, member, "missing", ours.kind, ours.size)
            elif (what := self._differing(ours, theirs)) is not None:
                yield Difference(path, member, what, ours.kind, ours.size)

    def _differing(self, ours: Entry, theirs: Entry) -> str | None:
        if ours.kind is not theirs.kind:
            return "kind"
        if self._is_newer_there(ours, theirs):
            return None
        options = self._options
        found: list[str] = []
        if ours.kind is Kind.FILE:
            if ours.size != theirs.size:
                found.append("content")
            elif not (ours.digest and theirs.digest):
                found.append("unread")
            elif ours.digest != theirs.digest:
                found.append("content")
        elif ours.link != theirs.link:
            found.append("link")
        if ours.kind in _DEVICES and ours.device != theirs.device:
            found.append("device")
        if options.keep_mode and ours.kind is not Kind.SYMLINK and self._modes_differ(ours, theirs):
            found.append("mode")
        # A directory's time says when something came or went in it, also what the job leaves alone.
        is_own_time = options.keep_times and ours.kind is not Kind.DIRECTORY
        if is_own_time and ours.mtime_ns != theirs.mtime_ns:
            found.append("mtime")
        found += differing(ours.attributes, theirs.attributes)
        return ", ".join(found) or None

    def _modes_differ(self, ours: Entry, theirs: Entry) -> bool:
        if ours.kind is not Kind.FILE or self._options.keep_setuid:
            return ours.mode != theirs.mode
        if self._is_one_way:
            return ours.mode & ~_SETUID_SETGID != theirs.mode
        return (ours.mode ^ theirs.mode) & ~_SETUID_SETGID != 0

    def _is_newer_there(self, ours: Entry, theirs: Entry) -> bool:
        """Whether `copy_when: newer` leaves the target's version as it is."""
        return (
            self._options.rule is Rule.COPY
            and self._options.copy_when is CopyWhen.NEWER
            and ours.kind is Kind.FILE
            and theirs.mtime_ns > ours.mtime_ns
        )


def _numbered(entries: Iterable[Entry], member: int) -> Iterator[tuple[bytes, int, Entry]]:
    return ((order_key(entry.path), member, entry) for entry in entries)
