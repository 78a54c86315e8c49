"""How what a worker says of a monitor changes the record of its run and the state of its job. Pure.

A monitor is a run that does not end by itself: its record is open for as long as it goes on, and what
it does and meets is noted there. Nothing that it meets ends it.
"""

from datetime import datetime, timedelta

import msgspec

from coordinator.records import CountsRecord, MonitorRecord, RunRecord, StateRecord
from coordinator.run_records import hold_record, problem_record, reason_of
from syncengine.model import Counts
from wire.orders import Monitored, Outcome

EXACT = timedelta(seconds=1)
"""Within which exposure is right: a change that waits for less counts as there."""
HELD = "waits for an approval: "


def noted(record: RunRecord, told: Monitored) -> RunRecord:
    """Return the record of a monitor as it stands with what its worker has told."""
    kept = record.monitor or MonitorRecord()
    is_same = told.life == kept.life
    before = kept.counted if is_same else CountsRecord()
    audits, found = kept.counted_audits if is_same else (0, 0)
    now = _counts(told.counts)
    kept = msgspec.structs.replace(
        kept,
        life=told.life,
        counted=now,
        audits=kept.audits + told.audits - audits,
        audit_found=kept.audit_found + told.audit_found - found,
        counted_audits=(told.audits, told.audit_found),
        answered=max(kept.answered, min(told.audits_answered, kept.asked)),
        degraded=told.degraded,
    )
    record = msgspec.structs.replace(
        record,
        monitor=kept,
        counts=_sum(record.counts, now, before),
        problems=tuple(map(problem_record, told.problems)),
        problems_total=told.problems_total,
        holds=tuple(map(hold_record, told.holds)),
        plan=told.plan.hex(),
    )
    why = "; ".join(f"{hold.member}: {hold.detail}" for hold in told.holds)
    if not told.holds:
        return msgspec.structs.replace(
            record, outcome=Outcome.RUNNING, reason=_reason(told), approved=""
        )
    if record.approved and record.approved == record.plan:
        return record  # told before the worker has heard of the approval
    if record.approved:
        why = f"the trees no longer match the approved plan, and the new one: {why}"
    return msgspec.structs.replace(record, outcome=Outcome.BLOCKED, reason=HELD + why, approved="")


def standing(state: StateRecord, record: RunRecord, told: Monitored, now: datetime) -> StateRecord:
    """Return the state of a job whose monitor stands so."""
    followed: dict[str, datetime | None] = {}
    up_to_date = dict(state.up_to_date)
    for one in told.members:
        if one.behind_s is None:
            up_to_date = _known_until(one.member, state, up_to_date)
            continue
        behind = timedelta(seconds=one.behind_s)
        since = now - behind if behind >= EXACT else None
        before = state.followed.get(one.member)
        if since is not None and before is not None and abs(since - before) < EXACT:
            since = before  # the same change: clocks do not tick alike
        followed[one.member] = since
        up_to_date[one.member] = since or now
    is_good = not any(problem.what.fails for problem in told.problems) and not told.holds
    is_there = all(one.behind_s is not None for one in told.members)
    in_step = is_good and is_there and not any(followed.values())
    return msgspec.structs.replace(
        state,
        phase="blocked" if record.outcome is Outcome.BLOCKED else "monitoring",
        reason=record.reason,
        followed=followed,
        followed_at=now,
        up_to_date=up_to_date,
        last_success=now if in_step else state.last_success,
    )


def seen_alive(state: StateRecord, now: datetime) -> StateRecord:
    """Return the state of a job whose monitor has nothing to tell, and would if it had."""
    up_to_date = {
        **state.up_to_date,
        **{target: now for target, since in state.followed.items() if since is None},
    }
    return msgspec.structs.replace(state, followed_at=now, up_to_date=up_to_date)


def lost_sight(state: StateRecord, why: str) -> StateRecord:
    """Return the state of a job whose monitor nobody hears of: what it knew ages from here on."""
    up_to_date = dict(state.up_to_date)
    for target in state.followed:
        up_to_date = _known_until(target, state, up_to_date)
    return msgspec.structs.replace(state, followed={}, up_to_date=up_to_date, reason=why)


def is_urgent(before: StateRecord, after: StateRecord) -> bool:
    """Whether the difference is one that somebody may be waiting to see."""
    return (before.phase, before.reason, before.followed) != (
        after.phase,
        after.reason,
        after.followed,
    )


def _known_until(
    target: str, state: StateRecord, up_to_date: dict[str, datetime]
) -> dict[str, datetime]:
    if target not in state.followed:
        return up_to_date
    until = state.followed[target] or state.followed_at
    return {**up_to_date, target: until} if until is not None else up_to_date


def _reason(told: Monitored) -> str:
    failing = [problem for problem in told.problems if problem.what.fails]
    if failing:
        return reason_of(tuple(failing), max(told.problems_total, len(failing)))
    return next((f"{one.member}: {one.why}" for one in told.members if one.why), told.degraded)


def _counts(counts: Counts) -> CountsRecord:
    return CountsRecord(**{name: getattr(counts, name) for name in CountsRecord.__struct_fields__})


def _sum(total: CountsRecord, now: CountsRecord, before: CountsRecord) -> CountsRecord:
    """Add what has been counted since `before`."""
    return CountsRecord(
        **{
            name: getattr(total, name) + getattr(now, name) - getattr(before, name)
            for name in CountsRecord.__struct_fields__
        }
    )
