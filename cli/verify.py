"""`baton verify`: whether the members of a job are what its rule promises, by content."""

from typing import TYPE_CHECKING, Annotated

import typer

from baton.v1.coordinator_pb2 import PreviewJobRequest
from cli.command import Call, remote
from cli.exits import CommandFailed, Exit
from cli.group import new_group
from cli.output import print_json, print_line, say
from coordinator.convert import preview_from_wire

if TYPE_CHECKING:
    from coordinator.views import ChangeView, HoldView, ProblemView

app = new_group()


@remote(app, "verify", repeatable=False)
async def verify(
    call: Call, name: Annotated[str, typer.Argument(metavar="JOB", help="The job's name.")]
) -> Exit:
    """Compare all members of a job by content, and name what differs. Changes nothing.

    Exit code 0 when they are equal, as far as the job's rule, filters and metadata go.
    """
    differences: list[ChangeView] = []
    errors: list[ProblemView] = []
    holds: list[HoldView] = []
    request = PreviewJobRequest(name=name, verify=True)
    answers = call.client.stream(call.client.stub.PreviewJob, request, deadline=False)
    async for part in (preview_from_wire(answer) async for answer in answers):
        differences += part.changes
        errors += part.errors
        holds += part.holds
        if not call.wants_json:
            for one in part.changes:
                print_line(f"{one.action}: {one.member} {one.path or '.'}")
        if part.ended:
            break
    else:
        raise CommandFailed(Exit.FAILED, f"the verification of {name} broke off: try again")
    is_whole = part.outcome == "succeeded"
    is_equal = is_whole and not differences
    if call.wants_json:
        shown = [
            {"path": one.path, "member": one.member, "what": one.action} for one in differences
        ]
        print_json({"equal": is_equal, "files_compared": part.files, "differences": shown})
    for error in errors:
        where = f"{error.member} {error.path}".strip()
        say(f"{where}: {error.what}: {error.detail}")
    for hold in holds:
        say(f"{hold.member}: {hold.detail}")
    if not is_whole:
        say(f"not all of {name} could be compared: {part.outcome}")
    if not call.wants_json:
        print_line(_verdict(is_equal, len(differences), part.files))
    return Exit.DONE if is_equal else Exit.FAILED


def _verdict(is_equal: bool, differences: int, files: int) -> str:
    compared = f"{files} file{'' if files == 1 else 's'} compared"
    if is_equal:
        return f"equal, {compared}"
    return f"not equal: {differences} difference{'' if differences == 1 else 's'}, {compared}"
