"""A coordinator reduced to its voice: says to a worker whatever it is told to say, and listens."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncio

import grpc.aio

from baton.v1 import worker_pb2_grpc
from syncengine.model import MirrorOptions
from tests.cluster.harness import Scene
from wire.channel import open_channel
from wire.credentials import load_tls
from wire.identity import Role
from wire.orders import Assignment, Hello, Member, Order, Refused
from wire.worker_convert import order_to_wire, report_from_wire


class LateOwner:
    """One link to one worker under the certificate of a coordinator."""

    def __init__(self, scene: Scene, call: Any) -> None:
        self._scene = scene
        self._call = call

    def assignment(self, job: str) -> Assignment:
        """What the owner of a job from a:data to b:data would say of it."""
        address = {name: self._scene.cluster.members[name].listen for name in ("a", "b")}
        source, target = (Member(name, "data", b"", address[name]) for name in ("a", "b"))
        return Assignment(job, 1, source, (target,), MirrorOptions())

    async def refusal_of(self, order: Order) -> Refused:
        """Give an order and return its refusal; any other answer but pulses fails the test."""
        await self._call.write(order_to_wire(order))
        async with asyncio.timeout(10):
            while True:
                message = await self._call.read()
                assert message is not grpc.aio.EOF, "the worker hung up"
                report = report_from_wire(message)
                if isinstance(report, Refused):
                    return report
                assert type(report).__name__ == "Pulse", f"{order} was obeyed: {report}"


@asynccontextmanager
async def late_owner(scene: Scene, node: str, worker: str) -> AsyncIterator[LateOwner]:
    """Speak to a worker with the certificate of `node`."""
    tls = scene.cluster.directory / "tls" / f"{Role.COORDINATOR}-{node}"
    address = scene.cluster.members[worker].listen
    async with open_channel(address, load_tls(tls), (Role.WORKER, worker)) as channel:
        call = worker_pb2_grpc.WorkerStub(channel).Link()
        await call.write(order_to_wire(Hello(node)))
        try:
            yield LateOwner(scene, call)
        finally:
            call.cancel()
