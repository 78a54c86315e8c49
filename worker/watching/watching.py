"""The watched roots of one worker."""

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path

import structlog

from wire.orders import WatchDescription
from worker.roots import Roots
from worker.watching.clocks import Clocks
from worker.watching.errors import JournalUnusable
from worker.watching.feed import Feed
from worker.watching.pending import Consumer
from worker.watching.root_watch import RootWatch
from worker.watching.settling import SETTLE_S
from worker.watching.state import NOT_WATCHED, WatchMode, WatchState

log = structlog.get_logger()

UNUSED_S = 14 * 86_400.0
"""For so long changes are kept for a consumer that nobody opens any more."""


class Watching:
    """Watches roots for whoever opens a feed of them. For the worker's event loop."""

    def __init__(self, roots: Roots, directory: Path, clocks: Clocks | None = None) -> None:
        """Keep journals in `directory`."""
        self._roots = roots
        self._directory = directory
        self._clocks = clocks or Clocks()
        self._watches: dict[str, RootWatch] = {}
        self._feeds: dict[tuple[str, Consumer], Feed] = {}
        self._settle_s: dict[tuple[str, Consumer], float] = {}
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Go on watching what was watched when the worker stopped, and what is `always`."""
        for name in self._roots.names:
            mode = self._roots.mode(name)
            if mode is WatchMode.NEVER:
                continue
            if mode is not WatchMode.ALWAYS and not self._file(name).exists():
                continue
            try:
                async with self._lock:
                    watch = await self._watch(name)
                    unused = self._clocks.wall() - UNUSED_S
                    for one in await asyncio.to_thread(watch.journal.forget_unused, unused):
                        log.warning("watch_consumer_forgotten", root=name, consumer=str(one))
                    watch.start()
                await self._end_if_unused(name)
            except JournalUnusable as error:
                log.warning("watch_not_begun", root=name, why=str(error))

    async def open(
        self, root: str, consumer: Consumer, *, settle_s: float = SETTLE_S
    ) -> Feed | None:
        """Return the feed of a consumer, watching its root from now on; None where that is `never`.

        A consumer that is new, or whose top is another, has everything before it. Of the feeds of a
        root, the shortest `settle_s` holds. One feed of a consumer at a time. Raises KeyError for
        a root that the worker does not export, and JournalUnusable.
        """
        exported = self._roots[root]
        if exported.watch is WatchMode.NEVER:
            return None
        async with self._lock:
            watch = await self._watch(exported.name)
            await asyncio.to_thread(watch.register, consumer)
            watch.start()
            feed = Feed(consumer, watch)
            self._feeds[root, consumer] = feed
            self._settle_s[root, consumer] = settle_s
            self._set_settle(root)
        return feed

    async def close_feed(self, root: str, feed: Feed) -> None:
        """Let go of a feed. Changes are kept for its consumer, who may open another."""
        if self._feeds.get((root, feed.consumer)) is feed:
            del self._feeds[root, feed.consumer]
            self._settle_s.pop((root, feed.consumer), None)
            self._set_settle(root)

    async def forget(self, root: str, consumer: Consumer) -> None:
        """Keep nothing for a consumer any more; who is left alone by all is watched no more.

        Harmless for one who is unknown. Raises JournalUnusable.
        """
        self._feeds.pop((root, consumer), None)
        self._settle_s.pop((root, consumer), None)
        watch = self._watches.get(root)
        if watch is None:
            return
        self._set_settle(root)
        await asyncio.to_thread(watch.forget, consumer)
        await self._end_if_unused(root)

    async def _end_if_unused(self, root: str) -> None:
        async with self._lock:
            watch = self._watches.get(root)
            if watch is None or self._roots.mode(root) is WatchMode.ALWAYS:
                return
            if not watch.journal.consumers:
                del self._watches[root]
                await asyncio.to_thread(watch.stop)

    async def consumers(self, root: str, job: str) -> list[Consumer]:
        """Return the consumers of a job at a root for whom changes are kept."""
        watch = self._watches.get(root)
        if watch is None:
            return []
        return [one for one in watch.journal.consumers if one.job == job]

    def state(self, root: str) -> WatchState:
        """Return how a root is watched now."""
        watch = self._watches.get(root)
        return watch.state() if watch is not None else NOT_WATCHED

    def describe_all(self) -> dict[str, WatchDescription]:
        """Say how every root is watched. Blocks on the disk."""
        return {name: self.describe(name) for name in self._roots.names}

    def describe(self, root: str) -> WatchDescription:
        """Say how a root is watched. Blocks on the disk."""
        watch = self._watches.get(root)
        state, pending = NOT_WATCHED, 0
        if watch is not None:
            state = watch.state()
            # Whoever was forgotten meanwhile has nothing pending; a journal that cannot be read says
            # so in the state.
            with contextlib.suppress(JournalUnusable, KeyError):
                pending = sum(watch.journal.count(one) for one in watch.journal.consumers)
        mode = self._roots.mode(root)
        return WatchDescription(
            mode, state.source, state.phase, state.reason, state.directories, pending
        )

    async def close(self) -> None:
        """Stop watching; what is pending is kept, and what changes until the next start is found."""
        async with self._lock:
            watches, self._watches = self._watches, {}
            self._feeds.clear()
            for watch in watches.values():
                await asyncio.to_thread(watch.stop)

    async def _watch(self, root: str) -> RootWatch:
        watch = self._watches.get(root)
        if watch is None:
            exported = self._roots[root]
            watch = await asyncio.to_thread(
                lambda: RootWatch(
                    root,
                    exported.path,
                    self._file(root),
                    tell=lambda consumers: self._tell(root, consumers),
                    clocks=self._clocks,
                )
            )
            self._watches[root] = watch
        return watch

    def _file(self, root: str) -> Path:
        return self._directory / f"{root}.db"

    def _set_settle(self, root: str) -> None:
        watch = self._watches.get(root)
        told = [settle_s for (name, _), settle_s in self._settle_s.items() if name == root]
        if watch is not None:
            watch.settle_s = min(told, default=SETTLE_S)

    def _tell(self, root: str, consumers: Iterable[Consumer]) -> None:
        """Wake who has news; from any thread."""
        for consumer in list(consumers):
            feed = self._feeds.get((root, consumer))
            if feed is not None:
                feed.tell()
