"""The target's side of a run: lists its tree for the source worker, and takes what that pushes.

Everything a caller may do comes from this worker's own session for the job, opened by the owner: which
root, which path, which worker is the source. One run at a time uses a target; a newer one ends what an
older one left.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio
import structlog

from baton.v1 import peer_pb2, peer_pb2_grpc
from syncengine.errors import EngineError
from syncengine.listing import encode_entries
from syncengine.model import Hold
from syncengine.receiver import Receiver
from wire.channel import Credentials, peer_identity
from wire.errors import PeerRefused as PeerUnknown
from wire.errors import ProtocolError
from wire.identity import Identity, Role
from wire.orders import Member, PeerGrant
from wire.peer_convert import (
    ListHeader,
    grant_from_bytes,
    grant_from_wire,
    header_to_bytes,
    read_end_of_push,
)
from wire.token import Token
from worker.errors import PeerNotNow, PeerRefused
from worker.fence import Gate
from worker.member_tree import MemberTree, MemberTrees
from worker.sessions import Session, Sessions
from worker.threads import WorkBehind, read_ahead, to_the_end

log = structlog.get_logger()

_SUPERSEDE_S = 30.0
"""How long an older push may take to end its slice."""


@dataclass(slots=True, eq=False)
class _Use:
    """One listing or push that uses a target now."""

    run: str
    source: Identity
    gate: Gate | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[Any] | None" = None
    is_superseded: bool = False


@dataclass(frozen=True, slots=True)
class _Listed:
    """What the last listing of a target said against going on."""

    run: str
    holds: tuple[Hold, ...]


class PeerService(peer_pb2_grpc.PeerServicer):
    """What source workers may ask of this one."""

    def __init__(self, sessions: Sessions, trees: MemberTrees, credentials: Credentials) -> None:
        """Serve for these sessions."""
        self._sessions = sessions
        self._trees = trees
        self._credentials = credentials
        self._uses: dict[tuple[str, str], _Use] = {}
        self._listed: dict[tuple[str, str], _Listed] = {}

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Register the service, the raw methods included."""
        peer_pb2_grpc.add_PeerServicer_to_server(self, server)
        raw: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "List": grpc.unary_stream_rpc_method_handler(self.list),
            "Push": grpc.stream_stream_rpc_method_handler(self.push),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("baton.v1.Peer", raw),)
        )

    async def close(self) -> None:
        """End every use, at its next safe point."""
        for key in list(self._uses):
            await self._end_use(key)

    async def Renew(  # noqa: N802 - the name on the wire
        self, request: peer_pb2.PeerGrant, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.RenewResponse:
        """Give the push of a run the new token as its badge."""
        grant = await _parsed(context, lambda: grant_from_wire(request))
        await self._granted(grant, context)
        use = self._uses.get((grant.job, grant.member))
        if use is None or use.run != grant.run or use.gate is None:
            await context.abort(grpc.StatusCode.ABORTED, f"run {grant.run} is not pushing here yet")
        await asyncio.to_thread(use.gate.renew, grant.token)
        return peer_pb2.RenewResponse()

    async def list(self, raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Send a ListHeader, then the tree as listing frames."""
        grant = await _parsed(context, lambda: grant_from_bytes(raw))
        session, member, source = await self._granted(grant, context)
        async with self._using(grant, source, context):
            options = session.assignment.options
            with await asyncio.to_thread(self._trees.open_target, member) as opened:
                header = ListHeader(opened.holds, opened.entries_before, opened.free_bytes())
                self._listed[grant.job, grant.member] = _Listed(grant.run, opened.holds)
                await context.write(header_to_bytes(header))
                if opened.tree is None:
                    return
                entries = opened.scan_target(options, [])
                async with read_ahead(encode_entries(entries)) as frames:
                    async for frame in frames:
                        await context.write(frame)

    async def push(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        """Take the frames of a push, publish them, and answer what was published."""
        first = await anext(requests, b"")
        grant = await _parsed(context, lambda: grant_from_bytes(first))
        session, member, source = await self._granted(grant, context)
        async with self._using(grant, source, context) as use:
            use.gate = Gate(session.fence, grant.token)
            stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
            try:
                with await asyncio.to_thread(
                    self._trees.open_target, member, create=True
                ) as opened:
                    self._check_unchanged(grant, opened)
                    await asyncio.to_thread(self._prepare, opened, session)
                    receiver = Receiver(
                        opened.opened,
                        session.assignment.options,
                        member=str(member),
                        gate=use.gate,
                        run_stamp=stamp,
                    )
                    # From here on frames may come: a refusal before this reaches the source as it is.
                    await context.send_initial_metadata(())
                    await self._take(receiver, requests, context, use, opened)
            except (EngineError, PeerRefused, OSError) as error:
                log.warning("push_refused", job=grant.job, run=grant.run, why=str(error))
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def _take(
        self,
        receiver: Receiver,
        requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[bytes, bytes],
        use: _Use,
        opened: MemberTree,
    ) -> None:
        feeding = WorkBehind(receiver.feed)
        try:
            entries: int | None = None
            async for frame in requests:
                entries = read_end_of_push(frame)
                if entries is not None:
                    break
                await _answer(context, await feeding.put(frame))
            await _answer(context, await feeding.end())
            await _answer(context, [await feeding.call(receiver.finish)])
            if entries is not None:
                await feeding.call(lambda: opened.remember(entries))
        finally:
            # However it ends, whoever waits at the gate is let go and the staging is cleaned up.
            assert use.gate is not None
            use.gate.close()
            await to_the_end(feeding.stop(receiver.abort))

    def _check_unchanged(self, grant: PeerGrant, opened: MemberTree) -> None:
        """Refuse a push to a root that became doubtful after it was listed and judged (I8)."""
        listed = self._listed.get((grant.job, grant.member))
        if listed is None or listed.run != grant.run:
            raise PeerRefused(f"run {grant.run} pushes to {grant.member} without having listed it")
        fresh = [hold for hold in opened.holds if hold not in listed.holds]
        if fresh:
            raise PeerRefused(f"{grant.member} changed since it was listed: {fresh[0].detail}")
        if opened.tree is None:
            why = opened.holds[0].detail if opened.holds else "it is not there"
            raise PeerRefused(f"nothing can be written to {grant.member}: {why}")

    def _prepare(self, opened: MemberTree, session: Session) -> None:
        opened.mark()
        trash_s = session.assignment.options.safety.trash_s
        if trash_s is not None:
            opened.expire_trash(trash_s, datetime.now(UTC).timestamp())

    def _using(
        self, grant: PeerGrant, source: Identity, context: grpc.aio.ServicerContext[Any, Any]
    ) -> "_Using":
        return _Using(self, (grant.job, grant.member), _Use(grant.run, source), context)

    async def begin_use(self, key: tuple[str, str], use: _Use) -> None:
        """Make this the one use of a target; an older one is ended first."""
        await self._end_use(key)
        use.task = asyncio.current_task()
        self._uses[key] = use

    def end_use(self, key: tuple[str, str], use: _Use) -> None:
        """Free the target."""
        use.ended.set()
        if self._uses.get(key) is use:
            del self._uses[key]

    async def _end_use(self, key: tuple[str, str]) -> None:
        while (older := self._uses.get(key)) is not None:
            if older.gate is not None:
                await asyncio.to_thread(older.gate.close)
            if older.task is not None:
                older.is_superseded = True
                older.task.cancel()
            async with asyncio.timeout(_SUPERSEDE_S):
                await older.ended.wait()

    async def _granted(
        self, grant: PeerGrant, context: grpc.aio.ServicerContext[Any, Any]
    ) -> tuple[Session, Member, Identity]:
        """Return what our own session says of the call, or abort it."""
        try:
            peer = peer_identity(context, self._credentials)
            session, member = self._judge(grant, peer)
        except PeerUnknown as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        except PeerNotNow as error:
            await context.abort(grpc.StatusCode.ABORTED, str(error))
        except PeerRefused as error:
            log.warning("peer_refused", job=grant.job, run=grant.run, why=str(error))
            self._sessions.orders_refused += 1
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return session, member, peer

    def _judge(self, grant: PeerGrant, peer: Identity) -> tuple[Session, Member]:
        if peer.role is not Role.WORKER:
            raise PeerRefused(f"{peer} is no worker: only the source of a job may call its targets")
        session = self._sessions.get(grant.job)
        if session is None or _is_newer(grant.token, session.token):
            token, why = self._sessions.refused_opens.get(grant.job, (None, ""))
            if token == grant.token:
                raise PeerRefused(why)
            raise PeerNotNow(
                f"worker {self._sessions.worker} has no session of job {grant.job} under token "
                f"{grant.token} yet"
            )
        if session.token != grant.token:
            # Refused for good, unless the caller's own order with the newer token is on its way.
            self._sessions.orders_refused += 1
            raise PeerNotNow(
                f"token {grant.token} of job {grant.job} is not {session.token}, accepted last"
            )
        wanted = session.assignment.source.worker
        if peer.name != wanted:
            raise PeerRefused(f"{peer} is not worker {wanted}, the source of job {grant.job}")
        for target in session.assignment.targets:
            if str(target) == grant.member and target.worker == self._sessions.worker:
                return session, target
        raise PeerRefused(f"{grant.member} is no target of job {grant.job} at this worker")


def _is_newer(token: Token, ours: Token) -> bool:
    """Whether a token is one that we have yet to hear of; those of two clusters have no order."""
    return token.cluster_id == ours.cluster_id and token > ours


class _Using:
    """The span in which a call uses a target."""

    def __init__(
        self,
        service: PeerService,
        key: tuple[str, str],
        use: _Use,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        self._service = service
        self._key = key
        self._use = use
        self._context = context

    async def __aenter__(self) -> _Use:
        await self._service.begin_use(self._key, self._use)
        return self._use

    async def __aexit__(self, *_: object) -> None:
        self._service.end_use(self._key, self._use)
        if self._use.is_superseded:
            # gRPC sends no status for a method that was cancelled: its caller would wait for ever.
            await self._context.abort(
                grpc.StatusCode.CANCELLED, "a newer call took its place, or the worker stops"
            )


async def _parsed(context: grpc.aio.ServicerContext[Any, Any], read: Any) -> PeerGrant:
    try:
        grant: PeerGrant = read()
    except ProtocolError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    return grant


async def _answer(
    context: grpc.aio.ServicerContext[bytes, bytes], results: Iterable[Iterable[bytes]]
) -> None:
    for replies in results:
        for reply in replies:
            await context.write(reply)
