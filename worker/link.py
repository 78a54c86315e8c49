"""The Worker service: one link per coordinator, orders in, reports out."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import structlog

from baton.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from wire.channel import Credentials, peer_identity
from wire.clock import Clock
from wire.errors import PeerRefused, ProtocolError
from wire.identity import Role
from wire.orders import Hello, Pulse, Report, WatchDescription, WorkerDescription
from wire.worker_convert import description_to_wire, order_from_wire, report_to_wire
from worker.roots import unwatched
from worker.sessions import Sessions
from worker.trash_calls import TrashCallFailed, TrashCalls

log = structlog.get_logger()

PULSE_S = 0.5
"""How often the worker shows its clock; four times within the shortest lease."""

ECHO_LIMIT = 4096
"""Messages that one throughput test may send."""


class CoordinatorLink:
    """The way back to one coordinator. Reports wait here while the network is slow."""

    def __init__(self, coordinator: str) -> None:
        """Begin with nothing to say."""
        self.coordinator = coordinator
        self.reports: asyncio.Queue[Report] = asyncio.Queue()

    def send(self, report: Report) -> None:
        """Queue a report; lost when the link breaks, so what matters is said again on the next."""
        self.reports.put_nowait(report)


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """What coordinators may ask; everybody else is refused."""

    def __init__(
        self, sessions: Sessions, credentials: Credentials, clock: Clock, describe: "Describe"
    ) -> None:
        """Serve for these sessions."""
        self._sessions = sessions
        self._credentials = credentials
        self._clock = clock
        self._describe = describe
        self._trash = TrashCalls(sessions.worker, sessions.roots)
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Hang up on every coordinator: they keep their links for as long as the worker lets them."""
        self._closing.set()

    async def Link(  # type: ignore[override]  # noqa: N802 - the name on the wire
        self,
        requests: AsyncIterator[worker_pb2.Order],
        context: grpc.aio.ServicerContext[worker_pb2.Order, worker_pb2.Report],
    ) -> None:
        """Carry out orders until the coordinator hangs up."""
        name = await self._coordinator(context)
        link = CoordinatorLink(name)
        log.info("link_opened", coordinator=name)
        talking = (
            asyncio.create_task(self._listen(link, requests)),
            asyncio.create_task(self._speak(link, context)),
            asyncio.create_task(self._pulse(link)),
            asyncio.create_task(self._closing.wait()),
        )
        listening = talking[0]
        try:
            await asyncio.wait({listening, talking[-1]}, return_when=asyncio.FIRST_COMPLETED)
            if not listening.done():
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the worker is stopping")
            await listening
        except ProtocolError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            for task in talking:
                task.cancel()
            self._sessions.link_gone(link)
            log.info("link_closed", coordinator=name)

    async def _listen(
        self, link: CoordinatorLink, requests: AsyncIterator[worker_pb2.Order]
    ) -> None:
        async for message in requests:
            order = order_from_wire(message)
            if not isinstance(order, Hello):
                self._sessions.take(order, link)

    async def Describe(  # noqa: N802 - the name on the wire
        self,
        request: worker_pb2.DescribeRequest,  # noqa: ARG002 - it has no fields
        context: grpc.aio.ServicerContext[worker_pb2.DescribeRequest, worker_pb2.DescribeResponse],
    ) -> worker_pb2.DescribeResponse:
        """Say who this worker is and what it exports."""
        await self._coordinator(context)
        return description_to_wire(await self._describe())

    async def ListTrash(  # noqa: N802 - the name on the wire
        self,
        request: common_pb2.ListTrashRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[common_pb2.ListTrashResponse]:
        """Send what lies in the trash of a root."""
        await self._coordinator(context)
        try:
            async for answer in self._trash.list(request):
                yield answer
        except TrashCallFailed as error:
            await context.abort(error.code, str(error))

    async def RestoreTrash(  # noqa: N802 - the name on the wire
        self,
        request: common_pb2.RestoreTrashRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> common_pb2.RestoreTrashResponse:
        """Bring something back from the trash of a root."""
        name = await self._coordinator(context)
        log.info("trash_restore", root=request.root, path=request.path, asked_by=name)
        try:
            return await self._trash.restore(request)
        except TrashCallFailed as error:
            await context.abort(error.code, str(error))

    async def PurgeTrash(  # noqa: N802 - the name on the wire
        self,
        request: common_pb2.PurgeTrashRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> common_pb2.PurgeTrashResponse:
        """Empty the trash of a root."""
        name = await self._coordinator(context)
        log.info("trash_purge", root=request.root, asked_by=name)
        try:
            return await self._trash.purge(request)
        except TrashCallFailed as error:
            await context.abort(error.code, str(error))

    async def AcceptCluster(  # noqa: N802 - the name on the wire
        self,
        request: worker_pb2.AcceptClusterRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> worker_pb2.AcceptClusterResponse:
        """Let owners of another etcd cluster in, on an operator's word."""
        name = await self._coordinator(context)
        log.info("accept_cluster", cluster=f"{request.cluster_id:x}", asked_by=name)
        try:
            gone = await self._sessions.accept_cluster(request.cluster_id, request.revision)
        except sqlite3.Error as error:
            await context.abort(grpc.StatusCode.INTERNAL, f"the journal cannot be written: {error}")
        return worker_pb2.AcceptClusterResponse(forgotten=gone)

    async def echo(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        """Answer raw messages one by one, for `worker test`."""
        await self._coordinator(context)
        count = 0
        async for message in requests:
            count += 1
            if count > ECHO_LIMIT:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")
            await context.write(message)

    async def _coordinator(self, context: grpc.aio.ServicerContext[Any, Any]) -> str:
        try:
            peer = peer_identity(context, self._credentials)
        except PeerRefused as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        if peer.role is not Role.COORDINATOR:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{peer} is no coordinator; only those give orders",
            )
        return peer.name

    async def _speak(
        self, link: CoordinatorLink, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        while True:
            report = await link.reports.get()
            if isinstance(report, Pulse):
                report = self._now()  # the stamp must be the moment of sending
            await context.write(report_to_wire(report))

    async def _pulse(self, link: CoordinatorLink) -> None:
        while True:
            link.send(self._now())
            await self._clock.sleep(PULSE_S)

    def _now(self) -> Pulse:
        return Pulse(int(self._clock.now() * 1e9))


class Describe:
    """Tells who this worker is; a callable so that the service needs no daemon."""

    def __init__(
        self,
        facts: WorkerDescription,
        sessions: Sessions,
        watch: Callable[[str], WatchDescription] = unwatched,
    ) -> None:
        """Keep what never changes; `watch` says how a root is watched."""
        self._watch = watch
        self._facts = facts
        self._sessions = sessions

    async def __call__(self) -> WorkerDescription:
        """Look at the roots, in a thread."""
        roots = await asyncio.to_thread(self._sessions.roots.describe, self._watch)
        facts = self._facts
        return WorkerDescription(
            name=facts.name,
            identity=facts.identity,
            instance=facts.instance,
            version=facts.version,
            group=facts.group,
            roots=roots,
            orders_refused=self._sessions.orders_refused,
        )


def add_to_server(service: WorkerService, server: grpc.aio.Server) -> None:
    """Register the service, the raw echo included."""
    worker_pb2_grpc.add_WorkerServicer_to_server(service, server)
    echo: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(service.echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("baton.v1.Worker", {"Echo": echo}),)
    )
