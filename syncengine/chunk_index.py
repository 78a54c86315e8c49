"""What a worker remembers of the chunks of its files, so that they need not be read again.

A cache and no more: a file that changed since has another status, and what is lost is made anew.
One SQLite file for all roots of a worker; every question is asked for one root and for paths below
one directory of it, so that no job learns of files that it does not cover (A8).
"""

import contextlib
import os
import sqlite3
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from syncengine.chunks import ID_BYTES, Chunks
from syncengine.wall import Wall, machine_wall

LIST_BYTES = 256 * 1024 * 1024
"""All lists together take about so much; those unused for longest go first."""

_LIST_LIMIT_BYTES = 32 * 1024 * 1024
"""A longer list is not kept."""

_CANDIDATES = 4
_ASKED_AT_ONCE = 500
_TRIM_EVERY = 200
_STATUS = struct.Struct(">QQqqq")
_FEATURE = struct.Struct(">q")
_SAMPLED = 16
"""Of the ids, those whose first byte is less are looked for: 1 in 16."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    id INTEGER PRIMARY KEY,
    root TEXT NOT NULL,
    path BLOB NOT NULL,
    status BLOB NOT NULL,
    size INTEGER NOT NULL,
    head BLOB NOT NULL,
    bits INTEGER NOT NULL,
    chunks BLOB NOT NULL,
    used INTEGER NOT NULL,
    UNIQUE (root, path)
);
CREATE INDEX IF NOT EXISTS by_size ON files (root, size);
CREATE TABLE IF NOT EXISTS features (
    feature INTEGER NOT NULL,
    file INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS by_feature ON features (feature);
CREATE INDEX IF NOT EXISTS by_file ON features (file);
"""


