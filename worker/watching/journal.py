"""The durable journal of a root: for every consumer, the paths that may have changed for it.

A path is pending once, however often it changes, and since its first change; a deep path stands for
everything below it. It leaves when the consumer says that it is done as of the batch that it was in;
what changed after that batch was made stays. `ChangeJournal` blocks on the disk.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from syncengine.failpoints import JournalStep, reach
from syncengine.names import order_key, parent_of
from syncengine.wall import Wall, machine_wall
from worker.watching.coalesce import coalesced, is_below, relative_to
from worker.watching.pending import Consumer, PendingBatch, PendingPath, RenameHint
from worker.watching.store import Store

MOST_PENDING = 50_000
"""Paths of a consumer that are remembered one by one; beyond, directories stand for what is in them."""

BATCH_PATHS = 10_000
"""Paths of a batch, unless its taker says otherwise."""

_MOST_RENAMES = 10_000
_NEW = "nobody looked at it yet"
_MANY = "more changed than is remembered one by one"

_INSERT = """
INSERT INTO pending VALUES (?, ?, ?, ?, 0, '')
ON CONFLICT DO UPDATE SET since = excluded.since WHERE excluded.since < since
"""
_USED = "UPDATE consumers SET opened_at = ? WHERE id = ?"
_AGAIN = """
INSERT INTO pending VALUES (?, ?, ?, ?, 0, '') ON CONFLICT DO UPDATE SET number = excluded.number
"""


class Change(NamedTuple):
    """A path of the root, b"" for itself, that may be another than it was."""

    path: bytes
    at: float
    """When, in seconds of the epoch."""
    is_deep: bool = False
    reason: str = ""
    """Why all of it is to be looked at, when it is deep."""


class Rename(NamedTuple):
    """A rename inside the root, noted beside the changes of both paths."""

    old: bytes
    new: bytes
    is_directory: bool


class _Queue:
    """What memory knows of a consumer's pending paths."""

    __slots__ = (
        "added",
        "consumer",
        "deep",
        "deep_again",
        "flight",
        "flight_deep",
        "held",
        "id",
        "upto",
    )

    def __init__(self, number: int, consumer: Consumer) -> None:
        self.id = number
        self.consumer = consumer
        self.deep: dict[bytes, float] = {}
        """Deep paths that are pending, and since when."""
        self.flight: dict[bytes, float | None] = {}
        """The paths of the last batch, each with when it first changed after that was made."""
        self.flight_deep: frozenset[bytes] = frozenset()
        """The deep ones of them: they stand for everything below, as of the batch."""
        self.deep_again: set[bytes] = set()
        """Those of the batch below which anything may have changed after it was made: the others
        leave no more behind than a change of their own entry."""
        self.upto = -1
        """The number of the last batch, while it is neither done nor superseded."""
        self.held: dict[bytes, float] = {}
        """Paths that failed, and until when they are held back, on the monotonic clock."""
        self.added = 0
        """Paths added since they were counted last."""

    def covering(self, path: bytes) -> bytes | None:
        """Return the pending deep path, not yet handed out, that stands for this one too."""
        if not self.deep:
            return None
        at = path
        while True:
            if at in self.deep and not self.is_handed_out(at):
                return at
            if not at:
                return None
            at = parent_of(at)

    def is_handed_out(self, path: bytes) -> bool:
        """Say whether the last batch stands for a path: a change since then is a new one."""
        if path in self.flight:
            return True
        at = path
        while at and self.flight_deep:
            at = parent_of(at)
            if at in self.flight_deep:
                return True
        return False

    def hand_out(self, paths: Iterable[bytes], deep: Iterable[bytes], upto: int) -> None:
        """Note the last batch."""
        self.flight = dict.fromkeys(paths)
        self.flight_deep = frozenset(deep)
        self.deep_again = set()
        self.upto = upto

    def take_back(self) -> None:
        """Note that there is no batch out."""
        self.hand_out((), (), -1)


