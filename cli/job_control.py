"""`baton job pause | resume | restart | edit`: what operators do to a job that is there."""

import asyncio
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import yaml

from baton.v1.coordinator_pb2 import (
    ApplyJobsRequest,
    DrillJobRequest,
    GetJobRequest,
    PauseJobRequest,
    RestartJobRequest,
    ResumeJobRequest,
)
from cli.command import Call, remote
from cli.exits import CommandFailed, Exit
from cli.output import human_age, print_fields, print_json, print_line, say
from coordinator.control_convert import drill_from_wire
from coordinator.convert import applied_from_wire, job_from_wire
from coordinator.job import JobSpec
from coordinator.job_file import (
    JobFileInvalid,
    encode_spec,
    read_job_file,
    spec_from_plain,
    spec_to_plain,
)
from coordinator.views import JobView

Name = Annotated[str, typer.Argument(metavar="NAME", help="The job's name.")]

_DRILL_MARGIN_S = 25.0
_HEAD = """\
# Job {name}, generation {generation}. Save and leave to apply it; an empty file changes nothing.
"""


def register_job_control(app: typer.Typer) -> None:
    """Add these commands to a group."""
    remote(app, "pause")(pause)
    remote(app, "resume")(resume)
    remote(app, "restart", repeatable=False)(restart)
    remote(app, "edit", repeatable=False)(edit)
    remote(app, "drill", repeatable=False)(drill)


async def pause(call: Call, name: Name) -> None:
    """Let nothing of a job go on; a run under way stops and goes on after `resume`."""
    view = job_from_wire(
        await call.client.ask(call.client.stub.PauseJob, PauseJobRequest(name=name))
    )
    call.show(view, lambda: print_line(f"{name}: {view.reason}"))


async def resume(call: Call, name: Name) -> None:
    """Let a paused job go on; instants that came meanwhile are not made up for."""
    request = ResumeJobRequest(name=name)
    view = job_from_wire(await call.client.ask(call.client.stub.ResumeJob, request))
    call.show(view, lambda: print_line(f"{name}: goes on"))


async def restart(call: Call, name: Name) -> None:
    """Start a job afresh where placement prefers; a run under way begins anew there."""
    request = RestartJobRequest(name=name)
    view = job_from_wire(await call.client.ask(call.client.stub.RestartJob, request))
    if view.owner is None:
        say(f"{name}: {view.reason}")
    call.show(view, lambda: print_line(f"{name}: owned by {view.owner or 'nobody'}"))


async def drill(call: Call, name: Name) -> None:
    """Lose a job's lease on purpose, and measure how long it takes until another goes on.

    Takes as long as the lease, beyond --timeout. What runs goes on at the workers and is adopted.
    """
    job = await _job(call, name)
    say(f"{job.owner or 'nobody'} falls silent; its lease ends in {job.lease_ttl_s:g} s")
    call.client.ends_at += 2 * job.lease_ttl_s + _DRILL_MARGIN_S
    request = DrillJobRequest(name=name)
    view = drill_from_wire(await call.client.ask(call.client.stub.DrillJob, request))
    call.show(
        view,
        lambda: print_fields(
            {
                "job": view.job,
                "lost by": view.owner,
                "taken by": view.next_owner,
                "lease": f"{view.lease_ttl_s:g} s",
                "detection": f"{view.detection_s:.3f} s",
                "claim": f"{view.claim_s * 1000:.0f} ms",
                "adoption": f"{view.adoption_s * 1000:.0f} ms",
                "total": f"{view.total_s:.3f} s",
                "run": view.run and f"{view.run} was adopted",
                **{
                    f"exposure of {target}": f"{human_age(age)} at most, "
                    f"{human_age(view.exposure_before_s.get(target))} before"
                    for target, age in view.exposure_s.items()
                },
            }
        ),
    )


async def edit(call: Call, name: Name) -> None:
    """Change a job in $VISUAL or $EDITOR; refused when somebody else changed it meanwhile."""
    before = await _job(call, name)
    old = spec_from_plain(before.spec)
    text = _HEAD.format(name=name, generation=before.generation) + _as_yaml(old)
    changed = await asyncio.to_thread(_edited, name, text)
    # The editor's time is not the coordinator's.
    call.client.ends_at = asyncio.get_running_loop().time() + call.timeout_s
    if changed is None:
        say(f"job {name}: nothing was changed")
        if call.wants_json:
            print_json([])
        return
    new, kept = changed
    if new.name != name:
        raise CommandFailed(
            Exit.USAGE, f"name: {new.name} is another job: use 'baton job apply -f {kept}'"
        )
    if (await _job(call, name)).generation != before.generation:
        raise CommandFailed(
            Exit.FAILED, f"job {name} was changed by somebody else meanwhile; yours is in {kept}"
        )
    try:
        answer = await call.client.ask(
            call.client.stub.ApplyJobs, ApplyJobsRequest(specs=[encode_spec(new)])
        )
    except CommandFailed as error:
        raise CommandFailed(error.code, f"{error}\nwhat you wrote is in {kept}") from error
    kept.unlink()
    applied = [applied_from_wire(job) for job in answer.jobs]
    if call.wants_json:
        print_json(applied)
        return
    for job in applied:
        print_line(f"{job.name}: {job.action}")
        for difference in job.differences:
            print_line(f"  {difference}")


async def _job(call: Call, name: str) -> JobView:
    return job_from_wire(await call.client.ask(call.client.stub.GetJob, GetJobRequest(name=name)))


def _as_yaml(spec: JobSpec) -> str:
    """Return a job as a file with the fields in the order of the documentation."""
    return yaml.safe_dump(spec_to_plain(spec), sort_keys=False, allow_unicode=True)


def _edited(name: str, text: str) -> tuple[JobSpec, Path] | None:
    """Have a file edited; return the job and where the file lies, None when nothing was changed."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    descriptor, place = tempfile.mkstemp(prefix=f"baton-{name}-", suffix=".yaml")
    path = Path(place)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    try:
        ended = subprocess.run([*shlex.split(editor), place], check=False)
    except (OSError, ValueError) as error:
        path.unlink()
        raise CommandFailed(
            Exit.USAGE, f"cannot start the editor {editor!r}: {error}: set EDITOR"
        ) from error
    written = path.read_text(encoding="utf-8", errors="replace")
    meaning = [line for line in written.splitlines() if line.strip() and line.strip()[0] != "#"]
    if ended.returncode or written == text or not meaning:
        path.unlink()
        if ended.returncode:
            raise CommandFailed(Exit.FAILED, f"the editor ended with {ended.returncode}")
        return None
    try:
        jobs = read_job_file(written)
    except JobFileInvalid as error:
        raise CommandFailed(Exit.USAGE, f"{error}\nwhat you wrote is in {path}") from error
    if len(jobs) != 1:
        raise CommandFailed(Exit.USAGE, f"{len(jobs)} jobs: edit takes one; they are in {path}")
    return jobs[0], path
