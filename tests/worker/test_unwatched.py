"""What stands for a journal where nobody watches: everything, seldom, and never less than everything."""

import asyncio

import pytest

from tests.etcd.virtual_time import VirtualClock, run_virtual
from worker.unwatched import AGAIN_S, Unwatched
from worker.watching.pending import Consumer


def _wall() -> float:
    """A wall clock that goes with the loop, in a year of its own."""
    return 1e9 + asyncio.get_running_loop().time()


def test_everything_is_pending_again_and_again() -> None:
    async def test() -> None:
        feed = Unwatched(Consumer("job", "b:data", b""), VirtualClock(), _wall)
        batch = await feed.pending()
        assert batch is not None
        assert batch.everything
        assert [tuple(path) for path in batch.paths] == [(b"", True)]
        await asyncio.sleep(10)  # a comparison that takes its time
        await feed.done(batch)
        assert await feed.pending() is None
        began = asyncio.get_running_loop().time()
        await feed.changed()
        assert await feed.pending() is not None
        took_s = asyncio.get_running_loop().time() - began
        assert took_s == pytest.approx(100, abs=1), "most of the time nothing is compared"

    run_virtual(test(), limit_s=1_000)


def test_what_failed_comes_sooner_and_counts_as_missing_since() -> None:
    async def test() -> None:
        feed = Unwatched(Consumer("job", "b:data", b""), VirtualClock(), _wall)
        batch = await feed.pending()
        assert batch is not None
        before = await feed.oldest_change_at()
        await feed.done(batch, failed=[(b"a", False)], retry_after_s=2)
        assert await feed.oldest_change_at() == before
        await asyncio.sleep(2.1)
        batch = await feed.pending()
        assert batch is not None
        await feed.done(batch)
        assert await feed.oldest_change_at() == batch.oldest_change_at == _wall()
        await asyncio.sleep(AGAIN_S - 1)
        assert await feed.pending() is None
        assert not feed.state().is_continuous

    run_virtual(test(), limit_s=1_000)
