"""`baton chaos`: the fault kit, and the checker that proves from what happened what Baton promises."""

import asyncio
import secrets
import tempfile
from pathlib import Path
from typing import IO, Annotated

import typer

from cli.chaos import history
from cli.chaos.drive import NothingToDo, Plan, run
from cli.chaos.fault import Fault
from cli.chaos.faults import FAULTS, by_name
from cli.chaos.report import as_html, as_text, is_sound
from cli.command import finish
from cli.exits import CommandFailed, Exit
from cli.group import new_group
from cli.output import print_line, say

app = new_group()

_MOST_AT_ONCE = 3


@app.command("faults")
def list_faults() -> None:
    """List what can be done to a cluster."""
    for fault in FAULTS:
        low, high = fault.lasts_s
        print_line(f"{fault.name:30} {', '.join(fault.targets)}; {low:g} to {high:g} s")


@app.command("run")
def run_(
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, help="How long there is trouble.")
    ] = 60.0,
    seed: Annotated[
        int | None, typer.Option("--seed", help="The same seed, the same faults. [any]")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", metavar="NAME", help="Only this; may be repeated."),
    ] = None,
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, max=_MOST_AT_ONCE, help="Faults that may overlap.")
    ] = 2,
    faults: Annotated[
        int | None, typer.Option("--faults", min=1, help="End after so many faults, too.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Keep the report, history and logs here."),
    ] = None,
) -> None:
    """Make a cluster of its own on this machine, trouble it, and check what it promises.

    It never touches a cluster that was there before. Ends with 1 when a promise is broken, with the
    shortest history that shows it; `--out` keeps everything that is needed to look into it.
    """
    chosen = _chosen(fault)
    if seed is None:
        seed = secrets.randbelow(1_000_000)
    plan = Plan(seed, seconds, chosen, at_once, most=faults)

    async def carry_out() -> Exit:
        if out is not None:
            if out.exists() and any(out.iterdir()):
                raise CommandFailed(Exit.USAGE, f"--out: {out} is not empty: name a new directory")
            out.mkdir(parents=True, exist_ok=True)
            return await _in(plan, out, keep=True)
        with tempfile.TemporaryDirectory(prefix="baton-chaos-") as directory:
            return await _in(plan, Path(directory), keep=False)

    finish(carry_out)


def _chosen(names: list[str] | None) -> tuple[Fault, ...]:
    try:
        return by_name(names or ())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--fault") from error


def _tell(file: IO[bytes], event: history.Any) -> None:
    file.write(history.line(event))


async def _in(plan: Plan, directory: Path, *, keep: bool) -> Exit:
    say(f"seed {plan.seed}: {plan.seconds:g} s of trouble, on a cluster of its own")
    history_file = directory / "history.jsonl"
    with history_file.open("ab", buffering=0) as file:  # there to look into, whatever happens
        try:
            report = await run(
                plan, directory / "cluster", say=say, told=lambda event: _tell(file, event)
            )
        except NothingToDo as nothing:
            raise CommandFailed(Exit.USAGE, str(nothing)) from nothing
    for line in as_text(report):
        print_line(line)
    if keep:
        await asyncio.to_thread(history.save, history_file, report.events)
        await asyncio.to_thread((directory / "report.html").write_text, as_html(report))
        say(f"report: {directory / 'report.html'}; history and logs beside it")
    return Exit.DONE if is_sound(report.verdicts) else Exit.FAILED
