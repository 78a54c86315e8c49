"""Room for so many runs at once: who gets it, who waits, and in which order. Pure.

Room belongs to jobs, since a job has one run at a time. Of those that wait the highest priority goes
first, and of equals whoever waits longest; nothing that has room loses it to another.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Waiting:
    priority: int
    since: float
    """When it began to wait; only compared with others."""


class Room:
    """Room for `limit` runs; None is room for all."""

    def __init__(self, limit: int | None = None) -> None:
        """Begin with all of it free."""
        self.limit = limit
        self._taken: set[str] = set()
        self._waiting: dict[str, _Waiting] = {}

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
        since = since if known is None else min(since, known.since)
        self._waiting[job] = _Waiting(priority, since)

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
        able = (job for job in self._waiting if may(job))
        in_order = sorted(able, key=self._rank)
        free = len(in_order) if self.limit is None else max(0, self.limit - self.taken)
        given = in_order[:free]
        for job in given:
            self.take(job)
        return given

    def _rank(self, job: str) -> tuple[int, float, str]:
        waiting = self._waiting[job]
        return -waiting.priority, waiting.since, job
