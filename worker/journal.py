"""What a worker must remember over its own death: tokens accepted, and what its roots looked like.

SQLite in the state directory, in WAL mode with full synchronization: a call that returned is on the
disk (I5). Losing the file costs fencing history and a look at the roots, never data (I3). Every call
blocks on the disk: call it from a thread. What several threads write in one moment is one commit, so
that many runs a second wait for a few flushes.
"""

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from syncengine.marker import KnownRoot
from wire.token import Token
from worker.errors import StartRefused

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
    job TEXT NOT NULL,
    root TEXT NOT NULL,
    cluster_id TEXT NOT NULL,
    revision INTEGER NOT NULL,
    PRIMARY KEY (job, root)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cluster (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    id TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS roots (
    name TEXT NOT NULL PRIMARY KEY,
    known TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
    root TEXT NOT NULL,
    path BLOB NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (root, path)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS written (
    job TEXT NOT NULL,
    root TEXT NOT NULL,
    path BLOB NOT NULL,
    PRIMARY KEY (job, root, path)
) WITHOUT ROWID;
"""
_PROBES = (
    "SELECT job, root, cluster_id, revision FROM tokens LIMIT 1",
    "SELECT name, known FROM roots LIMIT 1",
    "SELECT root, path, number FROM entries LIMIT 1",
    "SELECT id FROM cluster",
    "SELECT job, root, path FROM written LIMIT 1",
)


class Written(NamedTuple):
    """A member's tree in which a job writes."""

    job: str
    root: str
    path: bytes


_Statement = tuple[str, Sequence[Sequence[object]]]
"""With the rows for which it is to be run."""


@dataclass(slots=True)
class _Write:
    """What one call writes, all or nothing."""

    statements: tuple[_Statement, ...]
    is_done: bool = False
    error: BaseException | None = None


class Journal:
    """One worker's durable memory. Safe to call from several threads; a call is never done by half."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; raise StartRefused when it is damaged or cannot be written."""
        self._lock = threading.Lock()
        self._waiting: list[_Write] = []
        """Each is appended before its thread asks for the lock, and taken by whoever has that."""
        self.commits = 0
        """How often something was flushed since the file was opened."""
        try:
            self._db = _open(path)
        except sqlite3.Error as error:
            raise StartRefused(
                f"the journal {path} cannot be used: {error}. Give it room and permission; if it is "
                "damaged, move it away: the next run then compares everything anew"
            ) from error

    def tokens(self, job: str, roots: Sequence[str]) -> dict[str, Token]:
        """Return the highest token accepted for the job at each of the roots that has one."""
        with self._lock:
            rows = self._db.execute(
                "SELECT root, cluster_id, revision FROM tokens WHERE job = ?", (job,)
            ).fetchall()
        return {
            root: Token(int(cluster, 16), revision)
            for root, cluster, revision in rows
            if root in roots
        }

    def accept(self, job: str, roots: Sequence[str], token: Token) -> None:
        """Make the token durable for all roots at once. Judging it is the fence's business."""
        rows = [(job, root, f"{token.cluster_id:x}", token.revision) for root in roots]
        self._write(("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?)", rows))

    def accepted_cluster(self) -> int | None:
        """Return the id of the etcd cluster that an operator accepted; None when none ever did."""
        with self._lock:
            row = self._db.execute("SELECT id FROM cluster").fetchone()
        return None if row is None else int(row[0], 16)

    def accept_cluster(self, cluster_id: int, revision: int) -> int:
        """Take tokens of this cluster only, from now on; return how many were forgotten.

        Forgotten are those of other clusters, and those of this one beyond `revision`, which it has
        not come to: it was set back.
        """
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            gone = self._db.execute(
                "DELETE FROM tokens WHERE cluster_id != ? OR revision > ?",
                (f"{cluster_id:x}", revision),
            ).rowcount
            self._db.execute("INSERT OR REPLACE INTO cluster VALUES (1, ?)", (f"{cluster_id:x}",))
        return gone

    def known_root(self, name: str) -> KnownRoot | None:
        """Return what is remembered of a root; None before its first use."""
        with self._lock:
            row = self._db.execute("SELECT known FROM roots WHERE name = ?", (name,)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=KnownRoot)

    def remember_root(self, name: str, known: KnownRoot, *, is_new: bool = False) -> None:
        """Remember what a root looks like now; of one that `is_new` nothing else is known."""
        text = msgspec.json.encode(known).decode()
        write: _Statement = ("INSERT OR REPLACE INTO roots VALUES (?, ?)", [(name, text)])
        forget: _Statement = ("DELETE FROM entries WHERE root = ?", [(name,)])
        self._write(*([forget, write] if is_new else [write]))

    def entries(self, root: str, path: bytes) -> int | None:
        """Return how many entries a path of a root had after the last run; None when nobody knows."""
        with self._lock:
            row = self._db.execute(
                "SELECT number FROM entries WHERE root = ? AND path = ?", (root, path)
            ).fetchone()
        return None if row is None else int(row[0])

    def remember_entries(self, root: str, path: bytes, number: int) -> None:
        """Remember how many entries a path of a root has now."""
        rows = [(root, path, number)]
        self._write(("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows))

    def written(self) -> list[Written]:
        """Return where temporaries may lie."""
        with self._lock:
            return [Written(*row) for row in self._db.execute("SELECT * FROM written")]

    def note_written(self, place: Written) -> None:
        """Take it that temporaries may lie here from now on, whatever becomes of this process."""
        self._write(("INSERT OR IGNORE INTO written VALUES (?, ?, ?)", [place]))

    def forget_written(self, places: Iterable[Written]) -> None:
        """Take it that no temporaries lie here any more."""
        statement = "DELETE FROM written WHERE job = ? AND root = ? AND path = ?"
        self._write((statement, list(places)))

    def _write(self, *statements: _Statement) -> None:
        """Make this durable, together with what others want to write; raises sqlite3.Error."""
        write = _Write(statements)
        self._waiting.append(write)
        with self._lock:
            if not write.is_done:
                # RACE: others append meanwhile, so what is taken is cut off the very same list.
                together = self._waiting[:]
                del self._waiting[: len(together)]
                self._commit(together)
        if write.error is not None:
            raise write.error

    def _commit(self, writes: Sequence[_Write]) -> None:
        error: BaseException | None = None
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                for write in writes:
                    for statement, rows in write.statements:
                        self._db.executemany(statement, rows)
            self.commits += 1
        except BaseException as failed:  # noqa: BLE001 - each of them is told: none is on the disk
            error = failed
        for write in writes:
            write.is_done, write.error = True, error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def _open(path: Path) -> sqlite3.Connection:
    """Open the file and look at all of it: damage shows at the start, not when an order comes."""
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.executescript(_SCHEMA)
        _check(db)
        _part_entries(db)
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection) -> None:
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    for probe in _PROBES:
        db.execute(probe).fetchone()


class _Whole(msgspec.Struct):
    """A root as it was remembered when numbers of entries stood in the same record."""

    entries: dict[bytes, int] = {}


def _part_entries(db: sqlite3.Connection) -> None:
    """Move what older files remember of entries to where it is now: guards go by it (I8)."""
    for name, text in db.execute("SELECT name, known FROM roots").fetchall():
        old = msgspec.json.decode(text, type=_Whole).entries
        if not old:
            continue
        known = msgspec.json.encode(msgspec.json.decode(text, type=KnownRoot)).decode()
        with db:
            db.execute("BEGIN IMMEDIATE")
            rows = [(name, path, number) for path, number in old.items()]
            db.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?)", rows)
            db.execute("UPDATE roots SET known = ? WHERE name = ?", (known, name))
