"""A member's side of a run: lists its tree for the worker that carries the run out, takes what that
pushes, sends what it asks for, and records what it is told to agree to.

Who may do that is `authority`'s to judge, and that only one run at a time uses a member `uses`' to see.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
import structlog

from baton.v1 import peer_pb2, peer_pb2_grpc
from syncengine.compression import packed_listing
from syncengine.errors import EngineError, MalformedFrame
from syncengine.listing import encode_entries
from syncengine.receiver import Receiver
from syncengine.scan import scan_is_complete
from syncengine.sender import Sender
from syncengine.sightings import decode_agreements, decode_paths, encode_sightings
from syncengine.spool import ValueSpool
from wire.channel import Credentials
from wire.errors import PayloadBroken, ProtocolError
from wire.orders import PeerGrant
from wire.peer_convert import (
    ListHeader,
    ListRequest,
    PushEnd,
    agree_response_to_bytes,
    end_of_stream,
    grant_from_bytes,
    grant_from_wire,
    header_to_bytes,
    list_request_from_bytes,
    read_end_of_push,
)
from worker import payload_way
from worker.agreed_store import AgreedStoreLost
from worker.authority import Authority
from worker.errors import PeerRefused
from worker.fence import Gate
from worker.fetching import FetchPlan
from worker.member_tree import MemberTree, MemberTrees
from worker.receiving import check_unchanged, prepared, receiver_for
from worker.sessions import Session, Sessions
from worker.threads import WorkBehind, read_ahead, to_the_end
from worker.uses import Key, Listed, Use, Uses

if TYPE_CHECKING:
    from syncengine.model import Problem, RunOptions

log = structlog.get_logger()

T = TypeVar("T")
Context = grpc.aio.ServicerContext[bytes, bytes]


class PeerService(peer_pb2_grpc.PeerServicer):
    """What the other workers of a job may ask of this one."""

    def __init__(
        self,
        sessions: Sessions,
        trees: MemberTrees,
        credentials: Credentials,
        uses: Uses,
        *,
        host: str,
    ) -> None:
        """Serve for these sessions; `host` is where this worker listens."""
        self._host = host
        self._authority = Authority(sessions, credentials)
        self._trees = trees
        self._uses = uses

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Register the service, the raw methods included."""
        peer_pb2_grpc.add_PeerServicer_to_server(self, server)
        raw: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "List": grpc.stream_stream_rpc_method_handler(self.list),
            "Push": grpc.stream_stream_rpc_method_handler(self.push),
            "Fetch": grpc.stream_stream_rpc_method_handler(self.fetch),
            "Agree": grpc.stream_unary_rpc_method_handler(self.agree),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("baton.v1.Peer", raw),)
        )

    async def close(self) -> None:
        """End every use, at its next safe point."""
        await self._uses.close()

    async def Renew(  # noqa: N802 - the name on the wire
        self, request: peer_pb2.PeerGrant, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.RenewResponse:
        """Give what a run does to a member the new token as its badge."""
        grant = await _parsed(context, lambda: grant_from_wire(request))
        await self._authority.granted(grant, context)
        use = self._uses.current((grant.job, grant.member))
        if use is None or use.run != grant.run or use.gate is None:
            await context.abort(grpc.StatusCode.ABORTED, f"run {grant.run} is not pushing here yet")
        await asyncio.to_thread(use.gate.renew, grant.token)
        return peer_pb2.RenewResponse()

    # Listing

    async def list(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Send a ListHeader, then the tree as listing frames, then how that ended."""
        first = await anext(requests, b"")
        request = await _parsed(context, lambda: list_request_from_bytes(first))
        grant = request.grant
        session, member, peer = await self._authority.granted(grant, context)
        async with self._using(grant, context):
            with (
                await asyncio.to_thread(self._trees.open_target, member) as opened,
                contextlib.closing(ValueSpool[bytes](None, list[bytes])) as wanted,
            ):
                if request.digests:
                    await self._take_paths(requests, wanted, context)
                listed = Listed(grant.run, peer.name, opened.holds)
                self._uses.note_listed((grant.job, grant.member), listed)
                try:
                    await self._list(session, opened, request, wanted, context)
                except AgreedStoreLost as lost:
                    whose = await asyncio.to_thread(self._trees.whose, session.assignment, member)
                    await asyncio.to_thread(self._trees.agreed.drop, whose, str(lost))
                    await context.abort(grpc.StatusCode.ABORTED, str(lost))

    async def _take_paths(
        self, requests: AsyncIterator[bytes], wanted: ValueSpool[bytes], context: Context
    ) -> None:
        try:
            async for frame in requests:
                for path in decode_paths(frame):
                    wanted.append(path)
        except MalformedFrame as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        await asyncio.to_thread(wanted.seal)

    async def _list(
        self,
        session: Session,
        opened: MemberTree,
        request: ListRequest,
        wanted: ValueSpool[bytes],
        context: Context,
    ) -> None:
        job = session.assignment
        options = job.options
        problems: list[Problem] = []
        async with opened.agreed_to(job if request.sightings else None) as store:
            number = await asyncio.to_thread(lambda: store.number) if store is not None else 0
            header = ListHeader(
                opened.holds,
                opened.entries_before,
                opened.free_bytes(),
                number,
                await asyncio.to_thread(opened.is_empty),
                opened.lineage,
            )
            await context.write(header_to_bytes(header))
            if opened.tree is not None:
                if request.sightings:
                    frames = encode_sightings(
                        opened.sightings(
                            options,
                            problems,
                            store,
                            grafts=request.grafts,
                            digests_of=wanted,
                            scope=request.scope,
                        )
                    )
                elif request.digests:
                    frames = encode_entries(opened.entries(options, problems, wanted))
                elif options.rule.is_one_way and not request.grafts and request.scope is None:
                    frames = encode_entries(opened.scan_target_stretches(options, problems))
                else:
                    frames = encode_entries(
                        opened.scan_target(
                            options, problems, grafts=request.grafts, scope=request.scope
                        )
                    )
                await _send(context, packed_listing(frames, options.compression))
        await context.write(end_of_stream(problems, is_complete=scan_is_complete(problems)))

    # Taking

    async def push(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Take the frames of a push, publish them, and answer what was published."""
        first = await anext(requests, b"")
        grant = await _parsed(context, lambda: grant_from_bytes(first))
        session, member, peer = await self._authority.granted(grant, context)
        async with self._using(grant, context) as use:
            use.gate = gate = Gate(session.fence, grant.token)
            try:
                listed = self._uses.listed(grant, peer.name)
                with await asyncio.to_thread(
                    self._trees.open_target, member, create=True
                ) as opened:
                    check_unchanged(opened, listed)
                    receiver = await asyncio.to_thread(
                        _begun, opened, session.assignment.options, gate, grant.run
                    )
                    await self._take(receiver, requests, context, gate, opened)
            except PayloadBroken as error:
                log.info("push_broke_off", job=grant.job, run=grant.run, why=str(error))
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            except (EngineError, PeerRefused, OSError) as error:
                log.warning("push_refused", job=grant.job, run=grant.run, why=str(error))
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def _take(
        self,
        receiver: Receiver,
        requests: AsyncIterator[bytes],
        context: Context,
        gate: Gate,
        opened: MemberTree,
    ) -> None:
        async def answer(replies: Iterable[bytes]) -> None:
            for reply in replies:
                await context.write(reply)

        feeding = WorkBehind(receiver.feed, tell=answer)
        try:
            end: PushEnd | None = None
            # From here on frames may come: a refusal before this reaches the caller as it is.
            async with payload_way.taken(requests, context, self._host) as frames:
                async for frame in frames:
                    end = read_end_of_push(frame)
                    if end is not None:
                        break
                    await feeding.put(frame)
            await feeding.end()
            await answer(await feeding.call(receiver.finish))
            if end is not None and (entries := end.entries) is not None:
                await feeding.call(lambda: opened.remember(entries))
        finally:
            # However it ends, whoever waits at the gate is let go and the staging is cleaned up.
            gate.close()
            await to_the_end(feeding.stop(receiver.abort))

    # Giving

    async def fetch(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Read a plan, then send the content that it asks for; replies come back meanwhile."""
        first = await anext(requests, b"")
        grant = await _parsed(context, lambda: grant_from_bytes(first))
        session, member, peer = await self._authority.granted(grant, context)
        async with self._using(grant, context):
            try:
                listed = self._uses.listed(grant, peer.name)
                with (
                    await asyncio.to_thread(self._trees.open_target, member) as opened,
                    FetchPlan(session.assignment.options) as plan,
                ):
                    check_unchanged(opened, listed)
                    await context.send_initial_metadata(())
                    async for frame in requests:
                        if not frame:
                            break
                        await asyncio.to_thread(plan.add, frame)
                    await asyncio.to_thread(plan.seal)
                    await self._give(plan, opened, requests, context)
            except (EngineError, PeerRefused, OSError) as error:
                log.warning("fetch_refused", job=grant.job, run=grant.run, why=str(error))
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def _give(
        self,
        plan: FetchPlan,
        opened: MemberTree,
        requests: AsyncIterator[bytes],
        context: Context,
    ) -> None:
        member = str(opened.member)
        sender = Sender(opened.opened, plan.plan, member=member, target_member="", names_gone=True)
        hearing = asyncio.create_task(_hear(requests, sender))
        try:
            async with read_ahead(sender.frames(), stop=sender.abort) as frames:
                async for frame in frames:
                    await context.write(frame)
            problems = [p for p in sender.result().problems if p.member == member]
            await context.write(end_of_stream(problems, is_complete=not problems))
            await hearing
        finally:
            sender.abort()
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    # Agreeing

    async def agree(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """Record those agreements that this member's tree bears out; answer how many these were."""
        first = await anext(requests, b"")
        grant = await _parsed(context, lambda: grant_from_bytes(first))
        session, member, peer = await self._authority.granted(grant, context)
        options = session.assignment.options
        async with self._using(grant, context) as use:
            use.gate = gate = Gate(session.fence, grant.token)
            try:
                listed = self._uses.listed(grant, peer.name)
                with await asyncio.to_thread(self._trees.open_target, member) as opened:
                    check_unchanged(opened, listed)
                    await asyncio.to_thread(prepared, opened, options, grant.run)

                    def take(frame: bytes) -> int:
                        agreements = decode_agreements(frame)
                        with gate.publishing():
                            return opened.agree(session.assignment, agreements)

                    recorded = 0

                    async def count(number: int) -> None:
                        nonlocal recorded
                        recorded += number

                    taking = WorkBehind(take, tell=count)
                    try:
                        async for frame in requests:
                            await taking.put(frame)
                        await taking.end()
                    finally:
                        gate.close()
                        await to_the_end(taking.stop(_nothing))
            except (EngineError, PeerRefused, OSError) as error:
                log.warning("agreement_refused", job=grant.job, run=grant.run, why=str(error))
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return agree_response_to_bytes(recorded)

    def _using(self, grant: PeerGrant, context: Context) -> "_Using":
        return _Using(self._uses, (grant.job, grant.member), Use(grant.run), context)


class _Using:
    """The span in which a call uses a member."""

    def __init__(self, uses: Uses, key: Key, use: Use, context: Context) -> None:
        self._uses = uses
        self._key = key
        self._use = use
        self._context = context

    async def __aenter__(self) -> Use:
        await self._uses.begin(self._key, self._use)
        return self._use

    async def __aexit__(self, *_: object) -> None:
        self._uses.end(self._key, self._use)
        if self._use.is_superseded:
            # gRPC sends no status for a method that was cancelled: its caller would wait for ever.
            await self._context.abort(
                grpc.StatusCode.CANCELLED, "a newer call took its place, or the worker stops"
            )


async def _parsed(context: grpc.aio.ServicerContext[Any, Any], read: Callable[[], T]) -> T:
    try:
        return read()
    except ProtocolError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))


async def _send(context: Context, frames: Iterator[bytes]) -> None:
    async with read_ahead(frames) as ahead:
        async for frame in ahead:
            await context.write(frame)


async def _hear(requests: AsyncIterator[bytes], sender: Sender) -> None:
    try:
        async for reply in requests:
            sender.on_reply(reply)
    except BaseException:
        # A sender may wait for answers: it must hear that none will come any more. One that asked
        # nothing goes on, for a caller may well have said all that it had to say.
        sender.abort()
        raise


def _begun(opened: MemberTree, options: "RunOptions", gate: Gate, run: str) -> Receiver:
    """Prepare a tree for the changes of a run, and return what carries them out; blocks on the disk."""
    prepared(opened, options, run)
    return receiver_for(opened, options, gate)


def _nothing() -> None:
    """End the work of agreeing: nothing is left open."""
