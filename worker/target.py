"""One target as the source worker of a run sees it: its listing, and the push to it."""

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio
import structlog

from baton.v1 import peer_pb2_grpc
from syncengine.errors import EngineError
from syncengine.listing import decode_entries
from syncengine.model import Counts, MirrorOptions, Problem
from syncengine.phases import Plan
from syncengine.plan import plan_mirror
from syncengine.scan import scan_is_complete
from syncengine.sender import Sender, SendResult
from syncengine.tree import Tree
from wire.channel import Credentials, open_channel
from wire.clock import Clock
from wire.errors import WireError
from wire.identity import Role
from wire.orders import Member, PeerGrant
from wire.peer_convert import ListHeader, end_of_push, grant_to_wire, header_from_bytes
from wire.token import Token
from worker.member_tree import MemberTree
from worker.threads import read_ahead

log = structlog.get_logger()

PATIENCE_S = 15.0
"""How long a target may lack the session that our owner opened, or opens, for the same job."""
_AGAIN_S = 0.1
_RENEW_S = 3.0

RawStream = grpc.aio.StreamStreamCall[bytes, bytes]


class TargetFailed(Exception):
    """The target cannot be listed or pushed to, or no longer; `str()` says why."""

    def __init__(self, why: str, sent: Counts | None = None, *, is_early: bool = False) -> None:
        """Keep what had been published before; `is_early` when nothing was, and it may be yet."""
        super().__init__(why)
        self.sent = sent or Counts()
        self.is_early = is_early


@dataclass(slots=True)
class Listing:
    """A target's listing on its way in."""

    header: ListHeader
    member: Member
    loop: asyncio.AbstractEventLoop
    call: "grpc.aio.UnaryStreamCall[bytes, bytes]"
    bytes_received: int = 0

    def plan(self, source: MemberTree, options: MirrorOptions, problems: list[Problem]) -> Plan:
        """Scan the source beside the listing and merge them. For a thread of its own: it blocks.

        Raises TargetFailed when the listing breaks off, EngineError when it is malformed.
        """
        try:
            return plan_mirror(
                source.scan_source(options, problems),
                decode_entries(self._frames()),
                options,
                is_complete=lambda: scan_is_complete(problems),
                source_member=str(source.member),
                target_member=str(self.member),
            )
        except grpc.aio.AioRpcError as error:
            raise TargetFailed(describe_error(error)) from error
        except concurrent.futures.CancelledError:
            raise TargetFailed("the listing was broken off") from None

    def stop(self) -> None:
        """End `plan`, from the event loop: its next read of the listing fails."""
        self.call.cancel()

    def _frames(self) -> Iterator[bytes]:
        while True:
            frame = asyncio.run_coroutine_threadsafe(self._next(), self.loop).result()
            if frame is None:
                return
            self.bytes_received += len(frame)
            yield frame

    async def _next(self) -> bytes | None:
        frame = await self.call.read()
        return frame if isinstance(frame, bytes) else None  # EOF is an object of gRPC's own


