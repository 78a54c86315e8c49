"""`baton status`: coordinators, workers, jobs by phase, exposure."""

from collections import Counter

from baton.v1.coordinator_pb2 import GetStatusRequest
from cli.command import Call, remote
from cli.group import new_group
from cli.output import coordinator_state, human_age, print_line, print_table
from coordinator.convert import status_from_wire
from coordinator.views import JobView, StatusView

app = new_group()

_NAMED = 5
"""How many jobs are warned of one by one."""


@remote(app, "status")
async def status(call: Call) -> None:
    """The cluster at a glance: coordinators, workers, jobs by phase, exposure."""
    answer = await call.client.ask(call.client.stub.GetStatus, GetStatusRequest())
    view = status_from_wire(answer)
    call.show(view, lambda: _print(view))


def _print(view: StatusView) -> None:
    print_line(f"answered by {view.answered_by}")
    for warning in view.warnings:
        print_line(f"warning: {warning}")
    alone = [job for job in view.jobs if job.takeover.warning]
    for job in alone[:_NAMED]:
        print_line(f"warning: job {job.name}: {job.takeover.warning}")
    if len(alone) > _NAMED:
        print_line(f"warning: nor could anybody take over {len(alone) - _NAMED} more jobs")
    print_line("")
    print_table(
        ("coordinator", "address", "jobs", "version", "state"),
        (
            (one.name, one.address, one.jobs_owned, one.version, coordinator_state(one))
            for one in view.coordinators
        ),
    )
    print_line("")
    print_table(
        ("worker", "address", "group", "roots", "state"),
        (
            (
                one.name,
                one.address,
                one.group,
                ", ".join(root.name for root in one.roots),
                "reachable" if one.reachable else f"not reachable: {one.reason}",
            )
            for one in view.workers
        ),
    )
    print_line("")
    phases = Counter(job.phase for job in view.jobs)
    counted = ", ".join(f"{count} {phase}" for phase, count in sorted(phases.items()))
    print_line(f"jobs: {len(view.jobs)}" + (f" ({counted})" if counted else ""))
    if view.jobs:
        print_table(
            ("job", "phase", "owner", "exposure", "reason"),
            (
                (job.name, job.phase, job.owner, worst_exposure(job), job.reason)
                for job in view.jobs
            ),
        )


def worst_exposure(job: JobView) -> str:
    """Return the age of the oldest change that may be missing at any target."""
    ages = list(job.exposure_s.values())
    if not ages or None in ages:
        return "?"
    return human_age(max(age for age in ages if age is not None))
