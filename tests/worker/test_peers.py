"""What a target lets other workers do: by its own session, never by what the caller says."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from baton.v1 import peer_pb2_grpc
from syncengine.agreed import Agreement
from syncengine.model import Rule
from syncengine.sightings import encode_agreements
from tests.worker.clocks import until
from tests.worker.workers import CLUSTER, T1, T2, T3, Workbench
from wire.channel import bind, make_server, open_channel
from wire.credentials import Insecure
from wire.identity import Identity, Role
from wire.orders import CloseSession, Member, PeerGrant
from wire.peer_convert import (
    ListRequest,
    PushEnd,
    agree_response_from_bytes,
    end_of_push,
    grant_to_wire,
    header_from_bytes,
    list_request_to_bytes,
    read_end_of_stream,
)
from wire.token import Token
from worker.agreed_store import AgreedStores
from worker.member_tree import MemberTrees
from worker.peers import PeerService
from worker.uses import Uses

CALL_S = 60.0
TARGET = Member("w2", "data", b"", "127.0.0.1:2")
CODE = grpc.StatusCode


def somebody(role: Role, name: str) -> Insecure:
    return Insecure(Identity("local", role, name))


SOURCE = somebody(Role.WORKER, "w1")


@dataclass
class Caller:
    """Somebody with a connection to the target worker."""

    channel: grpc.aio.Channel

    async def list(self, grant: PeerGrant | bytes, **what: Any) -> list[bytes]:
        method: Any = self.channel.stream_stream("/baton.v1.Peer/List")
        request = grant
        if not isinstance(grant, bytes):
            request = list_request_to_bytes(ListRequest(grant, **what))
        return [frame async for frame in method(iter([request]), timeout=CALL_S)]

    def open_push(self) -> Any:
        method: Any = self.channel.stream_stream("/baton.v1.Peer/Push")
        return method(timeout=CALL_S)

    async def push(self, grant: PeerGrant | bytes, entries: int = 0) -> None:
        """Push nothing, in good form."""
        call = self.open_push()
        await call.write(_raw(grant))
        await call.initial_metadata()
        if not call.done():
            await call.write(end_of_push(PushEnd(entries)))
            await call.done_writing()
        while isinstance(await call.read(), bytes):
            pass
        await _check_ok(call)

    async def fetch(self, grant: PeerGrant | bytes) -> None:
        """Fetch nothing, in good form."""
        method: Any = self.channel.stream_stream("/baton.v1.Peer/Fetch")
        call = method(timeout=CALL_S)
        await call.write(_raw(grant))
        await call.initial_metadata()
        if not call.done():
            await call.write(b"")
            # As long as anything is to come, whoever fetches may have something to say to it.
            while isinstance(frame := await call.read(), bytes) and frame[:1] != b"\0":
                pass
            await call.done_writing()
        while isinstance(await call.read(), bytes):
            pass
        await _check_ok(call)

    async def agree(self, grant: PeerGrant | bytes, *agreements: Agreement) -> int:
        method: Any = self.channel.stream_unary("/baton.v1.Peer/Agree")
        frames = [_raw(grant), *encode_agreements(agreements)]
        return agree_response_from_bytes(await method(iter(frames), timeout=CALL_S))

    async def renew(self, grant: PeerGrant) -> None:
        await peer_pb2_grpc.PeerStub(self.channel).Renew(grant_to_wire(grant), timeout=CALL_S)

    async def outcome(self, rpc: str, grant: PeerGrant) -> tuple[grpc.StatusCode, str]:
        try:
            await getattr(self, rpc)(grant)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return CODE.OK, ""


async def _check_ok(call: Any) -> None:
    if await call.code() is not CODE.OK:
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(await call.code(), nothing, nothing, await call.details())


def _raw(grant: PeerGrant | bytes) -> bytes:
    return grant if isinstance(grant, bytes) else grant_to_wire(grant).SerializeToString()


class TargetWorker:
    """Worker w2 with a server on the loopback, target of a job whose source is w1."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        credentials = somebody(Role.WORKER, "w2")
        trees = MemberTrees(bench.roots, bench.journal, AgreedStores(bench.directory / "agreed"))
        self.uses = Uses()
        self.service = PeerService(bench.sessions, trees, credentials, self.uses, host="127.0.0.1")
        self.server = make_server()
        self.service.add_to_server(self.server)
        self.address = f"127.0.0.1:{bind(self.server, '127.0.0.1:0', credentials)}"
        self._channels: list[grpc.aio.Channel] = []

    def caller(self, credentials: Insecure = SOURCE) -> Caller:
        channel = open_channel(self.address, credentials, (Role.WORKER, "w2"))
        self._channels.append(channel)
        return Caller(channel)

    async def opened(self, token: Token = T2, **what: Any) -> None:
        source = Member("w1", "data", b"", "127.0.0.1:1")
        await self.bench.opened(
            token, **{"live_s": 500.0, "source": source, "targets": (TARGET,), **what}
        )

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self.service.close()
        await self.server.stop(0)
        await self.bench.close()


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[TargetWorker]:
    target = TargetWorker(Workbench(tmp_path, name="w2"))
    await target.server.start()
    yield target
    await target.close()


