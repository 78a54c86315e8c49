"""The connection of client commands: the first coordinator that answers serves.

All named coordinators are tried at once: one that hangs costs nothing while another answers.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio

from baton.v1.coordinator_pb2 import ListCoordinatorsRequest
from baton.v1.coordinator_pb2_grpc import CoordinatorStub
from cli.exits import CommandFailed, Exit, NobodyAnswered, failure_of_call
from cli.settings import ClientSettings
from wire.channel import open_channel
from wire.identity import Role

if TYPE_CHECKING:
    from baton.v1.coordinator_pb2_grpc import CoordinatorAsyncStub

_Q = TypeVar("_Q")
_R = TypeVar("_R")


@dataclass(slots=True)
class Client:
    """One coordinator that answers, and how long it may take to."""

    address: str
    stub: "CoordinatorAsyncStub"
    ends_at: float
    """On the loop's clock: when the command's time is over."""

    async def ask(self, method: grpc.aio.UnaryUnaryMultiCallable[_Q, _R], request: _Q) -> _R:
        """Call a method and return its answer. Raises `CommandFailed` for everything else."""
        try:
            return await method(request, timeout=self.remaining_s)
        except grpc.aio.AioRpcError as error:
            raise failure_of_call(error, self.address) from error

    async def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[_Q, _R],
        request: _Q,
        *,
        deadline: bool = True,
    ) -> AsyncGenerator[_R, None]:
        """Call a method that answers many times. Raises `CommandFailed` as `ask` does."""
        call = method(request, timeout=self.remaining_s if deadline else None)
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise failure_of_call(error, self.address) from error
        finally:
            call.cancel()

    @property
    def remaining_s(self) -> float:
        """How long the command may still take."""
        return max(0.001, self.ends_at - asyncio.get_running_loop().time())


@dataclass(slots=True)
class _Tried:
    reasons: dict[str, str] = field(default_factory=dict)
    untrusted: int = 0


@contextlib.asynccontextmanager
async def connect(
    settings: ClientSettings, timeout_s: float, *, without: frozenset[str] = frozenset()
) -> AsyncIterator[Client]:
    """Connect to the first coordinator that answers, leaving out those of `without`.

    `timeout_s` is for connecting and asking together.

    Raises `NobodyAnswered` with who was tried and why each did not serve, or `CommandFailed` when
    every one that answered could not prove that it is a coordinator of this cluster.
    """
    ends_at = asyncio.get_running_loop().time() + timeout_s
    addresses = [address for address in settings.coordinators if address not in without]
    channels = {
        address: open_channel(address, settings.credentials, Role.COORDINATOR)
        for address in addresses
    }
    try:
        address = await _first_ready(channels, timeout_s)
        yield Client(address, CoordinatorStub(channels[address]), ends_at)
    finally:
        await asyncio.gather(*(channel.close() for channel in channels.values()))


async def _first_ready(channels: dict[str, grpc.aio.Channel], timeout_s: float) -> str:
    tried = _Tried()
    tasks = {asyncio.create_task(_ready(channel)): address for address, channel in channels.items()}
    pending = set(tasks)
    try:
        async with asyncio.timeout(timeout_s):
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    reason = task.result()
                    if reason is None:
                        return tasks[task]
                    tried.untrusted += "certificate" in reason
                    tried.reasons[tasks[task]] = reason
    except TimeoutError:
        for task in pending:
            tried.reasons[tasks[task]] = f"no answer within {timeout_s:.3g} s"
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    raise _nobody(channels, tried)


def _nobody(channels: dict[str, grpc.aio.Channel], tried: _Tried) -> CommandFailed:
    lines = [f"  {address}: {tried.reasons.get(address, 'not tried')}" for address in channels]
    text = "\n".join(["no coordinator answered; tried:", *lines])
    if channels and tried.untrusted == len(channels):
        return CommandFailed(Exit.DENIED, text)
    return NobodyAnswered(
        f"{text}\nis one running there? name others with --coordinator or BATON_COORDINATORS"
    )


async def _ready(channel: grpc.aio.Channel) -> str | None:
    """Wait until a channel is connected, or return why it is not."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            return await _why_not(channel)
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    return None


async def _why_not(channel: grpc.aio.Channel) -> str | None:
    """Ask gRPC, which tells the reason only as the answer to a call; None if it works after all."""
    stub = CoordinatorStub(channel)
    try:
        await stub.ListCoordinators(ListCoordinatorsRequest(), timeout=5)
    except grpc.aio.AioRpcError as error:
        return _in_words(error.details() or error.code().name)
    return None


def _in_words(details: str) -> str:
    for sign, words in (
        ("Hostname", "its certificate is not that of a coordinator of this cluster"),
        ("CERTIFICATE_VERIFY_FAILED", "its certificate is of another authority"),
        ("WRONG_VERSION_NUMBER", "it does not speak TLS: use --insecure"),
        ("Connection refused", "connection refused"),
        ("Domain name not found", "no such host"),
        ("DNS resolution failed", "no such host"),
        ("Socket closed", "it closed the connection: does it want --tls?"),
        ("Connection reset", "it closed the connection: does it want --tls?"),
    ):
        if sign in details:
            return words
    return details
