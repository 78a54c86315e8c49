"""What stands for a journal where a root is not watched: everything, again and again."""

import asyncio
from collections.abc import Iterable

from syncengine.wall import Wall
from wire.clock import Clock
from worker.watching.pending import Consumer, PendingBatch, PendingPath
from worker.watching.state import NOT_WATCHED, WatchState

AGAIN_S = 30.0
"""How soon everything is compared again; ten times as long as that takes, if that is longer."""


class Unwatched:
    """As `Feed`, for a root of which no event is asked for."""

    def __init__(self, consumer: Consumer, clock: Clock, wall: Wall) -> None:
        """Have everything pending at once."""
        self.consumer = consumer
        self._clock = clock
        self._wall = wall
        self._due_at = clock.now()
        self._looked_at = 0.0
        self._in_step_at = wall()

    async def pending(self) -> PendingBatch | None:
        """Return everything when it is time."""
        now = self._clock.now()
        if now < self._due_at:
            return None
        self._looked_at = now
        why = "the root is not watched"
        top = (PendingPath(b"", is_deep=True),)
        return PendingBatch(self.consumer, top, (), 0, self._wall(), why, has_more=False)

    async def done(
        self,
        batch: PendingBatch,
        *,
        failed: Iterable[tuple[bytes, bool]] = (),
        retry_after_s: float = 0.0,
    ) -> None:
        """Let a while pass, a shorter one when something failed."""
        now = self._clock.now()
        self._due_at = now + max(AGAIN_S, 10 * (now - self._looked_at))
        if list(failed):
            self._due_at = now + retry_after_s
        else:
            self._in_step_at = batch.oldest_change_at

    async def changed(self) -> None:
        """Wait until it is time."""
        await asyncio.sleep(max(0.0, self._due_at - self._clock.now()))

    async def oldest_change_at(self) -> float | None:
        """Return since when there may be changes that nobody has seen."""
        return self._in_step_at

    def state(self) -> WatchState:
        """Return that nobody looks."""
        return NOT_WATCHED