def grant(
    token: Token = T2, *, job: str = "job", run: str = "r1", member: str = "w2:data"
) -> PeerGrant:
    return PeerGrant(job, token, run, member)


CALLERS = {
    "source": SOURCE,
    "other worker": somebody(Role.WORKER, "w3"),
    "the target itself": somebody(Role.WORKER, "w2"),
    "coordinator": somebody(Role.COORDINATOR, "w1"),
    "operator": somebody(Role.OPERATOR, "w1"),
}
TOKENS = {"older": T1, "equal": T2, "newer": T3, "foreign": Token(CLUSTER + 1, 20)}
ALLOWED = {
    "list": (CODE.OK, ""),
    "push": (CODE.FAILED_PRECONDITION, "without having listed"),
    "fetch": (CODE.FAILED_PRECONDITION, "without having listed"),
    "agree": (CODE.FAILED_PRECONDITION, "without having listed"),
    "renew": (CODE.ABORTED, "not pushing here yet"),
}
"""What a caller hears who may call: for want of a listing, and of a push to renew."""


def golden(
    rpc: str, caller: str, token: str, rule: Rule, *, has_session: bool
) -> tuple[grpc.StatusCode, str]:
    if caller in {"coordinator", "operator"}:
        return CODE.PERMISSION_DENIED, "is no worker"
    if not has_session or token == "newer":
        return CODE.ABORTED, "no session"
    if token in {"older", "foreign"}:
        return CODE.ABORTED, "accepted last"
    if not rule.is_one_way:
        if caller == "other worker":
            return CODE.PERMISSION_DENIED, "has no member of job"
    elif caller != "source":
        return CODE.PERMISSION_DENIED, "is not worker w1, the source"
    return ALLOWED[rpc]


@pytest.mark.parametrize("rule", [Rule.MIRROR, Rule.COPY, Rule.MOVE, Rule.SYNC, Rule.EXCHANGE])
@pytest.mark.parametrize("has_session", [True, False])
async def test_i4_i14_who_may_do_what_under_which_token(
    target: TargetWorker, rule: Rule, *, has_session: bool
) -> None:
    if has_session:
        await target.opened(T2, rule=rule)
    callers = {name: target.caller(credentials) for name, credentials in CALLERS.items()}
    wrong = []
    for rpc, caller, token in itertools.product(ALLOWED, CALLERS, TOKENS):
        target.uses._listed.clear()
        code, details = await callers[caller].outcome(rpc, grant(TOKENS[token]))
        expected = golden(rpc, caller, token, rule, has_session=has_session)
        if code is not expected[0] or expected[1] not in details:
            wrong.append((rpc, caller, token, code, details, expected))
    assert not wrong


@pytest.mark.parametrize("rpc", ALLOWED)
@pytest.mark.parametrize(
    "member", ["w2:more", "w2:data/sub", "w3:data", "w1:data", "w2:data/../more", "/etc"]
)
async def test_i14_only_a_target_of_the_job_at_this_worker_is_granted(
    target: TargetWorker, rpc: str, member: str
) -> None:
    await target.opened(T2, targets=(TARGET, Member("w3", "data")))
    code, details = await target.caller().outcome(rpc, grant(member=member))
    assert code is CODE.PERMISSION_DENIED
    assert "is no target of job" in details


async def test_i14_the_source_of_a_one_way_job_is_called_by_nobody(target: TargetWorker) -> None:
    source = Member("w2", "data")
    await target.opened(T2, source=source, targets=(Member("w1", "data"),), rule=Rule.MOVE)
    for caller in ("source", "the target itself"):
        code, details = await target.caller(CALLERS[caller]).outcome("list", grant())
        assert code is CODE.PERMISSION_DENIED, (caller, details)


async def test_only_whoever_listed_a_member_last_goes_on_to_change_it(
    target: TargetWorker,
) -> None:
    await target.opened(T2, rule=Rule.SYNC)
    first, second = target.caller(), target.caller(CALLERS["the target itself"])
    await first.list(grant())
    await second.list(grant())
    for rpc in ("push", "fetch", "agree"):
        code, details = await first.outcome(rpc, grant())
        assert code is CODE.FAILED_PRECONDITION
        assert "without having listed it last" in details
        assert (await second.outcome(rpc, grant()))[0] is CODE.OK


@pytest.mark.parametrize("rpc", ALLOWED)
async def test_a_session_that_was_closed_grants_nothing(target: TargetWorker, rpc: str) -> None:
    await target.opened(T2)
    target.bench.tell(CloseSession("job", T2))
    await target.bench.settled_down()
    assert (await target.caller().outcome(rpc, grant()))[0] is CODE.ABORTED


