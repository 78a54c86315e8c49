"""Notices that the wall clock was set ahead: instants that nobody let pass are not made up for."""

from collections.abc import Callable
from datetime import datetime, timedelta

from wire.clock import Clock

_IS_SET = timedelta(seconds=60)
"""By how much the wall clock must run away from the monotonic one, between two looks."""


class WallWatch:
    """Compares the wall clock with the monotonic one, look after look."""

    def __init__(self, wall: Callable[[], datetime], clock: Clock) -> None:
        """Look for the first time."""
        self._wall = wall
        self._clock = clock
        self._seen = (wall(), clock.now())
        self._set_ahead_at: datetime | None = None

    def set_ahead_at(self) -> datetime | None:
        """Return what the wall clock would show had it not been set ahead since `forget`, if it was."""
        wall, now = self._wall(), self._clock.now()
        before, then = self._seen
        expected = before + timedelta(seconds=now - then)
        if wall - expected > _IS_SET:
            self._set_ahead_at = expected
        self._seen = (wall, now)
        return self._set_ahead_at

    def forget(self) -> None:
        """What was jumped over has been dealt with."""
        self._set_ahead_at = None
