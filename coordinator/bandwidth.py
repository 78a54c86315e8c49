"""How much a job may send, as job files say it: one rate, or a timetable of rates. Pure.

    bandwidth: 100MB/s
    bandwidth: [{rate: 5MB/s, days: mon-fri, from: "08:00", to: "18:00"}, {rate: 100MB/s}]

The first entry that is open counts; one without times is the rate for the rest of the week.
"""

from typing import NamedTuple, Self

from coordinator.units import Quantity, Rate
from coordinator.windows import OpenTime
from syncengine.model import RateTime

_FIELDS = ("rate", "days", "from", "to", "timezone")
_EVERY_DAY = "mon-sun"


class _Span(NamedTuple):
    """One entry of a timetable, as it was written."""

    rate: Rate
    days: str
    opens: str
    closes: str
    timezone: str | None

    def open_time(self, default_zone: str) -> OpenTime:
        return OpenTime.of(self.days, self.opens, self.closes, self.timezone or default_zone)

    def plain(self) -> dict[str, str]:
        said = {"rate": str(self.rate), "days": self.days, "from": self.opens, "to": self.closes}
        return {**said, "timezone": self.timezone} if self.timezone else said


class Bandwidth(Quantity):
    """A rate for all times, or a timetable and the rate for the rest."""

    __slots__ = ("_rest", "_spans")

    def __init__(self, rest: Rate, spans: tuple[_Span, ...] = ()) -> None:
        """Keep what was read."""
        super().__init__(None)
        self._rest = rest
        self._spans = spans

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Read a rate, `off`, or a list of entries. Raises `ValueError` that says what is right."""
        if not isinstance(raw, list):
            return cls(Rate.parse(raw))
        rest: Rate | None = None
        spans: list[_Span] = []
        for entry in raw:
            if rest is not None:
                raise ValueError("the entry without times must be the last: it is for all the rest")
            read = _read(entry)
            if isinstance(read, Rate):
                rest = read
            else:
                spans.append(read)
        return cls(rest or Rate.parse("off"), tuple(spans))

    @property
    def bytes_per_s(self) -> int | None:
        """The rate outside of the timetable; None for no limit."""
        return self._rest.bytes_per_s

    @property
    def has_times(self) -> bool:
        """Whether there is a timetable."""
        return bool(self._spans)

    def times(self, default_zone: str) -> tuple[RateTime, ...]:
        """Return the timetable as workers read it."""
        found = []
        for span in self._spans:
            time = span.open_time(default_zone)
            days = tuple(sorted(time.days))
            rate = span.rate.bytes_per_s
            found.append(RateTime(days, time.opens, time.closes, time.zone.key, rate))
        return tuple(found)

    def plain(self) -> str | list[dict[str, str]]:
        """Return what a job file says."""
        if not self._spans:
            return str(self._rest)
        rest = [] if self._rest.bytes_per_s is None else [{"rate": str(self._rest)}]
        return [*(span.plain() for span in self._spans), *rest]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bandwidth) and other.plain() == self.plain()

    def __hash__(self) -> int:
        return hash((self._rest, self._spans))

    def __str__(self) -> str:
        return str(self.plain())


def _read(entry: object) -> "Rate | _Span":
    if not isinstance(entry, dict):
        raise ValueError(  # noqa: TRY004 - as all that is wrong in a job file
            f"{entry!r} is no entry: use {{rate: 5MB/s, from: '08:00', to: '18:00'}}"
        )
    unknown = [name for name in entry if name not in _FIELDS]
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}: use {', '.join(_FIELDS)}")
    if "rate" not in entry:
        raise ValueError("an entry without a rate: use for example rate: 5MB/s")
    rate = Rate.parse(entry["rate"])
    if len(entry) == 1:
        return rate
    texts = {name: entry.get(name) for name in _FIELDS[1:]}
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{name}: {text!r} is no text: put it in quotes")
    opens, closes, days = texts["from"], texts["to"], texts["days"] or _EVERY_DAY
    if opens is None and closes is None:
        opens, closes = "00:00", "24:00"
    if opens is None or closes is None:
        raise ValueError("from and to belong together")
    span = _Span(rate, days, opens, closes, texts["timezone"])
    span.open_time("UTC")
    return span
