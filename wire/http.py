"""Serving HTTP beside gRPC in a daemon: status pages and metrics, never orders."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.applications import Starlette

from wire.address import Address, parse_address
from wire.errors import AddressInUse, BindFailed

_STOP_S = 1.0


class _Server(uvicorn.Server):
    """A server that leaves the process's signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


@contextlib.asynccontextmanager
async def serving_http(address: str, app: Starlette) -> AsyncIterator[str]:
    """Serve until the block is left; gives the HOST:PORT. Raises AddressInUse and BindFailed."""
    wanted = parse_address(address)
    config = uvicorn.Config(
        app,
        host=wanted.host,
        port=wanted.port,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    try:
        socket = await asyncio.to_thread(config.bind_socket)
    except SystemExit:  # uvicorn's way to say that it cannot listen
        raise AddressInUse(
            f"cannot listen on {wanted} for HTTP: is another process there already? choose another "
            "--http"
        ) from None
    except OSError as error:
        raise BindFailed(f"cannot listen on {wanted} for HTTP: {error}") from error
    port = socket.getsockname()[1]
    task = asyncio.create_task(server.serve(sockets=[socket]))
    try:
        yield str(Address(wanted.host, port))
    finally:
        server.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S + 1):
                await task
        socket.close()
