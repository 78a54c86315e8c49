"""The link between an owner and a worker, both ends real, over the loopback."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from baton.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from coordinator.conversation import connect
from coordinator.lease_session import LeaseSession
from coordinator.links import LinkDown, LinkEvent, LinkUp, Subscription, WorkerLinks
from coordinator.memory_store import MemoryEtcd, MemoryStore
from coordinator.worker_client import WorkerUnreachable, describe, measure
from tests.worker.clocks import until
from tests.worker.workers import T1, T2, Workbench, assignment
from wire.channel import bind, make_server, open_channel
from wire.clock import BootClock
from wire.credentials import Insecure
from wire.identity import Identity, Role
from wire.orders import (
    Hello,
    OpenSession,
    Outcome,
    Pulse,
    RefusalReason,
    Refused,
    RunEnded,
    SessionOpened,
    StartRun,
    WorkerDescription,
)
from wire.worker_convert import order_to_wire
from worker.link import Describe, WorkerService, add_to_server

OWNER = Insecure(Identity("local", Role.COORDINATOR, "c1"))


def own(name: str) -> Insecure:
    return Insecure(Identity("local", Role.WORKER, name))


class Worker:
    """Worker w1 with its server."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.clock = BootClock()
        bench.sessions._clock = self.clock
        facts = WorkerDescription("w1", "worker/w1", "i", "0", "", (), 0)
        self.service = WorkerService(
            bench.sessions, own("w1"), self.clock, Describe(facts, bench.sessions)
        )
        self.server: grpc.aio.Server
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.server = make_server()
        add_to_server(self.service, self.server)
        self.port = bind(self.server, self.address, own("w1"))
        await self.server.start()


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    worker = Worker(Workbench(tmp_path))
    await worker.start()
    yield worker
    await worker.bench.close()
    await worker.server.stop(0)


@dataclass
class Owner:
    """A coordinator's links, and what a job hears on them."""

    links: WorkerLinks
    store: MemoryStore
    lease: LeaseSession
    heard: list[LinkEvent] = field(default_factory=list)

    def of(self, kind: type[LinkEvent]) -> list[LinkEvent]:
        return [event for event in self.heard if isinstance(event, kind)]

    async def hears(self, kind: type[LinkEvent], count: int = 1) -> LinkEvent:
        await until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]


@pytest.fixture
async def owner() -> AsyncIterator[Owner]:
    clock = BootClock()
    store = MemoryStore(MemoryEtcd(clock))
    lease = await LeaseSession.open(store, clock, 5)
    owner = Owner(WorkerLinks(connect("c1", OWNER), clock), store, lease)
    yield owner
    await owner.links.close()
    await lease.close()


async def test_orders_go_out_and_reports_come_back(worker: Worker, owner: Owner) -> None:
    link = owner.links.to("w1", worker.address)
    subscription = link.subscribe("job", owner.lease, owner.heard.append)
    await owner.hears(LinkUp)
    subscription.send(OpenSession(assignment(), T1, f"{owner.lease.lease_id:x}"))
    assert await owner.hears(SessionOpened) == SessionOpened("job", T1)
    session = worker.bench.sessions.get("job")
    assert session is not None
    await until(lambda: session.fence.is_live)
    subscription.send(StartRun("job", T1, "r1"))
    await until(lambda: bool(worker.bench.runs))
    worker.bench.runs[0].finish()
    ended = await owner.hears(RunEnded)
    assert isinstance(ended, RunEnded)
    assert ended.outcome is Outcome.SUCCEEDED


