"""Which way the frames of a push take, and that the end of the call is the end of both ways."""

import asyncio
import threading
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from wire import payload as payload_module
from wire.authority import init_ca, issue
from wire.channel import Credentials, bind, make_server, open_channel
from wire.credentials import Insecure, load_tls
from wire.errors import PayloadBroken
from wire.identity import Identity, Role
from wire.payload import Listener
from worker import payload_way

PATIENCE_S = 20.0
LARGE = payload_way.LEAST_BYTES
FRAMES = [b"%d" % number * 1000 for number in range(20)]
LAST = b"last"


@dataclass
class Taker:
    """The other side of pushes: takes what comes, by the code that workers use."""

    credentials: Credentials
    frames: list[bytes] = field(default_factory=list)
    refuses_after: int = 1 << 30
    """It ends the call with an error after so many frames."""
    waits_after: int = 1 << 30
    """It takes nothing more after so many frames."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    why: BaseException | None = None

    async def push(self, requests: AsyncIterator[bytes], context: Any) -> None:
        try:
            async with payload_way.taken(requests, context, "127.0.0.1") as frames:
                async for frame in frames:
                    self.frames.append(frame)
                    if len(self.frames) == self.refuses_after:
                        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "enough")
                    if len(self.frames) == self.waits_after:
                        await asyncio.Event().wait()
                    if frame == LAST:
                        break
        except BaseException as error:
            self.why = error
            raise
        finally:
            self.ended.set()


@dataclass
class Ends:
    """A taker with its server, and a channel to it."""

    taker: Taker
    server: grpc.aio.Server
    channel: grpc.aio.Channel
    address: str

    def call(self, size: int) -> Any:
        method: Any = self.channel.stream_stream("/test.Payload/Push")
        metadata = payload_way.wanted(self.taker.credentials, size)
        return method(timeout=PATIENCE_S, metadata=metadata)

    async def push(self, size: int = LARGE) -> tuple[bool, grpc.StatusCode]:
        """Push all frames as workers do; return whether they took a way of their own."""
        call = self.call(size)
        payload = await payload_way.reached(call, self.address)
        hearing = asyncio.create_task(hear(call))
        if payload is not None:
            await payload_way.pour(payload, frames(), hearing=hearing, stop=nothing)
        else:
            for frame in frames():
                await call.write(frame)
        await call.done_writing()
        await hearing
        return payload is not None, await call.code()


async def hear(call: Any) -> None:
    while isinstance(await call.read(), bytes):
        pass


def frames() -> Generator[bytes, None, None]:
    yield from FRAMES
    yield LAST


def nothing() -> None:
    pass


async def serving(credentials: Credentials, caller: Credentials) -> Ends:
    taker = Taker(credentials)
    server = make_server()
    handler: Any = grpc.stream_stream_rpc_method_handler(taker.push)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Payload", {"Push": handler}),)
    )
    address = f"127.0.0.1:{bind(server, '127.0.0.1:0', credentials)}"
    await server.start()
    channel = open_channel(address, caller, (Role.WORKER, "w2"), data=True)
    return Ends(taker, server, channel, address)


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[Ends]:
    init_ca(tmp_path / "ca", "prod")
    for name in ("w1", "w2"):
        issue(tmp_path / "ca", Role.WORKER, name, tmp_path / name)
    ends = await serving(load_tls(tmp_path / "w2"), load_tls(tmp_path / "w1"))
    yield ends
    await ends.channel.close()
    await ends.server.stop(0)


async def test_a_large_push_has_a_way_of_its_own(ends: Ends) -> None:
    assert await ends.push() == (True, grpc.StatusCode.OK)
    assert ends.taker.frames == [*FRAMES, LAST]


async def test_a_small_push_goes_over_the_call(ends: Ends) -> None:
    assert await ends.push(LARGE - 1) == (False, grpc.StatusCode.OK)
    assert ends.taker.frames == [*FRAMES, LAST]


async def test_without_certificates_all_goes_over_the_call() -> None:
    """There is nobody whom a secret could be told to."""
    ours = Insecure(Identity("local", Role.WORKER, "w2"))
    ends = await serving(ours, Insecure(Identity("local", Role.WORKER, "w1")))
    assert await ends.push() == (False, grpc.StatusCode.OK)
    assert ends.taker.frames == [*FRAMES, LAST]
    await ends.channel.close()
    await ends.server.stop(0)


async def test_where_the_port_is_not_reached_all_goes_over_the_call(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a firewall that drops what it does not know."""
    monkeypatch.setattr(payload_module, "HANDSHAKE_S", 0.1)

    async def silent(_: Listener) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Listener, "accept", silent)
    assert await ends.push() == (False, grpc.StatusCode.OK)
    assert ends.taker.frames == [*FRAMES, LAST]


async def test_where_no_port_can_be_had_all_goes_over_the_call(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_free(_: Listener, host: str) -> None:
        raise OSError(98, f"no port is free at {host}")

    monkeypatch.setattr(Listener, "__init__", none_free)
    assert await ends.push() == (False, grpc.StatusCode.OK)
    assert ends.taker.frames == [*FRAMES, LAST]


def endless(stopped: threading.Event) -> Generator[bytes, None, None]:
    """More than any buffer holds."""
    while not stopped.is_set():
        yield bytes(1 << 20)


async def poured(ends: Ends, stopped: threading.Event) -> None:
    """Push without an end; raises how it ended."""
    call = ends.call(LARGE)
    payload = await payload_way.reached(call, ends.address)
    assert payload is not None
    hearing = asyncio.create_task(hear(call))
    try:
        await payload_way.pour(payload, endless(stopped), hearing=hearing, stop=stopped.set)
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        call.cancel()


async def test_a_call_that_is_refused_ends_the_way(ends: Ends) -> None:
    ends.taker.refuses_after = 3
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(PayloadBroken):
            await poured(ends, threading.Event())
    assert len(ends.taker.frames) == 3


async def test_a_caller_that_gives_up_while_nobody_reads_frees_both_sides(ends: Ends) -> None:
    ends.taker.waits_after = 3
    stopped = threading.Event()
    pouring = asyncio.create_task(poured(ends, stopped))
    async with asyncio.timeout(PATIENCE_S):
        while len(ends.taker.frames) < 3:
            await asyncio.sleep(0.01)
        pouring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pouring
        await ends.taker.ended.wait()
    assert stopped.is_set()
    assert isinstance(ends.taker.why, asyncio.CancelledError)


async def test_a_way_that_breaks_off_is_no_end_of_a_push(ends: Ends) -> None:
    call = ends.call(LARGE)
    payload = await payload_way.reached(call, ends.address)
    assert payload is not None
    await asyncio.to_thread(payload.send, FRAMES[0])
    payload.close()
    async with asyncio.timeout(PATIENCE_S):
        await ends.taker.ended.wait()
    assert isinstance(ends.taker.why, PayloadBroken)
    assert ends.taker.frames == FRAMES[:1]
    call.cancel()


async def test_what_goes_wrong_with_the_frames_is_told(ends: Ends) -> None:
    def broken() -> Generator[bytes, None, None]:
        yield FRAMES[0]
        raise LookupError("unreadable")

    call = ends.call(LARGE)
    payload = await payload_way.reached(call, ends.address)
    assert payload is not None
    hearing = asyncio.create_task(hear(call))
    with pytest.raises(LookupError):
        await payload_way.pour(payload, broken(), hearing=hearing, stop=nothing)
    call.cancel()
    await asyncio.gather(hearing, return_exceptions=True)
    async with asyncio.timeout(PATIENCE_S):
        await ends.taker.ended.wait()
