"""`baton coordinator`: starting one, listing those that are there, and draining one."""

import asyncio
from typing import Annotated

import typer

from baton.v1.coordinator_pb2 import (
    DrainCoordinatorRequest,
    ListCoordinatorsRequest,
    UndrainCoordinatorRequest,
)
from cli.command import Call, remote
from cli.daemons import register_coordinator_start
from cli.exits import CommandFailed, Exit
from cli.group import new_group
from cli.output import coordinator_state, human_time, print_line, print_table, say
from coordinator.convert import coordinator_from_wire
from coordinator.views import CoordinatorView

app = new_group()
register_coordinator_start(app)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The coordinator's name.")]
_LOOK_S = 0.1


@remote(app, "list")
async def list_(call: Call) -> None:
    """All coordinators that are there."""
    views = await _views(call)
    call.show(
        views,
        lambda: print_table(
            ("name", "address", "http", "jobs", "since", "version", "state"),
            (
                (
                    one.name,
                    one.address,
                    one.http,
                    one.jobs_owned,
                    human_time(one.since),
                    one.version,
                    coordinator_state(one),
                )
                for one in views
            ),
        ),
    )


@remote(app, "drain")
async def drain(call: Call, name: Name) -> None:
    """Hand over all jobs of a coordinator, and let it take no more until `undrain`.

    Returns when it owns none. It stays drained when it is started again.
    """
    request = DrainCoordinatorRequest(name=name)
    view = coordinator_from_wire(await call.client.ask(call.client.stub.DrainCoordinator, request))
    until = asyncio.get_running_loop().time() + call.timeout_s
    while view.jobs_owned:
        if asyncio.get_running_loop().time() > until:
            raise CommandFailed(
                Exit.FAILED, f"coordinator {name} is drained and still owns {view.jobs_owned} jobs"
            )
        await asyncio.sleep(_LOOK_S)
        view = next((one for one in await _views(call) if one.name == name), view)
    if not [one for one in await _views(call) if not one.draining]:
        say("no other coordinator takes jobs now: all of them wait")
    call.show(view, lambda: print_line(f"{name}: drained, owns no job"))


@remote(app, "undrain")
async def undrain(call: Call, name: Name) -> None:
    """Let a coordinator take jobs again; none moves because of that."""
    request = UndrainCoordinatorRequest(name=name)
    answer = await call.client.ask(call.client.stub.UndrainCoordinator, request)
    view = coordinator_from_wire(answer)
    call.show(view, lambda: print_line(f"{name}: takes jobs again"))


async def _views(call: Call) -> list[CoordinatorView]:
    answer = await call.client.ask(call.client.stub.ListCoordinators, ListCoordinatorsRequest())
    return [coordinator_from_wire(one) for one in answer.coordinators]
