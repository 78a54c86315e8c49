"""`baton run`: the ledger of runs, following one, and releasing or cancelling one."""

from typing import Annotated

import typer

from baton.v1.coordinator_pb2 import (
    ApproveRunRequest,
    CancelRunRequest,
    GetRunRequest,
    ListRunsRequest,
)
from cli.command import Call, remote
from cli.exits import Exit, exit_of_run
from cli.group import new_group
from cli.output import human_bytes, human_time, print_fields, print_line, print_table, say
from cli.progress import follow, has_let_go
from coordinator.convert import run_from_wire
from coordinator.views import ProblemView, RunView

app = new_group()

JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job's name.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, as 'run list' shows it.")]


@remote(app, "list")
async def list_(
    call: Call,
    job: Annotated[str, typer.Argument(metavar="[JOB]", help="Of one job only.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many.")] = 100,
) -> None:
    """Runs, the newest first."""
    request = ListRunsRequest(job=job, limit=limit)
    answer = await call.client.ask(call.client.stub.ListRuns, request)
    runs = [run_from_wire(run) for run in answer.runs]
    call.show(runs, lambda: _print_list(runs))


@remote(app, "show")
async def show(call: Call, job: JobName, run: RunId) -> None:
    """One run: its attempts, counts and errors."""
    request = GetRunRequest(job=job, run=run)
    view = run_from_wire(await call.client.ask(call.client.stub.GetRun, request))
    call.show(view, lambda: print_run(view))


@remote(app, "follow", repeatable=False)
async def follow_(
    call: Call,
    job: JobName,
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="The run's id; else the current or next one.")
    ] = "",
) -> Exit:
    """Follow a run until it ends, with progress."""
    return finish_run(call, await follow(call, job, run))


@remote(app, "approve", repeatable=False)
async def approve(
    call: Call,
    job: JobName,
    run: RunId,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the run ended.")] = False,
) -> Exit | None:
    """Release the plan that a guard stopped: exactly that plan."""
    request = ApproveRunRequest(job=job, run=run)
    view = run_from_wire(await call.client.ask(call.client.stub.ApproveRun, request))
    if wait:
        return finish_run(call, await follow(call, job, run, has_let_go))
    say(f"approved: run {view.id} of {view.job} goes on")
    call.show(view, lambda: None)
    return None


@remote(app, "cancel", repeatable=False)
async def cancel(call: Call, job: JobName, run: RunId) -> None:
    """End a run; what it has published stays."""
    request = CancelRunRequest(job=job, run=run)
    view = run_from_wire(await call.client.ask(call.client.stub.CancelRun, request))
    say(f"run {view.id} of {view.job}: {view.outcome}")
    call.show(view, lambda: None)


def finish_run(call: Call, view: RunView) -> Exit:
    """Print a run that was waited for; return how the command ends."""
    call.show(view, lambda: print_run(view))
    if view.outcome == "blocked":
        reasons = "".join(f"\n  {hold.member}: {hold.detail}" for hold in view.holds)
        say(f"held by a guard:{reasons}\nto let it pass: baton run approve {view.job} {view.id}")
    return exit_of_run(view.outcome, view.errors_total)


def _print_list(runs: list[RunView]) -> None:
    print_table(
        ("job", "run", "started", "ended", "outcome", "copied", "deleted", "bytes", "errors"),
        (
            (
                run.job,
                run.id,
                human_time(run.started),
                human_time(run.ended),
                run.outcome,
                run.files_copied,
                run.files_deleted,
                human_bytes(run.bytes_copied),
                run.errors_total,
            )
            for run in runs
        ),
    )


def print_run(run: RunView) -> None:
    """Print one run for people."""
    print_fields(
        {
            "job": run.job,
            "run": run.id,
            "outcome": run.outcome,
            "reason": run.reason,
            "due": human_time(run.due),
            "started": human_time(run.started),
            "ended": human_time(run.ended),
            "files": f"{run.files_scanned} scanned, {run.files_copied} copied, "
            f"{run.files_updated} updated, {run.files_deleted} deleted, "
            f"{run.files_renamed} renamed",
            "bytes": f"{human_bytes(run.bytes_copied)} copied, {human_bytes(run.bytes_sent)} sent",
            "conflicts": run.conflicts or None,
            "audits": run.monitor
            and f"{run.monitor.audits} made, {run.monitor.audit_found} changes found that no event told",
            "degraded": run.monitor and (run.monitor.degraded or None),
            "plan": run.plan,
        }
    )
    for attempt in run.attempts:
        ended = f" to {human_time(attempt.ended)}: {attempt.why_ended}" if attempt.ended else ""
        print_line(
            f"attempt by {attempt.owner}, token {attempt.token}, "
            f"from {human_time(attempt.started)}{ended}"
        )
    for hold in run.holds:
        print_line(f"held: {hold.member}: {hold.detail} ({hold.reason})")
    for problem in (*run.conflict_paths, *run.errors):
        print_problem(problem)
    if run.errors_total > len(run.errors):
        print_line(f"and {run.errors_total - len(run.errors)} more")


def print_problem(error: ProblemView) -> None:
    """Print one thing that a run names: a conflict, what it left out, or an error."""
    where = f"{error.member} {error.path}".strip()
    match error.what:
        case "conflict":
            print_line(f"conflict: {where}: {error.detail}")
        case "skipped" | "not-kept":
            print_line(f"{error.what}: {where}: {error.detail}")
        case _:
            print_line(f"error: {where}: {error.what}: {error.detail}")
