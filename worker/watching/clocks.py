"""The two times that watching knows, injected."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from syncengine.wall import Wall, machine_wall


@dataclass(frozen=True, slots=True)
class Clocks:
    """Where the time comes from."""

    monotonic: Callable[[], float] = time.monotonic
    """Seconds; for everything that is waited for."""
    wall: Wall = machine_wall
    """Seconds of the epoch; for since when something is pending, which outlives the process."""
