"""`baton worker`: starting one, and the cluster's register of them."""

from typing import Annotated

import typer

from baton.v1.coordinator_pb2 import (
    AcceptAtWorkerRequest,
    AddWorkerRequest,
    GetWorkerRequest,
    ListWorkersRequest,
    RemoveWorkerRequest,
    TestWorkerRequest,
)
from cli.command import Call, remote
from cli.daemons import register_worker_start
from cli.group import new_group
from cli.output import human_bytes, print_fields, print_line, print_table, say
from coordinator.convert import accepted_from_wire, worker_from_wire
from coordinator.convert import test_from_wire as tested_from_wire
from coordinator.views import RootView, WorkerView
from wire.address import parse_address
from wire.orders import WatchDescription

app = new_group()
register_worker_start(app)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The worker's name.")]


@remote(app, "add", repeatable=False)
async def add(
    call: Call,
    name: Name,
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where it listens.")],
    group: Annotated[
        str, typer.Option("--group", metavar="G", help="The worker group it belongs to.")
    ] = "",
) -> None:
    """Make a worker known to the cluster."""
    request = AddWorkerRequest(name=name, address=str(parse_address(address)), group=group)
    view = worker_from_wire(await call.client.ask(call.client.stub.AddWorker, request))
    if view.reachable:
        say(f"worker {view.name} at {view.address} added; it answers as {view.identity}")
    else:
        why = f": {view.reason}" if view.reason else ""
        say(f"worker {view.name} at {view.address} added; not reached yet{why}")
    call.show(view, lambda: None)


@remote(app, "list")
async def list_(call: Call) -> None:
    """All workers, and whether they can be reached."""
    answer = await call.client.ask(call.client.stub.ListWorkers, ListWorkersRequest())
    views = [worker_from_wire(worker) for worker in answer.workers]
    call.show(
        views,
        lambda: print_table(
            ("name", "address", "group", "roots", "version", "state"),
            (
                (
                    one.name,
                    one.address,
                    one.group,
                    ", ".join(root.name for root in one.roots),
                    one.version,
                    "reachable" if one.reachable else f"not reachable: {one.reason}",
                )
                for one in views
            ),
        ),
    )


@remote(app, "show")
async def show(call: Call, name: Name) -> None:
    """One worker: identity, roots, refused orders."""
    request = GetWorkerRequest(name=name)
    view = worker_from_wire(await call.client.ask(call.client.stub.GetWorker, request))
    call.show(view, lambda: _print(view))


@remote(app, "remove", repeatable=False, output=False)
async def remove(call: Call, name: Name) -> None:
    """Make the cluster forget a worker; refused while a job names it."""
    await call.client.ask(call.client.stub.RemoveWorker, RemoveWorkerRequest(name=name))
    say(f"worker {name} removed")


@remote(app, "accept", repeatable=False)
async def accept(call: Call, name: Name) -> None:
    """Let a worker take the orders of this etcd cluster, after it was replaced or set back.

    What the worker knew of other clusters, or of what this one has not come to, it forgets: say it only
    when the etcd before is gone for good, and no coordinator works with it any more.
    """
    request = AcceptAtWorkerRequest(name=name)
    view = accepted_from_wire(await call.client.ask(call.client.stub.AcceptAtWorker, request))
    say(
        f"worker {view.name} takes tokens of etcd cluster {view.cluster} "
        f"and has forgotten {view.forgotten} others"
    )
    call.show(view, lambda: None)


@remote(app, "test")
async def test(call: Call, name: Name) -> None:
    """Connect to a worker: who answers, its roots, round trip, throughput."""
    request = TestWorkerRequest(name=name)
    view = tested_from_wire(await call.client.ask(call.client.stub.TestWorker, request))

    def as_text() -> None:
        print_fields(
            {
                "name": view.name,
                "address": view.address,
                "identity": view.identity,
                "group": view.group,
                "round trip": f"{view.rtt_ms:.2f} ms",
                "throughput": f"{human_bytes(view.throughput_bytes_per_s)}/s",
            }
        )
        _print_roots(view.roots)

    call.show(view, as_text)


def _print(view: WorkerView) -> None:
    print_fields(
        {
            "name": view.name,
            "address": view.address,
            "group": view.group,
            "state": "reachable" if view.reachable else f"not reachable: {view.reason}",
            "identity": view.identity,
            "version": view.version,
            "orders refused": view.orders_refused or None,
        }
    )
    _print_roots(view.roots)


def _print_roots(roots: tuple[RootView, ...]) -> None:
    if not roots:
        return
    print_line("")
    print_table(
        ("root", "path", "access", "free", "watched", "pending"),
        (
            (
                root.name,
                root.path,
                "read only" if root.read_only else "read, write",
                human_bytes(root.free_bytes) if root.available else "not there",
                _watched(root.watch),
                str(root.watch.pending),
            )
            for root in roots
        ),
    )
    for root in roots:
        if root.watch.reason:
            print_line(f"{root.name}: {root.watch.reason}")


def _watched(watch: WatchDescription) -> str:
    if watch.phase == "idle":
        return "never" if watch.mode == "never" else "no"
    by = f"by {watch.source}, {watch.directories} directories"
    return by if watch.phase == "watching" else f"{watch.phase}: {by}"