@pytest.mark.parametrize("raw", [b"", b"\xff\xff\xff", b"\x0a\x03job"])
async def test_a_call_without_a_grant_is_refused(target: TargetWorker, raw: bytes) -> None:
    await target.opened(T2)
    caller = target.caller()
    for call in (caller.list(raw), caller.push(raw)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is CODE.INVALID_ARGUMENT


async def test_refusals_are_counted(target: TargetWorker) -> None:
    await target.opened(T2)
    before = target.bench.sessions.orders_refused
    await target.caller().outcome("list", grant(T1))
    await target.caller(CALLERS["operator"]).outcome("push", grant())
    assert target.bench.sessions.orders_refused == before + 2


async def test_a_listing_then_a_push_is_what_may_be_done(target: TargetWorker) -> None:
    (target.bench.directory / "data" / "file").write_bytes(b"content")
    await target.opened(T2)
    caller = target.caller()
    first, *frames = await caller.list(grant())
    header = header_from_bytes(first)
    assert (header.holds, header.entries_before) == ((), -1)
    assert header.free_bytes > 0
    assert any(b"file" in frame for frame in frames)
    await caller.push(grant(), entries=1)
    again = header_from_bytes((await caller.list(grant(run="r2")))[0])
    assert again.entries_before == 1, "remembered for the guards of the next run"


async def test_i8_a_push_of_another_run_than_the_one_that_listed_is_refused(
    target: TargetWorker,
) -> None:
    await target.opened(T2)
    caller = target.caller()
    await caller.list(grant(run="r1"))
    code, details = await caller.outcome("push", grant(run="r2"))
    assert code is CODE.FAILED_PRECONDITION
    assert "run r2 would change w2:data without having listed it last" in details


async def test_i8_a_root_that_became_doubtful_after_its_listing_takes_no_push(
    target: TargetWorker,
) -> None:
    await target.opened(T2)
    caller = target.caller()
    await caller.list(grant())
    await caller.push(grant())
    data = target.bench.directory / "data"
    (data / "kept").write_bytes(b"content")
    await caller.list(grant(run="r2"))
    shutil.rmtree(data / ".baton")
    code, details = await caller.outcome("push", grant(run="r2"))
    assert code is CODE.FAILED_PRECONDITION
    assert "changed since it was listed" in details
    assert not (data / ".baton").exists(), "and it was not marked as if all were well"
    assert (data / "kept").read_bytes() == b"content"


async def test_i8_a_root_that_is_gone_says_so_in_its_listing_and_takes_no_push(
    target: TargetWorker,
) -> None:
    await target.opened(T2)
    caller = target.caller()
    (target.bench.directory / "data").rename(target.bench.directory / "elsewhere")
    first, end = await caller.list(grant())
    assert read_end_of_stream(end) is not None
    assert [hold.reason.value for hold in header_from_bytes(first).holds] == ["root-missing"]
    code, details = await caller.outcome("push", grant())
    assert code is CODE.FAILED_PRECONDITION, "whoever approved it"
    assert "nothing can be written to w2:data" in details


async def test_a_takeover_gives_the_push_its_new_badge(target: TargetWorker) -> None:
    await target.opened(T2)
    caller = target.caller()
    await caller.list(grant())
    call = caller.open_push()
    await call.write(_raw(grant()))
    await call.initial_metadata()
    use = target.uses._uses["job", "w2:data"]
    assert use.gate is not None
    assert use.gate.badge == T2
    assert (await caller.outcome("renew", grant(T3)))[0] is CODE.ABORTED, "not yet"
    await target.opened(T3)
    assert (await caller.outcome("renew", grant(T2)))[0] is CODE.ABORTED, "not any more"
    assert (await caller.outcome("renew", grant(T3, run="r0")))[0] is CODE.ABORTED
    assert use.gate.badge == T2
    await caller.renew(grant(T3))
    assert use.gate.badge == T3
    await call.write(end_of_push(PushEnd(0)))
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF or await call.code() is CODE.OK


async def test_a_newer_use_of_a_target_ends_the_older(target: TargetWorker) -> None:
    await target.opened(T2)
    caller = target.caller()
    await caller.list(grant())
    older = caller.open_push()
    await older.write(_raw(grant()))
    await older.initial_metadata()
    assert await caller.list(grant(run="r2")), "not kept waiting by it"
    assert await older.code() is CODE.CANCELLED, "and its caller hears of it"
    assert "newer call" in await older.details()
    assert not target.uses._uses


async def test_a_caller_that_hangs_up_frees_the_target(target: TargetWorker) -> None:
    await target.opened(T2)
    caller = target.caller()
    await caller.list(grant())
    call = caller.open_push()
    await call.write(_raw(grant()))
    await call.initial_metadata()
    assert target.uses._uses
    call.cancel()
    await until(lambda: not target.uses._uses)
    await caller.list(grant(run="r2"))
    await caller.push(grant(run="r2"))


async def test_closing_the_service_ends_every_use(target: TargetWorker) -> None:
    await target.opened(T2)
    caller = target.caller()
    await caller.list(grant())
    call = caller.open_push()
    await call.write(_raw(grant()))
    await call.initial_metadata()
    async with asyncio.timeout(60):
        await target.service.close()
    assert not target.uses._uses
    assert await call.code() is CODE.CANCELLED
    assert "the worker stops" in await call.details()
