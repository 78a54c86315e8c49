"""Channels between workers: to itself for a run, then the next run's, for a moment."""

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from tests.worker.clocks import ManualClock, until
from wire.channel import bind, make_server
from wire.credentials import Insecure
from wire.identity import Identity, Role
from wire.orders import Member
from worker.channels import KEPT_S, Channels

HERE = Insecure(Identity("local", Role.WORKER, "w1"))
CALL_S = 20.0


class Elsewhere:
    """Another worker, that says from which connection it is called."""

    def __init__(self) -> None:
        self.server = make_server()
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
            self._who
        )
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test", {"Who": handler}),)
        )
        there = Insecure(Identity("local", Role.WORKER, "w2"))
        self.member = Member(
            "w2", "data", b"", f"127.0.0.1:{bind(self.server, '127.0.0.1:0', there)}"
        )

    async def _who(self, _: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        return str(context.peer()).encode()


async def caller(channel: grpc.aio.Channel) -> bytes:
    """Return the connection by which a channel comes."""
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test/Who")
    return await method(b"", timeout=CALL_S)


@pytest.fixture
async def elsewhere() -> AsyncIterator[Elsewhere]:
    there = Elsewhere()
    await there.server.start()
    yield there
    await there.server.stop(0)


async def test_a_run_takes_the_connection_of_the_one_before(elsewhere: Elsewhere) -> None:
    channels = Channels(HERE, ManualClock())
    seen = set()
    for _ in range(5):
        channel = channels.take(elsewhere.member)
        seen.add(await caller(channel))
        await channels.give_back(elsewhere.member, channel, is_sound=True)
    assert len(seen) == 1
    await channels.close()


async def test_runs_at_the_same_time_have_a_connection_each(elsewhere: Elsewhere) -> None:
    channels = Channels(HERE, ManualClock())
    taken = [channels.take(elsewhere.member) for _ in range(3)]
    assert len({await caller(channel) for channel in taken}) == 3
    for channel in taken:
        await channels.give_back(elsewhere.member, channel, is_sound=True)
    again = [channels.take(elsewhere.member) for _ in range(3)]
    assert set(again) == set(taken)
    for channel in again:
        await channels.give_back(elsewhere.member, channel, is_sound=False)
    await channels.close()


async def test_one_with_a_call_that_broke_off_is_used_by_no_other(elsewhere: Elsewhere) -> None:
    channels = Channels(HERE, ManualClock())
    first = channels.take(elsewhere.member)
    await caller(first)
    await channels.give_back(elsewhere.member, first, is_sound=False)
    second = channels.take(elsewhere.member)
    assert second is not first
    assert first.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    await channels.give_back(elsewhere.member, second, is_sound=True)
    await channels.close()


async def test_one_that_nobody_needs_is_closed_in_time(elsewhere: Elsewhere) -> None:
    clock = ManualClock()
    channels = Channels(HERE, clock)
    channel = channels.take(elsewhere.member)
    await caller(channel)
    await channels.give_back(elsewhere.member, channel, is_sound=True)
    await until(lambda: bool(clock._sleepers))
    clock.advance(KEPT_S / 2)
    await until(lambda: bool(clock._sleepers))
    assert channel.get_state() is grpc.ChannelConnectivity.READY
    clock.advance(KEPT_S / 2)
    await until(lambda: channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN)
    fresh = channels.take(elsewhere.member)
    assert fresh is not channel
    await channels.give_back(elsewhere.member, fresh, is_sound=False)
    await channels.close()


async def test_one_whose_worker_went_away_is_not_taken(elsewhere: Elsewhere) -> None:
    channels = Channels(HERE, ManualClock())
    channel = channels.take(elsewhere.member)
    await caller(channel)
    await channels.give_back(elsewhere.member, channel, is_sound=True)
    await elsewhere.server.stop(0)
    await until(lambda: channel.get_state() is not grpc.ChannelConnectivity.READY)
    fresh = channels.take(elsewhere.member)
    assert fresh is not channel
    await channels.give_back(elsewhere.member, fresh, is_sound=True)
    assert fresh.get_state() is grpc.ChannelConnectivity.SHUTDOWN, "it never stood"
    await channels.close()
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
