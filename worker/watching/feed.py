"""What one consumer takes from the journal of a watched root: its only way to it.

Used by one task at a time, but for `state` and `oldest_change_at`, which anybody may ask.
"""

import asyncio
import contextlib
from collections.abc import Iterable

from worker.watching.journal import BATCH_PATHS
from worker.watching.pending import Consumer, PendingBatch
from worker.watching.root_watch import RootWatch
from worker.watching.state import WatchState


class Feed:
    """A consumer's view of one root's journal. What is pending outlives the feed, and the worker."""

    def __init__(self, consumer: Consumer, watch: RootWatch) -> None:
        """Wrap the journal for a consumer that is registered there; for `Watching.open`."""
        self.consumer = consumer
        self._watch = watch
        self._journal = watch.journal
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def pending(self, limit: int = BATCH_PATHS) -> PendingBatch | None:
        """Return what is to be looked at, the longest waiting first; None when nothing is.

        It stays pending until `done`; another call supersedes the batch before. For a batch with
        `everything`, make a whole pass, begun after this call. A new consumer gets nothing before
        all of its tree is watched, so that nothing changes unseen during that pass. Raises
        JournalUnusable.
        """
        return await asyncio.to_thread(self._pending, limit)

    def _pending(self, limit: int) -> PendingBatch | None:
        if not self._watch.is_ready(self.consumer):
            return None
        return self._journal.pending(self.consumer, limit)

    def _has_pending(self) -> bool:
        return self._watch.is_ready(self.consumer) and self._journal.has_pending(self.consumer)

    async def catch_up(self) -> WatchState:
        """Have everything journaled that changed before this call, settled or not.

        Where no event tells of changes (network file systems, the limit of watches), by a scan
        against the index. Return the state after that: unless it `is_continuous`, or was found by
        scans just now (`in_doubt_since` is after the call), something may be missing. May take as
        long as a scan of the root; cancel it freely.
        """
        done: asyncio.Future[None] = self._loop.create_future()

        def finish() -> None:
            if not done.done():
                done.set_result(None)

        def tell() -> None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(finish)

        self._watch.catch_up(tell)
        await done
        return self.state()

    async def done(
        self,
        batch: PendingBatch,
        *,
        failed: Iterable[tuple[bytes, bool]] = (),
        retry_after_s: float = 0.0,
    ) -> None:
        """Let go of what the target has now, durably, as of the batch; keep what `failed`.

        `failed` are paths at or below those of the batch, each with whether it is deep (a
        `ScopePath`, a `PendingPath`): they stay pending since they were, behind all that waits, and
        come up again after `retry_after_s` seconds, or when they change. What changed since the
        batch was made stays, pending since then. To give all of a batch back, do not call this.
        Raises JournalUnusable.
        """
        await asyncio.to_thread(
            lambda: self._journal.done(batch, failed=failed, retry_after_s=retry_after_s)
        )

    async def changed(self) -> None:
        """Wait until something is pending that is not held back; returns at once if it is already.

        Raises JournalUnusable.
        """
        while True:
            self._news.clear()
            if await asyncio.to_thread(self._has_pending):
                return
            due_in_s = self._journal.next_due_in_s(self.consumer)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due_in_s):
                    await self._news.wait()

    async def oldest_change_at(self) -> float | None:
        """Return when the oldest change happened that is not done, in seconds of the epoch, for
        exposure; None when everything is.

        While the root is not watched continuously there may be changes that nobody saw yet: then no
        later than since when that is so. Changes that are not settled (50 ms) do not count.
        """
        found = await asyncio.to_thread(self._journal.oldest_change_at, self.consumer)
        doubt = self._watch.state().in_doubt_since
        return min((at for at in (found, doubt) if at is not None), default=None)

    async def count(self) -> int:
        """Return how many paths are pending."""
        return await asyncio.to_thread(self._journal.count, self.consumer)

    def state(self) -> WatchState:
        """Return how the root is watched now. While it `is_continuous`, no batch means no change."""
        return self._watch.state()

    def tell(self) -> None:
        """Say that something may be pending; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._news.set)
