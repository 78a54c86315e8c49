"""Short questions to a worker: who it is, how far away, how fast. Each has a deadline."""

import time

import grpc
import grpc.aio

from baton.v1 import worker_pb2, worker_pb2_grpc
from coordinator.errors import CoordinatorError
from wire.channel import Credentials, open_channel
from wire.errors import WireError
from wire.identity import Role
from wire.orders import WorkerDescription
from wire.worker_convert import description_from_wire

DESCRIBE_S = 3.0
ACCEPT_S = 10.0
_PINGS = 5
_ECHO_BYTES = 512 * 1024
_ECHO_MESSAGES = 64
_ECHO_S = 3.0
_IN_FLIGHT = 4


class WorkerUnreachable(CoordinatorError):
    """A worker did not answer, or somebody else did."""


async def describe(name: str, address: str, credentials: Credentials) -> WorkerDescription:
    """Ask the worker at an address who it is; raises WorkerUnreachable. Takes up to 3 s."""
    try:
        async with open_channel(address, credentials, (Role.WORKER, name)) as channel:
            stub = worker_pb2_grpc.WorkerStub(channel)
            answer = await stub.Describe(worker_pb2.DescribeRequest(), timeout=DESCRIBE_S)
    except grpc.aio.AioRpcError as error:
        raise WorkerUnreachable(why_silent(name, address, error)) from error
    except WireError as error:
        raise WorkerUnreachable(str(error)) from error
    description = description_from_wire(answer)
    if description.name != name:
        raise WorkerUnreachable(f"{address} answers as worker {description.name}, not {name}")
    return description


async def accept_cluster(
    name: str, address: str, credentials: Credentials, cluster_id: int, revision: int
) -> int:
    """Have a worker take tokens of this etcd cluster only; return how many others it forgot.

    Raises WorkerUnreachable. Takes up to 10 s: what goes on under other tokens is stopped first.
    """
    request = worker_pb2.AcceptClusterRequest(cluster_id=cluster_id, revision=revision)
    try:
        async with open_channel(address, credentials, (Role.WORKER, name)) as channel:
            stub = worker_pb2_grpc.WorkerStub(channel)
            answer = await stub.AcceptCluster(request, timeout=ACCEPT_S)
    except grpc.aio.AioRpcError as error:
        raise WorkerUnreachable(why_silent(name, address, error)) from error
    except WireError as error:
        raise WorkerUnreachable(str(error)) from error
    return int(answer.forgotten)


async def measure(name: str, address: str, credentials: Credentials) -> tuple[float, float]:
    """Return the round trip in ms and the throughput in bytes/s, both ways; WorkerUnreachable."""
    try:
        async with open_channel(address, credentials, (Role.WORKER, name), data=True) as channel:
            stub = worker_pb2_grpc.WorkerStub(channel)
            trips = []
            for _ in range(_PINGS):
                began = time.perf_counter()
                await stub.Describe(worker_pb2.DescribeRequest(), timeout=DESCRIBE_S)
                trips.append(time.perf_counter() - began)
            return min(trips) * 1000, await _throughput(channel)
    except grpc.aio.AioRpcError as error:
        raise WorkerUnreachable(why_silent(name, address, error)) from error
    except WireError as error:
        raise WorkerUnreachable(str(error)) from error


async def _throughput(channel: grpc.aio.Channel) -> float:
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
        "/baton.v1.Worker/Echo"
    )
    echo = method(timeout=30.0)
    payload = bytes(_ECHO_BYTES)
    began = time.perf_counter()
    sent = received = 0
    while received < _ECHO_MESSAGES:
        late = time.perf_counter() - began > _ECHO_S
        while sent < _ECHO_MESSAGES and sent - received < _IN_FLIGHT and not late:
            await echo.write(payload)
            sent += 1
        if sent == received:
            break
        if await echo.read() == grpc.aio.EOF:
            break
        received += 1
    took = time.perf_counter() - began
    await echo.done_writing()
    echo.cancel()
    return received * _ECHO_BYTES / took


def why_silent(name: str, address: str, error: grpc.aio.AioRpcError) -> str:
    """Return in a few words why a worker did not answer."""
    code = error.code().name.lower().replace("_", " ")
    return f"worker {name} at {address}: {code}: {error.details()}"
