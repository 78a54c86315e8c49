"""`baton up`: everything on one machine, from one command.

An embedded etcd, one coordinator and one worker named `local`, each a process of its own, over
the loopback. Their configuration and data are in one directory: the same directory gives the same
cluster again. Ctrl-C stops all of it: the coordinator hands over, then the worker, then etcd.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import grpc
import grpc.aio
import typer

from baton.v1.coordinator_pb2 import AddWorkerRequest, GetWorkerRequest
from cli.client import Client, connect
from cli.command import finish
from cli.exits import CommandFailed, Exit, NobodyAnswered
from cli.group import new_group
from cli.output import print_line, say
from cli.process_options import EtcdOptions, ProcessOptions, coordinator_config, worker_config
from cli.settings import Flags, resolve
from coordinator.embedded_etcd import start_etcd
from coordinator.keys import DEFAULT_PREFIX

app = new_group()

WORKER_NAME = "local"
COORDINATOR_NAME = "local"

_READY_S = 60.0
_STOP_S = 10.0
_POLL_S = 0.1
_TAIL_BYTES = 2_000

# The child asks to be told of its parent's end, makes sure that this has not come yet, and becomes
# baton: so nothing of `up` outlives it, not even when it is killed.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has ended")
os.execv(sys.executable, [sys.executable, "-m", "cli.main", *sys.argv[2:]])
"""


@app.command("up")
def up(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="Where all of it is kept. [~/.local/share/baton]"
        ),
    ] = None,
    root: Annotated[
        list[str] | None,
        typer.Option(
            "--root",
            metavar="NAME=PATH[:ro]",
            help="A directory to export; may be repeated. Else those of the last time.",
        ),
    ] = None,
    http: Annotated[
        str, typer.Option("--http", metavar="HOST:PORT", help="The status page.")
    ] = "127.0.0.1:7080",
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where client commands ask.")
    ] = "127.0.0.1:7070",
    worker_listen: Annotated[
        str, typer.Option("--worker-listen", metavar="HOST:PORT", help="Where the worker listens.")
    ] = "127.0.0.1:9033",
) -> None:
    """Run everything on this machine: etcd, one coordinator, one worker."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    where = (data or Path(home) / "baton").absolute()

    async def run() -> Exit:
        return await _up(_Plan(where, root, http, listen, worker_listen))

    finish(run)


class _Plan:
    """What is to run, written down as the configuration files of its processes."""

    def __init__(
        self, data: Path, roots: list[str] | None, http: str, listen: str, worker_listen: str
    ) -> None:
        self.data = data
        self.http = http
        self.listen = listen
        self.worker_listen = worker_listen
        self.coordinator_file = data / "coordinator.toml"
        self.worker_file = data / "worker.toml"
        self._remembered = data / "roots.json"
        self.roots = roots or self._last_roots()

    def check(self) -> None:
        """Refuse here what the processes would refuse. Raises `CommandFailed` or a `WireError`."""
        for listen, http in ((self.listen, self.http), (self.worker_listen, None)):
            options = ProcessOptions(
                name=COORDINATOR_NAME,
                listen=listen,
                http=http,
                state=self.data / "coordinator",
                tls=None,
                insecure=True,
                allow_insecure_network=False,
                advertise=None,
                etcd=EtcdOptions("http://127.0.0.1:1" if http else None),
            )
            if http:
                coordinator_config(options, DEFAULT_PREFIX)
            else:
                worker_config(options, self.roots, None)

    def write(self, etcd: tuple[str, ...]) -> None:
        """Write the files. Raises `CommandFailed` when that is not possible."""
        self._write(self._remembered, json.dumps(self.roots))
        common = {"insecure": True}
        self._write(
            self.coordinator_file,
            _toml(
                {
                    "name": COORDINATOR_NAME,
                    "etcd": list(etcd),
                    "listen": self.listen,
                    "http": self.http,
                    "state": str(self.data / "coordinator"),
                    **common,
                }
            ),
        )
        self._write(
            self.worker_file,
            _toml(
                {
                    "name": WORKER_NAME,
                    "listen": self.worker_listen,
                    "root": self.roots,
                    "state": str(self.data / "worker"),
                    **common,
                }
            ),
        )

    def _last_roots(self) -> list[str]:
        try:
            return [str(text) for text in json.loads(self._remembered.read_text())]
        except (OSError, ValueError):
            files = self.data / "files"
            self._make(files)
            return [f"files={files}"]

    def _make(self, directory: Path) -> None:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CommandFailed(
                Exit.USAGE, f"--data: cannot make {directory}: {error.strerror}"
            ) from error

    def _write(self, path: Path, text: str) -> None:
        self._make(path.parent)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise CommandFailed(
                Exit.USAGE, f"--data: cannot write {path}: {error.strerror}"
            ) from error


def _toml(values: dict[str, object]) -> str:
    """Write flat TOML; JSON's strings, lists and booleans are TOML's."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


