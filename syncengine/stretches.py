"""Stretches: plain files that follow each other in one directory, kept as columns instead of as entries.

Most of what a scan meets is the same at both sides. Two stretches tell that of a whole directory by a
few comparisons of arrays, and no entry is made of what they agree on. A stretch stands for its entries
in every way; whoever wants these asks for them.
"""

import itertools
import stat
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from syncengine.attributes import same
from syncengine.errors import MalformedFrame
from syncengine.model import Entry, Kind
from syncengine.names import MAX_NAME, MAX_PATH, is_reserved

STRETCH_FILES = 1_024
"""How many files a stretch has at most: so that one fits a frame, whatever their names are."""

_FILE = Kind.FILE
_NEVER = frozenset({b"", b".", b".."})
_PERMISSIONS = 0o1777
"""What a file in a stretch may have: setuid and setgid bits are looked at one by one."""

Attributes = bytes | list[bytes]
"""Packed attributes: the same of all files of a stretch, or each file's own."""

Columns = tuple["array[int]", "array[int]", "array[int]"]
"""Modes (`H`), times in nanoseconds (`q`) and sizes (`q`), of one length."""


class Stretch:
    """Regular files of one directory, one name each, without setuid and setgid bits.

    Their names are in order, and no other entry of the directory is between them. What a peer sent is
    looked at when it is first taken apart: `entries` and `first` raise MalformedFrame.
    """

    __slots__ = (
        "_identities",
        "_is_checked",
        "_names",
        "_seen",
        "attributes",
        "below",
        "count",
        "joined",
        "modes",
        "mtimes",
        "sizes",
    )

    def __init__(
        self,
        below: bytes,
        joined: bytes,
        columns: Columns,
        attributes: Attributes,
        *,
        seen: "array[int] | None" = None,
        identities: "Identities | None" = None,
        names: list[bytes] | None = None,
    ) -> None:
        """Take the columns, with one of `seen` (`Q`) and `identities`; `names`, if they are known to
        be right.
        """
        self.below: Final = below
        """The path of the directory with a slash after it; empty for the top."""
        self.joined: Final = joined
        """The names, joined by slashes."""
        self.modes, self.mtimes, self.sizes = columns
        self.count: Final = len(self.modes)
        self.attributes = attributes
        self._seen = seen
        self._identities = identities
        self._names = names
        self._is_checked = names is not None

    @property
    def path(self) -> bytes:
        """The path of its first file."""
        return self.below + self.joined.partition(b"/")[0]

    @property
    def last_path(self) -> bytes:
        """The path of its last file."""
        return self.below + self.joined.rpartition(b"/")[2]

    @property
    def names(self) -> list[bytes]:
        """The names, as they are: not looked at."""
        if self._names is None:
            self._names = self.joined.split(b"/")
        return self._names

    @property
    def seen(self) -> "array[int]":
        """The fingerprints, 64 bits each."""
        if self._seen is None:
            assert self._identities is not None
            self._seen = self._identities.fingerprints(self.sizes, self.mtimes)
        return self._seen

    @property
    def mark(self) -> int:
        """A number for the versions of all files, within this process; of what was scanned here."""
        assert self._identities is not None
        return self._identities.mark(self.sizes, self.mtimes)

    def attributes_at(self, number: int) -> bytes:
        """Return the packed attributes of one file."""
        attributes = self.attributes
        return attributes if isinstance(attributes, bytes) else attributes[number]

    def set_attributes(self, number: int, packed: bytes) -> None:
        """Give one file attributes of its own."""
        if isinstance(self.attributes, bytes):
            self.attributes = [self.attributes] * self.count
        self.attributes[number] = packed

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """Yield the entries, from the one at `start`."""
        self._check()
        below, names = self.below, self.names
        packed: Iterable[bytes] = (
            itertools.repeat(self.attributes)
            if isinstance(self.attributes, bytes)
            else self.attributes[start:]
        )
        columns = zip(
            names[start:],
            self.modes[start:],
            self.mtimes[start:],
            self.sizes[start:],
            self.seen[start:],
            packed,
            strict=False,
        )
        for name, mode, mtime_ns, size, seen, attributes in columns:
            yield Entry(below + name, _FILE, mode, mtime_ns, size, b"", seen, b"", attributes)

    def at(self, number: int) -> Entry:
        """Return one entry."""
        self._check()
        return Entry(
            self.below + self.names[number],
            _FILE,
            self.modes[number],
            self.mtimes[number],
            self.sizes[number],
            b"",
            self.seen[number],
            b"",
            self.attributes_at(number),
        )

    def alike(self, start: int, other: "Stretch", at: int) -> int:
        """Return how many files, from `start` here and `at` there, are alike one after another.

        Alike in name, mode, time, size, and in what both sides know of their attributes.
        """
        if self.below != other.below:
            return 0
        if (
            not start
            and not at
            and self.joined == other.joined
            and self.sizes == other.sizes
            and self.mtimes == other.mtimes
            and self.modes == other.modes
            and self._same_attributes(0, other, 0, self.count)
        ):
            return self.count
        left = min(self.count - start, other.count - at)
        found, step = 0, 1
        # In ever longer steps while they are alike, and in ever shorter ones where they are not.
        while found < left and step:
            step = min(step, left - found)
            if self._same(start + found, other, at + found, step):
                found += step
                step *= 2
            else:
                left = min(left, found + step - 1)
                step //= 2
        return found

    def _same(self, start: int, other: "Stretch", at: int, count: int) -> bool:
        stop, end = start + count, at + count
        return (
            self.names[start:stop] == other.names[at:end]
            and self.sizes[start:stop] == other.sizes[at:end]
            and self.mtimes[start:stop] == other.mtimes[at:end]
            and self.modes[start:stop] == other.modes[at:end]
            and self._same_attributes(start, other, at, count)
        )

    def _same_attributes(self, start: int, other: "Stretch", at: int, count: int) -> bool:
        ours, theirs = self.attributes, other.attributes
        if isinstance(ours, bytes) and isinstance(theirs, bytes):
            return same(ours, theirs)
        return all(
            same(self.attributes_at(start + n), other.attributes_at(at + n)) for n in range(count)
        )

    def _check(self) -> None:
        """Look at what a peer sent."""
        if self._is_checked:
            return
        names, last = self.names, b""
        longest = min(MAX_NAME, MAX_PATH - len(self.below))
        for name in names:
            if name <= last or name in _NEVER or len(name) > longest or is_reserved(name):
                raise MalformedFrame(f"a forbidden name, or out of order: {name[:300]!r}")
            last = name
        if b"\0" in self.joined:
            raise MalformedFrame(f"a NUL in a name in {self.below[:300]!r}")
        if (
            max(self.modes) > 0o7777
            or any(mode & ~_PERMISSIONS for mode in set(self.modes))
            or min(self.sizes) < 0
            or min(self.seen) == 0
        ):
            raise MalformedFrame(f"impossible numbers in {self.below[:300]!r}")
        self._is_checked = True


