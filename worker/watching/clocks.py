"""The two times that watching knows, injected."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clocks:
    """Where the time comes from."""

    monotonic: Callable[[], float] = time.monotonic
    """Seconds; for everything that is waited for."""
    wall: Callable[[], float] = time.time
    """Seconds of the epoch; for since when something is pending, which outlives the process."""
