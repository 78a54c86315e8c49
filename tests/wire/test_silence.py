"""A peer that hangs, or whose host is gone, is noticed although no connection is ever closed."""

import asyncio
import signal
import sys
import time
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.wire.conftest import METHOD, serve
from wire.channel import open_channel
from wire.credentials import Insecure
from wire.identity import Identity, Role

SERVER = """
import asyncio
from tests.wire.conftest import serve
from wire.credentials import Insecure
from wire.identity import Identity, Role

async def main():
    async with serve(Insecure(Identity("local", Role.WORKER, "w1"))) as address:
        print(address, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.alone
async def test_a_hung_server_is_noticed_in_seconds_by_calls_without_traffic() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVER), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().strip()
        me = Insecure(Identity("local", Role.COORDINATOR, "c1"))
        async with open_channel(address, me, (Role.WORKER, "w1")) as channel:
            ask: Any = channel.unary_unary(METHOD)
            assert await ask(b"", timeout=30) == b"coordinator/c1"
            talk: Any = channel.stream_stream("/test.Who/AmStream")
            stream = talk()
            await stream.write(b"")
            assert await stream.read() == b"coordinator/c1"
            process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(stream.read(), 60)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert time.monotonic() - began < 8
    finally:
        process.kill()
        await process.wait()


async def test_a_channel_that_pings_often_is_not_taken_for_an_attack() -> None:
    """A server that allows fewer pings ends the channel, with too_many_pings, after some 10 s."""
    worker = Insecure(Identity("local", Role.WORKER, "w1"))
    async with (
        serve(worker) as address,
        open_channel(address, worker, (Role.WORKER, "w1")) as channel,
    ):
        talk: Any = channel.stream_stream("/test.Who/AmStream")
        stream = talk()
        await stream.write(b"")
        assert await stream.read() == b"worker/w1"
        ended = asyncio.ensure_future(stream.code())
        done, _ = await asyncio.wait([ended], timeout=12)
        assert not done, f"the idle stream ended: {await stream.details()}"
        stream.cancel()
        await ended
