"""Another member of a job as the worker that carries out a run sees it: its listing, the push to it,
the content fetched from it, and what it is told to agree to.
"""

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio
import msgspec
import structlog

from baton.v1 import peer_pb2_grpc
from syncengine.agreed import Agreement, Graft
from syncengine.errors import EngineError
from syncengine.listing import FRAME_BYTES
from syncengine.model import Counts, Problem
from syncengine.phases import Plan
from syncengine.receiver import Receiver
from syncengine.scope import Scope
from syncengine.sender import Sender, SendResult
from syncengine.sightings import encode_agreements, encode_paths
from syncengine.tree import Tree
from wire.clock import Clock
from wire.errors import PayloadBroken, WireError
from wire.orders import Member, PeerGrant
from wire.peer_convert import (
    ListRequest,
    PushEnd,
    StreamEnd,
    agree_response_from_bytes,
    end_of_push,
    grant_to_wire,
    header_from_bytes,
    list_request_to_bytes,
    read_end_of_stream,
)
from wire.token import Token
from worker import payload_way
from worker.channels import Channels
from worker.peer_listing import Listing, PeerFailed, RawStream, describe_error
from worker.threads import WorkBehind, read_ahead, to_the_end

if TYPE_CHECKING:
    from syncengine.changes import Change

log = structlog.get_logger()

PATIENCE_S = 15.0
"""How long a member may lack the session that our owner opened, or opens, for the same job."""
_AGAIN_S = 0.1
_RENEW_S = 3.0
_REASON_S = 2.0

T = TypeVar("T")


@dataclass(slots=True)
class Fetched:
    """What became of a fetch."""

    result: SendResult
    problems: tuple[Problem, ...] = field(default=())
    """What the member could not send."""


