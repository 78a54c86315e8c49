"""What a side of a comparison is: prepared once for an area, then asked to copy, again and again."""

import asyncio
import resource
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_TICK_S = 0.01
_ENDING_S = 0.2


@dataclass(frozen=True, slots=True)
class Area:
    """Where one case takes place: everything lies in its one directory."""

    directory: Path
    strict: bool
    """Whether an acknowledged copy must survive a power cut."""

    @property
    def root(self) -> Path:
        """What the source side exports; the tree lies one level below."""
        return self.directory / "source"

    @property
    def tree(self) -> Path:
        """The tree that is copied."""
        return self.root / "tree"

    def targets(self, side: str) -> Path:
        """Return where one side makes its copies."""
        return self.directory / f"to-{side}"


@dataclass(frozen=True, slots=True)
class Measured:
    """One copy."""

    wall_s: float
    """From the order to the answer that all of it is done."""
    cpu_s: float
    """User and system time of every process that took part, etcd left out."""
    own_s: float | None = None
    """How long it took by the side's own record, where it keeps one."""


class Running(Protocol):
    """A side that is ready to copy."""

    async def aim(self, target: str) -> None:
        """Get ready for a copy to this directory of the side's targets; not measured."""

    async def copy(self, target: str) -> Measured:
        """Copy the area's tree there."""


class Side(Protocol):
    """One who copies. `name` is for the table and the command line."""

    @property
    def name(self) -> str:
        """A short name, without spaces."""

    @property
    def says(self) -> str:
        """What exactly is run."""

    def missing(self) -> str | None:
        """Return why it cannot run on this machine, None when it can."""

    def start(self, area: Area) -> AbstractAsyncContextManager[Running]:
        """Prepare its processes for an area, and end them afterwards."""


class Stopwatch:
    """Wall and CPU time of a copy: of processes that stay, and of children that end."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        """Begin; `pids` names the processes that stay."""
        self._pids = pids
        self._cpu = self._now_cpu()
        self._at = time.monotonic()

    async def stop(self) -> Measured:
        """Return what passed until now; takes a moment, in which a daemon's children may end."""
        wall_s = time.monotonic() - self._at
        await asyncio.sleep(_ENDING_S)
        return Measured(wall_s, self._now_cpu() - self._cpu)

    def _now_cpu(self) -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime + sum(cpu_seconds(pid) for pid in self._pids())


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of its children that ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:15])) * _TICK_S