async def _up(plan: _Plan) -> Exit:
    plan.check()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    etcd_data = plan.data / "etcd"
    async with start_etcd(etcd_data) as etcd:
        plan.write(etcd.endpoints)
        async with (
            _process("worker", plan.worker_file, plan.data) as worker,
            _process("coordinator", plan.coordinator_file, plan.data) as coordinator,
        ):
            ends = [asyncio.create_task(one.wait()) for one in (coordinator, worker)]
            stopped = asyncio.create_task(stop.wait())
            ready = asyncio.create_task(_introduce(plan))
            await asyncio.wait({*ends, stopped, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                print_line(f"status page: http://{plan.http}/")
                say(f"ready; baton commands ask {plan.listen}; Ctrl-C stops everything")
                await asyncio.wait({*ends, stopped}, return_when=asyncio.FIRST_COMPLETED)
            failed = _first_end(plan.data, coordinator, worker) if not stopped.done() else None
            for task in (ready, stopped, *ends):
                task.cancel()
            await asyncio.gather(ready, stopped, *ends, return_exceptions=True)
    if failed is not None:
        raise failed
    say("stopped")
    return Exit.DONE


@contextlib.asynccontextmanager
async def _process(
    kind: str, config: Path, data: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run one process until the block is left; then SIGTERM, and SIGKILL when that does not do."""
    arguments = [kind, "start", "--config", str(config)]
    environment = {key: value for key, value in os.environ.items() if key[:6] != "BATON_"}
    with (data / f"{kind}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", _LAUNCHER, str(os.getpid()), *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in the terminal is for us: the order matters
            env=environment,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            say(f"{kind} did not stop within {_STOP_S:g} s: killed")
            process.kill()
            await process.wait()


async def _introduce(plan: _Plan) -> None:
    """Wait for both processes, and make the worker known. Raises `CommandFailed`."""
    settings = resolve(Flags(coordinator=plan.listen, insecure=True), {})
    try:
        async with asyncio.timeout(_READY_S):
            while True:
                try:
                    async with connect(settings, _READY_S) as client:
                        await _register(client, plan.worker_listen)
                        return
                except NobodyAnswered:
                    await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise CommandFailed(
            Exit.FAILED, f"not ready within {_READY_S:g} s: look into {plan.data}/*.log"
        ) from error


async def _register(client: Client, address: str) -> None:
    """Add the worker if it is not there, and wait until it is reached."""
    stub = client.stub
    while True:
        try:
            found = await stub.GetWorker(GetWorkerRequest(name=WORKER_NAME), timeout=5)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise NobodyAnswered(error.details() or error.code().name) from error
            await client.ask(stub.AddWorker, AddWorkerRequest(name=WORKER_NAME, address=address))
            continue
        if found.address != address:
            await client.ask(stub.AddWorker, AddWorkerRequest(name=WORKER_NAME, address=address))
        elif found.reachable:
            return
        await asyncio.sleep(_POLL_S)


def _first_end(data: Path, *processes: asyncio.subprocess.Process) -> CommandFailed:
    """Say which process ended by itself, with the last it said."""
    for kind, process in zip(("coordinator", "worker"), processes, strict=True):
        if process.returncode is not None:
            path = data / f"{kind}.log"
            tail = path.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip()
            return CommandFailed(
                Exit.FAILED,
                f"the {kind} ended with status {process.returncode}; the end of {path}:\n{tail}",
            )
    return CommandFailed(Exit.FAILED, "a process ended")
