"""A coordinator with canned replies over real gRPC, and the real command as a process."""

import asyncio
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from baton.v1 import coordinator_pb2 as pb
from baton.v1 import coordinator_pb2_grpc
from wire.channel import Credentials, bind, make_server, peer_identity
from wire.credentials import Insecure
from wire.identity import Identity, Role

LOCAL = Insecure(Identity("local", Role.COORDINATOR, "c1"))
FOREVER = object()
"""In a stream: nothing more comes, and it does not end."""
Reply = Message | tuple[grpc.StatusCode, str] | list[Any]


@dataclass
class Canned:
    """A coordinator's service: for each method a reply, or several in turn; a tuple is an error.

    A list is what a stream gives, an error in it ends it.
    """

    credentials: Credentials = LOCAL
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    asked: list[tuple[str, Any, str]] = field(default_factory=list)
    address: str = ""

    def answer(self, method: str, *replies: Reply) -> None:
        self.replies[method] = list(replies)

    def requests(self, method: str) -> list[Any]:
        return [request for name, request, _ in self.asked if name == method]

    def next(self, method: str, request: Any, context: Any) -> Reply:
        caller = str(peer_identity(context, self.credentials))
        self.asked.append((method, request, caller))
        replies = self.replies[method]
        return replies.pop(0) if len(replies) > 1 else replies[0]

    def servicer(self) -> Any:
        service = pb.DESCRIPTOR.services_by_name["Coordinator"]
        methods: dict[str, Callable[..., Any]] = {
            method.name: self._stream(method.name)
            if method.server_streaming
            else self._unary(method.name)
            for method in service.methods
        }
        return type("Canned", (coordinator_pb2_grpc.CoordinatorServicer,), methods)()

    def _unary(self, method: str) -> Callable[..., Any]:
        async def handle(_: Any, request: Any, context: Any) -> Any:
            reply = self.next(method, request, context)
            if isinstance(reply, tuple):
                await context.abort(*reply)
            return reply

        return handle

    def _stream(self, method: str) -> Callable[..., Any]:
        async def handle(_: Any, request: Any, context: Any) -> AsyncIterator[Any]:
            reply = self.next(method, request, context)
            for one in reply if isinstance(reply, list) else [reply]:
                if isinstance(one, tuple):
                    await context.abort(*one)
                if one is FOREVER:
                    await asyncio.Event().wait()
                yield one

        return handle


@asynccontextmanager
async def serving(canned: Canned) -> AsyncIterator[Canned]:
    server = make_server()
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(canned.servicer(), server)
    canned.address = f"127.0.0.1:{bind(server, '127.0.0.1:0', canned.credentials)}"
    await server.start()
    try:
        yield canned
    finally:
        await server.stop(0)


@pytest.fixture
async def coordinator() -> AsyncIterator[Canned]:
    async with serving(Canned()) as canned:
        yield canned


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The user's directory, where nothing is configured."""
    directory = tmp_path / "home"
    directory.mkdir()
    return directory


Baton = Callable[..., Awaitable[Ended]]


def clean_environment(home: Path, more: dict[str, str] | None) -> dict[str, str]:
    """Nothing of Baton's, and nobody's configuration."""
    kept = {key: value for key, value in os.environ.items() if key[:6] != "BATON_"}
    kept.pop("XDG_CONFIG_HOME", None)
    return {**kept, "HOME": str(home), **(more or {})}


@pytest.fixture
def baton_process(home: Path) -> Baton:
    """Run the command to its end, as people do."""

    async def run(*arguments: str, env: dict[str, str] | None = None) -> Ended:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli.main", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=clean_environment(home, env),
        )
        out, err = await process.communicate()
        return Ended(process.returncode or 0, out.decode(), err.decode())

    return run


# The same command in a process of its own, forked off one that has imported everything already:
# loading gRPC takes longer than most commands do.
NURSERY = """
import json, os, sys, traceback
import cli.ca, cli.coordinators, cli.jobs, cli.main, cli.runs, cli.status, cli.workers

def be(order):
    for place, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(os.open(order[name], os.O_RDWR | os.O_CREAT, 0o600), place)
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = ["baton", *order["arguments"]]
    code = 1
    try:
        cli.main.main()
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    child = os.fork()
    if not child:
        be(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
async def nursery() -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", NURSERY),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


@pytest.fixture
def baton(nursery: asyncio.subprocess.Process, home: Path, tmp_path: Path) -> Baton:
    """Run the command to its end, in a process forked off the nursery's."""
    numbers = itertools.count()

    async def run(*arguments: str, env: dict[str, str] | None = None, stdin: bytes = b"") -> Ended:
        place = tmp_path / f"command-{next(numbers)}"
        place.mkdir()
        (place / "stdin").write_bytes(stdin)
        order: dict[str, Any] = {name: str(place / name) for name in ("stdin", "stdout", "stderr")}
        order |= {"arguments": arguments, "env": clean_environment(home, env)}
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        nursery.stdin.write(json.dumps(order).encode() + b"\n")
        code = int(await nursery.stdout.readline())
        out, err = ((place / name).read_text() for name in ("stdout", "stderr"))
        return Ended(code, out, err)

    return run


def run_message(outcome: str = "succeeded", **fields: Any) -> pb.Run:
    return pb.Run(job="j", id="2026-01-01T00:00:00.000000Z", outcome=outcome, **fields)