class Peer:
    """The way to one other member, under the token that the owner last gave."""

    def __init__(
        self,
        job: str,
        run: str,
        token: Token,
        member: Member,
        channels: Channels,
        clock: Clock,
    ) -> None:
        """Connect to nobody yet."""
        self.member = member
        self._job = job
        self._run = run
        self._token = token
        self._channels = channels
        self._clock = clock
        self._channel: grpc.aio.Channel | None = None
        self._calls = 0
        """Begun on the channel, and not come to their ends: no other run takes one with such a call."""
        self._sender: Sender | None = None
        self._is_writing = False
        """Whether something that a gate lets through at the member is under way."""
        self._renewing: asyncio.Task[None] | None = None

    def renew(self, token: Token) -> None:
        """Use a newer token from now on, for what is under way too."""
        self._token = token
        if self._is_writing:
            if self._renewing is not None:
                self._renewing.cancel()
            self._renewing = asyncio.create_task(self._renew())

    def counts(self) -> Counts:
        """Return what the push that is under way has published so far."""
        counts = Counts()
        if self._sender is not None:
            counts.add(self._sender.result().counts)
        return counts

    # Listing

    @asynccontextmanager
    async def listing(
        self,
        *,
        sightings: bool = False,
        grafts: Sequence[Graft] = (),
        digests_of: Iterable[bytes] | None = None,
        scope: Scope | None = None,
    ) -> AsyncIterator[Listing]:
        """Ask for the member's tree, or what is in `scope`; raises PeerFailed."""
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._open().stream_stream(
            "/baton.v1.Peer/List"
        )
        until = self._clock.now() + PATIENCE_S
        while True:
            grant = PeerGrant(self._job, self._token, self._run, str(self.member))
            request = ListRequest(grant, sightings, digests_of is not None, tuple(grafts), scope)
            call = method()
            self._calls += 1
            asking = asyncio.create_task(_ask(call, request, digests_of))
            try:
                raw = await call.read()
                if not isinstance(raw, bytes):
                    raise await _ended(call)
                header = header_from_bytes(raw)
                yield Listing(header, asyncio.get_running_loop(), call)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ABORTED or self._clock.now() > until:
                    raise PeerFailed(describe_error(error)) from error
                await self._clock.sleep(_AGAIN_S)
            except (WireError, EngineError) as error:
                raise PeerFailed(f"the listing makes no sense: {error}") from error
            else:
                self._calls -= 1
                return
            finally:
                call.cancel()
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> tuple[T, int]:
        """Try, again while it fails early; return what came and the bytes sent in vain before."""
        until = self._clock.now() + PATIENCE_S
        wasted = 0
        while True:
            try:
                return await attempt(), wasted
            except PeerFailed as failed:
                failed.sent.bytes_sent += wasted
                if not failed.is_early or self._clock.now() > until:
                    raise
                # RACE: a takeover since the listing: the new token reached one of us before the other.
                wasted = failed.sent.bytes_sent
                await self._clock.sleep(_AGAIN_S)

    # Pushing

    async def push(
        self, tree: Tree, plan: Plan, source_member: str, entries: int | None
    ) -> SendResult:
        """Carry out a plan at the member; raises PeerFailed with what was published before.

        `entries` are those that it should have afterwards; None when its own count stands.
        """

        async def attempt() -> SendResult:
            return await self._push_once(tree, plan, source_member, entries)

        result, wasted = await self._patiently(attempt)
        result.counts.bytes_sent += wasted
        return result

    async def _push_once(
        self, tree: Tree, plan: Plan, source_member: str, entries: int | None
    ) -> SendResult:
        sender = Sender(tree, plan, member=source_member, target_member=str(self.member))
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._open().stream_stream(
            "/baton.v1.Peer/Push"
        )
        call = method(metadata=payload_way.wanted(self._channels.credentials, plan.summary.bytes))
        self._calls += 1
        self._sender, self._is_writing = sender, True
        hearing = asyncio.create_task(_hear(call, sender))
        try:
            await call.write(self._grant())
            # A write to a call that the other side has just refused would hide the reason: gRPC
            # takes the failed write for an error of its own. So the other side speaks first.
            payload = await payload_way.reached(call, self.member.address)
            frames = _with_end(sender, entries)
            if payload is not None:
                await payload_way.pour(payload, frames, hearing=hearing, stop=sender.abort)
            else:
                async with read_ahead(frames, stop=sender.abort) as made:
                    async for frame in made:
                        await call.write(frame)
            await call.done_writing()
            await hearing
        except (
            grpc.aio.AioRpcError,
            asyncio.InvalidStateError,
            EngineError,
            PayloadBroken,
        ) as error:
            if isinstance(error, PayloadBroken):
                # Mostly the whole call broke off: it says why, but may need a moment to notice.
                await asyncio.wait([hearing], timeout=_REASON_S)
            why = await _why(call, error)
            is_early = call.done() and await call.code() is grpc.StatusCode.ABORTED
            raise PeerFailed(why, sender.result().counts, is_early=is_early) from error
        finally:
            sender.abort()
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
            call.cancel()
            self._sender, self._is_writing = None, False
        self._calls -= 1
        return sender.result()

    # Fetching

    async def fetch(self, plan: Plan, tree: Tree, receiver: Receiver) -> Fetched:
        """Have the member send the content of a plan's files to our own tree; raises PeerFailed.

        `receiver` carries it out, and is closed in the end.
        """

        async def attempt() -> Fetched:
            return await self._fetch_once(plan, tree, receiver)

        fetched, _ = await self._patiently(attempt)
        return fetched

    async def _fetch_once(self, plan: Plan, tree: Tree, receiver: Receiver) -> Fetched:
        # It sends nothing: it only notes what the receiver says.
        notes = Sender(tree, plan, member=str(self.member), target_member="")
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._open().stream_stream(
            "/baton.v1.Peer/Fetch"
        )
        call = method()
        self._calls += 1
        try:
            await call.write(self._grant())
            await call.initial_metadata()
            async with read_ahead(_encode_changes(plan)) as frames:
                async for frame in frames:
                    await call.write(frame)
            await call.write(b"")
            end = await self._receive(call, receiver, notes)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, EngineError, WireError) as error:
            why = await _why(call, error)
            is_early = call.done() and await call.code() is grpc.StatusCode.ABORTED
            raise PeerFailed(why, notes.result().counts, is_early=is_early) from error
        finally:
            call.cancel()
        self._calls -= 1
        return Fetched(notes.result(), end.problems)

    async def _receive(self, call: RawStream, receiver: Receiver, notes: Sender) -> StreamEnd:
        """Carry out the frames that come, and send the replies back, until the stream's end."""

        async def answer(replies: Iterable[bytes]) -> None:
            for reply in replies:
                notes.on_reply(reply)
                await call.write(reply)

        feeding = WorkBehind(receiver.feed, tell=answer)
        received = 0
        try:
            while True:
                frame = await call.read()
                if not isinstance(frame, bytes):
                    raise PeerFailed(f"the content broke off: {await call.details()}")
                received += len(frame)
                end = read_end_of_stream(frame)
                if end is not None:
                    break
                await feeding.put(frame)
            await feeding.end()
            await answer(await feeding.call(receiver.finish))
            await call.done_writing()
        finally:
            notes.result().counts.bytes_sent += received
            await to_the_end(feeding.stop(receiver.abort))
        return end

    # Agreeing

    async def agree(self, agreements: Callable[[], Iterator[Agreement]]) -> int:
        """Have the member record what its tree bears out; return how many; raises PeerFailed."""

        async def attempt() -> int:
            return await self._agree_once(agreements())

        return (await self._patiently(attempt))[0]

    async def _agree_once(self, agreements: Iterator[Agreement]) -> int:
        method: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = self._open().stream_unary(
            "/baton.v1.Peer/Agree"
        )
        call = method()
        self._calls += 1
        self._is_writing = True
        try:
            await call.write(self._grant())
            async with read_ahead(encode_agreements(agreements)) as frames:
                async for frame in frames:
                    await call.write(frame)
            await call.done_writing()
            recorded = agree_response_from_bytes(await call)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, WireError) as error:
            why, code = str(error), None
            if call.done():
                code = await call.code()
                why = f"{code.name.lower().replace('_', ' ')}: {await call.details()}"
            raise PeerFailed(why, is_early=code is grpc.StatusCode.ABORTED) from error
        finally:
            call.cancel()
            self._is_writing = False
        self._calls -= 1
        return recorded

    async def close(self) -> None:
        """Hang up."""
        if self._renewing is not None:
            self._renewing.cancel()
        channel, self._channel = self._channel, None
        if channel is not None:
            await self._channels.give_back(self.member, channel, is_sound=not self._calls)

    async def _renew(self) -> None:
        """Show the new badge until the member has taken it or what is under way is over."""
        stub = peer_pb2_grpc.PeerStub(self._open())
        while self._is_writing:
            grant = PeerGrant(self._job, self._token, self._run, str(self.member))
            try:
                await stub.Renew(grant_to_wire(grant), timeout=_RENEW_S)
            except grpc.aio.AioRpcError as error:
                log.info("badge_not_renewed", member=str(self.member), why=error.details())
                await self._clock.sleep(_AGAIN_S)
            else:
                return

    def _grant(self) -> bytes:
        grant = PeerGrant(self._job, self._token, self._run, str(self.member))
        return grant_to_wire(grant).SerializeToString()

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            try:
                self._channel = self._channels.take(self.member)
            except WireError as error:
                raise PeerFailed(str(error)) from error
        return self._channel


