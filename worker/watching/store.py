"""The SQLite file of one watched root: its journal and its index, so that one transaction covers both.

In WAL mode with normal synchronization: a commit survives the death of the process, and costs no flush.
After a power cut the last commits may be missing, all of each or nothing. Then the index is as old as
the journal, and the scan with which every watching begins finds again what was forgotten (CRASH).
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from worker.watching.errors import JournalUnusable

log = structlog.get_logger()

_FORMAT = "1"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS consumers (
    id INTEGER PRIMARY KEY,
    job TEXT NOT NULL,
    name TEXT NOT NULL,
    top BLOB NOT NULL,
    opened_at REAL NOT NULL,
    UNIQUE (job, name)
);
CREATE TABLE IF NOT EXISTS pending (
    consumer INTEGER NOT NULL,
    key BLOB NOT NULL,
    number INTEGER NOT NULL,
    since REAL NOT NULL,
    is_deep INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (consumer, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pending_by_number ON pending (consumer, number);
CREATE INDEX IF NOT EXISTS pending_deep ON pending (consumer, key) WHERE is_deep = 1;
CREATE TABLE IF NOT EXISTS renames (
    consumer INTEGER NOT NULL,
    number INTEGER NOT NULL,
    old BLOB NOT NULL,
    new BLOB NOT NULL,
    is_directory INTEGER NOT NULL,
    PRIMARY KEY (consumer, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
    directory INTEGER NOT NULL,
    name BLOB NOT NULL,
    seen INTEGER NOT NULL,
    child INTEGER NOT NULL,
    PRIMARY KEY (directory, name)
) WITHOUT ROWID;
"""


class Store:
    """One file. Safe to call from several threads; every call blocks on the disk."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; raise JournalUnusable when the disk refuses.

        One that is damaged or of another format is dropped, with a line in the log.
        """
        self._path = path
        self._lock = threading.RLock()
        self._reloads: list[Callable[[], None]] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._db = _open(path)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                log.warning("watch_journal_dropped", path=str(path), why=str(error))
                for suffix in ("-wal", "-shm", ""):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                self._db = _open(path)
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> JournalUnusable:
        return JournalUnusable(
            f"the journal {self._path} cannot be used: {error}. Give it room and permission; it may be "
            "deleted while the worker is stopped: every job then compares its trees anew"
        )

    def reload_with(self, reload: Callable[[], None]) -> None:
        """Have this called when a transaction was undone: what memory knows of the file is wrong."""
        self._reloads.append(reload)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Make everything in the block durable at once, or nothing of it; blocks inside may nest.

        Raises JournalUnusable.
        """
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):  # SQLite undid it, where it must
                        self._db.execute("ROLLBACK")
                    for reload in self._reloads:
                        reload()
                    raise
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read one consistent state in the block; raises JournalUnusable."""
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    def about(self, name: str) -> str | None:
        """Return what is noted under a name."""
        with self.reading() as db:
            row = db.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def note(self, name: str, value: str) -> None:
        """Note something under a name."""
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, value))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA cache_size=-16384")
        db.executescript(_SCHEMA)
        found = db.execute("SELECT value FROM about WHERE name = 'format'").fetchone()
        if found is None:
            db.execute("INSERT INTO about VALUES ('format', ?)", (_FORMAT,))
        elif found[0] != _FORMAT:
            raise sqlite3.DatabaseError(f"its format is {found[0]}, not {_FORMAT}")  # noqa: TRY301
    except BaseException:
        db.close()
        raise
    return db
