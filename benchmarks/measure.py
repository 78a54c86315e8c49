"""Run a case: all sides in turn, round after round, so that a slow minute hits each of them."""

import asyncio
import contextlib
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import trees
from benchmarks.cases import Case
from benchmarks.errors import BenchmarkError
from benchmarks.ours import Baton
from benchmarks.sides import Area, Measured, Running, Side

_SETTLE_S = 3.0
"""How long a disk idles after a sync, before every copy that is measured."""

_ROOM = 1.15


@dataclass(slots=True)
class Series:
    """What one side took in every round."""

    side: Side
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
    def own_s(self) -> float | None:
        """The median by the side's own record, if it keeps one."""
        known = [one.own_s for one in self.copies if one.own_s is not None]
        return statistics.median(known) if known else None


@dataclass(slots=True)
class Comparison:
    """A case that was run; the first series is ours."""

    case: Case
    series: list[Series]
    left_out: list[str] = field(default_factory=list)
    """Rivals that could not run here, and why."""

    def ratio(self, rival: Series) -> float:
        """Return the median over the rounds of the rival's time by ours: above 1, we are faster."""
        pairs = zip(self.series[0].copies, rival.copies, strict=True)
        return statistics.median(theirs.wall_s / ours.wall_s for ours, theirs in pairs)


@dataclass(frozen=True, slots=True)
class Places:
    """Where trees may lie."""

    memory: Path
    disk: Path


async def run_case(
    case: Case, places: Places, *, say: Callable[[str], None], keep_out: frozenset[str]
) -> Comparison:
    """Run all rounds of a case. Everything it makes is gone afterwards, also when it fails."""
    place = places.disk if case.on_disk else places.memory
    _require_room(place, case)
    sides: list[Side] = [Baton()]
    comparison = Comparison(case, [])
    for rival in case.rivals:
        why = rival.missing()
        if rival.name in keep_out:
            continue
        if why is None:
            sides.append(rival)
        else:
            comparison.left_out.append(f"{rival.name}: {why}")
            say(f"{case.name}: without {rival.name}: {why}")
    comparison.series = [Series(side) for side in sides]
    directory = Path(tempfile.mkdtemp(prefix="baton-bench-", dir=place))
    try:
        area = Area(directory, strict=case.on_disk)
        say(f"{case.name}: {case.tree}")
        await asyncio.to_thread(case.tree.make, area.tree)
        async with contextlib.AsyncExitStack() as stack:
            running = [await stack.enter_async_context(side.start(area)) for side in sides]
            measure = _measure_unchanged if case.unchanged else _measure_first
            for number in range(case.rounds):
                for series, one in zip(comparison.series, running, strict=True):
                    copied = await measure(area, series.side, one, number)
                    series.copies.append(copied)
                    say(
                        f"{case.name}: round {number + 1}: {series.side.name:6}"
                        f" {copied.wall_s:7.3f} s, CPU {copied.cpu_s:6.2f} s"
                        + ("" if copied.own_s is None else f", run {copied.own_s:.3f} s")
                    )
    finally:
        await asyncio.to_thread(shutil.rmtree, directory)
    return comparison


async def _measure_first(area: Area, side: Side, running: Running, number: int) -> Measured:
    target = f"copy-{number}"
    await running.aim(target)
    if area.strict:
        await _settle()
    copied = await running.copy(target)
    where = area.targets(side.name) / target
    await asyncio.to_thread(trees.require_equal, area.tree, where, by=side.name)
    await asyncio.to_thread(trees.remove, where)
    return copied


async def _measure_unchanged(area: Area, side: Side, running: Running, number: int) -> Measured:
    target = "copy"
    await running.aim(target)
    if number == 0:
        await running.copy(target)
        where = area.targets(side.name) / target
        await asyncio.to_thread(trees.require_equal, area.tree, where, by=side.name)
    return await running.copy(target)


async def _settle() -> None:
    """Let a disk come to rest, since many give a burst of speed after idling and little after it."""
    await asyncio.to_thread(os.sync)
    await asyncio.sleep(_SETTLE_S)


def _require_room(place: Path, case: Case) -> None:
    """Raise BenchmarkError when the copies will not fit: the source and one of each side at once."""
    tree = case.tree
    size = tree.files * (tree.smallest_bytes + tree.largest_bytes) // 2
    size = max(size, tree.files * 4096)
    copies = 2 + len(case.rivals) if case.unchanged else 2
    needed = int(size * copies * _ROOM)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise BenchmarkError(f"{case.name} needs {needed >> 20} MiB in {place}: {free >> 20} free")
