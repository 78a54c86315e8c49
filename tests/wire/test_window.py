"""How much a connection takes in before its program has asked: enough for a far peer, and no more."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.wire.conftest import Cluster
from wire.channel import WINDOW_BYTES, bind, make_server, open_channel
from wire.identity import Role

MESSAGE = bytes(1024 * 1024)
PATIENCE_S = 60.0


@pytest.mark.timeout(180)
async def test_a_peer_that_does_not_read_is_sent_a_window_and_no_more(cluster: Cluster) -> None:
    go = asyncio.Event()
    ours = cluster.tls(Role.WORKER, "w1")
    server = make_server()

    async def read_nothing_until_told(requests: Any, _: Any) -> AsyncIterator[bytes]:
        await go.wait()
        count = 0
        async for _ in requests:
            count += 1
        yield str(count).encode()

    handler: Any = grpc.stream_stream_rpc_method_handler(read_nothing_until_told)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Window", {"Push": handler}),)
    )
    port = bind(server, "127.0.0.1:0", ours)
    await server.start()
    channel = open_channel(
        f"127.0.0.1:{port}", cluster.tls(Role.WORKER, "w2"), ours.identity, data=True
    )
    try:
        call: Any = channel.stream_stream("/test.Window/Push")()
        sent = 0
        writing = asyncio.ensure_future(call.write(MESSAGE))
        # Ten seconds without room for one more message are taken for the end of the window.
        while (await asyncio.wait([writing], timeout=10.0))[0]:
            sent += 1
            assert sent * len(MESSAGE) <= 2 * WINDOW_BYTES
            writing = asyncio.ensure_future(call.write(MESSAGE))
        assert sent * len(MESSAGE) >= WINDOW_BYTES - 2 * len(MESSAGE)
        go.set()
        async with asyncio.timeout(PATIENCE_S):
            await writing
            await call.done_writing()
            assert await call.read() == str(sent + 1).encode()
    finally:
        await channel.close()
        await server.stop(None)
