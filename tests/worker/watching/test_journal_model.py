"""The journal against a model that keeps every single change, for all that Hypothesis can think of."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from worker.watching.coalesce import is_below, relative_to
from worker.watching.journal import Change, ChangeJournal
from worker.watching.pending import Consumer, PendingBatch
from worker.watching.store import Store

CONSUMERS = (Consumer("job", "whole", b""), Consumer("job", "part", b"a"))
PATHS = [b"", b"a", b"a/b", b"a/b/c", b"a/b/d", b"a!", b"e", b"e/f", b"a/b/c/g", b"e/f/h/i"]
paths = st.sampled_from(PATHS)
who = st.sampled_from(CONSUMERS)


class Model(RuleBasedStateMachine):
    """For each consumer, the changes that it must still be told of: (path, is deep, when)."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.now = 100.0
        self.owed: dict[Consumer, list[tuple[bytes, bool, float]]] = {}
        self.batches: dict[Consumer, tuple[PendingBatch, int]] = {}
        self.loose: set[tuple[Consumer, bytes]] = set()
        """Paths that may be deep though nothing below them changed."""

    @initialize(most=st.sampled_from([4, 1_000]))
    def begin(self, most: int) -> None:
        self.most = most
        self.store = Store(Path(self.directory.name) / "root.db")
        self.journal = self._journal()
        for consumer in CONSUMERS:
            self.journal.register(consumer, self.now)
            self.owed[consumer] = [(b"", True, self.now)]

    def _journal(self) -> ChangeJournal:
        return ChangeJournal(self.store, most=self.most, monotonic=self.time, wall=self.time)

    def time(self) -> float:
        return self.now

    @rule(changes=st.lists(st.tuples(paths, st.booleans()), min_size=1, max_size=5))
    def change(self, changes: list[tuple[bytes, bool]]) -> None:
        self.now += 1.0
        self.journal.add([Change(path, self.now, is_deep) for path, is_deep in changes])
        for consumer in CONSUMERS:
            for path, is_deep in changes:
                below = relative_to(consumer.top, path)
                if below is None and is_deep and is_below(consumer.top, path):
                    below = b""
                if below is not None:
                    self.owed[consumer].append((below, is_deep, self.now))

    @rule(consumer=who, limit=st.sampled_from([1, 2, 100]))
    def take(self, consumer: Consumer, limit: int) -> None:
        batch = self.journal.pending(consumer, limit)
        if batch is None:
            assert not self.owed[consumer]
            return
        assert len(batch.paths) <= limit
        # What the taker looks at from now on shows all changes so far.
        self.batches[consumer] = (batch, len(self.owed[consumer]))
        # Those that a deep one of the batch stands for as well are remembered by themselves no better.
        inside = [path for path, is_deep in self._rows(consumer) if is_deep and covers(batch, path)]
        self.loose.update((consumer, path) for path in inside if (path, True) not in batch.paths)

    @precondition(lambda self: bool(self.batches))
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        consumer = data.draw(st.sampled_from(sorted(self.batches, key=str)))
        batch, known = self.batches.pop(consumer)
        may_fail = [path for path in PATHS if covers(batch, path)]
        may_fail += [path for path, _ in batch.paths if path not in may_fail]
        failed = data.draw(st.lists(st.sampled_from(may_fail), unique=True, max_size=2))
        kinds = [(path, dict(batch.paths).get(path, False)) for path in failed]
        self.journal.done(batch, failed=kinds)
        owed = self.owed[consumer]
        kept = []
        for place, (path, is_deep, at) in enumerate(owed):
            if place >= known or not covers(batch, path, is_deep=is_deep):
                kept.append((path, is_deep, at))
        self.loose.update((consumer, path) for path in failed)
        for path, deep in kinds:
            # Since the first change that it may have failed to follow.
            since = [
                at
                for one, was_deep, at in owed[:known]
                if one == path or (was_deep and is_below(path, one))
            ]
            kept.append((path, deep, min(since, default=self.now)))
        self.owed[consumer] = kept

    @rule(consumer=who)
    def forget_the_batch(self, consumer: Consumer) -> None:
        self.batches.pop(consumer, None)

    @rule()
    def die(self) -> None:
        self.store.close()
        self.store = Store(Path(self.directory.name) / "root.db")
        self.journal = self._journal()
        self.batches.clear()

    @invariant()
    def all_that_is_owed_is_pending(self) -> None:
        for consumer, owed in self.owed.items():
            rows = self._rows(consumer)
            for path, is_deep, _ in owed:
                assert any(
                    (row == path and (deep or not is_deep)) or (deep and is_below(path, row))
                    for row, deep in rows
                ), (path, is_deep, rows)
            oldest = self.journal.oldest_change_at(consumer)
            if owed:
                assert oldest is not None
                assert oldest <= min(at for _, _, at in owed)
            assert len(rows) <= max(self.most, len(PATHS))

    @invariant()
    def nothing_is_pending_that_is_not_owed(self) -> None:
        for consumer, owed in self.owed.items():
            if not owed:
                assert self._rows(consumer) == []
                assert self.journal.oldest_change_at(consumer) is None
                assert not self.journal.has_pending(consumer)

    @precondition(lambda self: self.most > len(PATHS))
    @invariant()
    def nothing_stands_for_what_did_not_change(self) -> None:
        """A deep path costs a look at all below it: none is, or stays, deep without need."""
        for consumer, owed in self.owed.items():
            deep = {path for path, is_deep, _ in owed if is_deep}
            for row, is_deep in self._rows(consumer):
                assert not is_deep or row in deep or (consumer, row) in self.loose, row

    def _rows(self, consumer: Consumer) -> list[tuple[bytes, bool]]:
        with self.store.reading() as db:
            rows = db.execute(
                "SELECT key, is_deep FROM pending JOIN consumers ON id = consumer "
                "WHERE job = ? AND name = ?",
                (consumer.job, consumer.name),
            ).fetchall()
        return [(key.replace(b"\0", b"/"), bool(deep)) for key, deep in rows]

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        self.directory.cleanup()


def covers(batch: PendingBatch, path: bytes, *, is_deep: bool = False) -> bool:
    """Say whether a change of a path is seen by who looks at a batch."""
    return any(
        (path == one and (deep or not is_deep)) or (deep and is_below(path, one))
        for one, deep in batch.paths
    )


TestJournal = Model.TestCase
TestJournal.settings = settings(max_examples=40, stateful_step_count=25)
