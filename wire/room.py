"""Room for so many runs at once: who gets it, who waits, and in which order. Pure.

Room belongs to jobs, since a job has one run at a time. Of those that wait the highest priority goes
first, and of equals whoever waits longest; nothing that has room loses it to another.
"""

import heapq
from collections.abc import Callable

_Rank = tuple[int, float, str]
"""What goes first is least: priority, less than zero if it is high; since when it waits; the job."""


class Room:
    """Room for `limit` runs; None is room for all."""

    def __init__(self, limit: int | None = None) -> None:
        """Begin with all of it free."""
        self.limit = limit
        self._taken: set[str] = set()
        self._waiting: dict[str, _Rank] = {}
        self._queue: list[_Rank] = []
        """A heap of these ranks, and of some that count no more: thousands of runs may wait."""

    @property
    def taken(self) -> int:
        """How many have room; more than the limit when runs were found going on already."""
        return len(self._taken)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def has(self, job: str) -> bool:
        """Whether a job has room."""
        return job in self._taken

    def ask(self, job: str, priority: int, since: float) -> None:
        """Wait for room, from `since` on; who asked before keeps the earlier time. See `give_out`."""
        if job in self._taken:
            return
        known = self._waiting.get(job)
        since = since if known is None else min(since, known[1])
        rank = (-priority, since, job)
        if rank != known:
            self._waiting[job] = rank
            heapq.heappush(self._queue, rank)

    def take(self, job: str) -> None:
        """Take room, whether there is any or not: for a run that goes on already."""
        self._waiting.pop(job, None)
        self._taken.add(job)

    def give_back(self, job: str) -> None:
        """Leave, with room or waiting for it; then `give_out`."""
        self._taken.discard(job)
        self._waiting.pop(job, None)

    def give_out(self, may: Callable[[str], bool] = lambda _: True) -> list[str]:
        """Give free room to those that wait and may have it, the first first; return who got it."""
        given: list[str] = []
        passed_over: list[_Rank] = []
        while self._queue and (self.limit is None or self.taken < self.limit):
            rank = heapq.heappop(self._queue)
            job = rank[-1]
            if self._waiting.get(job) != rank:
                continue  # it left, or waits elsewhere in the queue
            if may(job):
                self.take(job)
                given.append(job)
            else:
                passed_over.append(rank)
        for rank in passed_over:
            heapq.heappush(self._queue, rank)
        return given
