from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from wire.authority import init_ca, issue
from wire.channel import Credentials, bind, make_server, open_channel, peer_identity
from wire.credentials import Tls, load_tls
from wire.errors import PeerRefused
from wire.identity import Role

METHOD = "/test.Who/Am"
Serving = Callable[[Credentials], AbstractAsyncContextManager[str]]


class Cluster:
    """An authority and what it issues, as tests need it."""

    def __init__(self, directory: Path, name: str = "prod") -> None:
        self.directory = directory
        self.ca = directory / "ca"
        init_ca(self.ca, name)

    def tls(self, role: Role, name: str) -> Tls:
        out = self.directory / f"{role}-{name}"
        issue(self.ca, role, name, out)
        return load_tls(out)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@asynccontextmanager
async def serve(credentials: Credentials, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve one method of each kind that answers who called."""

    async def who(request: bytes, context: Any) -> bytes:
        try:
            return str(peer_identity(context, credentials)).encode()
        except PeerRefused as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            raise  # abort does not return

    async def who_stream(requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await who(request, context)

    handlers = grpc.method_handlers_generic_handler(
        "test.Who",
        {
            "Am": grpc.unary_unary_rpc_method_handler(who),
            "AmStream": grpc.stream_stream_rpc_method_handler(who_stream),
        },
    )
    server = make_server()
    server.add_generic_rpc_handlers((handlers,))
    port = bind(server, address, credentials)
    await server.start()
    try:
        yield f"{address.rpartition(':')[0]}:{port}"
    finally:
        await server.stop(0)


async def ask(address: str, credentials: Credentials, expect: Any, **options: Any) -> str:
    """Call the server and return whom it took us for."""
    async with open_channel(address, credentials, expect, **options) as channel:
        call: Any = channel.unary_unary(METHOD)
        return str((await call(b"", timeout=30)).decode())
