"""`baton watch`: the cluster at a glance, live, full screen."""

import asyncio
import contextlib
import sys

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from baton.v1.coordinator_pb2 import GetStatusRequest
from cli.client import connect
from cli.command import Call, remote
from cli.exits import CommandFailed, Exit, NobodyAnswered
from cli.group import new_group
from cli.output import coordinator_state, human_age, safe
from cli.status import worst_exposure
from coordinator.convert import status_from_wire
from coordinator.views import StatusView

app = new_group()

LOOK_S = 1.0
_ORDER = ("failed", "blocked", "waiting", "running", "monitoring", "paused", "idle")
_STYLES = {"failed": "red", "blocked": "yellow", "waiting": "yellow", "running": "green",
           "monitoring": "green", "paused": "cyan"}  # fmt: skip


@remote(app, "watch", output=False)
async def watch(call: Call) -> None:
    """The cluster at a glance, live; Ctrl-C ends it. Jobs that need somebody come first."""
    if not sys.stdout.isatty():
        raise CommandFailed(Exit.USAGE, "watch needs a terminal: use 'baton status'")
    loop = asyncio.get_running_loop()
    client, said = call.client, ""
    view: StatusView | None = None
    seen_at = loop.time()
    async with contextlib.AsyncExitStack() as stack:
        live = stack.enter_context(Live(Text("..."), screen=True, auto_refresh=False))
        while True:
            client.ends_at = loop.time() + call.timeout_s
            try:
                answer = await client.ask(client.stub.GetStatus, GetStatusRequest())
                view, said, seen_at = status_from_wire(answer), "", loop.time()
            except NobodyAnswered as silence:
                said = str(silence)
                with contextlib.suppress(CommandFailed):  # another may answer, or the same later
                    client = await stack.enter_async_context(connect(call.settings, call.timeout_s))
            age_s = loop.time() - seen_at
            live.update(page(view, said, age_s, live.console), refresh=True)
            await asyncio.sleep(LOOK_S)


def page(view: StatusView | None, said: str, age_s: float, console: Console) -> Group:
    """Put the screen together; what does not fit is counted."""
    if view is None:
        return Group(Text(safe(said)))
    head = f"answered by {view.answered_by}" + (f", {human_age(age_s)} ago" if said else "")
    nodes = Table("coordinator", "jobs", "state", box=None, pad_edge=False)
    for one in view.coordinators:
        nodes.add_row(one.name, str(one.jobs_owned), coordinator_state(one))
    workers = Table("worker", "state", box=None, pad_edge=False)
    for worker in view.workers:
        state = Text("reachable") if worker.reachable else Text(safe(worker.reason), "red")
        workers.add_row(worker.name, state)
    room = max(3, console.height - len(view.coordinators) - len(view.workers) - 9)
    ranked = sorted(view.jobs, key=lambda job: (_rank(job.phase), job.name))
    jobs = Table("job", "phase", "owner", "exposure", "reason", box=None, pad_edge=False)
    for job in ranked[:room]:
        jobs.add_row(
            job.name,
            Text(job.phase, _STYLES.get(job.phase, "")),
            job.owner or "-",
            worst_exposure(job),
            Text(safe(job.reason), no_wrap=True, overflow="ellipsis"),
        )
    more = Text(f"and {len(ranked) - room} more jobs") if len(ranked) > room else Text("")
    warning = Text(safe(said.partition("\n")[0]), "red")
    return Group(Text(head), warning, nodes, Text(""), workers, Text(""), jobs, more)


def _rank(phase: str) -> int:
    return _ORDER.index(phase) if phase in _ORDER else len(_ORDER)
