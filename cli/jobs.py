"""`baton job`: what is replicated, and how it stands."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from baton.v1.coordinator_pb2 import (
    ApplyJobsRequest,
    DeleteJobRequest,
    ExplainJobRequest,
    GetJobRequest,
    ListJobsRequest,
    PreviewJobRequest,
    RunJobRequest,
)
from cli.command import Call, remote
from cli.exits import CommandFailed, Exit, exit_of_outcome
from cli.group import new_group
from cli.job_control import register_job_control
from cli.output import (
    human_age,
    human_bytes,
    human_time,
    print_fields,
    print_json,
    print_line,
    print_table,
    say,
)
from cli.progress import follow, has_audited
from cli.runs import finish_run, print_problem
from cli.status import worst_exposure
from coordinator.convert import (
    applied_from_wire,
    explain_from_wire,
    job_from_wire,
    preview_from_wire,
)
from coordinator.job import JobSpec
from coordinator.job_file import JobFileInvalid, encode_spec, read_job_file, spec_from_plain
from coordinator.views import AppliedView, ChangeView, HoldView, JobView, PreviewView, ProblemView

app = new_group()
register_job_control(app)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The job's name.")]
Member = "WORKER:ROOT[/PATH]"


@remote(app, "apply")
async def apply(
    call: Call,
    file: Annotated[
        list[Path], typer.Option("--file", "-f", help="A job file; - is standard input.")
    ],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would change, and change nothing.")
    ] = False,
) -> None:
    """Make jobs as the files say; a job that is so already stays as it is."""
    specs = [spec for path in (*file, *(more or ())) for spec in _read(path)]
    names = [spec.name for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CommandFailed(Exit.USAGE, f"name: {twice} is in two files: give each job its own")
    await _apply(call, specs, dry_run=dry_run)


@remote(app, "add", repeatable=False)
async def add(
    call: Call,
    name: Name,
    source: Annotated[
        str | None, typer.Option("--source", metavar=Member, help="Where it reads.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar=Member, help="Where it writes; repeatable."),
    ] = None,
    member: Annotated[
        list[str] | None,
        typer.Option("--member", metavar=Member, help="Of sync and exchange; repeatable."),
    ] = None,
    rule: Annotated[
        str, typer.Option("--rule", help="mirror, copy, move, sync or exchange.")
    ] = "mirror",
    copy_when: Annotated[
        str | None, typer.Option("--copy-when", help="Of copy: differing, newer or always.")
    ] = None,
    conflict: Annotated[
        str | None,
        typer.Option("--conflict", help="Of sync and exchange: keep-both, newest or suppress."),
    ] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="PATTERN", help="As in a .gitignore; repeatable."),
    ] = None,
    every: Annotated[str | None, typer.Option("--every", help="Run every 5m, 1h, ...")] = None,
    cron: Annotated[str | None, typer.Option("--cron", help="Run when due: '0 2 * * *'.")] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="Follow changes.")] = False,
    node: Annotated[
        list[str] | None,
        typer.Option("--node", metavar="C", help="A preferred coordinator; repeatable, in order."),
    ] = None,
    no_fallback: Annotated[
        bool, typer.Option("--no-fallback", help="Wait when no preferred coordinator is there.")
    ] = False,
) -> None:
    """Make one job, without a file. Refused when there is one of that name."""
    trigger: dict[str, Any] = {}
    if every is not None:
        trigger["every"] = every
    if cron is not None:
        trigger["cron"] = cron
    if realtime:
        trigger["realtime"] = {}
    given: dict[str, Any] = {
        "source": source,
        "targets": target,
        "members": member,
        "copy_when": copy_when,
        "conflict": conflict,
        "filters": filter_,
    }
    document = {
        "name": name,
        "rule": rule,
        **{field: value for field, value in given.items() if value},
        "trigger": trigger or {"manual": True},
        "placement": {"nodes": node or [], "fallback": not no_fallback},
    }
    await _apply(call, [spec_from_plain(document)], create_only=True)


@remote(app, "list")
async def list_(call: Call) -> None:
    """All jobs, and how they stand."""
    answer = await call.client.ask(call.client.stub.ListJobs, ListJobsRequest())
    views = [job_from_wire(job) for job in answer.jobs]
    call.show(
        views,
        lambda: print_table(
            ("name", "phase", "owner", "last success", "next due", "exposure", "reason"),
            (
                (
                    job.name,
                    job.phase,
                    job.owner,
                    human_time(job.last_success),
                    human_time(job.next_due),
                    worst_exposure(job),
                    job.reason,
                )
                for job in views
            ),
        ),
    )


@remote(app, "show")
async def show(call: Call, name: Name) -> None:
    """One job: phase, owner, token, times, exposure by target."""
    answer = await call.client.ask(call.client.stub.GetJob, GetJobRequest(name=name))
    view = job_from_wire(answer)
    call.show(view, lambda: _print(view))


@remote(app, "delete", repeatable=False, output=False)
async def delete(call: Call, name: Name) -> None:
    """Delete a job; the files that it replicated stay."""
    await call.client.ask(call.client.stub.DeleteJob, DeleteJobRequest(name=name))
    say(f"job {name} deleted")


@remote(app, "run", repeatable=False)
async def run(
    call: Call,
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until it ends.")] = False,
) -> Exit | None:
    """Run a job now; one that follows changes compares everything once."""
    answer = await call.client.ask(call.client.stub.RunJob, RunJobRequest(name=name))
    if not wait:
        say(f"run {answer.run} of {answer.job} begins")
        call.show({"job": answer.job, "id": answer.run}, lambda: print_line(answer.run))
        return None
    say(f"run {answer.run} of {answer.job}; it goes on when this command is interrupted")
    return finish_run(call, await follow(call, answer.job, answer.run, has_audited))


@remote(app, "preview", repeatable=False)
async def preview(call: Call, name: Name) -> Exit:
    """List what a run would change, and change nothing."""
    changes: list[ChangeView] = []
    errors: list[ProblemView] = []
    holds: list[HoldView] = []
    request = PreviewJobRequest(name=name)
    answers = call.client.stream(call.client.stub.PreviewJob, request, deadline=False)
    async for part in (preview_from_wire(answer) async for answer in answers):
        errors += part.errors
        holds += part.holds
        changes += part.changes
        if not call.wants_json:
            _print_changes(part.changes)
        if part.ended:
            break
    else:
        raise CommandFailed(Exit.FAILED, f"the preview of {name} broke off: try again")
    whole = PreviewView(tuple(changes), tuple(errors), tuple(holds), True, part.outcome)
    call.show(whole, lambda: _print_preview_end(whole))
    return exit_of_outcome(whole.outcome)


@remote(app, "explain")
async def explain(call: Call, name: Name) -> None:
    """Say why a job is where it is, and who would take it next."""
    answer = await call.client.ask(call.client.stub.ExplainJob, ExplainJobRequest(name=name))
    view = explain_from_wire(answer)

    def as_text() -> None:
        print_fields(
            {
                "job": view.name,
                "owner": view.owner or "nobody",
                "order": ", ".join(view.order),
                "next": view.next_owner or "nobody",
            }
        )
        for reason in view.reasons:
            print_line(f"- {reason}")

    call.show(view, as_text)


def _read(path: Path) -> list[JobSpec]:
    try:
        if str(path) == "-":
            text = sys.stdin.buffer.read().decode("utf-8")
        else:
            text = path.read_text(encoding="utf-8")
        return read_job_file(text)
    except OSError as error:
        raise CommandFailed(Exit.USAGE, f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CommandFailed(Exit.USAGE, f"{path} is not UTF-8: {error.reason}") from error
    except JobFileInvalid as error:
        problems = [f"{path}: {problem}" for problem in error.problems]
        raise CommandFailed(Exit.USAGE, "\n".join(problems)) from error


async def _apply(
    call: Call, specs: list[JobSpec], *, dry_run: bool = False, create_only: bool = False
) -> None:
    request = ApplyJobsRequest(
        specs=[encode_spec(spec) for spec in specs], dry_run=dry_run, create_only=create_only
    )
    answer = await call.client.ask(call.client.stub.ApplyJobs, request)
    applied = [applied_from_wire(job) for job in answer.jobs]
    for job in applied:
        for warning in job.warnings:
            say(f"{job.name}: {warning}")
    if call.wants_json:
        print_json(applied)
        return
    for job in applied:
        _print_applied(job, dry_run=dry_run)


def _print_applied(job: AppliedView, *, dry_run: bool) -> None:
    would = "would be " if dry_run and job.action != "unchanged" else ""
    print_line(f"{job.name}: {would}{job.action}")
    if dry_run or job.action == "updated":
        for difference in job.differences:
            print_line(f"  {difference}")


def _print(job: JobView) -> None:
    print_fields(
        {
            "name": job.name,
            "phase": job.phase,
            "reason": job.reason,
            "owner": job.owner or "nobody",
            "owner since": human_time(job.owner_since),
            "token": job.token,
            "lease": f"{job.lease_ttl_s:g} s",
            "next due": human_time(job.next_due),
            "last run": human_time(job.last_run),
            "last outcome": job.last_outcome,
            "last success": human_time(job.last_success),
            "generation": job.generation,
            "takeover": takeover_text(job),
        }
    )
    for target, age in job.exposure_s.items():
        print_line(f"exposure of {target}: {human_age(age)}")


def takeover_text(job: JobView) -> str:
    """Say who would take a job over, and how soon, or that nobody could."""
    ahead = job.takeover
    if job.owner is None:
        return "it has no owner"
    if ahead.next_owner is None:
        return f"warning: {ahead.warning}"
    return (
        f"by {ahead.next_owner}, {ahead.worst_s:g} s after {job.owner} goes at worst "
        f"({ahead.worst_with_etcd_s:g} s with etcd's leader), since {ahead.rule}"
    )


def _print_changes(changes: tuple[ChangeView, ...]) -> None:
    for change in changes:
        is_sent = change.kind == "file" and change.action in {"create", "update"}
        size = f" ({human_bytes(change.size)})" if is_sent else ""
        path = f"{change.origin} -> {change.path}" if change.origin else change.path or "."
        print_line(f"{change.action:<9}{change.kind:<10}{change.member} {path}{size}")


def _print_preview_end(preview: PreviewView) -> None:
    if not (preview.changes or preview.errors or preview.holds):
        say("nothing would change")
    for error in preview.errors:
        print_problem(error)
    for hold in preview.holds:
        print_line(f"would be held: {hold.member}: {hold.detail}")
