"""What the clock asks of one job: a run, instants to be passed over, or patience. Pure.

`schedule` knows instants; here they meet what happened: runs that took their time, pauses, windows, and
wall clocks that were set. Every instant that comes ends in the ledger once, as a run or with a reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from blake3 import blake3

from coordinator.catalog import Job
from coordinator.job import Missed, Overlap
from coordinator.records import RunRecord, StateRecord
from coordinator.schedule import (
    Due,
    is_set_back,
    next_due,
    passing_over,
    series_of,
    what_is_due,
)
from wire.orders import Outcome

BEFORE = "the run before was still going on"
MISSED = "nobody ran it in time"
PAUSED = "the job was paused"
OUTSIDE = "outside the job's windows"
SET_AHEAD = "the clock was set ahead"
FOLLOWS = "follows changes"
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Todo:
    """What is to be done now; nothing at all when both are empty."""

    passed: tuple[RunRecord, ...] = ()
    """Records of instants without a run, to be put into the ledger first; `due` says which."""
    instant: datetime | None = None
    """The instant of the schedule to run for."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Patience:
    """Until when nothing is due, and why although something was."""

    until: datetime | None
    reason: str = ""


def due_next(job: Job, state: StateRecord) -> datetime | None:
    """Return the instant that the schedule has next, come or to come."""
    if state.set_back_at is not None:
        return next_due(job.spec, anchor=state.set_back_at, last_due=None, last_ended=None)
    return next_due(
        job.spec,
        anchor=job.record.changed_at,
        last_due=state.last_due,
        last_ended=state.last_ended,
    )


def begins_at(job: Job, instant: datetime) -> datetime:
    """Return when the run of an instant begins: by its share of `start_jitter` later.

    The share follows from the job's name and the instant alone, so every owner knows the same.
    """
    jitter_s = job.spec.start_jitter.limit_s
    if not jitter_s:
        return instant
    digest = blake3(f"{job.spec.name}\0{instant.isoformat()}".encode()).digest(length=8)
    share = int.from_bytes(digest, "big") / 2**64
    return instant + timedelta(seconds=jitter_s * share)


def set_right(job: Job, state: StateRecord, now: datetime) -> StateRecord:
    """Return the state with a new beginning of the schedule when the clock was set back far."""
    due = due_next(job, state)
    counted = state.set_back_at or max(
        state.last_due or job.record.changed_at, job.record.changed_at
    )
    if due is None or not is_set_back(job.spec, due, now, counted):
        return state
    was = state.last_due  # right, when it is only the definition that was made in the future
    return msgspec.structs.replace(state, set_back_at=min(was, now) if was is not None else now)


def look(
    job: Job, state: StateRecord, now: datetime, set_ahead_at: datetime | None = None
) -> Todo | Patience:
    """Judge what has come by now; `set_ahead_at` is from where the wall clock was just set ahead."""
    if job.spec.trigger.realtime is not None:
        return _monitor(job, now)
    first = due_next(job, state)
    if first is None or (begins := begins_at(job, first)) > now:
        return Patience(None if first is None else begins)
    series = series_of(job.spec, first)
    assert series is not None, "there is an instant"
    # The jitter is shorter than the interval, so of all that came only the latest may not begin yet.
    latest = series.newest(first, now, 1)[-1]
    upto = now if begins_at(job, latest) <= now else latest - _TICK
    if state.was_paused:
        newest = series.newest(first, upto, 1)[-1]
        due = passing_over(series, first, newest, None)
        return _todo(job, due, lambda _: (Outcome.SKIPPED, PAUSED))
    span = job.spec.open_times.opening(now)
    reason = "due by the schedule"
    if span is not None and span[0] > now:
        return Patience(
            span[0], f"due since {_text(job, first)}, {OUTSIDE}: they open at {_text(job, span[0])}"
        )
    if span is not None and first < span[0]:
        due, reason = _for_the_opening(job, first, upto, span[0])
    else:
        missed = None
        if set_ahead_at is not None and job.spec.missed is Missed.ALL:
            missed = Missed.LATEST
        due = what_is_due(job.spec, first, upto, missed=missed)
    skips = job.spec.overlap is Overlap.SKIP
    if due.instant is not None and skips and _overlapped(state, due.instant, now):
        due = Due(None, (*due.passed_over, due.instant), due.older)

    def why(at: datetime) -> tuple[Outcome, str]:
        if _overlapped(state, at, now):
            return Outcome.SKIPPED, BEFORE
        if not job.spec.open_times.is_open(at):
            return Outcome.SKIPPED, OUTSIDE
        if set_ahead_at is not None and at > set_ahead_at:
            return Outcome.SKIPPED, SET_AHEAD
        return Outcome.MISSED, MISSED

    return _todo(job, due, why, reason)


def _monitor(job: Job, now: datetime) -> Todo | Patience:
    """Judge when a run that follows changes begins: as soon as it may."""
    span = job.spec.open_times.opening(now)
    if span is not None and span[0] > now:
        return Patience(span[0], f"{OUTSIDE}: they open at {_text(job, span[0])}")
    return Todo(instant=now, reason=FOLLOWS)


def comes_during(job: Job, state: StateRecord, began: datetime) -> datetime | None:
    """Return when the next run is to begin after one began; None when not before that ends."""
    due = due_next(job, state)
    if due is None or job.spec.trigger.is_from_end:
        return None
    if due <= began:
        series = series_of(job.spec, due)  # what was missed before the run is no reason to end it
        due = None if series is None else series.after(began)
    return None if due is None else begins_at(job, due)


def _for_the_opening(job: Job, first: datetime, now: datetime, opened: datetime) -> tuple[Due, str]:
    """Judge instants that came before the windows opened: the latest is served now."""
    series = series_of(job.spec, first)
    assert series is not None
    latest = series.newest(first, now, 1)[-1]
    if latest >= opened:
        (before,) = series.newest(first, min(now, opened - _TICK), 1)
        return passing_over(series, first, before, None), ""
    if job.spec.open_times.is_open(latest):  # missed while they were open before
        return what_is_due(job.spec, first, now), "due by the schedule"
    due = passing_over(series, first, latest - _TICK, latest)
    return due, f"due at {_text(job, latest)}, {OUTSIDE}: begun when they opened"


def _overlapped(state: StateRecord, at: datetime, now: datetime) -> bool:
    """Whether an instant came while the run before went on.

    One that ended in the future ended before the clock was set back: nobody knows when that was.
    """
    began, ended = state.last_began, state.last_ended
    return began is not None and ended is not None and began < at <= ended <= now


def _todo(
    job: Job, due: Due, why: Callable[[datetime], tuple[Outcome, str]], reason: str = ""
) -> Todo:
    records = []
    if due.older is not None:
        first, last = due.older
        records.append(_passed(job, last, why(last), first))
    records += [_passed(job, at, why(at)) for at in due.passed_over]
    return Todo(tuple(records), due.instant, reason)


def _passed(
    job: Job, at: datetime, why: tuple[Outcome, str], first: datetime | None = None
) -> RunRecord:
    outcome, reason = why
    return RunRecord(
        due=at, generation=job.generation, outcome=outcome, reason=reason, ended=at, first=first
    )


def _text(job: Job, instant: datetime) -> str:
    return instant.astimezone(job.spec.local_zone).isoformat(sep=" ", timespec="seconds")
