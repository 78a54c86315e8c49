"""How the ledger's record of a run changes: attempts that end, outcomes that come in. Pure."""

from datetime import datetime

import msgspec

from coordinator.records import CountsRecord, HoldRecord, ProblemRecord, RunRecord
from syncengine.model import Hold, Problem
from wire.orders import Outcome, RunEnded


def close_attempt(record: RunRecord, why: str, now: datetime) -> RunRecord:
    """End the attempts that have not, and say why."""
    attempts = tuple(
        one if one.ended is not None else msgspec.structs.replace(one, ended=now, why_ended=why)
        for one in record.attempts
    )
    return msgspec.structs.replace(record, attempts=attempts)


def ended(record: RunRecord, outcome: Outcome, reason: str, now: datetime) -> RunRecord:
    """End a run."""
    record = close_attempt(record, reason or outcome.value, now)
    return msgspec.structs.replace(record, outcome=outcome, reason=reason, ended=now)


def outcome_of(record: RunRecord, result: RunEnded, now: datetime) -> RunRecord:
    """Put what the source worker reported into the record: the run's end, or its hold."""
    record = msgspec.structs.replace(
        record,
        counts=_add(record.counts, result),
        problems=tuple(map(_problem, result.problems)),
        problems_total=result.problems_total,
        holds=tuple(map(_hold, result.holds)),
        plan=result.plan.hex(),
    )
    if result.outcome is not Outcome.BLOCKED:
        return ended(record, result.outcome, _reason(result), now)
    why = "; ".join(f"{hold.member}: {hold.detail}" for hold in result.holds)
    if record.approved:
        why = f"the trees no longer match the approved plan, and the new one: {why}"
    record = close_attempt(record, "held by a guard", now)
    return msgspec.structs.replace(
        record, outcome=Outcome.BLOCKED, reason=f"waits for an approval: {why}", approved=""
    )


def _problem(problem: Problem) -> ProblemRecord:
    return ProblemRecord(
        path=problem.path.decode("utf-8", "surrogateescape"),
        member=problem.member,
        what=problem.what.value,
        detail=problem.detail,
    )


def _hold(hold: Hold) -> HoldRecord:
    return HoldRecord(reason=hold.reason.value, member=hold.member, detail=hold.detail)


def _add(counts: CountsRecord, result: RunEnded) -> CountsRecord:
    """Add what this attempt did to what earlier ones of the run did."""
    now = result.counts
    return CountsRecord(
        files_scanned=now.files_scanned,
        files_copied=counts.files_copied + now.files_copied,
        files_updated=counts.files_updated + now.files_updated,
        files_deleted=counts.files_deleted + now.files_deleted,
        files_renamed=counts.files_renamed + now.files_renamed,
        bytes_copied=counts.bytes_copied + now.bytes_copied,
        bytes_sent=counts.bytes_sent + now.bytes_sent,
        conflicts=now.conflicts,
    )


def _reason(result: RunEnded) -> str:
    if not result.problems:
        return ""
    first = result.problems[0]
    where = first.path.decode("utf-8", "replace")
    more = f", and {result.problems_total - 1} more" if result.problems_total > 1 else ""
    named = f"{first.member}: {where}: " if where else f"{first.member}: "
    return f"{named}{first.detail}{more}"
