"""Time as Baton counts leases and deadlines: CLOCK_BOOTTIME, injected."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock that goes on while the machine sleeps."""

    def now(self) -> float:
        """Return seconds since an arbitrary start; never goes back."""

    async def sleep(self, delay_s: float) -> None:
        """Let `delay_s` seconds pass on this clock."""


class BootClock:
    """The kernel's CLOCK_BOOTTIME: it counts suspended time, which CLOCK_MONOTONIC does not."""

    def now(self) -> float:
        """Return seconds since boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, delay_s: float) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(delay_s)
