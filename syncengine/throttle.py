"""A limit on what a worker sends for one job: a bucket that all its pushes draw from."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from syncengine.model import RateTime, RunOptions

_CREDIT_S = 0.1
"""What was not used for longer than this is lost: a burst of so long may exceed the rate."""
_LEAST_PORTION = 16 * 1024
_STEP_S = 0.5
"""The rate may change while somebody waits: by so much later it counts."""

Rate = Callable[[], int | None]
"""Says how many bytes per second there are now; None for no limit."""


def rate_of(options: RunOptions, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Rate:
    """Return who says how much a job may send at a moment."""
    times, rest = options.bandwidth_times, options.bandwidth
    if not times:
        return lambda: rest
    zones = {span.zone: ZoneInfo(span.zone) for span in times}

    def rate() -> int | None:
        instant = now()
        for span in times:
            local = instant.astimezone(zones[span.zone])
            if _is_open(span, local.weekday(), local.hour * 60 + local.minute):
                return span.bandwidth
        return rest

    return rate


def _is_open(span: RateTime, day: int, minute: int) -> bool:
    since_yesterday = minute + 24 * 60
    return (day in span.days and span.opens <= minute < span.closes) or (
        (day - 1) % 7 in span.days and span.opens <= since_yesterday < span.closes
    )


class Throttle:
    """Makes those who send wait. Safe to share between threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without a limit."""
        self._clock = clock
        self._lock = threading.Lock()
        self._rate: Rate = lambda: None
        self._taken = 0
        self._earned = 0.0
        """How much might have been taken by now: no more than was, and a little credit."""
        self._settled_at = clock()

    def limit(self, rate: Rate) -> None:
        """Set who says the rate."""
        with self._lock:
            self._rate = rate

    def rate(self) -> int | None:
        """Return the rate there is now."""
        return self._rate()

    def portion(self, most: int) -> int:
        """Return how much to send at once, so that a slow link does not go in leaps."""
        rate = self._rate()
        return most if rate is None else min(most, max(rate // 8, _LEAST_PORTION))

    def take(self, size: int, stopped: threading.Event) -> None:
        """Take `size` bytes, and wait until all that was taken before has been earned.

        Returns at once when `stopped` is set.
        """
        with self._lock:
            self._settle()
            turn = self._taken
            self._taken += size
        while True:
            with self._lock:
                rate = self._settle()
                missing = turn - self._earned
            if rate is None or missing < 1 or stopped.wait(min(missing / rate, _STEP_S)):
                return

    def _settle(self) -> int | None:
        """Count what was earned since the last call; returns the rate. Under _lock."""
        now = self._clock()
        rate = self._rate()
        if rate is None:
            self._earned = self._taken
        else:
            earned = self._earned + (now - self._settled_at) * rate
            self._earned = min(earned, self._taken + _CREDIT_S * rate)
        self._settled_at = now
        return rate
