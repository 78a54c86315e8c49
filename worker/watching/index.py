"""The index of a watched root: how every entry looked when the journal last knew all about it.

A row for each entry, below the number of its directory, so that renaming a directory changes one row.
What differs from the index now is either in the journal, or on its way there in memory; so a **stat
scan** against it finds what changed while nobody looked. Rows are changed in the transaction that
journals the change, or later, never before; what is journaled has a row (`seen` 0: it differs from
whatever is there). Every call
blocks on the disk and stands in a transaction of the store.
"""

import os
import stat
import sys
from collections.abc import Iterable
from typing import NamedTuple

from worker.watching.store import Store

TOP = 1
"""The number of the root's own directory."""

UNSURE = 0
"""As `seen`: looks like nothing that could be there."""

SETTLED_NS = 2_000_000_000
"""An entry that changed later than this before it was looked at may change again without looking
different: times of files move in steps, and are set before the end of a write is told."""

_SIGN = 1 << 63


class Row(NamedTuple):
    """One entry as it is remembered."""

    seen: int
    child: int
    """Its number, when it is a directory; else 0."""


def look_of(status: os.stat_result, now_ns: int) -> int:
    """Return 64 bits that tell an entry as it is from what it is after any change; UNSURE if too young.

    Unlike `fingerprint` the same after the file system was mounted anew under another device number.
    """
    if status.st_ctime_ns > now_ns - SETTLED_NS:
        return UNSURE
    form = stat.S_IFMT(status.st_mode)
    size = 0 if form == stat.S_IFDIR else status.st_size
    seen = hash((status.st_ino, form, size, status.st_mtime_ns, status.st_ctime_ns))
    return seen or 1


class TreeIndex:
    """The entries of one root, by directory and name."""

    def __init__(self, store: Store) -> None:
        """Use the store; what another kind of Python hashed is dropped, and so looks all changed."""
        self._store = store
        self._last = TOP
        hashing = f"{sys.hash_info.algorithm} {sys.hash_info.width} {sys.version_info[:2]}"
        with store.transaction() as db:
            if store.about("hashing") != hashing:
                db.execute("UPDATE entries SET seen = ?", (UNSURE,))
                store.note("hashing", hashing)
            self._load()
        store.reload_with(self._load)

    def _load(self) -> None:
        with self._store.reading() as db:
            found = db.execute("SELECT max(child) FROM entries").fetchone()[0]
        self._last = max(self._last, found or TOP)

    def new_number(self) -> int:
        """Return a number that no directory has."""
        self._last += 1
        return self._last

    def of(self, directory: int) -> dict[bytes, Row]:
        """Return what is remembered of a directory's entries."""
        with self._store.reading() as db:
            rows = db.execute(
                "SELECT name, seen, child FROM entries WHERE directory = ?", (directory,)
            )
            return {name: Row(seen, child) for name, seen, child in rows}

    def get(self, directory: int, name: bytes) -> Row | None:
        """Return what is remembered of one entry."""
        with self._store.reading() as db:
            row = db.execute(
                "SELECT seen, child FROM entries WHERE directory = ? AND name = ?",
                (directory, name),
            ).fetchone()
        return None if row is None else Row(*row)

    def put(self, directory: int, rows: Iterable[tuple[bytes, int, int]]) -> None:
        """Remember entries: name, seen, child."""
        with self._store.transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)",
                ((directory, *row) for row in rows),
            )

    def expect(self, entries: Iterable[tuple[int, bytes, int]]) -> None:
        """Let entries that are not known be known to exist: directory, name, child.

        Else one that goes again before it was looked at would not be missed by a stat scan.
        """
        with self._store.transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?)",
                ((directory, name, UNSURE, child) for directory, name, child in entries),
            )

    def settle(self, rows: Iterable[tuple[int, int, bytes, int]]) -> None:
        """Remember how known entries look: seen, directory, name, child.

        One that became another kind of thing meanwhile stays UNSURE.
        """
        with self._store.transaction() as db:
            db.executemany(
                "UPDATE entries SET seen = ? WHERE directory = ? AND name = ? AND child = ?", rows
            )

    def remove(self, directory: int, name: bytes) -> None:
        """Forget an entry and everything below it."""
        with self._store.transaction() as db:
            row = self.get(directory, name)
            if row is None:
                return
            db.execute("DELETE FROM entries WHERE directory = ? AND name = ?", (directory, name))
            below = [row.child] if row.child else []
            while below:
                number = below.pop()
                found = db.execute(
                    "SELECT child FROM entries WHERE directory = ? AND child != 0", (number,)
                )
                below += [child for (child,) in found.fetchall()]
                db.execute("DELETE FROM entries WHERE directory = ?", (number,))

    def move(self, directory: int, name: bytes, to: int, new: bytes) -> None:
        """Give a directory another place, with everything below it."""
        with self._store.transaction():
            row = self.get(directory, name)
            self.remove(to, new)
            if row is None:
                return
            with self._store.transaction() as db:
                db.execute(
                    "DELETE FROM entries WHERE directory = ? AND name = ?", (directory, name)
                )
                self.put(to, [(new, UNSURE, row.child)])

    def __len__(self) -> int:
        """How many entries are remembered."""
        with self._store.reading() as db:
            return int(db.execute("SELECT count(*) FROM entries").fetchone()[0])
