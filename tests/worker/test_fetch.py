"""What a member sends when another asks for content, and what it never sends."""

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import pytest

from syncengine.agreed import Agreement
from syncengine.changes import Remove, WriteFile
from syncengine.model import Entry, Kind, Rule, What
from tests.worker.test_peers import CALL_S, CODE, TargetWorker, _raw, grant
from tests.worker.workers import T2, Workbench
from wire.peer_convert import read_end_of_stream


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[TargetWorker]:
    """Worker w2, a member of a sync, listed by w1 in run r1."""
    member = TargetWorker(Workbench(tmp_path, name="w2"))
    await member.server.start()
    await member.opened(T2, rule=Rule.SYNC)
    yield member
    await member.close()


def wanted(path: bytes, size: int, origin: bytes = b"") -> WriteFile:
    return WriteFile(path, size, 0o644, 5, 0, 0, origin=origin)


async def fetch(member: TargetWorker, *frames: Any) -> tuple[grpc.StatusCode, list[bytes]]:
    """Ask for changes, and answer nothing; return how that ended, and all that came."""
    caller = member.caller()
    await caller.list(grant())
    method: Any = caller.channel.stream_stream("/baton.v1.Peer/Fetch")
    call = method(timeout=CALL_S)
    came: list[bytes] = []
    try:
        await call.write(_raw(grant()))
        for frame in frames:
            raw = frame if isinstance(frame, bytes) else msgspec.msgpack.encode(frame)
            await call.write(raw)
        await call.write(b"")
    except (grpc.aio.AioRpcError, grpc.aio.UsageError):
        pass  # refused already
    while isinstance(frame := await _read(call), bytes):
        came.append(frame)
        if read_end_of_stream(frame) is not None:
            await call.done_writing()  # before, it would say that no answers will come
    return await call.code(), came


async def _read(call: Any) -> object:
    try:
        return await call.read()
    except grpc.aio.AioRpcError:
        return None


async def test_content_that_is_asked_for_comes(member: TargetWorker) -> None:
    (member.bench.directory / "data" / "file").write_bytes(b"content")
    os.utime(member.bench.directory / "data" / "file", ns=(5, 5))
    code, came = await fetch(member, [wanted(b"elsewhere", 7, b"file")])
    assert code is CODE.OK
    assert any(b"content" in frame and b"elsewhere" in frame for frame in came[:-1])
    end = read_end_of_stream(came[-1])
    assert end is not None
    assert (end.problems, end.is_complete) == ((), True)


async def test_what_is_gone_is_told_to_who_asked_for_it(member: TargetWorker) -> None:
    """Else the run would take the member for equal, and let others delete the last copy."""
    code, came = await fetch(member, [wanted(b"new-name", 7, b"gone"), wanted(b"no/such", 2)])
    assert code is CODE.OK
    end = read_end_of_stream(came[-1])
    assert end is not None
    assert {(one.path, one.what) for one in end.problems} == {
        (b"gone", What.TARGET_CHANGED),
        (b"no/such", What.TARGET_CHANGED),
    }
    assert not end.is_complete


@pytest.mark.parametrize(
    "frame",
    [
        [wanted(b"../up", 1)],
        [wanted(b"a", 1, b"../../etc/passwd")],
        [wanted(b"a", 1, b"/etc/passwd")],
        [wanted(b".baton/root.json", 1)],
        [wanted(b"", 1)],
        [wanted(b"a", -1)],
        [Remove(b"a", Kind.FILE, 5)],
        [[2, b"a", "many", 0o644, 5, 0, 0]],
        b"\xc1 noise",
        b"\xc6\x00\x20\x00\x00" + bytes(2 << 20),
    ],
)
async def test_i14_what_cannot_be_fetched_is_refused(
    member: TargetWorker, frame: Sequence[object] | bytes
) -> None:
    (member.bench.directory / "data" / "a").write_bytes(b"content")
    code, came = await fetch(member, frame)
    assert code is CODE.FAILED_PRECONDITION
    assert not came
    assert (member.bench.directory / "data" / "a").exists()


async def test_i14_nothing_behind_a_symlink_is_sent(member: TargetWorker) -> None:
    outside = member.bench.directory / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"a secret")
    data = member.bench.directory / "data"
    (data / "way").symlink_to(outside)
    (data / "link").symlink_to(outside / "secret")
    code, came = await fetch(member, [wanted(b"way/secret", 8), wanted(b"link", 8)])
    assert code is CODE.OK
    assert not [frame for frame in came if b"a secret" in frame]


async def test_i3_a_member_agrees_to_nothing_that_its_tree_does_not_show(
    member: TargetWorker,
) -> None:
    (member.bench.directory / "data" / "file").write_bytes(b"content")
    caller = member.caller()
    await caller.list(grant())
    lie = Entry(b"file", Kind.FILE, 0o644, 5, 99, seen=1)
    assert await caller.agree(grant(), Agreement(b"file", 3, lie)) == 0
    await caller.list(grant())
    assert await caller.agree(grant(), Agreement(b"gone", 3), Agreement(b"file", 3)) == 1
    for told in (Agreement(b"../up", 3), Agreement(b"file", 3, lie._replace(path=b"other"))):
        await caller.list(grant())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await caller.agree(grant(), told)
        assert refused.value.code() is CODE.FAILED_PRECONDITION
