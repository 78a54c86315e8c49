"""When runs are due. Pure: instants in, instants out."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from coordinator.cron import cron
from coordinator.job import From, JobSpec, Missed

ALL_AT_MOST = 1_000
"""How many missed instants `missed: all` makes up for: the newest."""
TOLD_AT_MOST = 90
"""How many instants that are passed over are told one by one: the newest; what one transaction holds."""
CRON_REPEATS_AFTER = timedelta(hours=1)
"""How far a clock must be set back for a `cron` instant of the same name to come again."""
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Due:
    """What the clock asks for now."""

    instant: datetime | None
    """The instant to run for, None when nothing is due."""
    passed_over: tuple[datetime, ...] = ()
    """Instants that the job's `missed` policy lets go: to be recorded as missed."""
    older: tuple[datetime, datetime] | None = None
    """The first and the last of those before `passed_over`, too many to be told one by one."""


class Series(Protocol):
    """The instants of a trigger."""

    def after(self, instant: datetime) -> datetime | None:
        """Return the first instant after this one."""

    def newest(self, first: datetime, upto: datetime, count: int) -> list[datetime]:
        """Return the newest `count` instants from `first` to `upto`, both included, oldest first."""


@dataclass(frozen=True, slots=True)
class Every:
    """One instant and those at a fixed distance from it."""

    origin: datetime
    step: timedelta

    def after(self, instant: datetime) -> datetime:
        """Return the first instant after this one."""
        return self.origin + ((instant - self.origin) // self.step + 1) * self.step

    def newest(self, first: datetime, upto: datetime, count: int) -> list[datetime]:
        """Return the newest `count` instants from `first` to `upto`, both included, oldest first."""
        last = self.origin + (upto - self.origin) // self.step * self.step
        total = min(count, (last - first) // self.step + 1)
        return [last - n * self.step for n in range(total - 1, -1, -1)]


def series_of(spec: JobSpec, origin: datetime) -> Series | None:
    """Return the instants of a job's trigger, counted from one of them; None when it has none."""
    trigger = spec.trigger
    if trigger.every is not None:
        return Every(origin, timedelta(seconds=trigger.every.seconds))
    if trigger.cron is not None:
        return cron(trigger.cron, trigger.zone)
    return None


def next_due(
    spec: JobSpec, *, anchor: datetime, last_due: datetime | None, last_ended: datetime | None
) -> datetime | None:
    """Return the first instant after the last one, or None for a job that is run by hand.

    `anchor` is when the job's definition was last changed: the first instant lies one interval after
    it, and what an older definition missed is not due any more. Counted `from: end`, the interval
    begins when the last run ended.
    """
    latest = anchor if last_due is None else max(anchor, last_due)
    every = spec.trigger.every
    if every is None:
        series = series_of(spec, anchor)
        return None if series is None else series.after(latest)
    step = timedelta(seconds=every.seconds)
    if spec.trigger.counts_from is From.END and last_ended is not None:
        return max(last_ended, last_due or last_ended) + step
    return Every(last_due or anchor, step).after(latest)


def is_set_back(spec: JobSpec, due: datetime, now: datetime, last: datetime) -> bool:
    """Whether the wall clock was set back, since what was counted from, `last`, lies ahead.

    Then `due` is not to be waited for: a day back must not stop a job for a day. A little is waited
    for, so that the same instant does not come again.
    """
    every = spec.trigger.every
    if every is None:
        return last - now > CRON_REPEATS_AFTER
    return due - now > 2 * timedelta(seconds=every.seconds)


def what_is_due(
    spec: JobSpec, first: datetime | None, now: datetime, *, missed: Missed | None = None
) -> Due:
    """Judge the instants from `first` on that have come, by the job's `missed` policy, or this one.

    An instant counts as missed when a later one has come as well, or when it is older than
    `missed_within`. `skip` runs only an instant that is not late by a whole interval.
    """
    series = None if first is None else series_of(spec, first)
    if first is None or series is None or first > now:
        return Due(None)
    missed = missed or spec.missed
    newest = series.newest(first, now, ALL_AT_MOST if missed is Missed.ALL else 2)
    latest = newest[-1]
    window = now - timedelta(seconds=spec.missed_within.seconds)
    match missed:
        case Missed.ALL:
            chosen = next((one for one in newest if one >= window), None)
        case Missed.LATEST:
            chosen = latest if latest >= window else None
        case Missed.SKIP:
            chosen = latest if len(newest) == 1 and latest >= window else None
    return passing_over(series, first, latest if chosen is None else chosen - _TICK, chosen)


def passing_over(series: Series, first: datetime, last: datetime, chosen: datetime | None) -> Due:
    """Return a run for `chosen`, and the instants from `first` to `last` as passed over."""
    if last < first:
        return Due(chosen)
    told = series.newest(first, last, TOLD_AT_MOST + 1)
    if len(told) <= TOLD_AT_MOST:
        return Due(chosen, tuple(told))
    return Due(chosen, tuple(told[1:]), (first, told[0]))
