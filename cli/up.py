"""`baton up`: everything on one machine, from one command.

An embedded etcd, one coordinator and one worker named `local`, each a process of its own, over
the loopback, with certificates of their own making. All of it is kept in one directory: the same
directory gives the same cluster again. Ctrl-C stops all of it, the worker first and etcd last.
"""

import asyncio
import json
import os
import signal
from dataclasses import dataclass
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
from cli.local_cluster import LocalCluster, Member
from cli.output import print_line, say
from cli.process_options import read_roots
from cli.settings import ClientSettings, word_of_certificates
from coordinator.embedded_etcd import EtcdCluster, EtcdMember, start_etcd
from wire.address import parse_address
from wire.credentials import load_tls

app = new_group()

NAME = "local"
"""Of the coordinator, the worker and the cluster."""

_READY_S = 60.0
_POLL_S = 0.1


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
        return await _up(_Wanted(where, root or [], http, listen, worker_listen))

    finish(run)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What was asked for."""

    data: Path
    roots: list[str]
    http: str
    listen: str
    worker_listen: str


async def _up(wanted: _Wanted) -> Exit:
    for address in (wanted.listen, wanted.worker_listen, wanted.http):
        parse_address(address)
    roots = await asyncio.to_thread(_roots, wanted)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with (
        start_etcd(wanted.data / "etcd") as etcd,
        LocalCluster(wanted.data, etcd.endpoints, cluster=NAME) as cluster,
    ):
        coordinator = cluster.add_coordinator(NAME, listen=wanted.listen, http=wanted.http)
        worker = cluster.add_worker(NAME, roots, listen=wanted.worker_listen)
        running = asyncio.create_task(_introduce(wanted, cluster))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            running.result()
            # Only now: the port may have been another's, whose word must stay.
            with word_of_certificates(wanted.listen, cluster.operator_tls, os.environ):
                print_line(f"status page: http://{wanted.http}/")
                say(f"certificates for other programs: --tls {cluster.operator_tls}")
                say(f"ready; baton commands ask {wanted.listen}; Ctrl-C stops everything")
                parts: list[Member | EtcdMember] = [coordinator, worker, *etcd.members]
                ends = [asyncio.create_task(_wait(one)) for one in parts]
                await asyncio.wait({*ends, stopping}, return_when=asyncio.FIRST_COMPLETED)
                for ending in ends:
                    ending.cancel()
                await asyncio.gather(*ends, return_exceptions=True)
        failed = None if stopping.done() else _first_end(cluster, etcd)
        for task in (running, stopping):
            task.cancel()
        await asyncio.gather(running, stopping, return_exceptions=True)
    if failed is not None:
        raise failed
    say("stopped")
    return Exit.DONE


def _roots(wanted: _Wanted) -> list[str]:
    """Return the roots to export, checked and remembered for the next time; makes the directory."""
    remembered = wanted.data / "roots.json"
    try:
        wanted.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        roots = wanted.roots
        if not roots:
            try:
                roots = [str(text) for text in json.loads(remembered.read_text())]
            except (FileNotFoundError, ValueError):
                files = wanted.data / "files"
                files.mkdir(exist_ok=True)
                roots = [f"files={files}"]
        read_roots(roots, wanted.data / "etcd")
        remembered.write_text(json.dumps(roots), encoding="utf-8")
    except OSError as error:
        raise CommandFailed(
            Exit.USAGE, f"--data: {wanted.data} cannot be used: {error.strerror}"
        ) from error
    return roots


async def _introduce(wanted: _Wanted, cluster: LocalCluster) -> None:
    """Start both, and make the worker known. Raises `CommandFailed` and `MemberFailed`."""
    await cluster.start()
    credentials = await asyncio.to_thread(load_tls, cluster.operator_tls)
    settings = ClientSettings((wanted.listen,), credentials)
    async with connect(settings, _READY_S) as client:
        await _register(client, wanted.worker_listen)


async def _register(client: Client, address: str) -> None:
    """Add the worker, or where it is now if that changed, and wait until it is reached."""
    stub = client.stub
    while True:
        try:
            found = await stub.GetWorker(GetWorkerRequest(name=NAME), timeout=5)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise NobodyAnswered(error.details() or error.code().name) from error
            await client.ask(stub.AddWorker, AddWorkerRequest(name=NAME, address=address))
            continue
        if found.address != address:
            await client.ask(stub.AddWorker, AddWorkerRequest(name=NAME, address=address))
        elif found.reachable:
            return
        await asyncio.sleep(_POLL_S)


async def _wait(part: Member | EtcdMember) -> None:
    await part.wait()


def _first_end(cluster: LocalCluster, etcd: EtcdCluster) -> CommandFailed:
    """Say which process ended by itself, with the last it said."""
    for part in etcd.members:
        if not part.is_running:
            return CommandFailed(Exit.FAILED, f"etcd ended: the end of its log:\n{part.log_tail()}")
    for member in cluster.members.values():
        if not member.is_running:
            return CommandFailed(Exit.FAILED, str(member.failure()))
    return CommandFailed(Exit.FAILED, "a process ended")
