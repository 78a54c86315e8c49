"""What was measured of each case, kept as JSON: cases can be measured one by one, on different days."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from benchmarks.errors import BenchmarkError
from benchmarks.stopwatch import Measured

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(slots=True)
class Series:
    """What one side took in every round."""

    name: str
    says: str
    """What exactly was run."""
    copies: list[Measured] = field(default_factory=list)

    @property
    def wall_s(self) -> float:
        """The median."""
        return statistics.median(one.wall_s for one in self.copies)

    @property
    def spread_s(self) -> tuple[float, float]:
        """The best and the worst."""
        times = [one.wall_s for one in self.copies]
        return min(times), max(times)

    @property
    def cpu_s(self) -> float:
        """The median."""
        return statistics.median(one.cpu_s for one in self.copies)

    @property
    def wire_bytes(self) -> float:
        """The median."""
        return statistics.median(one.wire_bytes for one in self.copies)

    @property
    def peak_bytes(self) -> int:
        """The most that one process held in any round."""
        return max(one.peak_bytes for one in self.copies)

    @property
    def own_s(self) -> float | None:
        """The median by the side's own record, if it keeps one."""
        known = [one.own_s for one in self.copies if one.own_s is not None]
        return statistics.median(known) if known else None


@dataclass(slots=True)
class Result:
    """A case as it was measured; the first series is ours. One that could not be run has none."""

    case: str
    says: str
    """What was copied, where."""
    at: datetime
    command: str = ""
    machine: list[str] = field(default_factory=list)
    """What the figures depend on."""
    took_s: float = 0.0
    """How long all of it took, with making the trees."""
    series: list[Series] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Who could not run here, and why."""

    def ratio(self, rival: Series) -> float:
        """Return the median over the rounds of the rival's time by ours: above 1, we are faster."""
        pairs = zip(self.series[0].copies, rival.copies, strict=True)
        return statistics.median(theirs.wall_s / ours.wall_s for ours, theirs in pairs)


class Store:
    """The results in a directory, a file for each case."""

    def __init__(self, directory: Path = RESULTS) -> None:
        self._directory = directory

    def keep(self, result: Result) -> None:
        """Put a result in the place of the last one of its case. Blocks on the disk."""
        self._directory.mkdir(parents=True, exist_ok=True)
        text = msgspec.json.format(msgspec.json.encode(result), indent=1)
        path = self._path(result.case)
        beside = path.with_suffix(".new")
        beside.write_bytes(text + b"\n")
        beside.replace(path)

    def read(self, case: str) -> Result | None:
        """Return the last result of a case; raises BenchmarkError for a file that is none."""
        path = self._path(case)
        if not path.exists():
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=Result)
        except msgspec.MsgspecError as error:
            raise BenchmarkError(f"{path} is no result, remove it: {error}") from error

    def is_fresh(self, case: str, hours: float) -> bool:
        """Say whether a case was measured within the last so many hours."""
        kept = self.read(case)
        return (
            kept is not None
            and bool(kept.series)
            and datetime.now(UTC) - kept.at < timedelta(hours=hours)
        )

    def all(self, cases: Sequence[str]) -> list[Result]:
        """Return what there is of these cases, in their order."""
        return [kept for case in cases if (kept := self.read(case)) is not None]

    def _path(self, case: str) -> Path:
        return self._directory / f"{case}.json"
