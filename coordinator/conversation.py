"""One connection to a worker: orders one way, reports the other, until it breaks.

`links` knows no more of the network than this. `WorkerStream` is the one over gRPC.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import grpc
import grpc.aio

from baton.v1 import worker_pb2, worker_pb2_grpc
from coordinator.errors import CoordinatorError
from wire.channel import Credentials, open_channel
from wire.errors import ProtocolError, WireError
from wire.identity import Role
from wire.orders import Hello, Order, Report
from wire.worker_convert import order_to_wire, report_from_wire


class LinkBroken(CoordinatorError):
    """The worker cannot be reached, or no longer; the text says why."""


class Conversation(Protocol):
    """A connection that stands. One task may hear while another says something."""

    async def hear(self) -> Report:
        """Wait for the next report; raises LinkBroken."""

    async def say(self, order: Order) -> None:
        """Send an order; raises LinkBroken. What was sent may still get lost."""


Connect = Callable[[str, str], AbstractAsyncContextManager[Conversation]]
"""Opens a conversation with a worker of a name at an address; raises LinkBroken. Hangs up at its end.

That the worker answers at all shows with its first report.
"""


class WorkerStream:
    """The call `Worker.Link`."""

    def __init__(
        self, call: "grpc.aio.StreamStreamCall[worker_pb2.Order, worker_pb2.Report]"
    ) -> None:
        """Talk on a call that has begun."""
        self._call = call

    async def hear(self) -> Report:
        """Wait for the next report; raises LinkBroken."""
        try:
            message = await self._call.read()
            if message == grpc.aio.EOF:
                raise LinkBroken(await self._why_ended())
            assert isinstance(message, worker_pb2.Report)
            return report_from_wire(message)
        except (ProtocolError, asyncio.InvalidStateError, grpc.aio.AioRpcError) as error:
            raise LinkBroken(_describe(error)) from error

    async def say(self, order: Order) -> None:
        """Send an order; raises LinkBroken."""
        try:
            await self._call.write(order_to_wire(order))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise LinkBroken(_describe(error)) from error

    async def _why_ended(self) -> str:
        code = await self._call.code()
        details = await self._call.details()
        return f"{_name(code)}: {details or 'the worker hung up'}"


def connect(node: str, credentials: Credentials) -> Connect:
    """Return what connects a coordinator to workers, over mutual TLS."""

    @asynccontextmanager
    async def converse(worker: str, address: str) -> AsyncIterator[Conversation]:
        try:
            channel = open_channel(address, credentials, (Role.WORKER, worker))
        except WireError as error:
            raise LinkBroken(str(error)) from error
        try:
            call = worker_pb2_grpc.WorkerStub(channel).Link()
            stream = WorkerStream(call)
            try:
                await stream.say(Hello(node))
                yield stream
            finally:
                call.cancel()
        finally:
            await channel.close()

    return converse


def _describe(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{_name(error.code())}: {error.details()}"
    return str(error)


def _name(code: grpc.StatusCode) -> str:
    return code.name.lower().replace("_", " ")
