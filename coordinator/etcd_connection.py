"""One gRPC channel to one etcd member, and what its answers mean.

Everything that gRPC can raise becomes `RpcFailed` with a `Verdict` here; no other module reads status
codes. A connection knows no other member and never retries.
"""

import asyncio
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import grpc
import grpc.aio

from coordinator.errors import (
    LeaseNotFound,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreRejected,
    StoreUnavailable,
)
from coordinator.etcd_config import Endpoint, EtcdTls
from coordinator.etcd_messages import RANGE, Method

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", -1),
    # A last resort, above etcd's least ping interval of 5 s; the heartbeats of watches and leases are
    # what finds a silent member. The wait for an answer is ping_timeout_ms (grpcio above 1.59).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class Verdict(Enum):
    """What to do about a failed call."""

    AGAIN = auto()
    """The same member again, after a moment."""
    LEAVE = auto()
    """Another member."""
    AUTHENTICATE = auto()
    """A new token, then again."""
    COMPACTED = auto()
    """The revision asked for is gone."""
    EXISTS = auto()
    """The lease exists already: an earlier try got through."""
    NO_AUTH = auto()
    """The cluster asks for no password."""
    GIVE_UP = auto()
    """Raise what `RpcFailed.error` makes of it."""


class RpcFailed(Exception):
    """A call that failed at one member."""

    def __init__(
        self, verdict: Verdict, said: str, *, maybe_done: bool, raises: type[StoreError]
    ) -> None:
        super().__init__(said)
        self.verdict = verdict
        self.said = said
        self.maybe_done = maybe_done
        """False when the member cannot have acted on the request."""
        self._raises = raises

    def error(self) -> StoreError:
        """Return the error of the tree that says the same."""
        return self._raises(self.said)


@dataclass(frozen=True, slots=True)
class _Rule:
    """A status, a part of its details in lower case, and what they mean."""

    code: Any  # a grpc.StatusCode, which has no type that mypy can name
    part: str
    verdict: Verdict
    raises: type[StoreError]
    maybe_done: bool = False


_Code = grpc.StatusCode
_RULES = (
    _Rule(_Code.PERMISSION_DENIED, "", Verdict.GIVE_UP, StoreDenied),
    _Rule(_Code.UNAUTHENTICATED, "", Verdict.AUTHENTICATE, StoreDenied),
    _Rule(_Code.INVALID_ARGUMENT, "auth store is old", Verdict.AUTHENTICATE, StoreDenied),
    _Rule(_Code.INVALID_ARGUMENT, "user name is empty", Verdict.AUTHENTICATE, StoreDenied),
    _Rule(_Code.INVALID_ARGUMENT, "authentication failed", Verdict.GIVE_UP, StoreDenied),
    _Rule(_Code.RESOURCE_EXHAUSTED, "space exceeded", Verdict.GIVE_UP, StoreFull),
    _Rule(_Code.RESOURCE_EXHAUSTED, "too many requests", Verdict.AGAIN, StoreUnavailable),
    _Rule(_Code.NOT_FOUND, "lease not found", Verdict.GIVE_UP, LeaseNotFound),
    _Rule(_Code.FAILED_PRECONDITION, "lease already exists", Verdict.EXISTS, StoreRejected),
    _Rule(_Code.FAILED_PRECONDITION, "is not enabled", Verdict.NO_AUTH, StoreRejected),
    _Rule(_Code.OUT_OF_RANGE, "compacted", Verdict.COMPACTED, StoreRejected),
    _Rule(_Code.UNAVAILABLE, "leader changed", Verdict.AGAIN, StoreUnavailable, maybe_done=True),
    _Rule(_Code.UNAVAILABLE, "request timed out", Verdict.AGAIN, StoreUnavailable, maybe_done=True),
    _Rule(_Code.UNAVAILABLE, "failed to connect", Verdict.LEAVE, StoreUnavailable),
    _Rule(_Code.UNAVAILABLE, "etcdserver: no leader", Verdict.LEAVE, StoreUnavailable),
    _Rule(_Code.UNAVAILABLE, "name resolution", Verdict.LEAVE, StoreUnavailable),
    _Rule(_Code.UNAVAILABLE, "dns resolution", Verdict.LEAVE, StoreUnavailable),
    *(
        _Rule(code, "", Verdict.LEAVE, StoreUnavailable, maybe_done=True)
        for code in (
            _Code.UNAVAILABLE,
            _Code.DEADLINE_EXCEEDED,
            _Code.CANCELLED,
            _Code.UNKNOWN,
            _Code.INTERNAL,
            _Code.ABORTED,
            _Code.DATA_LOSS,
        )
    ),
)
"""The first that fits counts; what fits none is a request that etcd will not take."""


