"""When runs are due. Pure: instants in, instants out."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from coordinator.job import From, JobSpec, Missed

ALL_AT_MOST = 1_000
"""How many missed instants `missed: all` makes up for, and how many that are passed over are told one
by one: the newest."""


@dataclass(frozen=True, slots=True)
class Due:
    """What the clock asks for now."""

    instant: datetime | None
    """The instant to run for, None when nothing is due."""
    passed_over: tuple[datetime, ...] = ()
    """Instants that the job's `missed` policy lets go: to be recorded as missed."""


def next_due(
    spec: JobSpec, *, anchor: datetime, last_due: datetime | None, last_ended: datetime | None
) -> datetime | None:
    """Return the first instant after the last one, or None for a job that is run by hand.

    `anchor` is when the job's definition was last changed: the first instant lies one interval after
    it, and what an older definition missed is not due any more. Counted `from: end`, the interval
    begins when the last run ended.
    """
    every = spec.trigger.every
    if every is None:
        return None
    step = timedelta(seconds=every.seconds)
    if spec.trigger.counts_from is From.END and last_ended is not None:
        return max(last_ended, last_due or last_ended) + step
    if last_due is None:
        return anchor + step
    passed = max(0, (anchor - last_due) // step)
    return last_due + (passed + 1) * step


def what_is_due(spec: JobSpec, first: datetime | None, now: datetime) -> Due:
    """Judge the instants from `first` on that have come, by the job's `missed` policy.

    An instant counts as missed when a later one has come as well, or when it is older than
    `missed_within`. `skip` runs only an instant that is not late by a whole interval.
    """
    every = spec.trigger.every
    if first is None or every is None or first > now:
        return Due(None)
    step = timedelta(seconds=every.seconds)
    count = (now - first) // step + 1
    latest = first + (count - 1) * step
    window = now - timedelta(seconds=spec.missed_within.seconds)
    match spec.missed:
        case Missed.ALL:
            kept = max(first, latest - (ALL_AT_MOST - 1) * step)
            while kept < window and kept < latest:
                kept += step
            chosen: datetime | None = kept
        case Missed.LATEST:
            chosen = latest
        case Missed.SKIP:
            chosen = latest if count == 1 else None
    if chosen is not None and chosen < window:
        chosen = None
    end = chosen if chosen is not None else latest + step
    return Due(chosen, tuple(_instants(first, end, step)))


def _instants(first: datetime, end: datetime, step: timedelta) -> Iterator[datetime]:
    """Yield the instants before `end`, the latest `ALL_AT_MOST` of them."""
    skipped = max(0, (end - first) // step - ALL_AT_MOST)
    instant = first + skipped * step
    while instant < end:
        yield instant
        instant += step
