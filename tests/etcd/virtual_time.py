"""An event loop whose time jumps to the next timer when nothing else is left to do.

The very same coroutines run under it in no time, and the same seed gives the same run: order comes from
the loop's own rules, delays from the seeded `MemoryEtcd`.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_START = 1_000.0


class Stuck(RuntimeError):
    """Nothing is left to run and no timer is set: the test would wait for ever."""


class _Jump(selectors.SelectSelector):
    """Turns waiting into a jump of the loop's time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = _START

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise Stuck("every task waits for another")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in virtual time. What really blocks or uses threads does not belong into it."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


class VirtualClock:
    """A `Clock` on the running loop; `skip` lets time pass for this node while its loop stood still."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    def now(self) -> float:
        return asyncio.get_running_loop().time() + self._skipped_s

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)

    def skip(self, seconds: float) -> None:
        self._skipped_s += seconds


def run_virtual(main: Coroutine[Any, Any, T], *, limit_s: float = 3_600.0) -> T:
    """Run a coroutine in virtual time, of which it may use `limit_s`."""

    async def limited() -> T:
        async with asyncio.timeout(limit_s):
            return await main

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(limited())
