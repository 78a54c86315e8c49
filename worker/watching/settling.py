"""When a path that changes is told: after its burst, or in the midst of one that does not end. Pure.

`settle_s` after the last event of a path; sooner when that event ended something (a writer closed the
file, something was renamed into place or removed), since most writers are done then. A path that never
comes to rest is told all the same, after `CAP_S`, and then at growing distances.
"""

import heapq
from typing import NamedTuple

SETTLE_S = 0.05
"""As the job file's default."""

QUICK = 0.2
"""Of `settle_s`: how long nothing must happen after what looks like the end of a change."""

CAP_S = 10.0
MOST_CAP_S = 600.0


class Settled(NamedTuple):
    """A path whose change is to be told."""

    path: bytes
    at: float
    """When it began to change, in seconds of the epoch."""
    is_deep: bool


class _Burst:
    __slots__ = ("at", "cap_s", "due", "first", "is_deep", "is_ended", "queued")

    def __init__(self, first: float, at: float, cap_s: float) -> None:
        self.first = first
        self.at = at
        self.cap_s = cap_s
        self.due = 0.0
        self.queued = float("inf")
        """When the queue has it next."""
        self.is_deep = False
        self.is_ended = True


class Settling:
    """The paths that changed and are not told yet. All times but `at` are on a monotonic clock."""

    def __init__(self, settle_s: float = SETTLE_S) -> None:
        """Begin with nothing."""
        self.settle_s = settle_s
        self._bursts: dict[bytes, _Burst] = {}
        self._queue: list[tuple[float, bytes]] = []
        self._restless: dict[bytes, float] = {}
        """Paths that were told in the midst of a burst, and after how long they are told again."""

    def __len__(self) -> int:
        """How many paths wait."""
        return len(self._bursts)

    def __contains__(self, path: object) -> bool:
        """Whether a path waits."""
        return path in self._bursts

    def touch(
        self, path: bytes, now: float, at: float, *, is_end: bool | None, is_deep: bool = False
    ) -> None:
        """Note an event of a path.

        `is_end` when it looks like the end of its change, None when it says nothing of that.
        """
        burst = self._bursts.get(path)
        if burst is None:
            burst = self._bursts[path] = _Burst(now, at, self._restless.get(path, CAP_S))
        burst.is_deep |= is_deep
        if is_end is not None:
            burst.is_ended = is_end
        calm_s = self.settle_s * QUICK if burst.is_ended else self.settle_s
        burst.due = min(now + calm_s, burst.first + max(burst.cap_s, self.settle_s))
        if burst.due < burst.queued:
            burst.queued = burst.due
            heapq.heappush(self._queue, (burst.due, path))

    def due(self, now: float) -> list[Settled]:
        """Take out what is to be told now."""
        found: list[Settled] = []
        queue = self._queue
        while queue and queue[0][0] <= now:
            when, path = heapq.heappop(queue)
            burst = self._bursts.get(path)
            if burst is None or when != burst.queued:
                continue
            if burst.due > now:  # it was touched again
                burst.queued = burst.due
                heapq.heappush(queue, (burst.due, path))
                continue
            self._take(path, burst, found)
        return found

    def _take(self, path: bytes, burst: _Burst, found: list[Settled]) -> None:
        del self._bursts[path]
        if burst.due >= burst.first + burst.cap_s:
            self._restless[path] = min(burst.cap_s * 2, MOST_CAP_S)
        else:
            self._restless.pop(path, None)
        found.append(Settled(path, burst.at, burst.is_deep))

    def flush(self) -> list[Settled]:
        """Take out everything, settled or not."""
        found: list[Settled] = []
        for path, burst in list(self._bursts.items()):
            self._take(path, burst, found)
        self._queue.clear()
        return found

    def next_due(self) -> float | None:
        """Return when there may be something to tell; None while nothing waits."""
        return self._queue[0][0] if self._queue else None

    def clear(self) -> None:
        """Forget everything that waits."""
        self._bursts.clear()
        self._queue.clear()
