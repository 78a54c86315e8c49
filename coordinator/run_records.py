"""How the ledger's record of a run changes: attempts that end, outcomes that come in. Pure."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from coordinator.records import CountsRecord, HoldRecord, ProblemRecord, RunRecord, StateRecord
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
    is_good = outcome is Outcome.SUCCEEDED
    record = close_attempt(record, outcome.value if is_good else reason or outcome.value, now)
    return msgspec.structs.replace(record, outcome=outcome, reason=reason, ended=now, waits=None)


def outcome_of(record: RunRecord, result: RunEnded, now: datetime) -> RunRecord:
    """Put what the source worker reported into the record: the run's end, or its hold."""
    record = msgspec.structs.replace(
        record,
        # What a monitor did was told and added while it went on.
        counts=record.counts if record.monitor is not None else _add(record.counts, result),
        problems=tuple(map(problem_record, result.problems)),
        problems_total=result.problems_total,
        holds=tuple(map(hold_record, result.holds)),
        plan=result.plan.hex(),
        waits=None,
    )
    if result.outcome is not Outcome.BLOCKED:
        is_good = result.outcome is Outcome.SUCCEEDED
        reason = reason_of(result.problems, result.problems_total)
        reason = reason or (record.begun if is_good else "")
        return ended(record, result.outcome, reason, now)
    why = "; ".join(f"{hold.member}: {hold.detail}" for hold in result.holds)
    if record.approved:
        why = f"the trees no longer match the approved plan, and the new one: {why}"
    record = close_attempt(record, "held by a guard", now)
    return msgspec.structs.replace(
        record, outcome=Outcome.BLOCKED, reason=f"waits for an approval: {why}", approved=""
    )


def numbered(
    state: StateRecord, records: Iterable[RunRecord]
) -> tuple[StateRecord, list[tuple[datetime, RunRecord]]]:
    """Give new records their places in the ledger; return the state that knows of them, and them."""
    placed = []
    for record in records:
        state = msgspec.structs.replace(state, seq=state.seq + 1)
        follows = None if record.by_hand else state.last_due
        placed.append((record.due, msgspec.structs.replace(record, seq=state.seq, follows=follows)))
        if not record.by_hand:
            state = msgspec.structs.replace(state, last_due=record.due, set_back_at=None)
    return state, placed


def problem_record(problem: Problem) -> ProblemRecord:
    """Return what the ledger keeps of a problem."""
    return ProblemRecord(
        path=problem.path.decode("utf-8", "surrogateescape"),
        member=problem.member,
        what=problem.what.value,
        detail=problem.detail,
    )


def hold_record(hold: Hold) -> HoldRecord:
    """Return what the ledger keeps of a hold."""
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


def reason_of(problems: Sequence[Problem], total: int) -> str:
    """Say in one sentence what was met: the first of so many problems."""
    if not problems:
        return ""
    first = problems[0]
    where = first.path.decode("utf-8", "replace")
    more = f", and {total - 1} more" if total > 1 else ""
    named = f"{first.member}: {where}: " if where else f"{first.member}: "
    return f"{named}{first.detail}{more}"
