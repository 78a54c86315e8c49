"""Channels to other workers, kept for a moment after a run for the next one.

A run has its channel to itself, since one connection carries no more than one core can encrypt. But to
connect costs both ends more than all that a run of a few small files does besides.
"""

import asyncio
from dataclasses import dataclass

import grpc
import grpc.aio

from wire.channel import Credentials, open_channel
from wire.clock import Clock
from wire.identity import Role
from wire.orders import Member

KEPT_S = 5.0
"""How long a channel is kept. Not long: that the way to a worker is cut shows on a new one within 3 s,
on one that stands after 30."""


@dataclass(frozen=True, slots=True)
class _Idle:
    channel: grpc.aio.Channel
    since: float


class Channels:
    """The channels of one worker. Belongs to the event loop."""

    def __init__(self, credentials: Credentials, clock: Clock) -> None:
        """Begin with none."""
        self.credentials = credentials
        self._clock = clock
        self._idle: dict[tuple[str, str], list[_Idle]] = {}
        self._broken: list[grpc.aio.Channel] = []
        """To be closed, by whom has the time to wait for that."""
        self._looking: asyncio.Task[None] | None = None

    def take(self, member: Member) -> grpc.aio.Channel:
        """Return a channel to a member's worker that nobody else uses; raises WireError.

        One that was kept is taken only while its connection stands. The caller gives it back.
        """
        kept = self._idle.get(_key(member), [])
        while kept:
            channel = kept.pop().channel
            if _stands(channel):
                return channel
            self._broken.append(channel)
            self._look()
        return open_channel(
            member.address, self.credentials, (Role.WORKER, member.worker), data=True
        )

    async def give_back(self, member: Member, channel: grpc.aio.Channel, *, is_sound: bool) -> None:
        """Let go of a channel; one on which all calls came to their ends `is_sound`, and is kept."""
        if not is_sound or not _stands(channel):
            await channel.close()
            return
        self._idle.setdefault(_key(member), []).append(_Idle(channel, self._clock.now()))
        self._look()

    async def close(self) -> None:
        """Hang up on every channel that nobody uses."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._hang_up(float("inf"))

    def _look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._hang_up_in_time())

    async def _hang_up_in_time(self) -> None:
        while self._idle or self._broken:
            await self._clock.sleep(KEPT_S / 2)
            await self._hang_up(self._clock.now() - KEPT_S)

    async def _hang_up(self, before: float) -> None:
        old, self._broken = self._broken, []
        for key, kept in list(self._idle.items()):
            old += [one.channel for one in kept if one.since <= before]
            kept[:] = [one for one in kept if one.since > before]
            if not kept:
                del self._idle[key]
        for channel in old:
            await channel.close()


def _key(member: Member) -> tuple[str, str]:
    return member.worker, member.address


def _stands(channel: grpc.aio.Channel) -> bool:
    return channel.get_state() is grpc.ChannelConnectivity.READY
