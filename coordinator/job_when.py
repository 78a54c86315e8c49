"""When a job runs: the part of a job that says its trigger, its windows and its attempts. Pure."""

from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise

import msgspec

from coordinator.cron import cron, zone
from coordinator.units import Duration
from coordinator.windows import OpenTime, Windows


class Missed(StrEnum):
    """What becomes of due instants that nobody could serve."""

    SKIP = "skip"
    LATEST = "latest"
    ALL = "all"


class Overlap(StrEnum):
    """What happens when a run is due while the one before still goes on."""

    SKIP = "skip"
    QUEUE = "queue"
    CANCEL = "cancel"


class From(StrEnum):
    """Whether an interval counts from the start or the end of the run before."""

    START = "start"
    END = "end"


LONGEST_SETTLE_S = 3_600.0


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every part of a job has in common."""


class Realtime(Part, frozen=True, kw_only=True):
    """A monitor: how long a path must be quiet, and how often everything is compared anyway."""

    settle: Duration = Duration.parse("50ms")
    audit: Duration = Duration.parse("24h")

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.001 <= self.settle.seconds <= LONGEST_SETTLE_S:
            raise ValueError(f"settle {self.settle} is out of range: use 1ms to 1h")
        if self.audit.seconds < 1:
            raise ValueError(f"audit {self.audit} is too often: use 1s or more")


class Trigger(Part, frozen=True, kw_only=True):
    """When runs are due: exactly one of four forms."""

    manual: bool | None = None
    every: Duration | None = None
    from_: From | None = msgspec.field(default=None, name="from")
    cron: str | None = None
    timezone: str | None = None
    realtime: Realtime | None = None

    def __post_init__(self) -> None:
        """Check that it is one form, with only what belongs to it."""
        forms = [name for name in _FORMS if getattr(self, name) is not None]
        if len(forms) != 1:
            raise ValueError(f"has {len(forms)} forms: use exactly one of {', '.join(_FORMS)}")
        if self.manual is False:
            raise ValueError("manual: false says nothing: use manual: true, or another form")
        if self.from_ is not None and self.every is None:
            raise ValueError("from belongs to every")
        if self.timezone is not None:
            _zone(self.timezone)
        if self.cron is not None:
            try:
                cron(self.cron, self.zone)
            except ValueError as error:
                raise ValueError(f"cron: {error}") from error
        if self.every is not None and self.every.seconds < 1:
            raise ValueError(f"every {self.every} is too often: use 1s or more")

    @property
    def form(self) -> str:
        """Which of the four it is."""
        return next(name for name in _FORMS if getattr(self, name) is not None)

    @property
    def zone(self) -> str:
        """Whose local time `cron` and windows mean; UTC unless said otherwise."""
        return self.timezone or "UTC"

    @property
    def counts_from(self) -> From:
        """Where an interval begins to count; the start of the run before unless said otherwise."""
        return self.from_ or From.START

    def shortest_interval_s(self) -> float:
        """Return the time between two instants of `every` or `cron` in seconds, where it is shortest.

        Of `cron` the next hundred instants after a fixed day are looked at.
        """
        if self.every is not None:
            return self.every.seconds
        assert self.cron is not None, "the other triggers have no instants"
        series = cron(self.cron, self.zone)
        instants = [_LOOK_FROM]
        for _ in range(_INTERVALS_LOOKED_AT):
            after = series.after(instants[-1])
            if after is None:
                break
            instants.append(after)
        gaps = [(b - a).total_seconds() for a, b in pairwise(instants[1:])]
        return min(gaps, default=float("inf"))

    @property
    def is_from_end(self) -> bool:
        """Whether instants depend on when runs end."""
        return self.counts_from is From.END


def _zone(name: str) -> None:
    try:
        zone(name)
    except ValueError as error:
        raise ValueError(f"timezone: {error}") from error


_LOOK_FROM = datetime(2024, 1, 1, tzinfo=UTC)
_INTERVALS_LOOKED_AT = 100
_FORMS = ("manual", "every", "cron", "realtime")


LONGEST_RETRY_S = 7 * 86_400.0


class Retries(Part, frozen=True, kw_only=True):
    """How often, and after which delay, a failed run is tried again."""

    attempts: int = 3
    delay: Duration = Duration.parse("30s")
    backoff: float = 2.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.attempts <= 100:
            raise ValueError(f"attempts {self.attempts} is out of range: use 1 to 100")
        if not 1 <= self.backoff <= 10:
            raise ValueError(f"backoff {self.backoff} is out of range: use 1 to 10")

    def delay_s(self, failures: int) -> float:
        """Return how long to wait after so many failed attempts, 1 or more; at most a week."""
        try:
            return min(self.delay.seconds * self.backoff ** (failures - 1), LONGEST_RETRY_S)
        except OverflowError:
            return LONGEST_RETRY_S


class Window(Part, frozen=True, kw_only=True):
    """When the job may act: from one time of day to another, on the days on which it opens."""

    days: str = "mon-sun"
    from_: str = msgspec.field(name="from")
    to: str
    timezone: str | None = None
    """That of the trigger unless said otherwise."""

    def __post_init__(self) -> None:
        """Check that it can be read, and opens."""
        self.open_time("UTC")

    def open_time(self, default_zone: str) -> OpenTime:
        """Return the window as it repeats."""
        return OpenTime.of(self.days, self.from_, self.to, self.timezone or default_zone)


@lru_cache(maxsize=4096)
def open_times(windows: tuple[Window, ...], default_zone: str) -> Windows:
    """Return when a job with these windows may act, read once."""
    return Windows(tuple(window.open_time(default_zone) for window in windows))
