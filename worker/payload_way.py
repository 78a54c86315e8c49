"""How the frames of a push find their way: over the call, or over a connection of their own.

The caller asks for one when a push is large. Both ends fall back to the call without a word where the
connection does not come about: the first message after the grant says which way the frames take.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import structlog

from wire.address import parse_address
from wire.channel import Credentials, Tls
from wire.errors import WireError
from wire.payload import HANDSHAKE_S, Listener, Offer, Payload, reach
from worker.threads import in_own_thread, read_ahead

log = structlog.get_logger()

LEAST_BYTES = 128 * 1024 * 1024
"""Pushes of so much content ask for a connection of their own."""

_WANTED = ("baton-payload", "1")
_OFFER = "baton-payload-bin"
_OTHER_WAY = b""
"""In place of the first frame: the frames come by the other way. No frame is empty."""

Context = grpc.aio.ServicerContext[bytes, bytes]


# At the caller


def wanted(credentials: Credentials, size: int) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a push of `size` bytes of content.

    Without certificates there is nobody to tell a secret to.
    """
    return (_WANTED,) if isinstance(credentials, Tls) and size >= LEAST_BYTES else ()


async def reached(call: Any, address: str) -> Payload | None:
    """Wait until a call of `address` was accepted; connect to what it offers, if it offers anything.

    After that the frames must take this way: the other side has been told. Raises what the call does.
    """
    for key, value in await call.initial_metadata() or ():
        if key == _OFFER and isinstance(value, bytes):
            payload = await _connected(address, value)
            if payload is not None:
                try:
                    await call.write(_OTHER_WAY)
                except BaseException:
                    payload.close()
                    raise
                log.info("payload_connected", address=address)
            return payload
    return None


async def _connected(address: str, raw: bytes) -> Payload | None:
    try:
        payload = await reach(parse_address(address).host, Offer.from_bytes(raw))
    except WireError as error:
        log.warning("payload_offer_senseless", address=address, why=str(error))
        return None
    if payload is None:
        log.info("payload_over_the_call", address=address)
    return payload


async def pour(
    payload: Payload,
    frames: Generator[bytes, None, None],
    *,
    hearing: "asyncio.Future[None]",
    stop: Callable[[], None],
) -> None:
    """Send frames until there are no more, or until the answers to them end; then let go of the way.

    `frames` run in the thread that sends; `stop` wakes them. Raises PayloadBroken and what they do.
    """

    def send() -> None:
        with contextlib.closing(frames):
            for frame in frames:
                payload.send(frame)

    def end() -> None:
        stop()
        payload.abort()

    def answered(_: "asyncio.Future[None]") -> None:
        payload.abort()  # the call is over: nobody reads any more

    hearing.add_done_callback(answered)
    try:
        await in_own_thread(send, stop=end)
    finally:
        hearing.remove_done_callback(answered)
        payload.close()


# At the other side


@asynccontextmanager
async def taken(
    requests: AsyncIterator[bytes], context: Context, host: str
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Let a push begin; gives its frames, whichever way they come.

    From here on frames may come: a refusal before this reaches the caller as it is. `host` is where
    this worker listens. Getting a frame raises PayloadBroken.
    """
    listener = await _listener(context, host)
    if listener is None:
        await context.send_initial_metadata(())
        yield requests
        return
    accepting = asyncio.create_task(listener.accept())
    try:
        await context.send_initial_metadata(((_OFFER, listener.offer.to_bytes()),))
        first = await anext(requests, None)
        if first != _OTHER_WAY:
            _end(accepting, listener)
            yield _behind(first, requests)
            return
        async with asyncio.timeout(HANDSHAKE_S):
            payload = await accepting
        async with read_ahead(payload.frames(), stop=payload.abort) as frames:
            yield frames
    finally:
        _end(accepting, listener)


async def _listener(context: Context, host: str) -> Listener | None:
    asked = dict(context.invocation_metadata() or ())
    if asked.get(_WANTED[0]) != _WANTED[1]:
        return None
    making = asyncio.create_task(asyncio.to_thread(Listener, host))
    try:
        return await asyncio.shield(making)
    except OSError as error:
        log.warning("payload_not_offered", why=str(error))
        return None
    except asyncio.CancelledError:
        making.add_done_callback(_let_go)
        raise


def _let_go(made: "asyncio.Task[Listener]") -> None:
    if made.exception() is None:
        made.result().close()


def _end(accepting: "asyncio.Task[Payload]", listener: Listener) -> None:
    """Close a listener once nothing waits at it; waits for nothing, so that nothing can cut it short."""

    def close(accepted: "asyncio.Task[Payload]") -> None:
        if not accepted.cancelled():
            accepted.exception()  # which was raised where it was waited for, or interests nobody
        listener.close()

    if accepting.cancel():
        accepting.add_done_callback(close)
    else:
        close(accepting)


async def _behind(first: bytes | None, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first is not None:
        yield first
        async for frame in rest:
            yield frame