def status_key(status: os.stat_result) -> bytes:
    """Return what tells one version of a file from another at this machine."""
    return _STATUS.pack(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


class ChunkIndex:
    """The cache of one worker. Safe to call from several threads; blocks on the disk.

    It never fails: with a damaged file or a full disk it forgets.
    """

    def __init__(self, path: Path | None, wall: Wall = machine_wall) -> None:
        """Open or make the file; None keeps everything in memory."""
        self._lock = threading.Lock()
        self._path = path
        self._wall = wall
        self._since_trim = 0
        self._db = self._open()

    def _open(self) -> sqlite3.Connection | None:
        for _ in range(2):
            db = None
            try:
                db = sqlite3.connect(
                    self._path or ":memory:", check_same_thread=False, isolation_level=None
                )
                db.execute("PRAGMA journal_mode=WAL")
                # A power cut may damage the file: then it is made anew.
                db.execute("PRAGMA synchronous=OFF")
                db.execute("PRAGMA foreign_keys=ON")
                db.executescript(_SCHEMA)
                db.execute("SELECT id, bits, head FROM files LIMIT 1").fetchone()
            except sqlite3.Error:
                if db is not None:
                    db.close()
                if self._path is not None:
                    for ending in ("", "-wal", "-shm"):
                        with contextlib.suppress(OSError):
                            Path(f"{self._path}{ending}").unlink()
            else:
                return db
        return None

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection | None]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error:
                if self._db is not None:
                    self._db.close()
                self._db = self._open()

    def chunks(self, root: str, path: bytes, status: os.stat_result, bits: int) -> Chunks | None:
        """Return the chunks of this very version of a file, cut in this way, if they are known."""
        row = None
        with self._using() as db:
            if db is not None:
                row = db.execute(
                    "SELECT id, chunks FROM files"
                    " WHERE root = ? AND path = ? AND status = ? AND bits = ?",
                    (root, path, status_key(status), bits),
                ).fetchone()
                if row is not None:
                    db.execute(
                        "UPDATE files SET used = ? WHERE id = ?", (int(self._wall()), row[0])
                    )
        if row is None:
            return None
        try:
            found = Chunks.unpacked(bits, row[1])
        except ValueError:
            return None
        return found if found.size == status.st_size else None

    def remember(
        self,
        root: str,
        path: bytes,
        status: os.stat_result,
        *,
        head: bytes = b"",
        chunks: Chunks | None = None,
    ) -> None:
        """Note a version of a file: its first bytes' digest and, if they are known, its chunks."""
        if chunks is not None and len(chunks.ids) > _LIST_LIMIT_BYTES:
            chunks = None
        row = (
            root,
            path,
            status_key(status),
            status.st_size,
            head,
            chunks.bits if chunks is not None else 0,
            chunks.packed() if chunks is not None else b"",
            int(self._wall()),
        )
        with self._using() as db:
            if db is None:
                return
            db.execute("BEGIN")
            try:
                db.execute("DELETE FROM files WHERE root = ? AND path = ?", (root, path))
                file = db.execute(
                    "INSERT INTO files (root, path, status, size, head, bits, chunks, used)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                ).lastrowid
                if chunks is not None:
                    features = {_feature(one) for one in _features(chunks)}
                    db.executemany(
                        "INSERT INTO features VALUES (?, ?)", [(one, file) for one in features]
                    )
                self._since_trim += 1
                if self._since_trim >= _TRIM_EVERY:
                    self._since_trim = 0
                    _trim(db)
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def forget(self, root: str, path: bytes) -> None:
        """Forget a file that turned out to be gone, or to be something else."""
        with self._using() as db:
            if db is not None:
                db.execute("DELETE FROM files WHERE root = ? AND path = ?", (root, path))

    def alike(self, root: str, below: bytes, size: int, head: bytes) -> list[bytes]:
        """Return a few paths below a directory that may hold a file of this size and beginning."""
        rows: list[tuple[bytes]] = []
        with self._using() as db:
            if db is not None and head:
                rows = db.execute(
                    "SELECT path FROM files WHERE root = ? AND size = ? AND head = ?"
                    " ORDER BY used DESC LIMIT ?",
                    (root, size, head, 8 * _CANDIDATES),
                ).fetchall()
        return [path for (path,) in rows if _is_below(path, below)][:_CANDIDATES]

    def holders(self, root: str, below: bytes, ids: Iterable[bytes]) -> list[bytes]:
        """Return a few paths below a directory that held most of these chunks, best first.

        `ids` may be cut short, to no less than 8 bytes.
        """
        wanted = [_feature(one) for one in ids]
        votes: dict[bytes, int] = {}
        with self._using() as db:
            for at in range(0, len(wanted) if db is not None else 0, _ASKED_AT_ONCE):
                assert db is not None
                some = wanted[at : at + _ASKED_AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = db.execute(
                    "SELECT path FROM features JOIN files ON files.id = features.file"  # noqa: S608 - marks
                    f" WHERE feature IN ({marks}) AND root = ? LIMIT 10000",
                    (*some, root),
                )
                for (path,) in rows:
                    if _is_below(path, below):
                        votes[path] = votes.get(path, 0) + 1
        return sorted(votes, key=lambda path: -votes[path])[:_CANDIDATES]

    def of(self, root: str) -> "RootChunks":
        """Return what is known of one root, by the name that this worker has for it."""
        return RootChunks(self, root)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None


class RootChunks:
    """What a worker remembers of one root. Every method is that of the index, for this root."""

    def __init__(self, index: ChunkIndex, root: str) -> None:
        self._index = index
        self._root = root

    def chunks(self, path: bytes, status: os.stat_result, bits: int) -> Chunks | None:
        """Return the chunks of this very version of a file, cut in this way, if they are known."""
        return self._index.chunks(self._root, path, status, bits)

    def remember(
        self,
        path: bytes,
        status: os.stat_result,
        *,
        head: bytes = b"",
        chunks: Chunks | None = None,
    ) -> None:
        """Note a version of a file."""
        self._index.remember(self._root, path, status, head=head, chunks=chunks)

    def forget(self, path: bytes) -> None:
        """Forget a file."""
        self._index.forget(self._root, path)

    def alike(self, below: bytes, size: int, head: bytes) -> list[bytes]:
        """Return a few paths below a directory that may hold a file of this size and beginning."""
        return self._index.alike(self._root, below, size, head)

    def holders(self, below: bytes, ids: Iterable[bytes]) -> list[bytes]:
        """Return a few paths below a directory that held most of these chunks, best first."""
        return self._index.holders(self._root, below, ids)


def _is_below(path: bytes, below: bytes) -> bool:
    return not below or path.startswith(below + b"/")


def _features(chunks: Chunks) -> Iterator[bytes]:
    """Yield the ids by which a file is found: a sample, or the smallest of a few."""
    ids = bytes(chunks.ids)
    every = [ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)]
    sample = [one for one in every if one[0] < _SAMPLED]
    yield from sample or sorted(every)[:1]


def _feature(id_: bytes) -> int:
    number: int = _FEATURE.unpack_from(id_)[0]
    return number


def _trim(db: sqlite3.Connection) -> None:
    total = db.execute("SELECT SUM(LENGTH(chunks) + 500) FROM files").fetchone()[0] or 0
    if total <= LIST_BYTES:
        return
    for file, size in db.execute(
        "SELECT id, LENGTH(chunks) + 500 FROM files ORDER BY used"
    ).fetchall():
        db.execute("DELETE FROM files WHERE id = ?", (file,))
        total -= size
        if total <= LIST_BYTES * 3 // 4:
            return
