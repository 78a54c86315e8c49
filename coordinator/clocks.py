"""How far the wall clocks of the coordinators are apart: each is asked, less half the round trip.

Due instants are by the owner's clock, so a job whose owner changes between clocks that differ runs early
or late by as much. Leases and deadlines are not concerned: they never look at a wall clock.
"""

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

import grpc
import grpc.aio

from baton.v1 import coordinator_pb2 as pb
from baton.v1.coordinator_pb2_grpc import CoordinatorStub
from coordinator.records import CoordinatorRecord
from wire.channel import Credentials, open_channel
from wire.clock import Clock
from wire.errors import WireError
from wire.identity import Role

APART_S = 1.0
"""Clocks further apart than this are warned of."""
ASK_S = 1.0
FRESH_S = 10.0
"""How long an answer is good for; clocks drift slowly, and status may be asked often."""

SILENT_S = 1.0
"""After how long one that was silent is asked again: it may only have been about to begin."""

Ask = Callable[[str, str], Awaitable[float | None]]
"""Asks a coordinator, by name and address; returns its clock less ours in seconds, None for silence."""


def apart(offsets_s: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """Return the pairs whose clocks differ by more than APART_S, and by how much. Pure."""
    pairs = itertools.combinations(offsets_s.items(), 2)
    return [
        (one, other, abs(first - second))
        for (one, first), (other, second) in pairs
        if abs(first - second) > APART_S
    ]


def warnings(offsets_s: Mapping[str, float | None]) -> list[str]:
    """Return a sentence for each pair of clocks that differ too much, and for each unknown. Pure."""
    known = {name: offset for name, offset in offsets_s.items() if offset is not None}
    silent = [
        f"coordinator {name} is there and does not answer: its clock is not known"
        for name, offset in offsets_s.items()
        if offset is None
    ]
    return silent + [
        f"the clocks of {one} and {other} are {seconds:.1f} s apart: let NTP (chrony) set both; "
        "runs are due by the owner's clock"
        for one, other, seconds in apart(known)
    ]


def offset_s(asked: datetime, said: datetime, answered: datetime) -> float:
    """Return how far another clock is ahead of ours, wrong by half the round trip at most. Pure."""
    return (said - (asked + (answered - asked) / 2)) / timedelta(seconds=1)


class Clocks:
    """What this coordinator knows of the others' wall clocks."""

    def __init__(self, node: str, clock: Clock, ask: Ask) -> None:
        """Know nothing yet."""
        self._node = node
        self._clock = clock
        self._ask = ask
        self._known: dict[str, tuple[float, float | None]] = {}
        """By coordinator when it was asked, on our clock, and the answer."""

    async def offsets(self, others: Mapping[str, CoordinatorRecord]) -> dict[str, float | None]:
        """Return each coordinator's clock less this one's in seconds, None for one that is silent.

        Takes up to ASK_S, and no time when they were asked within FRESH_S.
        """
        now = self._clock.now()
        stale = [name for name in others if name != self._node and not self._is_fresh(name, now)]
        answers = await asyncio.gather(*(self._ask(name, others[name].address) for name in stale))
        for name, answer in zip(stale, answers, strict=True):
            self._known[name] = now, answer
        self._known = {name: known for name, known in self._known.items() if name in others}
        found = {name: offset for name, (_, offset) in sorted(self._known.items())}
        return {self._node: 0.0, **found} if self._node in others else found

    def _is_fresh(self, name: str, now: float) -> bool:
        at, answer = self._known.get(name, (-math.inf, None))
        return now - at <= (SILENT_S if answer is None else FRESH_S)


def asks(credentials: Credentials, wall: Callable[[], datetime]) -> Ask:
    """Return what asks over the network, within ASK_S."""

    async def ask(name: str, address: str) -> float | None:
        try:
            async with open_channel(address, credentials, (Role.COORDINATOR, name)) as channel:
                async with asyncio.timeout(ASK_S):
                    await channel.channel_ready()  # its time is not to count
                asked = wall()
                request = pb.DiagnoseRequest(clock_only=True)
                answer = await CoordinatorStub(channel).Diagnose(request, timeout=ASK_S)
                return offset_s(asked, datetime.fromisoformat(answer.now), wall())
        except (grpc.aio.AioRpcError, WireError, TimeoutError, ValueError):
            return None

    return ask
