"""A clock that a test moves, for code that runs on a real loop because it uses threads."""

import asyncio
from collections.abc import Callable


class ManualClock:
    """A `Clock` that stands still until `advance`."""

    def __init__(self, start: float = 1_000.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    async def sleep(self, delay_s: float) -> None:
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + delay_s, wake))
        await wake

    def advance(self, seconds: float) -> None:
        """Let time pass; who slept long enough goes on."""
        self._now += seconds
        due = [wake for at, wake in self._sleepers if at <= self._now]
        self._sleepers = [(at, wake) for at, wake in self._sleepers if at > self._now]
        for wake in due:
            if not wake.done():
                wake.set_result(None)


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    """Wait on the real loop until a condition holds."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.002)
