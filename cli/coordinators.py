"""`baton coordinator`: starting one, and listing those that are there."""

from baton.v1.coordinator_pb2 import ListCoordinatorsRequest
from cli.command import Call, remote
from cli.daemons import register_coordinator_start
from cli.group import new_group
from cli.output import human_time, print_table
from coordinator.convert import coordinator_from_wire

app = new_group()
register_coordinator_start(app)


@remote(app, "list")
async def list_(call: Call) -> None:
    """All coordinators that are there."""
    answer = await call.client.ask(call.client.stub.ListCoordinators, ListCoordinatorsRequest())
    views = [coordinator_from_wire(one) for one in answer.coordinators]
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
                    "drains" if one.draining else "up",
                )
                for one in views
            ),
        ),
    )
