"""What one member of one job agreed to, on the disk of its worker: SQLite, one file per job and member.

A record is the entry that the member had when it last agreed to it with the others, or that nothing
was there, and the number of the run in which it did. The store is never ahead of the tree (I3): a
record is written only for what was seen in the tree just before. Losing a file loses no data: its
member is new then, and nothing is deleted because of it. So a file that is damaged, or that belongs
to another root than the one that lies there now, is dropped, and the log says so.

Every call blocks on the disk: call them from a thread. A store is opened for each use, by one thread
at a time.
"""

import contextlib
import heapq
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from blake3 import blake3

from syncengine.agreed import Agreed, Graft, Sighting
from syncengine.errors import EngineError
from syncengine.model import Entry, Kind
from syncengine.names import order_key
from syncengine.renames import GraftMap, placed
from syncengine.scope import Scope

log = structlog.get_logger()

_FORMAT = "1"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS agreed (
    key BLOB NOT NULL PRIMARY KEY,
    number INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    mode INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    size INTEGER NOT NULL,
    link BLOB NOT NULL,
    digest BLOB NOT NULL,
    attributes BLOB NOT NULL,
    device INTEGER NOT NULL,
    seen INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS agreed_by_inode ON agreed (inode) WHERE inode != 0;
"""
_COLUMNS = (
    "key, number, kind, mode, mtime_ns, size, link, digest, attributes, device, seen, inode, "
)
_COLUMNS += "ctime_ns"
_ABSENT = 0
"""As `kind`: it was agreed that nothing is there."""
_FETCH = 1_000
_BATCH = 20_000
"""Records to a transaction."""

_Row = tuple[bytes, int, int, int, int, int, bytes, bytes, bytes, int, int, int, int]


class AgreedStoreLost(EngineError):
    """The store turned out to be damaged while it was used, and was dropped: its member is new now."""


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose agreements a store holds: those of one member of one job, at one root."""

    job: str
    member: str
    """WORKER:ROOT[/PATH]."""
    root_id: str
    """Of the root's marker; empty before the first run, and where there is no marker."""
    made: str = ""
    """As in Assignment: what another job of the same name agreed to counts for nothing."""


@contextlib.contextmanager
def _damage_is_told() -> Iterator[None]:
    """Raise AgreedStoreLost for damage; a disk that refuses is another thing."""
    try:
        yield
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise AgreedStoreLost(f"the agreed state is damaged: {error}") from error


class AgreedStores:
    """The stores of one worker, in a directory of its state."""

    def __init__(self, directory: Path) -> None:
        """Serve this directory; it is made with the first store."""
        self._directory = directory

    def open(self, whose: Whose, *, reading: bool = False) -> "AgreedStore | None":
        """Open the store of a member; one that is of no use is dropped and begun anew.

        With `reading`, None where there is none yet. Raises OSError and sqlite3.Error when the disk
        refuses.
        """
        path = self._path(whose)
        if reading and not path.exists():
            return None
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            return AgreedStore(path, whose)
        except _Unusable as unusable:
            why = str(unusable)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # the disk is full, or may not be written: the records are not to blame
            why = f"it is damaged: {error}"
        self.drop(whose, why)
        return None if reading else AgreedStore(path, whose)

    def drop(self, whose: Whose, why: str) -> None:
        """Forget what a member agreed to: it is new from here on."""
        log.warning("agreed_state_dropped", job=whose.job, member=whose.member, why=why)
        path = self._path(whose)
        for suffix in ("-wal", "-shm", ""):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def _path(self, whose: Whose) -> Path:
        member = blake3(whose.member.encode("utf-8", "surrogateescape")).hexdigest(8)
        return self._directory / f"{whose.job}-{member}.db"


class _Unusable(Exception):
    """The store holds something else than what was asked for."""


class AgreedStore:
    """One member's agreements. A context manager."""

    def __init__(self, path: Path, whose: Whose) -> None:
        """Open or make the file; for `AgreedStores`."""
        self._whose = whose
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA cache_size=-16384")
            self._db.executescript(_SCHEMA)
            self._check()
        except BaseException:
            self._db.close()
            raise

    def _check(self) -> None:
        known = self._about()
        whose = self._whose
        wanted = {"format": _FORMAT, "job": whose.job, "made": whose.made, "root": whose.root_id}
        if not known:
            with self._transaction():
                self._db.executemany("INSERT INTO about VALUES (?, ?)", wanted.items())
            return
        for name, value in wanted.items():
            if known.get(name, "") != value:
                raise _Unusable(f"its {name} is {known.get(name)!r}, not {value!r}")

    def _about(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT name, value FROM about").fetchall())

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @property
    def number(self) -> int:
        """Of the last run in which the member agreed to anything; 0 before the first."""
        return int(self._about().get("number", "0"))

    def __len__(self) -> int:
        """How many records there are."""
        return int(self._db.execute("SELECT count(*) FROM agreed").fetchone()[0])

    # Reading

    def records(self, grafts: Iterable[Graft] = (), scope: Scope | None = None) -> Iterator[_Row]:
        """Yield the records in tree order; those of a grafted path at their new place.

        With a `scope`, those of what it covers and of the directories on the way to that; both ends
        of the grafts are in it.
        """
        grafts = tuple(grafts)
        if scope is None or scope.is_whole:
            rows = self._select(None)
        else:
            rows = self._select_in(scope.deepened(path for graft in grafts for path in graft))
        if not grafts:
            return rows
        places = GraftMap(grafts)
        stay = (row for row in rows if places.shown(path := _path_of(row[0])) == path)
        moved = (self._grafted(graft, places) for graft in grafts)
        return _one_for_each_place(heapq.merge(*moved, stay, key=_key_of))

    def _grafted(self, graft: Graft, places: GraftMap) -> Iterator[_Row]:
        cut, to = len(graft.path), graft.to
        for row in self._select(_subtree(graft.path)):
            path = _path_of(row[0])
            place = to + path[cut:]
            if places.shown(path) == place:
                yield (order_key(place), *row[1:])

    def _select(self, within: tuple[bytes, bytes] | None) -> Iterator[_Row]:
        where = "" if within is None else "WHERE key >= ? AND key < ?"
        with _damage_is_told():
            found = self._db.execute(
                f"SELECT {_COLUMNS} FROM agreed {where} ORDER BY key",  # noqa: S608 - our own words
                within or (),
            )
            while rows := found.fetchmany(_FETCH):
                yield from rows

    def _select_in(self, scope: Scope) -> Iterator[_Row]:
        """Yield the records in a scope: a look-up for each path, and a range for each deep one."""
        spans = ((order_key(path), names is None) for path, names in scope.wanted().items())
        for key, is_deep in sorted(spans):
            yield from self._select((key, key + b"\1" if is_deep else key + b"\0"))

    def renamed_from(self, entry: Entry) -> bytes:
        """Return the path at which this very entry was agreed to, or nothing when nobody knows.

        The same inode and kind, and for a file the same size and time. Whether it is gone from that
        path is for the caller to see.
        """
        if not entry.inode:
            return b""
        with _damage_is_told():
            found = self._db.execute(
                "SELECT key, mtime_ns, size FROM agreed WHERE inode = ? AND kind = ?",
                (_signed(entry.inode), entry.kind),
            ).fetchall()
        if len(found) != 1:
            return b""  # names of one file: which of them went where cannot be told
        key, mtime_ns, size = found[0]
        if entry.kind is Kind.FILE and (mtime_ns, size) != (entry.mtime_ns, entry.size):
            return b""
        return _path_of(key)

    def names_of(self, inode: int) -> list[bytes]:
        """Return the paths at which an inode was agreed to; whether they are still is not said."""
        with _damage_is_told():
            found = self._db.execute(
                "SELECT key FROM agreed WHERE inode = ?", (_signed(inode),)
            ).fetchall()
        return [_path_of(key) for (key,) in found]

    def inode_at(self, path: bytes) -> int:
        """Return the inode that a path was agreed to have; 0 when nobody knows."""
        with _damage_is_told():
            found = self._db.execute(
                "SELECT inode FROM agreed WHERE key = ?", (order_key(path),)
            ).fetchone()
        return 0 if found is None else found[0] & _UNSIGNED

    # Writing

    def write(self, changes: Iterable[tuple[bytes, Entry | None, int]]) -> int:
        """Write agreements (path, entry, number), durably; number 0 forgets. Return how many."""
        done = 0
        batch: list[tuple[bytes, Entry | None, int]] = []
        for change in changes:
            batch.append(change)
            if len(batch) >= _BATCH:
                done += self._write(batch)
                batch = []
        return done + (self._write(batch) if batch else 0)

    def _write(self, batch: list[tuple[bytes, Entry | None, int]]) -> int:
        highest = max(number for _, _, number in batch)
        with _damage_is_told(), self._transaction():
            self._insert(_row(path, entry, number) for path, entry, number in batch if number)
            self._db.executemany(
                "DELETE FROM agreed WHERE key = ?",
                ((order_key(path),) for path, _, number in batch if not number),
            )
            if highest > self.number:
                self._db.execute(
                    "INSERT OR REPLACE INTO about VALUES ('number', ?)", (str(highest),)
                )
        return len(batch)

    def _insert(self, rows: Iterable[_Row]) -> None:
        marks = ", ".join("?" * 13)
        self._db.executemany(
            f"INSERT OR REPLACE INTO agreed VALUES ({marks})",  # noqa: S608 - our own words
            rows,
        )

    def move(self, path: bytes, to: bytes) -> None:
        """Give the records of a path, and of everything below it, another place."""
        rows = [
            (order_key(to + _path_of(row[0])[len(path) :]), *row[1:])
            for row in self._select(_subtree(path))
        ]
        with _damage_is_told(), self._transaction():
            self._db.execute("DELETE FROM agreed WHERE key >= ? AND key < ?", _subtree(path))
            self._insert(rows)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Self:
        """Use it in a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


def sightings(
    entries: Iterable[Entry],
    store: AgreedStore | None,
    *,
    grafts: Iterable[Graft] = (),
    scope: Scope | None = None,
    is_gone: Callable[[Entry, bytes], bool] = lambda _entry, _path: False,
) -> Iterator[Sighting]:
    """Merge a scan with what was agreed to, in tree order; memory does not grow with the tree.

    `is_gone` says whether an entry is not at that path any more: asked for what may have been renamed
    from there.
    """
    grafts = tuple(grafts)
    if grafts:
        entries = placed(entries)
    if store is None:
        return (Sighting(entry.path, entry) for entry in entries)
    return _Merge(store, is_gone).run(iter(entries), store.records(grafts, scope))


class _Merge:
    """A scan and the records beside it, path by path."""

    def __init__(self, store: AgreedStore, is_gone: Callable[[Entry, bytes], bool]) -> None:
        self._store = store
        self._is_gone = is_gone

    def run(self, entries: Iterator[Entry], rows: Iterator[_Row]) -> Iterator[Sighting]:
        row = next(rows, None)
        for entry in entries:
            key = entry.path.replace(b"/", b"\0")
            while row is not None and row[0] < key:
                yield _gone(row)
                row = next(rows, None)
            if row is None or row[0] != key:
                yield Sighting(entry.path, entry, None, self._came_from(entry))
                continue
            yield self._met(entry, row)
            row = next(rows, None)
        while row is not None:
            yield _gone(row)
            row = next(rows, None)

    def _met(self, entry: Entry, row: _Row) -> Sighting:
        """Take a path that has a record."""
        if row[2:7] == entry[1:6] and row[8] == entry.attributes and row[9] == entry.device:
            if row[7] and not entry.digest and row[10] == _signed(entry.seen):
                # What stands on inode and ctime need not be read again.
                entry = entry._replace(digest=row[7])
            return _as_agreed(entry, row)
        was = _entry(row)
        is_other = was is None or was.kind is not entry.kind or was.inode != entry.inode
        came_from = self._came_from(entry) if is_other else b""
        return Sighting(entry.path, entry, Agreed(row[1], was), came_from)

    def _came_from(self, entry: Entry) -> bytes:
        path = self._store.renamed_from(entry)
        return path if path and path != entry.path and self._is_gone(entry, path) else b""


def _one_for_each_place(rows: Iterable[_Row]) -> Iterator[_Row]:
    """Leave of rows with one key the first: what was agreed to of what comes to a place counts there.

    A graft may lead to a place that has a record of its own (of what is gone from it, or of nothing),
    and one that lies in another leads to where that one leads as well.
    """
    last: bytes | None = None
    for row in rows:
        if row[0] != last:
            last = row[0]
            yield row


def _gone(row: _Row) -> Sighting:
    return Sighting(_path_of(row[0]), None, Agreed(row[1], _entry(row)))


def _as_agreed(entry: Entry, row: _Row) -> Sighting:
    """Return the sighting of what is as it was agreed to, but for a digest perhaps."""
    if row[7] == entry.digest:
        return Sighting(entry.path, entry, Agreed(row[1], entry))
    return Sighting(entry.path, entry, Agreed(row[1], _entry(row)))


def _subtree(path: bytes) -> tuple[bytes, bytes]:
    """Return the first key of a path and what lies below it, and the first one after those."""
    key = order_key(path)
    return (key, key + b"\1") if key else (b"", b"\xff" * 8)


def _key_of(row: _Row) -> bytes:
    return row[0]


def _path_of(key: bytes) -> bytes:
    return key.replace(b"\0", b"/")


_UNSIGNED = (1 << 64) - 1


def _signed(number: int) -> int:
    """Return 64 bits as SQLite's integers have them, with a sign."""
    return number - (1 << 64) if number >> 63 else number


def _row(path: bytes, entry: Entry | None, number: int) -> _Row:
    key = order_key(path)
    if entry is None:
        return (key, number, _ABSENT, 0, 0, 0, b"", b"", b"", 0, 0, 0, 0)
    return (
        key,
        number,
        entry.kind,
        entry.mode,
        entry.mtime_ns,
        entry.size,
        entry.link,
        entry.digest,
        entry.attributes,
        _signed(entry.device),
        _signed(entry.seen),
        _signed(entry.inode),
        entry.ctime_ns,
    )


def _entry(row: _Row) -> Entry | None:
    _, _, kind, mode, mtime_ns, size, link, digest, attributes, device, seen, inode, ctime_ns = row
    if kind == _ABSENT:
        return None
    return Entry(
        _path_of(row[0]),
        Kind(kind),
        mode,
        mtime_ns,
        size,
        link,
        seen & _UNSIGNED or 1,
        digest,
        attributes,
        inode & _UNSIGNED,
        1,
        device & _UNSIGNED,
        ctime_ns,
    )