async def test_i12_the_deadline_never_lies_beyond_the_owners_own(
    worker: Worker, owner: Owner
) -> None:
    link = owner.links.to("w1", worker.address)
    subscription = link.subscribe("job", owner.lease, owner.heard.append)
    await owner.hears(LinkUp)
    subscription.send(OpenSession(assignment(), T1, f"{owner.lease.lease_id:x}"))
    await owner.hears(SessionOpened)
    session = worker.bench.sessions.get("job")
    assert session is not None
    await until(lambda: session.fence.is_live)
    for _ in range(50):
        deadline = session.fence._deadline
        assert deadline is not None
        # Both clocks are the same here: what the worker was given, the owner still has.
        assert deadline <= worker.clock.now() + owner.lease.remaining_s() + 0.001
        await asyncio.sleep(0.01)


async def test_i12_an_owner_whose_lease_is_over_says_nothing(worker: Worker, owner: Owner) -> None:
    link = owner.links.to("w1", worker.address)
    subscription = link.subscribe("job", owner.lease, owner.heard.append)
    await owner.hears(LinkUp)
    subscription.send(OpenSession(assignment(), T1, f"{owner.lease.lease_id:x}"))
    await owner.hears(SessionOpened)
    session = worker.bench.sessions.get("job")
    assert session is not None
    await until(lambda: session.fence.is_live)
    owner.lease.declare_lost()
    subscription.send(StartRun("job", T1, "r1"))
    await asyncio.sleep(0)
    extended = session.fence._deadline
    fresh = await LeaseSession.open(owner.store, BootClock(), 30)
    other = link.subscribe("job-2", fresh, owner.heard.append)
    other.send(OpenSession(assignment("job-2"), T1, f"{other.lease.lease_id:x}"))
    await until(lambda: worker.bench.sessions.get("job-2") is not None)
    assert not worker.bench.runs, "what was said after the end never left"
    assert session.fence._deadline == extended
    await fresh.close()


async def test_jobs_share_a_link_and_hear_only_of_themselves(worker: Worker, owner: Owner) -> None:
    link = owner.links.to("w1", worker.address)
    assert owner.links.to("w1", worker.address) is link
    first = link.subscribe("job", owner.lease, owner.heard.append)
    await owner.hears(LinkUp)
    late: list[LinkEvent] = []
    second = link.subscribe("job-2", owner.lease, late.append)
    assert late == [LinkUp()], "up already"
    lease = f"{owner.lease.lease_id:x}"
    first.send(OpenSession(assignment("job"), T1, lease))
    second.send(OpenSession(assignment("job-2"), T2, lease))
    await owner.hears(SessionOpened)
    await until(lambda: len(late) == 2)
    assert late[1] == SessionOpened("job-2", T2)
    assert owner.of(SessionOpened) == [SessionOpened("job", T1)]
    assert not owner.of(Pulse), "pulses are the link's own"
    second.close()
    second.close()
    first.send(StartRun("job-2", T1, "r"))
    await asyncio.sleep(0.05)
    assert len(late) == 2, "who has left hears no more"


async def test_a_worker_that_goes_is_told_and_looked_for_until_it_is_back(
    worker: Worker, owner: Owner
) -> None:
    link = owner.links.to("w1", worker.address)
    subscription = link.subscribe("job", owner.lease, owner.heard.append)
    await owner.hears(LinkUp)
    await worker.server.stop(0)
    down = await owner.hears(LinkDown)
    assert isinstance(down, LinkDown)
    assert down.why
    assert not link.is_up
    subscription.send(StartRun("job", T1, "lost"))
    await worker.start()
    await owner.hears(LinkUp, 2)
    assert (await _refusal(owner, subscription)).order == "StartRun"
    assert not worker.bench.runs


