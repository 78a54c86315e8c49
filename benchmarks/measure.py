"""Run a case: all sides in turn, round after round, so that a slow minute hits each of them."""

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import delayed_link, trees
from benchmarks.cases import Case
from benchmarks.changes import Change
from benchmarks.errors import BenchmarkError, NotYet
from benchmarks.results import Result, Series
from benchmarks.sides import Area, Running, Side
from benchmarks.stopwatch import Measured

_SETTLE_S = 3.0
"""How long a disk idles after a sync, before every copy that is measured."""

_ROOM = 1.1
_INODE_ROOM = 1.01
_INODE_BYTES = 1_300
"""What an empty file takes of a tmpfs, about."""

_PAGE_BYTES = 4_096
_TOUCH_BYTES = 1 << 20
_SHARE = 0.8
_COPY = "copy"


@dataclass(frozen=True, slots=True)
class Places:
    """Where trees may lie."""

    memory: Path
    disk: Path


@dataclass(slots=True)
class _Taking:
    """A side that takes part in a case."""

    side: Side
    series: Series
    running: Running


async def run_case(
    case: Case, places: Places, *, say: Callable[[str], None], keep_out: frozenset[str]
) -> Result:
    """Run all rounds of a case. Everything it makes is gone afterwards, also when it fails.

    Raises BenchmarkError when our side fails; a rival that does is left out.
    """
    began = time.monotonic()
    result = Result(case.name, case.says, datetime.now(UTC))
    why_not = delayed_link.missing() if case.round_trip_s else None
    if why_not is not None:
        result.left_out.append(why_not)
        say(f"{case.name}: not run: {why_not}")
        return result
    place = places.disk if case.on_disk else places.memory
    sides: list[Side] = [case.ours]
    for rival in case.rivals:
        why = "left out by --without" if rival.name in keep_out else rival.missing()
        if why is None:
            sides.append(rival)
        else:
            result.left_out.append(f"{rival.name}: {why}")
            say(f"{case.name}: without {rival.name}: {why}")
    own = {side.name: case.two_way or side.own_source for side in sides}
    case = fitting(place, case, sides, own)
    result.says = case.says
    directory = Path(tempfile.mkdtemp(prefix="baton-bench-", dir=place))
    try:
        with _link(case) as link:
            area = Area(directory, case.on_disk, link, own)
            await _Run(case, area, result, say).run(sides)
    except NotYet as error:
        result.series = []
        result.left_out.append(f"baton: {error}")
        say(f"{case.name}: not run: {error}")
    finally:
        await asyncio.to_thread(shutil.rmtree, directory)
    result.took_s = time.monotonic() - began
    return result


@contextlib.contextmanager
def _link(case: Case) -> Iterator[delayed_link.Link | None]:
    if not case.round_trip_s:
        yield None
        return
    with delayed_link.delayed_link(delayed_link.Way(case.round_trip_s / 2)) as link:
        yield link