def _judge(code: Any, details: str) -> RpcFailed:
    """Tell what a status means; `code` is a grpc.StatusCode."""
    said = f"{code.name}: {details}"[:400]
    low = details.lower()
    for rule in _RULES:
        if rule.code is code and rule.part in low:
            return RpcFailed(rule.verdict, said, maybe_done=rule.maybe_done, raises=rule.raises)
    return RpcFailed(Verdict.GIVE_UP, said, maybe_done=False, raises=StoreRejected)


def _closed() -> RpcFailed:
    return RpcFailed(
        Verdict.LEAVE, "the connection was given up", maybe_done=True, raises=StoreUnavailable
    )


def silence(what: str, limit_s: float) -> RpcFailed:
    """Return the failure of a stream on which nothing came for too long."""
    return RpcFailed(
        Verdict.LEAVE,
        f"{what} was silent for {limit_s:g} s",
        maybe_done=True,
        raises=StoreUnavailable,
    )


@dataclass(frozen=True, slots=True)
class _Cancels:
    """Tells the CancelledError of a closed channel from a real cancel of the running task."""

    task: "asyncio.Task[Any] | None"
    before: int

    @classmethod
    def count(cls) -> "_Cancels":
        task = asyncio.current_task()
        return cls(task, task.cancelling() if task else 0)

    def is_real(self) -> bool:
        return self.task is not None and self.task.cancelling() > self.before


class Stream:
    """One bidirectional call; reads and writes may overlap, two reads or two writes may not."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def read(self) -> Any:
        """Wait for the next message; raises RpcFailed at the stream's end. Cancelling ends it."""
        cancels = _Cancels.count()
        try:
            message = await self._call.read()
            if message is not grpc.aio.EOF:
                return message
            raise _judge(await self._call.code(), await self._call.details() or "stream ended")
        except grpc.aio.AioRpcError as error:
            raise _judge(error.code(), error.details() or "") from error
        except asyncio.CancelledError:
            if cancels.is_real():
                raise
            raise _closed() from None

    async def write(self, message: Any) -> None:
        """Send one message; raises RpcFailed when the stream has ended."""
        cancels = _Cancels.count()
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise _judge(error.code(), error.details() or "") from error
        except asyncio.InvalidStateError:
            raise _closed() from None
        except asyncio.CancelledError:
            if cancels.is_real():
                raise
            raise _closed() from None

    def cancel(self) -> None:
        """End the call on both sides."""
        self._call.cancel()


class Connection:
    """A channel to one member. A member that is left gets a new one when it is tried again."""

    def __init__(self, endpoint: Endpoint, tls: EtcdTls | None) -> None:
        self.endpoint = endpoint
        self._stubs: dict[str, Any] = {}
        if tls is None:
            self._channel = grpc.aio.insecure_channel(endpoint.target, options=_OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.cert)
            self._channel = grpc.aio.secure_channel(endpoint.target, credentials, options=_OPTIONS)

    async def unary(
        self, method: Method, request: Any, *, timeout_s: float, token: str | None = None
    ) -> Any:
        """Call a method once; raises RpcFailed."""
        stub = self._stubs.get(method.path)
        if stub is None:
            stub = self._stubs[method.path] = self._channel.unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        cancels = _Cancels.count()
        try:
            return await stub(request, timeout=timeout_s, metadata=_metadata(token))
        except grpc.aio.AioRpcError as error:
            raise _judge(error.code(), error.details() or "") from error
        except grpc.aio.UsageError as error:  # the channel was closed before the call began
            raise _closed() from error
        except asyncio.CancelledError:
            if cancels.is_real():
                raise
            raise _closed() from None

    def stream(self, method: Method, *, token: str | None = None) -> Stream:
        """Open a stream; raises RpcFailed when the channel is closed."""
        try:
            stub = self._channel.stream_stream(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            return Stream(stub(metadata=_metadata(token)))
        except grpc.aio.UsageError as error:
            raise _closed() from error

    async def probe(self, *, timeout_s: float, token: str | None = None) -> None:
        """Have the member answer a linearizable read: it has a quorum. Raises RpcFailed.

        etcd looks at permissions only after it has read, so a refusal is as good as an answer.
        """
        try:
            await self.unary(
                RANGE, RANGE.request(key=b"\x00", count_only=True), timeout_s=timeout_s, token=token
            )
        except RpcFailed as failed:
            if failed.verdict in {Verdict.LEAVE, Verdict.AGAIN}:
                raise

    async def close(self) -> None:
        """Close the channel; calls in flight fail with RpcFailed."""
        await self._channel.close()


def _metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """Ask for a leader on every call, so that an isolated member fails instead of being silent."""
    if token is None:
        return (("hasleader", "true"),)
    return (("hasleader", "true"), ("token", token))
