"""What an operator asks of the trash of a root: passed on to the worker that exports it."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from baton.v1 import common_pb2 as pb
from baton.v1 import worker_pb2_grpc
from coordinator.cluster import Cluster
from coordinator.worker_client import WorkerUnreachable, why_silent
from wire.channel import open_channel
from wire.errors import WireError
from wire.identity import Identity, Role

if TYPE_CHECKING:  # the typed form of the stub exists for type checkers only
    from baton.v1.worker_pb2_grpc import WorkerAsyncStub as Stub

CHANGE_S = 60.0
"""How long a worker may take to bring back or remove what it was asked to."""

_SILENCE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


class TrashApi:
    """Answers `baton trash`. What the worker refuses is told as it says it."""

    cluster: Cluster

    async def list_trash(
        self, request: pb.ListTrashRequest, _caller: Identity
    ) -> AsyncIterator[pb.ListTrashResponse]:
        """Answer `baton trash list`."""
        async with self._worker(request.worker) as stub:
            async for answer in stub.ListTrash(request):
                yield answer

    async def restore_trash(
        self, request: pb.RestoreTrashRequest, _caller: Identity
    ) -> pb.RestoreTrashResponse:
        """Answer `baton trash restore`."""
        async with self._worker(request.worker) as stub:
            return await stub.RestoreTrash(request, timeout=CHANGE_S)

    async def purge_trash(
        self, request: pb.PurgeTrashRequest, _caller: Identity
    ) -> pb.PurgeTrashResponse:
        """Answer `baton trash purge`."""
        async with self._worker(request.worker) as stub:
            return await stub.PurgeTrash(request, timeout=CHANGE_S)

    @contextlib.asynccontextmanager
    async def _worker(self, name: str) -> "AsyncIterator[Stub]":
        """Connect to a worker; raises NotFound, and WorkerUnreachable when it does not answer."""
        address = await self.cluster.address_of(name)
        try:
            channel = open_channel(address, self.cluster.credentials, (Role.WORKER, name))
            async with channel:
                yield worker_pb2_grpc.WorkerStub(channel)
        except grpc.aio.AioRpcError as error:
            if error.code() in _SILENCE:
                raise WorkerUnreachable(why_silent(name, address, error)) from error
            raise
        except WireError as error:
            raise WorkerUnreachable(str(error)) from error
