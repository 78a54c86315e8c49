"""One directory as a scan sees it, its plain files as stretches: what decides the speed of a scan."""

import os
import stat
from array import array
from collections.abc import Sequence

from syncengine.attribute_reader import AttributeReader
from syncengine.entries import EntryMaker
from syncengine.model import Kind, What
from syncengine.statuses import Statuses, StatusReader
from syncengine.stretches import STRETCH_FILES, Identities, Item, Stretch

_FORM = 0o170000
_SPECIAL_BITS = _FORM | stat.S_ISUID | stat.S_ISGID
_PLAIN = stat.S_IFREG
_FILE = Kind.FILE


class DirectoryLooker:
    """Looks at the names of one directory after the other; what is odd, `maker` makes."""

    def __init__(self, maker: EntryMaker) -> None:
        self._maker = maker
        self._may_have_links = not maker.details.hardlinks
        """Whether a file with several names is like any other."""
        self._statuses = StatusReader()
        self._are_mostly_odd = False
        """Whether most of what was met last was: each of those has to be asked for by itself."""

    def look(self, below: bytes, fd: int, names: list[bytes]) -> tuple[list[Item], int]:
        """Return what is there by these names, in their order, and the latest ctime of its files.

        `below` is the directory's path with a slash after it, `fd` is open on it. What cannot be
        looked at is told to the maker's `note`; blocks on the disk.
        """
        items: list[Item] = []
        newest = 0
        for first in range(0, len(names), STRETCH_FILES):
            found, latest = self._look(below, fd, names[first : first + STRETCH_FILES])
            items += found
            newest = max(newest, latest)
        return items, newest

    def _look(self, below: bytes, fd: int, names: list[bytes]) -> tuple[list[Item], int]:
        """Look at no more names than a stretch may have."""
        columns = None if self._are_mostly_odd else self._statuses.read(fd, names)
        statuses: list[os.stat_result] = []
        if columns is None:
            names, statuses = self._one_by_one(below, fd, names)
            if not names:
                return [], 0
            try:
                columns = Statuses.of(statuses)
            except OverflowError:  # a time that nanoseconds in 64 bits do not hold
                items: list[Item] = []
                for name, status in zip(names, statuses, strict=True):
                    items += self._entry(below, fd, name, status)
                return items, max(status.st_ctime_ns for status in statuses)
        items = []
        newest = max(columns.ctimes)
        odd = self._odd(columns)
        self._are_mostly_odd = 2 * len(odd) > len(names)
        start = 0
        for at in [*odd, len(names)]:
            if start < at:
                items.append(self._stretch(below, names, columns, start, at))
            start = at + 1
            # A column is not all that an entry needs: unless it was asked for by itself, it is now.
            for status in statuses[at:start] or self._one_by_one(below, fd, names[at:start])[1]:
                items += self._entry(below, fd, names[at], status)
                newest = max(newest, status.st_ctime_ns)
        return items, newest

    def _entry(self, below: bytes, fd: int, name: bytes, status: os.stat_result) -> list[Item]:
        entry = self._maker.whatever(below + name, name, fd, status)
        return [] if entry is None else [entry]

    def _one_by_one(
        self, below: bytes, fd: int, names: list[bytes]
    ) -> tuple[list[bytes], list[os.stat_result]]:
        """Ask for each status by itself, and leave out what vanished or cannot be looked at."""
        found: list[bytes] = []
        statuses: list[os.stat_result] = []
        for name in names:
            try:
                statuses.append(os.lstat(name, dir_fd=fd))
            except FileNotFoundError:
                continue
            except OSError as error:
                self._maker.note(below + name, What.UNREADABLE, f"cannot stat: {error.strerror}")
                continue
            found.append(name)
        return found, statuses

    def _odd(self, columns: Statuses) -> list[int]:
        """Return the numbers of those that no stretch takes."""
        modes, links = columns.modes, columns.links
        is_lone = self._may_have_links or set(links) == {1}
        if is_lone and all(mode & _SPECIAL_BITS == _PLAIN for mode in set(modes)):
            return []
        return [
            number
            for number, (mode, names) in enumerate(zip(modes, links, strict=True))
            if mode & _SPECIAL_BITS != _PLAIN or (names != 1 and not self._may_have_links)
        ]

    def _stretch(
        self, below: bytes, names: list[bytes], columns: Statuses, start: int, stop: int
    ) -> Stretch:
        part = slice(start, stop)
        names = names[part]
        sizes, mtimes, ctimes = columns.sizes[part], columns.mtimes[part], columns.ctimes[part]
        modes = array("H", [mode & 0o7777 for mode in columns.modes[part]])
        attributes: bytes | list[bytes] = b""
        reader = self._maker.reader
        if reader is not None:
            attributes = _owners(reader, columns.uids[part], columns.gids[part])
        return Stretch(
            below,
            b"/".join(names),
            (modes, mtimes, sizes),
            attributes,
            identities=Identities(columns.devices[part], columns.inodes[part], ctimes),
            names=names,
        )


def _owners(
    reader: AttributeReader, uids: Sequence[int], gids: Sequence[int]
) -> bytes | list[bytes]:
    """Return the attributes of files that have nothing but these owners."""
    if len(set(uids)) == len(set(gids)) == 1:
        return reader.plain(_FILE, uids[0], gids[0])
    return [reader.plain(_FILE, uid, gid) for uid, gid in zip(uids, gids, strict=True)]
