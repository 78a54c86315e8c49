"""A root that is watched for one consumer, on the real kernel."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.worker.watching.oracle import Snapshot
from worker.watching.pending import Consumer, PendingBatch
from worker.watching.root_watch import RootWatch
from worker.watching.state import WatchPhase

TARGET = Consumer("job", "b:root", b"")
WITHIN_S = 30.0


def until(condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


class Watched:
    """A root with a watch that a test can stop, kill and start again."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.root.mkdir(exist_ok=True)
        self.file = directory / "state" / "root.db"
        self.watch = self._new()
        self.told = 0
        self.consumer = TARGET

    def _new(self) -> RootWatch:
        return RootWatch("root", self.root, self.file, tell=self._tell)

    def _tell(self, consumers: object) -> None:
        self.told += 1

    def start(self, consumer: Consumer = TARGET) -> None:
        """Watch, and wait until all of the root is."""
        self.consumer = consumer
        self.watch.register(consumer)
        self.watch.start()
        self.settled()

    def settled(self) -> None:
        """Wait until the root is watched as well as it can be."""
        until(lambda: self.watch.state().phase is WatchPhase.WATCHING)

    def restart(self) -> None:
        """Begin anew with what is on the disk, after `stop`."""
        self.watch = self._new()
        self.start(self.consumer)

    def catch_up(self) -> None:
        """Have everything journaled that has happened."""
        done = threading.Event()
        self.watch.catch_up(done.set)
        assert done.wait(WITHIN_S)

    def take(self) -> PendingBatch | None:
        """Take everything that is pending."""
        return self.watch.journal.pending(self.consumer, 1_000_000)

    def take_all(self) -> PendingBatch | None:
        """Take everything that happened until now, and have it done."""
        self.catch_up()
        batch = self.take()
        if batch is not None:
            self.watch.journal.done(batch)
        return batch

    def pending(self) -> list[tuple[bytes, bool]]:
        batch = self.take()
        return [] if batch is None else [(path, is_deep) for path, is_deep in batch.paths]

    def snapshot(self) -> Snapshot:
        return Snapshot(self.root)

    def check(self, before: Snapshot) -> PendingBatch | None:
        """Demand that everything that differs from `before` is pending; have it done."""
        self.catch_up()
        batch = self.take()
        missed = before.missed(self.snapshot(), batch)
        assert not missed, f"no event told of {missed[:20]}, but of {batch}"
        if batch is not None:
            self.watch.journal.done(batch)
        return batch


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Watched]:
    """A root that is not watched yet."""
    watched = Watched(tmp_path)
    yield watched
    watched.watch.stop()


@pytest.fixture
def watched(fresh: Watched) -> Watched:
    """A root that is watched, of which the consumer has seen everything."""
    fresh.start()
    fresh.take_all()
    return fresh
