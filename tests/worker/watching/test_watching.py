"""The watched roots of a worker, as runs use them."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from worker.roots import ExportedRoot, Roots
from worker.watching.feed import Feed
from worker.watching.pending import Consumer, PendingBatch
from worker.watching.state import WatchMode, WatchPhase, WatchSource
from worker.watching.watching import Watching

TARGET = Consumer("job", "b:files", b"")


class Worker:
    """A worker's part that watches, which can be started again."""

    def __init__(self, directory: Path, mode: WatchMode) -> None:
        self.root = directory / "files"
        self.root.mkdir()
        self._state = directory / "watching"
        self._roots = Roots((ExportedRoot("files", self.root, read_only=False, watch=mode),))
        self.watching = Watching(self._roots, self._state)

    async def restart(self) -> None:
        await self.watching.close()
        self.watching = Watching(self._roots, self._state)
        await self.watching.start()

    async def close(self) -> None:
        await self.watching.close()
        self._roots.close()


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    worker = Worker(tmp_path, WatchMode.AUTO)
    yield worker
    await worker.close()


async def opened(worker: Worker, consumer: Consumer = TARGET) -> Feed:
    feed = await worker.watching.open("files", consumer)
    assert feed is not None
    return feed


async def taken(feed: Feed) -> PendingBatch:
    async with asyncio.timeout(60):
        await feed.changed()
        batch = await feed.pending()
    assert batch is not None
    return batch


async def test_a_feed_wakes_when_something_changed(worker: Worker) -> None:
    feed = await opened(worker)
    first = await taken(feed)
    assert first.everything is not None
    await feed.done(first)
    before = time.time()
    waiting = asyncio.create_task(feed.changed())
    (worker.root / "f").write_text("x")
    async with asyncio.timeout(60):
        await waiting
    batch = await feed.pending()
    assert batch is not None
    assert [path for path, _ in batch.paths] == [b"f"]
    oldest = await feed.oldest_change_at()
    assert oldest is not None
    assert before - 0.1 <= oldest <= time.time()
    await feed.done(batch, failed=[(b"f", False)], retry_after_s=0.2)
    assert await feed.pending() is None
    assert await feed.oldest_change_at() == oldest
    again = await taken(feed)
    assert [path for path, _ in again.paths] == [b"f"]
    await feed.done(again)
    assert await feed.oldest_change_at() is None
    assert feed.state().is_continuous


async def test_a_run_that_catches_up_sees_what_was_written_just_before(worker: Worker) -> None:
    feed = await opened(worker)
    await feed.done(await taken(feed))
    (worker.root / "f").write_text("x")
    state = await feed.catch_up()
    assert state.is_continuous
    batch = await feed.pending()
    assert batch is not None
    assert [path for path, _ in batch.paths] == [b"f"]


async def test_changes_are_kept_for_who_is_away_over_a_restart(worker: Worker) -> None:
    feed = await opened(worker)
    await feed.done(await taken(feed))
    await worker.watching.close_feed("files", feed)
    (worker.root / "f").write_text("x")
    await worker.restart()
    (worker.root / "g").write_text("x")
    feed = await opened(worker)
    await feed.catch_up()
    batch = await taken(feed)
    assert batch.everything is None
    assert {path for path, _ in batch.paths} >= {b"f", b"g"}


async def test_who_is_forgotten_last_ends_the_watch(worker: Worker) -> None:
    await opened(worker)
    other = Consumer("job", "c:files", b"")
    await opened(worker, other)
    assert await worker.watching.consumers("files", "job") == [TARGET, other]
    await worker.watching.forget("files", TARGET)
    assert worker.watching.state("files").source is not WatchSource.NONE
    await worker.watching.forget("files", other)
    assert worker.watching.state("files").phase is WatchPhase.IDLE
    await worker.watching.forget("files", other)
    feed = await opened(worker)
    assert (await taken(feed)).everything is not None


async def test_never_and_always(tmp_path: Path) -> None:
    (tmp_path / "never").mkdir()
    never = Worker(tmp_path / "never", WatchMode.NEVER)
    assert await never.watching.open("files", TARGET) is None
    assert never.watching.describe("files").mode == "never"
    await never.close()
    (tmp_path / "always").mkdir()
    always = Worker(tmp_path / "always", WatchMode.ALWAYS)
    await always.watching.start()
    async with asyncio.timeout(60):
        while always.watching.state("files").phase is not WatchPhase.WATCHING:
            await asyncio.sleep(0.01)
    described = always.watching.describe("files")
    assert (described.source, described.directories, described.pending) == ("events", 1, 0)
    await always.close()