async def _refusal(owner: Owner, subscription: Subscription) -> Refused:
    subscription.send(StartRun("job", T1, "now"))
    refused = await owner.hears(Refused)
    assert isinstance(refused, Refused)
    assert refused.reason is RefusalReason.NO_SESSION
    return refused


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.WORKER])
async def test_i14_only_coordinators_give_orders(worker: Worker, role: Role) -> None:
    credentials = Insecure(Identity("local", role, "c1"))
    async with open_channel(worker.address, credentials, (Role.WORKER, "w1")) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        call = stub.Link()
        with contextlib.suppress(grpc.aio.AioRpcError):  # refused before it is written, or after
            await call.write(order_to_wire(Hello("c1")))
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Describe(worker_pb2.DescribeRequest(), timeout=30)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        listing = stub.ListTrash(common_pb2.ListTrashRequest(root="data"), timeout=30)
        assert await listing.code() is grpc.StatusCode.PERMISSION_DENIED
        for ask in (
            stub.RestoreTrash(common_pb2.RestoreTrashRequest(root="data", path=b"f"), timeout=30),
            stub.PurgeTrash(common_pb2.PurgeTrashRequest(root="data"), timeout=30),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(WorkerUnreachable, match="permission denied"):
        await measure("w1", worker.address, credentials)


@pytest.mark.parametrize(
    ("ask", "code", "said"),
    [
        ({"root": "none", "path": b"f"}, grpc.StatusCode.NOT_FOUND, "exports no root 'none'"),
        ({"root": "data", "path": b"f"}, grpc.StatusCode.NOT_FOUND, "no version of f"),
        ({"root": "data", "path": b""}, grpc.StatusCode.NOT_FOUND, "name a path"),
        ({"root": "data", "path": b"../f"}, grpc.StatusCode.INVALID_ARGUMENT, "below the root"),
        ({"root": "data", "path": b".baton/x"}, grpc.StatusCode.INVALID_ARGUMENT, "below the root"),
        ({"root": "data", "path": b"f\0"}, grpc.StatusCode.INVALID_ARGUMENT, "below the root"),
        (
            {"root": "data", "path": b"f", "date": "../.."},
            grpc.StatusCode.INVALID_ARGUMENT,
            "YYYY-MM-DD",
        ),
        ({"root": "ro", "path": b"f"}, grpc.StatusCode.FAILED_PRECONDITION, "read-only"),
        ({"root": "later", "path": b"f"}, grpc.StatusCode.FAILED_PRECONDITION, "does not exist"),
    ],
)
async def test_i14_what_is_asked_of_the_trash_is_checked(
    worker: Worker, ask: dict[str, Any], code: grpc.StatusCode, said: str
) -> None:
    async with open_channel(worker.address, OWNER, (Role.WORKER, "w1")) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match=said) as refused:
            await stub.RestoreTrash(common_pb2.RestoreTrashRequest(**ask), timeout=30)
        assert refused.value.code() is code


async def test_an_order_that_makes_no_sense_ends_the_link(worker: Worker) -> None:
    async with open_channel(worker.address, OWNER, (Role.WORKER, "w1")) as channel:
        call = worker_pb2_grpc.WorkerStub(channel).Link()
        await call.write(order_to_wire(Hello("c1")))
        await call.write(worker_pb2.Order(extend=worker_pb2.Extend(lease="1", remaining_s=1e99)))
        with pytest.raises(grpc.aio.AioRpcError, match="an extension of") as refused:
            await _read_all(call)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def _read_all(call: grpc.aio.StreamStreamCall[worker_pb2.Order, worker_pb2.Report]) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_worker_says_who_it_is_and_how_far_away(worker: Worker) -> None:
    described = await describe("w1", worker.address, OWNER)
    assert described.name == "w1"
    roots = {root.name: root for root in described.roots}
    assert set(roots) == {"data", "more", "ro", "later"}
    assert roots["ro"].read_only
    assert roots["data"].available
    assert not roots["later"].available
    rtt_ms, throughput = await measure("w1", worker.address, OWNER)
    assert 0 < rtt_ms < 10_000
    assert throughput > 0
    with pytest.raises(WorkerUnreachable, match="answers as worker w1, not w9"):
        await describe("w9", worker.address, OWNER)


async def test_nobody_there_is_unreachable_with_its_address(unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    with pytest.raises(WorkerUnreachable, match=f"worker w1 at {address}"):
        await describe("w1", address, OWNER)
