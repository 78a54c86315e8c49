"""How long etcd takes for writes of late: a disk that is slow or shared shows there, and in no read."""

from collections import deque
from statistics import median

SLOW_WRITE_S = 0.25
"""A typical write beyond this makes starts and takeovers late; on a disk of its own one takes 10 ms."""
_KEPT = 9
_JUDGED_FROM = 5
_FRESH_S = 60.0


class WriteTimes:
    """The last few writes of a coordinator that were answered."""

    def __init__(self) -> None:
        """Begin with none."""
        self._took: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    def note(self, ended_at: float, took_s: float) -> None:
        """Remember a write; times are those of one monotonic clock, in seconds."""
        self._took.append((ended_at, took_s))

    def slow(self, now: float) -> str:
        """Return that etcd is slow, and what to do; empty when it is not, or too little is known."""
        fresh = [took_s for at, took_s in self._took if now - at <= _FRESH_S]
        if len(fresh) < _JUDGED_FROM or (typical_s := median(fresh)) <= SLOW_WRITE_S:
            return ""
        return (
            f"etcd takes {typical_s * 1000:.0f} ms for a write: runs start and are taken over that much "
            f"later for each; {ADVICE}"
        )


ADVICE = "give etcd a disk of its own ('wal_fsync' in its metrics says how slow it is)"
