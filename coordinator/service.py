"""Binds the methods of the Coordinator service to plain functions, and their errors to status codes.

Every method in the .proto file must have a function of its name, in small letters with underscores; it
gets the request and the caller's identity and returns an answer, or yields them. Who may call is
decided here, before anything else happens.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from baton.v1 import coordinator_pb2
from wire.channel import Credentials, peer_identity
from wire.errors import PeerRefused
from wire.identity import Identity, Role

log = structlog.get_logger()

_Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[Any, Identity], Awaitable[Message]]
Answers = Callable[[Any, Identity], AsyncIterator[Message]]
CodeOf = Callable[[Exception], grpc.StatusCode | None]
"""Returns the status that tells a caller of an error; None for one that nobody expected."""

CALLERS = frozenset({Role.OPERATOR, Role.COORDINATOR})


def bind_service(
    server: grpc.aio.Server, functions: object, credentials: Credentials, code_of: CodeOf
) -> None:
    """Register all methods of the service; raises AttributeError when a function is missing."""
    service = coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"]
    handlers = {}
    for method in service.methods:
        function = getattr(functions, re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower())
        request = GetMessageClass(method.input_type)
        guard = _Guard(credentials, code_of, method.name)
        if method.server_streaming:
            handlers[method.name] = grpc.unary_stream_rpc_method_handler(
                guard.stream(function), request.FromString, _serialize
            )
        else:
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                guard.unary(function), request.FromString, _serialize
            )
    generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
    server.add_generic_rpc_handlers((generic,))


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


class _Guard:
    """One method's door: who calls, and what its errors are called outside."""

    def __init__(self, credentials: Credentials, code_of: CodeOf, name: str) -> None:
        self._credentials = credentials
        self._code_of = code_of
        self._name = name

    def unary(self, function: Answer) -> Callable[[Any, _Context], Awaitable[Message]]:
        """Return the handler of a method with one answer."""

        async def handle(request: Any, context: _Context) -> Message:
            caller = await self._caller(context)
            try:
                return await function(request, caller)
            except Exception as error:  # a root: told by its code, or logged and raised again
                await self._tell(error, context)
                raise

        return handle

    def stream(self, function: Answers) -> Callable[[Any, _Context], AsyncIterator[Message]]:
        """Return the handler of a method with many answers."""

        async def handle(request: Any, context: _Context) -> AsyncIterator[Message]:
            caller = await self._caller(context)
            try:
                async for answer in function(request, caller):
                    yield answer
            except Exception as error:  # a root: told by its code, or logged and raised again
                await self._tell(error, context)
                raise

        return handle

    async def _caller(self, context: _Context) -> Identity:
        try:
            caller = peer_identity(context, self._credentials)
        except PeerRefused as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        if caller.role not in CALLERS:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{caller} may not do this: operators and coordinators may",
            )
        return caller

    async def _tell(self, error: Exception, context: _Context) -> None:
        """Abort with the error's code and sentence; return when it was not expected."""
        if isinstance(error, grpc.aio.AioRpcError):
            # What the coordinator answered that was asked on the caller's behalf.
            await context.abort(error.code(), error.details() or "")
        code = self._code_of(error)
        if code is None:
            log.error("request_failed", method=self._name, exc_info=error)
            return
        await context.abort(code, str(error))