class Identities:
    """What fingerprints are made of besides size and mtime: kept until somebody wants these."""

    __slots__ = ("_ctimes", "_devices", "_inodes")

    def __init__(self, devices: Sequence[int], inodes: "array[int]", ctimes: "array[int]") -> None:
        self._devices = devices
        self._inodes = inodes
        self._ctimes = ctimes

    def fingerprints(self, sizes: "array[int]", mtimes: "array[int]") -> "array[int]":
        """Return what `entries.fingerprint` returns, of all files."""
        columns = (self._inodes, itertools.repeat(stat.S_IFREG), sizes, mtimes, self._ctimes)
        hashes = list(map(hash, zip(self._devices, *columns, strict=False)))
        if 0 in hashes:
            hashes = [one or 1 for one in hashes]
        return array("Q", array("q", hashes).tobytes())

    def mark(self, sizes: "array[int]", mtimes: "array[int]") -> int:
        """Return a number for the versions of all files."""
        columns = (self._inodes, self._ctimes, sizes, mtimes)
        return hash(tuple(column.tobytes() for column in columns))


Item = Entry | Stretch
"""What a listing consists of."""


def unfolded(items: Iterable[Item]) -> Iterator[Entry]:
    """Yield the entries that items are or stand for."""
    for item in items:
        if item.__class__ is Stretch:
            yield from item.entries()
        else:
            yield item  # type: ignore[misc]  # all that is left


def to_bytes(column: "array[int]") -> bytes:
    """Return the numbers of a column, least significant byte first."""
    if sys.byteorder == "big":  # pragma: no cover - on other machines
        column = array(column.typecode, column)
        column.byteswap()
    return column.tobytes()


def from_bytes(typecode: str, raw: bytes) -> "array[int]":
    """Return the column of these bytes; raises MalformedFrame for a part of a number."""
    column = array(typecode)
    try:
        column.frombytes(raw)
    except ValueError as error:
        raise MalformedFrame("a column that ends within a number") from error
    if sys.byteorder == "big":  # pragma: no cover - on other machines
        column.byteswap()
    return column