class Target:
    """The way to one target, under the token that the owner last gave."""

    def __init__(
        self,
        job: str,
        run: str,
        token: Token,
        member: Member,
        credentials: Credentials,
        clock: Clock,
    ) -> None:
        """Connect to nobody yet."""
        self.member = member
        self._job = job
        self._run = run
        self._token = token
        self._credentials = credentials
        self._clock = clock
        self._channel: grpc.aio.Channel | None = None
        self._sender: Sender | None = None
        self._renewing: asyncio.Task[None] | None = None

    def renew(self, token: Token) -> None:
        """Use a newer token from now on, for a push that is under way too."""
        self._token = token
        if self._sender is not None:
            if self._renewing is not None:
                self._renewing.cancel()
            self._renewing = asyncio.create_task(self._renew())

    def counts(self) -> Counts:
        """Return what the push that is under way has published so far."""
        counts = Counts()
        if self._sender is not None:
            counts.add(self._sender.result().counts)
        return counts

    @asynccontextmanager
    async def listing(self) -> AsyncIterator[Listing]:
        """Ask for the target's tree; raises TargetFailed."""
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._open().unary_stream(
            "/baton.v1.Peer/List"
        )
        until = self._clock.now() + PATIENCE_S
        while True:
            call = method(self._grant())
            try:
                raw = await call.read()
                if not isinstance(raw, bytes):
                    raise TargetFailed(f"the listing did not begin: {await call.details()}")
                header = header_from_bytes(raw)
                yield Listing(header, self.member, asyncio.get_running_loop(), call)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ABORTED or self._clock.now() > until:
                    raise TargetFailed(describe_error(error)) from error
                await self._clock.sleep(_AGAIN_S)
            except (WireError, EngineError) as error:
                raise TargetFailed(f"the listing makes no sense: {error}") from error
            else:
                return
            finally:
                call.cancel()

    async def push(self, tree: Tree, plan: Plan, source_member: str) -> SendResult:
        """Carry out a plan at the target; raises TargetFailed with what was published before."""
        until = self._clock.now() + PATIENCE_S
        wasted = 0
        while True:
            try:
                result = await self._push_once(tree, plan, source_member)
            except TargetFailed as failed:
                failed.sent.bytes_sent += wasted
                if not failed.is_early or self._clock.now() > until:
                    raise
                # RACE: a takeover since the listing: the new token reached one of us before the other.
                wasted = failed.sent.bytes_sent
                await self._clock.sleep(_AGAIN_S)
            else:
                result.counts.bytes_sent += wasted
                return result

    async def _push_once(self, tree: Tree, plan: Plan, source_member: str) -> SendResult:
        sender = Sender(tree, plan, member=source_member, target_member=str(self.member))
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._open().stream_stream(
            "/baton.v1.Peer/Push"
        )
        call = method()
        self._sender = sender
        hearing = asyncio.create_task(_hear(call, sender))
        try:
            await call.write(self._grant())
            # A write to a call that the other side has just refused would hide the reason: gRPC
            # takes the failed write for an error of its own. So the other side speaks first.
            await call.initial_metadata()
            async with read_ahead(sender.frames()) as frames:
                async for frame in frames:
                    await call.write(frame)
            await call.write(end_of_push(plan.summary.source_entries))
            await call.done_writing()
            await hearing
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, EngineError) as error:
            why = await _why(call, error)
            is_early = call.done() and await call.code() is grpc.StatusCode.ABORTED
            raise TargetFailed(why, sender.result().counts, is_early=is_early) from error
        finally:
            sender.abort()
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
            call.cancel()
            self._sender = None
        return sender.result()

    async def close(self) -> None:
        """Hang up."""
        if self._renewing is not None:
            self._renewing.cancel()
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _renew(self) -> None:
        """Show the push's new badge until the target has taken it or the push is over."""
        stub = peer_pb2_grpc.PeerStub(self._open())
        while self._sender is not None:
            grant = PeerGrant(self._job, self._token, self._run, str(self.member))
            try:
                await stub.Renew(grant_to_wire(grant), timeout=_RENEW_S)
            except grpc.aio.AioRpcError as error:
                log.info("badge_not_renewed", target=str(self.member), why=error.details())
                await self._clock.sleep(_AGAIN_S)
            else:
                return

    def _grant(self) -> bytes:
        grant = PeerGrant(self._job, self._token, self._run, str(self.member))
        return grant_to_wire(grant).SerializeToString()

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            try:
                self._channel = open_channel(
                    self.member.address,
                    self._credentials,
                    (Role.WORKER, self.member.worker),
                    data=True,
                )
            except WireError as error:
                raise TargetFailed(str(error)) from error
        return self._channel


def describe_error(error: grpc.aio.AioRpcError) -> str:
    """Return an RPC's failure in a few words."""
    return f"{error.code().name.lower().replace('_', ' ')}: {error.details()}"


async def _hear(call: RawStream, sender: Sender) -> None:
    while isinstance(reply := await call.read(), bytes):
        sender.on_reply(reply)
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code, grpc.aio.Metadata(), grpc.aio.Metadata(), await call.details()
        )


async def _why(call: RawStream, error: Exception) -> str:
    """Return why a push ended: the status of the call when it has one, which says most."""
    if isinstance(error, grpc.aio.AioRpcError):
        return describe_error(error)
    if call.done():
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            return f"{code.name.lower().replace('_', ' ')}: {await call.details()}"
    return str(error) or type(error).__name__
