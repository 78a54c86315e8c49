"""A coordinator reduced to its voice: says to a worker whatever it is told to say, and listens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc.aio

from baton.v1 import worker_pb2_grpc
from syncengine.model import RunOptions
from tests.cluster.harness import Scene
from wire.channel import open_channel
from wire.credentials import load_tls
from wire.identity import Role
from wire.orders import (
    Assignment,
    Extend,
    Hello,
    Member,
    OpenSession,
    Order,
    Pulse,
    Refused,
    Report,
    RunProgress,
    SessionOpened,
)
from wire.token import Token
from wire.worker_convert import order_to_wire, report_from_wire

LEASE = "1"
REMAINING_S = 5.0

R = TypeVar("R", bound=Report)


class LateOwner:
    """One link to one worker under the certificate of a coordinator; its lease never ends."""

    def __init__(self, scene: Scene, call: Any) -> None:
        self._scene = scene
        self._call = call
        self._writing = asyncio.Lock()
        self._reports: asyncio.Queue[Report] = asyncio.Queue()

    def assignment(self, job: str, root: str = "data") -> Assignment:
        """What the owner of a job from a:ROOT to b:ROOT would say of it."""
        address = {name: self._scene.cluster.members[name].listen for name in ("a", "b")}
        source, target = (Member(name, root, b"", address[name]) for name in ("a", "b"))
        return Assignment(job, 1, (source, target), RunOptions())

    async def say(self, order: Order) -> None:
        """Give an order."""
        async with self._writing:
            await self._call.write(order_to_wire(order))

    async def hear(self, kind: type[R]) -> R:
        """Return the next report but pulses and progress, which must be of this kind."""
        async with asyncio.timeout(60):
            report = await self._reports.get()
        assert isinstance(report, kind), report
        return report

    async def listen(self) -> None:
        """Take reports and extend deadlines, until cancelled."""
        while (message := await self._call.read()) is not grpc.aio.EOF:
            match report_from_wire(message):
                case Pulse(stamp_ns):
                    await self.say(Extend(LEASE, stamp_ns, REMAINING_S))
                case RunProgress():
                    pass
                case report:
                    self._reports.put_nowait(report)

    async def open(self, assignment: Assignment, token: Token) -> None:
        """Open the session of a job."""
        await self.say(OpenSession(assignment, token, LEASE))
        assert (await self.hear(SessionOpened)).token == token

    async def refusal_of(self, order: Order) -> Refused:
        """Give an order and return its refusal; any other answer fails the test."""
        await self.say(order)
        return await self.hear(Refused)


@asynccontextmanager
async def late_owner(scene: Scene, node: str, worker: str) -> AsyncIterator[LateOwner]:
    """Speak to a worker with the certificate of `node`."""
    tls = scene.cluster.directory / "tls" / f"{Role.COORDINATOR}-{node}"
    address = scene.cluster.members[worker].listen
    async with open_channel(address, load_tls(tls), (Role.WORKER, worker)) as channel:
        call = worker_pb2_grpc.WorkerStub(channel).Link()
        await call.write(order_to_wire(Hello(node)))
        owner = LateOwner(scene, call)
        listening = asyncio.create_task(owner.listen())
        try:
            yield owner
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            call.cancel()
