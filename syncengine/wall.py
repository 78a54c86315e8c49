"""The wall clock as this machine has it: injected, so that tests can set it."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

Wall = Callable[[], float]
"""Returns seconds since 1970; may be set, and be hours wrong."""

machine_wall: Wall = time.time


def stamp_of(now: float) -> str:
    """Return a time as the names of what a run puts aside have it: YYYYMMDD-HHMMSS, in UTC."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y%m%d-%H%M%S")
