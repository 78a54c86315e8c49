"""Cron expressions: the instants at which they fire in a zone, across daylight saving. Pure.

Five fields, with Debian cron's rules for the two days of the year. A time of day that does not exist in
spring fires once, at the next moment that does; one that exists twice in autumn fires once, the first
time. An expression whose minute or hour begins with `*` goes by real time: `*/15 * * * *` fires every
15 minutes on those days too.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_SOME_DAY = datetime(2024, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


def zone(name: str) -> ZoneInfo:
    """Return an IANA zone; raises ValueError for a name that is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            f"{name!r} is no time zone: use an IANA name like Europe/Paris, or UTC"
        ) from error


class Cron:
    """One expression in one zone."""

    def __init__(self, expression: str, zone_name: str) -> None:
        """Read both; raises ValueError that says what would be right."""
        fields = _NICKNAMES.get(expression.strip().lower(), expression)
        if len(fields.split()) != 5:
            raise ValueError(
                f"{expression!r} has {len(fields.split())} fields: "
                'use five, minute hour day month weekday, like "0 2 * * *"'
            )
        self._fields = fields
        self._zone = zone(zone_name)
        try:
            first = next(iter(self._from(_SOME_DAY)), None)
        except CronSimError as error:
            raise ValueError(
                f"{expression!r} is no cron expression, or one that never fires: {error}: "
                'use minute hour day month weekday, like "0 2 * * *"'
            ) from error
        if first is None:
            raise ValueError(f"{expression!r} never fires: use days that exist in those months")

    def after(self, instant: datetime) -> datetime | None:
        """Return the first instant after this one."""
        # The library reads local times: in the second of two equal hours it may begin in the first.
        return next((one for one in self._from(instant) if one > instant), None)

    def newest(self, first: datetime, upto: datetime, count: int) -> list[datetime]:
        """Return the newest `count` instants from `first` to `upto`, both included, oldest first."""
        # Forward from ever earlier: going back, the library judges the hours around a change of the
        # clocks otherwise. Each try costs as much as all before it.
        back = timedelta(hours=1)
        while True:
            start = max(first, upto - back)
            found = self._between(start, upto)
            if len(found) >= count or start == first:
                return found[-count:]
            back *= 4

    def _between(self, start: datetime, upto: datetime) -> list[datetime]:
        found = []
        for one in self._from(start - _SECOND):
            if one > upto:
                break
            if one >= start:
                found.append(one)
        return found

    def _from(self, instant: datetime) -> Iterator[datetime]:
        for one in CronSim(self._fields, instant.astimezone(self._zone)):
            yield one.astimezone(UTC)


@lru_cache(maxsize=4096)
def cron(expression: str, zone_name: str) -> Cron:
    """Return an expression in a zone, read once; raises ValueError."""
    return Cron(expression, zone_name)
