"""When a job may act: windows of local time, across midnight and across daylight saving. Pure.

A window belongs to the day on which it opens. A time that does not exist on its day stands for the next
moment that does; one that exists twice is the first of the two.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TypeVar
from zoneinfo import ZoneInfo

from coordinator.cron import zone

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)", re.ASCII)
_DAY = timedelta(days=1)
_MINUTES = 24 * 60
_NEAR_DAYS = 9

T = TypeVar("T")


def read_days(text: str) -> frozenset[int]:
    """Read `mon-fri`, `sat,sun`, `fri-mon` and the like, 0 for Monday; raises ValueError."""
    days: set[int] = set()
    for part in text.lower().split(","):
        ends = [end.strip() for end in part.split("-")]
        if len(ends) > 2 or not all(end in _DAYS for end in ends):
            raise ValueError(
                f"{part.strip()!r} is no day of the week: use for example mon-fri or sat,sun"
            )
        first, last = _DAYS.index(ends[0]), _DAYS.index(ends[-1])
        days.update((first + n) % 7 for n in range((last - first) % 7 + 1))
    return frozenset(days)


def read_time(text: str) -> int:
    """Read a time of day as minutes, `24:00` for the end of it; raises ValueError."""
    found = _TIME.fullmatch(text)
    minutes = int(found[1]) * 60 + int(found[2]) if found else _MINUTES + 1
    if minutes > _MINUTES:
        raise ValueError(f"{text!r} is no time of day: use for example 20:00, or 24:00 for its end")
    return minutes


@dataclass(frozen=True, slots=True)
class OpenTime:
    """One window as it repeats."""

    days: frozenset[int]
    opens: int
    """Minutes after the midnight of its day."""
    closes: int
    """Minutes after the same midnight; over 24 h for one that closes on the next day."""
    zone: ZoneInfo

    @classmethod
    def of(cls, days: str, opens: str, closes: str, zone_name: str) -> "OpenTime":
        """Read a window of a job; raises ValueError that begins with the field."""
        on = _field("days", read_days, days)
        begin = _field("from", read_time, opens)
        end = _field("to", read_time, closes)
        where = _field("timezone", zone, zone_name)
        if begin == end:
            raise ValueError(
                f"to: a window from {opens} to {closes} never opens: "
                "use another time, or 00:00 to 24:00 for the whole day"
            )
        if begin == _MINUTES:
            raise ValueError("from: a window cannot open at 24:00: use 00:00 of the next day")
        return cls(on, begin, end if end > begin else end + _MINUTES, where)

    def on(self, day: date) -> tuple[datetime, datetime]:
        """Return when it opens and closes that belongs to this day."""
        return _moment(day, self.opens, self.zone), _moment(day, self.closes, self.zone)


def _field(name: str, read: Callable[[str], T], text: str) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _moment(day: date, minutes: int, where: ZoneInfo) -> datetime:
    """Return a time of day as an instant: the next that exists, the first of two."""
    local = datetime.combine(day + minutes // _MINUTES * _DAY, time(), where)
    local = local.replace(hour=minutes % _MINUTES // 60, minute=minutes % 60)
    instant = local.astimezone(UTC)
    if instant.astimezone(where).replace(tzinfo=None) != local.replace(tzinfo=None):
        # Not there: fold 1 reads it with the offset after the change, which is the gap too early.
        instant = _end_of_gap(local.replace(fold=1).astimezone(UTC), instant, where)
    return instant


def _end_of_gap(before: datetime, after: datetime, where: ZoneInfo) -> datetime:
    """Return the moment of the change between two instants, to the second."""
    early, late = before, after
    offset = early.astimezone(where).utcoffset()
    while late - early > timedelta(seconds=1):
        middle = early + (late - early) // 2
        middle = middle.replace(microsecond=0)
        if middle <= early:
            break
        if middle.astimezone(where).utcoffset() == offset:
            early = middle
        else:
            late = middle
    return late


@dataclass(frozen=True, slots=True)
class Windows:
    """All windows of a job; none at all means that it may always act."""

    times: Sequence[OpenTime]

    def opening(self, instant: datetime) -> tuple[datetime, datetime] | None:
        """Return when it opens and closes that holds this instant, else the next; None for always.

        Windows that touch are one.
        """
        if not self.times:
            return None
        for opens, closes in _joined(self._near(instant)):
            if closes > instant:
                return opens, closes
        raise AssertionError("every window opens once a week")

    def is_open(self, instant: datetime) -> bool:
        """Whether the job may act at this instant."""
        found = self.opening(instant)
        return found is None or found[0] <= instant

    def _near(self, instant: datetime) -> Iterable[tuple[datetime, datetime]]:
        for one in self.times:
            today = instant.astimezone(one.zone).date()
            for n in range(-_NEAR_DAYS, _NEAR_DAYS):
                day = today + n * _DAY
                if day.weekday() in one.days:
                    opens, closes = one.on(day)
                    if opens < closes:  # a change of the clocks may swallow a short one
                        yield opens, closes


def _joined(spans: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    joined: list[tuple[datetime, datetime]] = []
    for opens, closes in sorted(spans):
        if joined and opens <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(closes, joined[-1][1])
        else:
            joined.append((opens, closes))
    return joined
