"""`baton ledger`: what the record of runs proves by itself."""

from typing import Annotated

import typer

from baton.v1.coordinator_pb2 import VerifyLedgerRequest
from cli.command import Call, remote
from cli.exits import Exit
from cli.group import new_group
from cli.output import print_line
from coordinator.control_convert import proof_from_wire
from coordinator.views import ProofView

app = new_group()


@app.callback()
def _ledger() -> None:
    """What the record of runs proves by itself."""  # with a callback, one command is a group too


@remote(app, "verify")
async def verify(
    call: Call, job: Annotated[str, typer.Argument(metavar="[JOB]", help="Only this one.")] = ""
) -> Exit:
    """Prove from the ledger alone that no due instant is missing or double, no token went back.

    A record that was removed, changed or put in by another hand is found too. Ends with 1 and the
    shortest counter-example otherwise.
    """
    answer = await call.client.ask(call.client.stub.VerifyLedger, VerifyLedgerRequest(job=job))
    proofs = [proof_from_wire(one) for one in answer.jobs]
    holds = not any(proof.findings for proof in proofs)
    call.show({"ok": holds, "jobs": [_plain(one) for one in proofs]}, lambda: _print(proofs))
    return Exit.DONE if holds else Exit.FAILED


def _plain(proof: ProofView) -> dict[str, object]:
    return {
        "job": proof.job,
        "ok": not proof.findings,
        "records": proof.records,
        "instants": proof.instants,
        "attempts": proof.attempts,
        "findings": [{"what": one.what, "runs": list(one.runs)} for one in proof.findings],
    }


def _print(proofs: list[ProofView]) -> None:
    for proof in proofs:
        counts = (
            f"{proof.records} records, {proof.instants} of the schedule, {proof.attempts} attempts"
        )
        if not proof.findings:
            print_line(f"{proof.job}: holds: {counts}")
            continue
        print_line(f"{proof.job}: does not hold: {proof.findings[0].what}")
        for run in proof.findings[0].runs:
            print_line(f"  baton run show {proof.job} {run}")
        if len(proof.findings) > 1:
            print_line(f"  and {len(proof.findings) - 1} more: -o json lists them")