async def _ask(call: RawStream, request: ListRequest, digests_of: Iterable[bytes] | None) -> None:
    """Say what is to be listed."""
    await call.write(list_request_to_bytes(request))
    if digests_of is not None:
        async with read_ahead(encode_paths(digests_of)) as frames:
            async for frame in frames:
                await call.write(frame)
    await call.done_writing()


def _encode_changes(plan: Plan) -> Iterator[bytes]:
    """Pack the changes of a plan into frames."""
    batch: list[Change] = []
    held = 0
    for change in plan:
        batch.append(change)
        held += 2 * len(change.path) + len(getattr(change, "attributes", b"")) + 100
        if held >= FRAME_BYTES:
            yield msgspec.msgpack.encode(batch)
            batch.clear()
            held = 0
    if batch:
        yield msgspec.msgpack.encode(batch)


async def _hear(call: RawStream, sender: Sender) -> None:
    try:
        while isinstance(reply := await call.read(), bytes):
            sender.on_reply(reply)
    finally:
        # A sender may wait for answers: it must hear that none will come any more.
        sender.abort()
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise await _ended(call)


def _with_end(sender: Sender, entries: int | None) -> Generator[bytes, None, None]:
    """Yield the frames of a push, and what ends it."""
    yield from sender.frames()
    yield end_of_push(PushEnd(entries))


async def _ended(call: RawStream) -> grpc.aio.AioRpcError:
    """Return how a call ended, as an error."""
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(await call.code(), nothing, nothing, await call.details())


async def _why(call: RawStream, error: Exception) -> str:
    """Return why a push ended: the status of the call when it has one, which says most."""
    if isinstance(error, grpc.aio.AioRpcError):
        return describe_error(error)
    if call.done():
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            return f"{code.name.lower().replace('_', ' ')}: {await call.details()}"
    return str(error) or type(error).__name__