class _Run:
    """One case on its way."""

    def __init__(self, case: Case, area: Area, result: Result, say: Callable[[str], None]) -> None:
        self._case = case
        self._area = area
        self._result = result
        self._say = say
        self._taking: list[_Taking] = []

    async def run(self, sides: list[Side]) -> None:
        """Make the trees, start all sides, and go round."""
        case, area = self._case, self._area
        self._say(f"{case.name}: {case.tree}")
        if not case.on_disk:
            size = _lying_bytes(case, sides, area.own_sources)
            await asyncio.to_thread(touch_memory, area.directory, size)
        for tree in sorted({area.tree(side.name) for side in sides}):
            await asyncio.to_thread(case.tree.make, tree)
        async with contextlib.AsyncExitStack() as stack:
            for side in sides:
                with self._leaving_out(side):
                    running = await stack.enter_async_context(side.start(area))
                    self._taking.append(_Taking(side, Series(side.name, side.says), running))
            if case.change is not None:
                await self._begin()
            for number in range(1, case.rounds + 1):
                await self._round(number)
        self._result.series = [one.series for one in self._taking]

    @contextlib.contextmanager
    def _leaving_out(self, side: Side) -> Iterator[None]:
        """Go on without a rival that fails; without us there is no case."""
        try:
            yield
        except BenchmarkError as error:
            if side is self._case.ours:
                raise
            self._taking = [one for one in self._taking if one.side is not side]
            self._result.left_out.append(f"{side.name}: {error}")
            self._say(f"{self._case.name}: without {side.name}: {error}")

    async def _begin(self) -> None:
        """Let each side make the copy that it keeps; not measured."""
        for one in list(self._taking):
            side = one.side
            with self._leaving_out(side):
                await one.running.aim(_COPY)
                await one.running.copy(_COPY)
                for where in one.running.places(_COPY):
                    tree = self._area.tree(side.name)
                    await asyncio.to_thread(trees.require_equal, tree, where, by=side.name)

    async def _round(self, number: int) -> None:
        case, area = self._case, self._area
        change = case.change
        if change is not None:
            sources = sorted({area.tree(one.side.name) for one in self._taking})
            for tree in sources:
                await asyncio.to_thread(change.make, tree, number)
        followed: set[Path] = set()
        for one in list(self._taking):
            side = one.side
            with self._leaving_out(side):
                if change is None:
                    copied = await self._first(one, f"copy-{number}")
                else:
                    copied = await self._again(one, change, number, followed)
                one.series.copies.append(copied)
                self._tell(side, copied, number)

    async def _first(self, one: _Taking, target: str) -> Measured:
        await one.running.aim(target)
        if self._area.strict:
            await _settle()
        copied = await one.running.copy(target)
        name = one.side.name
        for where in one.running.places(target):
            await asyncio.to_thread(trees.require_equal, self._area.tree(name), where, by=name)
            await asyncio.to_thread(trees.remove, where)
        return copied

    async def _again(
        self, one: _Taking, change: Change, number: int, followed: set[Path]
    ) -> Measured:
        """Measure how a kept copy follows a change."""
        places = one.running.places(_COPY)
        for where in places:
            if where in followed:
                await asyncio.to_thread(change.undo_at_copy, where)
            elif self._case.two_way:
                await asyncio.to_thread(change.make_at_copy, where, number)
        copied = await one.running.copy(_COPY)
        name = one.side.name
        for where in places:
            await asyncio.to_thread(change.check, self._area.tree(name), where, by=name)
            followed.add(where)
        return copied

    def _tell(self, side: Side, copied: Measured, number: int) -> None:
        self._say(
            f"{self._case.name}: round {number}: {side.name:13}"
            f" {copied.wall_s:7.3f} s, CPU {copied.cpu_s:6.2f} s,"
            f" wire {copied.wire_bytes / 1e6:8.2f} MB, peak {copied.peak_bytes >> 20:4} MiB"
            + ("" if copied.own_s is None else f", run {copied.own_s:.3f} s")
        )


async def _settle() -> None:
    """Let a disk come to rest, since many give a burst of speed after idling and little after it."""
    await asyncio.to_thread(os.sync)
    await asyncio.sleep(_SETTLE_S)


def fitting(place: Path, case: Case, sides: list[Side], own: dict[str, bool]) -> Case:
    """Return the case, made smaller when what lies there at once would not fit."""
    tree, trees_there = case.tree, _lying(case, sides, own)
    disk = shutil.disk_usage(place)
    free = disk.free if case.on_disk else min(disk.free, _available_bytes())
    factor = free / (_lying_bytes(case, sides, own) * _ROOM)
    inodes = os.statvfs(place).f_favail
    if inodes:  # some file systems make them as they need them, and say 0
        wanted = tree.files * (1 + 1 / tree.per_directory) * trees_there
        factor = min(factor, inodes / (wanted * _INODE_ROOM))
    return case if factor >= 1 else case.scaled(factor)


def _lying(case: Case, sides: list[Side], own: Mapping[str, bool]) -> int:
    """Return how many trees of a case lie there at once."""
    sources = sum(own.values()) + (not all(own.values()))
    if case.change is None:
        return sources + max(side.targets for side in sides)
    # rsync's variants share a copy, and one of them writes another beside it.
    return sources + len({side.name.partition("-")[0] for side in sides}) + (case.tree.files == 1)


def _lying_bytes(case: Case, sides: list[Side], own: Mapping[str, bool]) -> int:
    """Return what they take of a tmpfs, about."""
    mean = (case.tree.smallest_bytes + case.tree.largest_bytes) // 2
    pages = -(-mean // _PAGE_BYTES) * _PAGE_BYTES
    return case.tree.files * (pages + _INODE_BYTES) * _lying(case, sides, own)


def touch_memory(place: Path, size: int) -> None:
    """Have so much memory been in use once, less where there is less.

    What a virtual machine touches for the first time since it was started its host has yet to find,
    at several times the cost of writing to it: whoever comes first in the first round would pay that.
    """
    block = b"\1" * _TOUCH_BYTES
    path = place / "touched"
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(min(size, int(_available_bytes() * _SHARE)) // _TOUCH_BYTES):
                file.write(block)
    finally:
        path.unlink(missing_ok=True)


def _available_bytes() -> int:
    """Return how much memory the kernel can give without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError("/proc/meminfo has no MemAvailable")
