"""One directory as a scan sees it, its plain files as stretches: what decides the speed of a scan."""

import os
import stat
from array import array
from collections.abc import Sequence

from syncengine.attribute_reader import AttributeReader
from syncengine.entries import EntryMaker
from syncengine.model import Kind, What
from syncengine.stretches import STRETCH_FILES, Identities, Item, Stretch

_FORM = 0o170000
_SPECIAL_BITS = _FORM | stat.S_ISUID | stat.S_ISGID
_PLAIN = stat.S_IFREG
_FILE = Kind.FILE
_MODE, _LINKS = 0, 3
"""Where a status has them, as a tuple."""


class DirectoryLooker:
    """Looks at the names of one directory after the other; what is odd, `maker` makes."""

    def __init__(self, maker: EntryMaker) -> None:
        self._maker = maker
        self._may_have_links = not maker.details.hardlinks
        """Whether a file with several names is like any other."""

    def look(self, below: bytes, fd: int, names: list[bytes]) -> tuple[list[Item], int]:
        """Return what is there by these names, in their order, and the latest ctime of its files.

        `below` is the directory's path with a slash after it, `fd` is open on it. What cannot be
        looked at is told to the maker's `note`; blocks on the disk.
        """
        try:
            lstat = os.lstat
            statuses = [lstat(name, dir_fd=fd) for name in names]
        except OSError:
            names, statuses = self._one_by_one(below, fd, names)
        if not statuses:
            return [], 0
        items: list[Item] = []
        newest = start = 0
        columns = list(zip(*statuses, strict=True))
        for at in [*self._odd(columns), len(names)]:
            for first in range(start, at, STRETCH_FILES):
                part = slice(first, min(at, first + STRETCH_FILES))
                try:
                    stretch, latest = self._stretch(
                        below, names[part], statuses[part], columns, part
                    )
                except OverflowError:  # a time that nanoseconds in 64 bits do not hold
                    for name, status in zip(names[part], statuses[part], strict=True):
                        items += self._entry(below, fd, name, status)
                    continue
                items.append(stretch)
                newest = max(newest, latest)
            if at < len(names):
                items += self._entry(below, fd, names[at], statuses[at])
                newest = max(newest, statuses[at].st_ctime_ns)
            start = at + 1
        return items, newest

    def _entry(self, below: bytes, fd: int, name: bytes, status: os.stat_result) -> list[Item]:
        entry = self._maker.whatever(below + name, name, fd, status)
        return [] if entry is None else [entry]

    def _one_by_one(
        self, below: bytes, fd: int, names: list[bytes]
    ) -> tuple[list[bytes], list[os.stat_result]]:
        """Look again, and leave out what vanished or cannot be looked at."""
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

    def _odd(self, columns: Sequence[Sequence[int]]) -> list[int]:
        """Return the numbers of those that no stretch takes."""
        modes, links = columns[_MODE], columns[_LINKS]
        is_lone = self._may_have_links or set(links) == {1}
        if is_lone and all(mode & _SPECIAL_BITS == _PLAIN for mode in set(modes)):
            return []
        return [
            number
            for number, (mode, names) in enumerate(zip(modes, links, strict=True))
            if mode & _SPECIAL_BITS != _PLAIN or (names != 1 and not self._may_have_links)
        ]

    def _stretch(
        self,
        below: bytes,
        names: list[bytes],
        statuses: Sequence[os.stat_result],
        columns: Sequence[Sequence[int]],
        part: slice,
    ) -> tuple[Stretch, int]:
        modes, inodes, devices, _, uids, gids, sizes, *_ = [one[part] for one in columns]
        ctimes = [status.st_ctime_ns for status in statuses]
        numbers = (
            array("H", [mode & 0o7777 for mode in modes]),
            array("q", [status.st_mtime_ns for status in statuses]),
            array("q", sizes),
        )
        attributes: bytes | list[bytes] = b""
        reader = self._maker.reader
        if reader is not None:
            attributes = _owners(reader, uids, gids)
        identities = Identities(devices, inodes, ctimes)
        stretch = Stretch(
            below, b"/".join(names), numbers, attributes, identities=identities, names=names
        )
        return stretch, max(ctimes)


def _owners(
    reader: AttributeReader, uids: Sequence[int], gids: Sequence[int]
) -> bytes | list[bytes]:
    """Return the attributes of files that have nothing but these owners."""
    if len(set(uids)) == len(set(gids)) == 1:
        return reader.plain(_FILE, uids[0], gids[0])
    return [reader.plain(_FILE, uid, gid) for uid, gid in zip(uids, gids, strict=True)]