class ChangeJournal:
    """One root's journal. Safe to call from several threads; raises JournalUnusable."""

    def __init__(
        self,
        store: Store,
        *,
        most: int = MOST_PENDING,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Wall = machine_wall,
    ) -> None:
        """Read who consumes; `most` bounds the paths that are remembered for each."""
        self._store = store
        self._most = most
        self._monotonic = monotonic
        self._wall = wall
        self._queues: dict[tuple[str, str], _Queue] = {}
        self._number = 0
        self._load()
        store.reload_with(self._load)

    def _load(self) -> None:
        with self._store.reading() as db:
            before, self._queues = self._queues, {}
            for number, job, name, top in db.execute("SELECT id, job, name, top FROM consumers"):
                queue = _Queue(number, Consumer(job, name, top))
                if (job, name) in before:
                    known = before[job, name]
                    queue.held = known.held
                    # A batch is out whatever was undone: what changes now has changed since then.
                    queue.flight, queue.flight_deep = known.flight, known.flight_deep
                    queue.upto = known.upto
                queue.deep = _deep(db, number)
                self._queues[job, name] = queue
            highest = db.execute(
                "SELECT max(coalesce((SELECT max(number) FROM pending), 0), "
                "coalesce((SELECT max(number) FROM renames), 0))"
            ).fetchone()[0]
        self._number = max(self._number, highest)

    # Consumers

    @property
    def consumers(self) -> list[Consumer]:
        """Everybody for whom changes are kept."""
        with self._store.reading():
            return [queue.consumer for queue in self._queues.values()]

    def register(self, consumer: Consumer, now: float) -> bool:
        """Keep changes for a consumer from now on; return whether it is new.

        Everything is pending for a new one, and for one whose top is another now.
        """
        with self._store.transaction() as db:
            queue = self._queues.get((consumer.job, consumer.name))
            if queue is not None and queue.consumer == consumer:
                db.execute(_USED, (now, queue.id))
                return False
            if queue is not None:
                self.forget(queue.consumer)
            made = db.execute(
                "INSERT INTO consumers (job, name, top, opened_at) VALUES (?, ?, ?, ?)",
                (consumer.job, consumer.name, consumer.top, now),
            )
            queue = _Queue(int(made.lastrowid or 0), consumer)
            self._queues[consumer.job, consumer.name] = queue
            self._add_deep(db, queue, b"", now, _NEW)
            return True

    def forget(self, consumer: Consumer) -> None:
        """Keep nothing for a consumer any more; harmless when it is unknown."""
        with self._store.transaction() as db:
            queue = self._queues.pop((consumer.job, consumer.name), None)
            if queue is None:
                return
            for table, column in (
                ("pending", "consumer"),
                ("renames", "consumer"),
                ("consumers", "id"),
            ):
                db.execute(f"DELETE FROM {table} WHERE {column} = ?", (queue.id,))  # noqa: S608

    def forget_unused(self, before: float) -> list[Consumer]:
        """Forget those that nobody used since then, in seconds of the epoch; return them."""
        with self._store.transaction() as db:
            rows = db.execute("SELECT job, name FROM consumers WHERE opened_at < ?", (before,))
            gone = [self._queues[job, name].consumer for job, name in rows.fetchall()]
            for consumer in gone:
                self.forget(consumer)
        return gone

    # What changed

    def add(self, changes: Iterable[Change], renames: Iterable[Rename] = ()) -> set[Consumer]:
        """Make changes pending for all whom they concern, durably; return those who have news."""
        changes = list(changes)
        renames = list(renames)
        with self._store.transaction() as db:
            self._number += 1
            concerned = {
                queue.consumer
                for queue in self._queues.values()
                if self._add_for(db, queue, changes, renames)
            }
            reach(JournalStep.BEFORE_CHANGES)
        reach(JournalStep.AFTER_CHANGES)
        return concerned

    def _add_for(
        self, db: sqlite3.Connection, queue: _Queue, changes: list[Change], renames: list[Rename]
    ) -> bool:
        top = queue.consumer.top
        rows: list[tuple[int, bytes, int, float]] = []
        has_news = False
        for path, at, is_deep, reason in changes:
            below = relative_to(top, path)
            if below is None:
                if not is_deep or not is_below(top, path):
                    continue
                below = b""  # came, went or moved on the way to the top: that is another now
            has_news = True
            queue.held.pop(below, None)
            covering = queue.covering(below)
            if covering is not None:
                if at < queue.deep[covering]:
                    self._add_deep(db, queue, covering, at, reason)
            elif is_deep:
                self._insert(db, queue, rows)
                self._add_deep(db, queue, below, at, reason)
            elif queue.is_handed_out(below):
                if below in queue.flight:
                    self._again(queue, below, at)
                db.execute(_AGAIN, (queue.id, order_key(below), self._number, at))
            else:
                rows.append((queue.id, order_key(below), self._number, at))
        self._insert(db, queue, rows)
        self._add_renames(db, queue, renames)
        if queue.added > self._most // 10:
            self._bound(db, queue)
        return has_news

    def _insert(
        self, db: sqlite3.Connection, queue: _Queue, rows: list[tuple[int, bytes, int, float]]
    ) -> None:
        if rows:
            db.executemany(_INSERT, rows)
            queue.added += len(rows)
            rows.clear()

    @staticmethod
    def _again(queue: _Queue, path: bytes, at: float) -> None:
        before = queue.flight[path]
        queue.flight[path] = at if before is None else min(before, at)

    def _add_deep(
        self, db: sqlite3.Connection, queue: _Queue, path: bytes, at: float, reason: str
    ) -> None:
        """Let one deep path take the place of everything pending at or below it."""
        key, after = _range(path)
        below = db.execute(
            "SELECT min(since) FROM pending WHERE consumer = ? AND key > ? AND key < ?",
            (queue.id, key, after),
        ).fetchone()[0]
        at = at if below is None else min(at, below)
        if path in queue.flight:
            self._again(queue, path, at)
            queue.deep_again.add(path)
        own = db.execute(
            "SELECT since, reason FROM pending WHERE consumer = ? AND key = ?", (queue.id, key)
        ).fetchone()
        since = at if own is None else min(at, own[0])
        reason = reason or (own[1] if own is not None else "")
        db.execute(
            "DELETE FROM pending WHERE consumer = ? AND key >= ? AND key < ?",
            (queue.id, key, after),
        )
        db.execute(
            "INSERT INTO pending VALUES (?, ?, ?, ?, 1, ?)",
            (queue.id, key, self._number, since, reason),
        )
        for deep in [deep for deep in queue.deep if is_below(deep, path)]:
            del queue.deep[deep]
        queue.deep[path] = since
        queue.added += 1

    def _add_renames(
        self, db: sqlite3.Connection, queue: _Queue, renames: Iterable[Rename]
    ) -> None:
        for rename in renames:
            old = relative_to(queue.consumer.top, rename.old)
            new = relative_to(queue.consumer.top, rename.new)
            if not old or not new:
                continue  # moved in or out: nothing of it was, or is, the consumer's
            chained = db.execute(
                "DELETE FROM renames WHERE consumer = ? AND new = ? AND number > ? RETURNING old",
                (queue.id, old, queue.upto),
            ).fetchall()
            if chained:
                old = chained[-1][0]
            if old == new:
                continue
            self._number += 1
            db.execute(
                "INSERT INTO renames VALUES (?, ?, ?, ?, ?)",
                (queue.id, self._number, old, new, rename.is_directory),
            )
            db.execute(
                "DELETE FROM renames WHERE consumer = ? AND number <= (SELECT number FROM renames "
                "WHERE consumer = ? ORDER BY number DESC LIMIT 1 OFFSET ?)",
                (queue.id, queue.id, _MOST_RENAMES),
            )

    def _bound(self, db: sqlite3.Connection, queue: _Queue) -> None:
        """Let directories stand for what is in them, where there are too many paths."""
        queue.added = 0
        if self.count(queue.consumer) <= self._most:
            return
        rows = db.execute("SELECT key, since FROM pending WHERE consumer = ?", (queue.id,))
        paths = {_path(key): since for key, since in rows}
        for path, since in coalesced(paths, self._most // 2).items():
            self._add_deep(db, queue, path, since, _MANY)

    # What a consumer takes

    def pending(self, consumer: Consumer, limit: int = BATCH_PATHS) -> PendingBatch | None:
        """Return what the consumer is to look at, the longest waiting first; None for nothing.

        A batch supersedes the one before: one at a time. Both sides of a rename come together, so
        there may be a few more than `limit`. What failed and is held back comes later.
        """
        with self._store.reading() as db:
            queue = self._queues[consumer.job, consumer.name]
            now = self._monotonic()
            queue.held = {path: until for path, until in queue.held.items() if until > now}
            if b"" in queue.deep:
                return None if b"" in queue.held else self._everything(db, queue)
            selected: dict[bytes, tuple[float, bool]] = {}
            for key, since, is_deep in db.execute(
                "SELECT key, since, is_deep FROM pending WHERE consumer = ? ORDER BY number, key "
                "LIMIT ?",
                (queue.id, limit + len(queue.held) + 1),
            ):
                path = _path(key)
                if path not in queue.held:
                    selected[path] = (since, bool(is_deep))
            has_more = len(selected) > limit
            while len(selected) > limit:
                selected.popitem()
            if not selected:
                return None
            hints = self._hints(db, queue, selected)
            paths = tuple(_normal(selected))
            deep = (path for path, (_, is_deep) in selected.items() if is_deep)
            queue.hand_out(selected, deep, self._number)
            oldest = min(since for since, _ in selected.values())
            return PendingBatch(queue.consumer, paths, hints, self._number, oldest, None, has_more)

    def _everything(self, db: sqlite3.Connection, queue: _Queue) -> PendingBatch:
        oldest, reason = db.execute(
            "SELECT (SELECT min(since) FROM pending WHERE consumer = ?), reason FROM pending "
            "WHERE consumer = ? AND key = ?",
            (queue.id, queue.id, b""),
        ).fetchone()
        queue.hand_out([b""], [b""], self._number)
        paths = (PendingPath(b"", is_deep=True),)
        return PendingBatch(queue.consumer, paths, (), self._number, oldest, reason, has_more=False)

    @staticmethod
    def _hints(
        db: sqlite3.Connection, queue: _Queue, selected: dict[bytes, tuple[float, bool]]
    ) -> tuple[RenameHint, ...]:
        """Return the renames of what is selected, and select their other sides too."""
        hints = []
        for old, new, is_directory in db.execute(
            "SELECT old, new, is_directory FROM renames WHERE consumer = ? ORDER BY number",
            (queue.id,),
        ).fetchall():
            if old not in selected and new not in selected:
                continue
            for side in (old, new):
                if side in selected:
                    continue
                row = db.execute(
                    "SELECT since, is_deep FROM pending WHERE consumer = ? AND key = ?",
                    (queue.id, order_key(side)),
                ).fetchone()
                if row is not None:
                    selected[side] = (row[0], bool(row[1]))
            if _is_covered(old, selected) and _is_covered(new, selected):
                hints.append(RenameHint(old, new, bool(is_directory)))
        return tuple(hints)

    def done(
        self,
        batch: PendingBatch,
        *,
        failed: Iterable[tuple[bytes, bool]] = (),
        retry_after_s: float = 0.0,
    ) -> None:
        """Let go of a batch, durably, but for what `failed`: paths at or below its own, each with
        whether it is deep.

        Those stay pending since they were, behind all that waits now, and are held back for
        `retry_after_s` seconds, or until they change again. What changed since the batch was made
        stays pending since then. Of a superseded batch nothing newer is forgotten either.
        """
        left = dict(failed)
        with self._store.transaction() as db:
            queue = self._queues.get((batch.consumer.job, batch.consumer.name))
            if queue is None or queue.consumer != batch.consumer:
                return
            db.execute(_USED, (self._wall(), queue.id))
            self._number += 1
            flight = queue.flight if queue.upto == batch.upto else {}
            kept = {path: self._row_of(db, queue, path) for path in left}
            gone = [*batch.paths, *((path, False) for path in flight)]
            self._let_go(db, queue, gone, batch.upto)
            for path, (since, was_deep, reason) in kept.items():
                self._keep(db, queue, PendingPath(path, left[path] or was_deep), since, reason)
                if retry_after_s > 0 and flight.get(path) is None:
                    queue.held[path] = self._monotonic() + retry_after_s
            for path, again in flight.items():
                if again is not None and path not in left:
                    self._stay(db, queue, path, again)
            self._let_go_of_renames(db, queue, batch, left)
            if queue.upto == batch.upto:
                queue.take_back()
            queue.deep = _deep(db, queue.id)
            reach(JournalStep.BEFORE_DONE)
        reach(JournalStep.AFTER_DONE)

    def _row_of(
        self, db: sqlite3.Connection, queue: _Queue, path: bytes
    ) -> tuple[float, bool, str]:
        """Return since when a path is pending, by itself or by what stands for it, and its own row."""
        since, own = float("inf"), (False, "")
        at = path
        while True:
            row = db.execute(
                "SELECT since, is_deep, reason FROM pending WHERE consumer = ? AND key = ?",
                (queue.id, order_key(at)),
            ).fetchone()
            if row is not None and (at == path or row[1]):
                since = min(since, row[0])
                own = (bool(row[1]), row[2]) if at == path else own
            if not at:
                break
            at = parent_of(at)
        return min(since, self._wall()), *own

    @staticmethod
    def _let_go(
        db: sqlite3.Connection, queue: _Queue, paths: Iterable[tuple[bytes, bool]], upto: int
    ) -> None:
        shallow = []
        for path, is_deep in paths:
            key, after = _range(path)
            if not is_deep:
                shallow.append((queue.id, key, upto))
                continue
            db.execute(
                "DELETE FROM pending WHERE consumer = ? AND key >= ? AND key < ? AND number <= ?",
                (queue.id, key, after, upto),
            )
        db.executemany(
            "DELETE FROM pending WHERE consumer = ? AND key = ? AND number <= ?", shallow
        )

    @staticmethod
    def _stay(db: sqlite3.Connection, queue: _Queue, path: bytes, since: float) -> None:
        """Leave of a path of the batch that is done no more than what changed after it was made.

        A directory that was pending with all below it may only have got another time: then that alone
        is left. CRASH: before this is durable, all below it is looked at once more.
        """
        is_deep = path in queue.deep_again
        db.execute(
            "UPDATE pending SET since = ?, is_deep = ?, reason = iif(?, reason, '') "
            "WHERE consumer = ? AND key = ?",
            (since, is_deep, is_deep, queue.id, order_key(path)),
        )

    def _keep(
        self, db: sqlite3.Connection, queue: _Queue, path: PendingPath, since: float, reason: str
    ) -> None:
        """Leave a path pending that failed, behind everything else."""
        db.execute(
            "INSERT INTO pending VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "number = excluded.number, since = min(since, excluded.since), "
            "is_deep = max(is_deep, excluded.is_deep)",
            (queue.id, order_key(path.path), self._number, since, path.is_deep, reason),
        )

    @staticmethod
    def _let_go_of_renames(
        db: sqlite3.Connection, queue: _Queue, batch: PendingBatch, failed: dict[bytes, bool]
    ) -> None:
        db.executemany(
            "DELETE FROM renames WHERE consumer = ? AND old = ? AND new = ? AND number <= ?",
            (
                (queue.id, hint.old, hint.new, batch.upto)
                for hint in batch.renames
                if hint.old not in failed and hint.new not in failed
            ),
        )
        # Without anything pending that was pending then, no older hint is of any use.
        db.execute(
            "DELETE FROM renames WHERE consumer = ? AND number <= ? AND NOT EXISTS "
            "(SELECT 1 FROM pending WHERE consumer = ?)",
            (queue.id, batch.upto, queue.id),
        )

    # What is known of it

    def has_pending(self, consumer: Consumer) -> bool:
        """Say whether `pending` would return a batch now."""
        with self._store.reading() as db:
            queue = self._queues[consumer.job, consumer.name]
            now = self._monotonic()
            held = [path for path, until in queue.held.items() if until > now]
            if b"" in queue.deep:
                return b"" not in held
            found = db.execute(
                "SELECT count(*) FROM (SELECT 1 FROM pending WHERE consumer = ? LIMIT ?)",
                (queue.id, len(held) + 1),
            ).fetchone()[0]
            return bool(found > len(held))

    def next_due_in_s(self, consumer: Consumer) -> float | None:
        """Return in how many seconds the first path that is held back comes up again, if any."""
        with self._store.reading():
            held = self._queues[consumer.job, consumer.name].held
            return max(0.0, min(held.values()) - self._monotonic()) if held else None

    def oldest_change_at(self, consumer: Consumer) -> float | None:
        """Return since when something is pending, in seconds of the epoch; None for nothing.

        Never too late; too early only for a path that changed again and again while it was handed
        out and was taken up by its directory then.
        """
        with self._store.reading() as db:
            queue = self._queues[consumer.job, consumer.name]
            row = db.execute("SELECT min(since) FROM pending WHERE consumer = ?", (queue.id,))
            found = row.fetchone()[0]
        return None if found is None else float(found)

    def count(self, consumer: Consumer) -> int:
        """Return how many paths are pending."""
        with self._store.reading() as db:
            queue = self._queues[consumer.job, consumer.name]
            row = db.execute("SELECT count(*) FROM pending WHERE consumer = ?", (queue.id,))
            return int(row.fetchone()[0])


def _deep(db: sqlite3.Connection, number: int) -> dict[bytes, float]:
    rows = db.execute(
        "SELECT key, since FROM pending WHERE consumer = ? AND is_deep = 1", (number,)
    )
    return {_path(key): since for key, since in rows}


def _is_covered(path: bytes, selected: dict[bytes, tuple[float, bool]]) -> bool:
    if path in selected:
        return True
    at = path
    while at:
        at = parent_of(at)
        if at in selected and selected[at][1]:
            return True
    return False


def _normal(selected: dict[bytes, tuple[float, bool]]) -> Iterator[PendingPath]:
    """Yield paths in tree order, none below a deep one."""
    deep: bytes | None = None
    for path in sorted(selected, key=order_key):
        if deep is not None and is_below(path, deep):
            continue
        is_deep = selected[path][1]
        deep = path if is_deep else deep
        yield PendingPath(path, is_deep)


def _range(path: bytes) -> tuple[bytes, bytes]:
    """Return the key of a path, and the first one after all below it."""
    key = order_key(path)
    return key, key + b"\1" if key else b"\xff" * 8


def _path(key: bytes) -> bytes:
    return key.replace(b"\0", b"/")
