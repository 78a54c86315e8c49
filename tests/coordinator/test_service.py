"""The door of a coordinator's API: every method is there, and who may pass is decided first."""

import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message_factory import GetMessageClass

from baton.v1 import coordinator_pb2 as pb
from coordinator.api import code_of
from coordinator.cluster import AlreadyThere, Contended, Invalid, NotFound
from coordinator.control_api import ControlApi
from coordinator.errors import BadKey, CoordinatorError, StoreUnavailable
from coordinator.job_file import JobFileInvalid
from coordinator.job_owner import RequestRefused
from coordinator.ledger import NotOwner
from coordinator.service import CALLERS, bind_service
from coordinator.worker_client import WorkerUnreachable
from wire.channel import bind, make_server, open_channel
from wire.credentials import Insecure
from wire.identity import Identity, Role

SERVICE = pb.DESCRIPTOR.services_by_name["Coordinator"]
METHODS = {method.name: method for method in SERVICE.methods}
CODE = grpc.StatusCode
CALL_S = 20.0


def function_name(method: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()


class Functions:
    """A function for every method; each remembers its caller and does as it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.error: Exception | None = None
        for method in SERVICE.methods:
            make = self._stream if method.server_streaming else self._unary
            setattr(self, function_name(method.name), make(method))

    def _enter(self, method: Any, request: Any, caller: Identity) -> Any:
        assert isinstance(request, GetMessageClass(method.input_type))
        self.calls.append((method.name, str(caller)))
        if self.error is not None:
            raise self.error
        return GetMessageClass(method.output_type)()

    def _unary(self, method: Any) -> Callable[..., Any]:
        async def function(request: Any, caller: Identity) -> Any:
            return self._enter(method, request, caller)

        return function

    def _stream(self, method: Any) -> Callable[..., Any]:
        async def function(request: Any, caller: Identity) -> AsyncIterator[Any]:
            answer = self._enter(method, request, caller)
            yield answer
            yield answer

        return function


class Served:
    """A coordinator's service on the loopback."""

    def __init__(self) -> None:
        credentials = Insecure(Identity("local", Role.COORDINATOR, "c1"))
        self.functions = Functions()
        self.server = make_server()
        bind_service(self.server, self.functions, credentials, code_of)
        self.address = f"127.0.0.1:{bind(self.server, '127.0.0.1:0', credentials)}"

    async def call(self, method: str, role: Role, *, claim: bool = True) -> tuple[CODE, str]:
        if claim:
            credentials = Insecure(Identity("local", role, "somebody"))
            channel = open_channel(self.address, credentials, (Role.COORDINATOR, "c1"))
        else:
            channel = grpc.aio.insecure_channel(self.address)
        known = METHODS[method]
        path = f"/{SERVICE.full_name}/{method}"
        answer = GetMessageClass(known.output_type)
        request = GetMessageClass(known.input_type)().SerializeToString()
        async with channel:
            try:
                if known.server_streaming:
                    stream: Any = channel.unary_stream(path)
                    answers = [raw async for raw in stream(request, timeout=CALL_S)]
                    assert len(answers) == 2
                else:
                    unary: Any = channel.unary_unary(path)
                    answers = [await unary(request, timeout=CALL_S)]
            except grpc.aio.AioRpcError as error:
                return error.code(), error.details() or ""
        assert [answer.FromString(raw) for raw in answers] == [answer()] * len(answers)
        return CODE.OK, ""


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.server.start()
    yield served
    await served.server.stop(0)


def test_the_api_has_a_function_for_every_method_and_no_other_callers() -> None:
    for name in METHODS:
        assert callable(getattr(ControlApi, function_name(name)))
    assert {Role.OPERATOR, Role.COORDINATOR} == CALLERS


async def test_a_missing_function_is_found_when_the_service_is_bound() -> None:
    functions = Functions()
    del functions.run_job  # type: ignore[attr-defined]
    credentials = Insecure(Identity("local", Role.COORDINATOR, "c1"))
    with pytest.raises(AttributeError, match="run_job"):
        bind_service(make_server(), functions, credentials, code_of)


async def test_operators_and_coordinators_may_call_everything(served: Served) -> None:
    for role in CALLERS:
        for method in METHODS:
            assert await served.call(method, role) == (CODE.OK, "")
    expected = [(method, f"{role}/somebody") for role in CALLERS for method in METHODS]
    assert served.functions.calls == expected


async def test_workers_may_call_nothing(served: Served) -> None:
    for method in METHODS:
        code, details = await served.call(method, Role.WORKER)
        assert code is CODE.PERMISSION_DENIED
        assert "worker/somebody may not do this" in details
    assert served.functions.calls == []


async def test_whoever_has_no_identity_may_call_nothing(served: Served) -> None:
    for method in METHODS:
        code, _ = await served.call(method, Role.OPERATOR, claim=False)
        assert code is CODE.UNAUTHENTICATED
    assert served.functions.calls == []


ERRORS: list[tuple[Exception, grpc.StatusCode]] = [
    (NotFound("none"), CODE.NOT_FOUND),
    (AlreadyThere("there"), CODE.ALREADY_EXISTS),
    (Invalid("no"), CODE.INVALID_ARGUMENT),
    (JobFileInvalid(["field: no"]), CODE.INVALID_ARGUMENT),
    (BadKey("key"), CODE.INVALID_ARGUMENT),
    (Contended("again"), CODE.ABORTED),
    (RequestRefused("busy"), CODE.FAILED_PRECONDITION),
    (NotOwner("elsewhere"), CODE.UNAVAILABLE),
    (WorkerUnreachable("away"), CODE.UNAVAILABLE),
    (StoreUnavailable("etcd"), CODE.UNAVAILABLE),
    (CoordinatorError("ours"), CODE.INTERNAL),
    (
        grpc.aio.AioRpcError(
            CODE.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata(), "passed on"
        ),
        CODE.RESOURCE_EXHAUSTED,
    ),
]


@pytest.mark.parametrize("method", ["GetJob", "FollowRun"])
@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda one: type(one).__name__)
async def test_errors_become_status_codes_with_their_sentence(
    served: Served, method: str, error: Exception, code: grpc.StatusCode
) -> None:
    served.functions.error = error
    found, details = await served.call(method, Role.OPERATOR)
    assert found is code
    said = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
    assert details == said
