"""Holding down a coordinator that loses its jobs again and again.

Each coordinator keeps word of its own losses in etcd, under `lives/NAME`: an end that was no orderly
stop (found at the next start), and a lease that took jobs with it. After too many of them it says so in
its presence, and for a while nothing is placed on it that another may own. Wall clocks only name the
times; a hold never lasts longer than it was told to, on the injected clock.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from coordinator.errors import StoreError
from coordinator.keys import Keys
from coordinator.records import BadRecord, LifeRecord, decode, encode
from coordinator.store import Store
from wire.clock import Clock

log = structlog.get_logger()

_ONE_LOSS_S = 2.0
"""Jobs that go within this time of each other went together."""
_AFTER_FAILURE_S = 1.0
_END_S = 1.0


@dataclass(frozen=True, slots=True)
class FlapLimits:
    """How many losses are too many, and for how long they count against a coordinator."""

    losses: int = 3
    """0: nobody is ever held down."""
    within_s: float = 600.0
    hold_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Hold:
    """That a coordinator is held down."""

    until: datetime
    losses: int
    within_s: float

    def __str__(self) -> str:
        minutes = self.within_s / 60
        return (
            f"until {self.until:%H:%M:%S} UTC: it lost its jobs {self.losses} times "
            f"within {minutes:g} min"
        )


def judge(losses: Sequence[datetime], now: datetime, limits: FlapLimits) -> Hold | None:
    """Return the hold that these losses call for; None when they are few or long ago. Pure."""
    oldest = now - timedelta(seconds=limits.within_s + limits.hold_s)
    known = sorted(at for at in losses if oldest <= at <= now)
    if not limits.losses or len(known) < limits.losses:
        return None
    until = known[-1] + timedelta(seconds=limits.hold_s)
    first = known[-1] - timedelta(seconds=limits.within_s)
    counted = sum(at >= first for at in known)
    if counted < limits.losses or until <= now:
        return None
    return Hold(until, counted, limits.within_s)


class Flapping:
    """One coordinator's losses, and whether it is held down for them."""

    def __init__(
        self,
        store: Store,
        key: str,
        clock: Clock,
        wall: Callable[[], datetime],
        limits: FlapLimits,
    ) -> None:
        """Know nothing yet."""
        # Fixed at construction.
        self._store = store
        self._key = key
        self._clock = clock
        self._wall = wall
        self._limits = limits
        # Owned by the event loop.
        self._losses: list[datetime] = []
        self._last_loss = float("-inf")
        self._changed = asyncio.Event()
        self._has_begun = False
        self._is_stale = False
        self.hold: Hold | None = None
        """Why and until when this coordinator is held down."""

    @classmethod
    def of(
        cls,
        store: Store,
        keys: Keys,
        clock: Clock,
        name: str,
        limits: FlapLimits,
        *,
        wall: Callable[[], datetime],
    ) -> "Flapping":
        """Return what watches over the coordinator of this name."""
        return cls(store, keys.life(name), clock, wall, limits)

    async def begin(self) -> None:
        """Begin a life: what the last one did not end in order is a loss. Raises StoreError."""
        kv = await self._store.get(self._key)
        before = LifeRecord()
        if kv is not None:
            try:
                before = decode(kv.value, LifeRecord)
            except BadRecord as error:
                log.warning("record_unreadable", key=self._key, why=str(error))
        self._losses = list(before.losses)
        if before.is_running:
            self._losses.append(self._wall())
        self._judge()
        await self._write(is_running=True)
        self._has_begun = True

    def jobs_lost(self) -> None:
        """Count that a lease ended and took jobs with it; many within 2 s are one loss."""
        now = self._clock.now()
        if now - self._last_loss > _ONE_LOSS_S:
            self._losses.append(self._wall())
            self._judge()
            self._is_stale = True
            self._changed.set()
        self._last_loss = now

    async def run(self, tell: Callable[[Hold | None], None]) -> None:
        """Call `tell` with each hold, and with None at its end, until cancelled."""
        told: Hold | None = None
        while True:
            self._changed.clear()
            if self.hold != told:
                told = self.hold
                log.warning("held_down" if told else "held_down_no_more", why=str(told or ""))
                tell(told)
            rest_s = None
            if told is not None:
                left_s = (told.until - self._wall()).total_seconds()
                rest_s = min(max(left_s, 0.0), self._limits.hold_s)
            if self._is_stale:
                await self._remember()
            if not await self._changes_within(rest_s):
                self.hold = None

    async def end(self) -> None:
        """End this life in order; what etcd does not hear of counts as a loss. Raises nothing."""
        if not self._has_begun:
            return  # the name may be another's
        try:
            async with asyncio.timeout(_END_S):
                await self._write(is_running=False)
        except (StoreError, TimeoutError) as error:
            log.warning("life_not_recorded", why=str(error))

    def _judge(self) -> None:
        now = self._wall()
        kept_s = self._limits.within_s + self._limits.hold_s
        self._losses = [at for at in self._losses if now - at < timedelta(seconds=kept_s)]
        self.hold = judge(self._losses, now, self._limits)

    async def _changes_within(self, rest_s: float | None) -> bool:
        """Wait for a loss; False when none comes within `rest_s`, None for any length of time."""
        waiting = asyncio.ensure_future(self._changed.wait())
        both: list[asyncio.Future[object]] = [waiting]  # type: ignore[list-item]
        if rest_s is not None:
            both.append(asyncio.ensure_future(self._clock.sleep(rest_s)))
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            return waiting.done()
        finally:
            for one in both:
                one.cancel()

    async def _remember(self) -> None:
        while True:
            try:
                await self._write(is_running=True)
            except StoreError as error:
                log.warning("life_not_recorded", why=str(error))
                await self._clock.sleep(_AFTER_FAILURE_S)
            else:
                self._is_stale = False
                return

    async def _write(self, *, is_running: bool) -> None:
        record = LifeRecord(is_running=is_running, losses=tuple(self._losses))
        await self._store.put(self._key, encode(record))
