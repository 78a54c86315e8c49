"""Drills and proofs of the ledger, to and from the messages of the Coordinator service."""

from baton.v1 import coordinator_pb2 as pb
from coordinator import views
from coordinator.convert import exposure_by_target, exposure_messages
from coordinator.ledger_proof import Proof


def proof_to_wire(proof: Proof) -> pb.LedgerProof:
    """Return the message of a proof."""
    return pb.LedgerProof(
        job=proof.job,
        records=proof.records,
        instants=proof.instants,
        attempts=proof.attempts,
        findings=[pb.LedgerFinding(what=one.what, runs=one.runs) for one in proof.findings],
    )


def proof_from_wire(message: pb.LedgerProof) -> views.ProofView:
    """Return the proof of a message."""
    return views.ProofView(
        message.job,
        message.records,
        message.instants,
        message.attempts,
        tuple(views.FindingView(one.what, tuple(one.runs)) for one in message.findings),
    )


def check_to_wire(view: views.CheckView) -> pb.Check:
    """Return the message of a check."""
    return pb.Check(name=view.name, level=view.level, detail=view.detail, advice=view.advice)


def check_from_wire(message: pb.Check) -> views.CheckView:
    """Return the check of a message."""
    return views.CheckView(message.name, message.level, message.detail, message.advice)


def drill_to_wire(view: views.DrillView) -> pb.DrillReport:
    """Return the message of a drill."""
    return pb.DrillReport(
        job=view.job,
        owner=view.owner,
        next_owner=view.next_owner,
        lease_ttl_s=view.lease_ttl_s,
        detection_s=view.detection_s,
        claim_s=view.claim_s,
        adoption_s=view.adoption_s,
        total_s=view.total_s,
        run=view.run or "",
        exposure_before=exposure_messages(view.exposure_before_s),
        exposure=exposure_messages(view.exposure_s),
    )


def drill_from_wire(message: pb.DrillReport) -> views.DrillView:
    """Return the drill of a message."""
    return views.DrillView(
        message.job,
        message.owner,
        message.next_owner,
        message.lease_ttl_s,
        message.detection_s,
        message.claim_s,
        message.adoption_s,
        message.total_s,
        message.run or None,
        exposure_by_target(message.exposure_before),
        exposure_by_target(message.exposure),
    )
