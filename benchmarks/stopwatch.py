"""What a copy costs: time, CPU, memory, bytes between the ends."""

import asyncio
import contextlib
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 0.01
_ENDING_S = 0.2
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Measured:
    """One copy."""

    wall_s: float
    """From the order to the answer that all of it is done."""
    cpu_s: float
    """User and system time of every process that took part, etcd left out."""
    wire_bytes: int = 0
    """What went between the ends in both directions, everything else on that device included."""
    peak_bytes: int = 0
    """The most memory that any one of the processes held."""
    own_s: float | None = None
    """How long it took by the side's own record, where it keeps one."""


class Stopwatch:
    """Measures a copy from `begin` to `stop`: of processes that stay, and of children that end.

    Commands that are started meanwhile are named with `also`, so that their memory counts.
    """

    def __init__(self, pids: Callable[[], Iterable[int]], wire: Callable[[], int]) -> None:
        """Begin; `pids` names the processes that stay, `wire` counts bytes."""
        self._pids = list(pids())
        self._wire = wire
        self._peak = 0
        for pid in self._pids:
            _forget_peak(pid)
        self._looking = asyncio.create_task(self._look())
        self._cpu = self._now_cpu()
        self._passed = wire()
        self._at = time.monotonic()

    def also(self, pid: int) -> None:
        """Look at the memory of this one too."""
        self._pids.append(pid)

    async def stop(self) -> Measured:
        """Return what passed until now; takes a moment, in which a daemon's children may end."""
        wall_s = time.monotonic() - self._at
        passed = self._wire() - self._passed
        self._looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._looking
        self._note_peaks()
        await asyncio.sleep(_ENDING_S)
        return Measured(wall_s, self._now_cpu() - self._cpu, passed, self._peak)

    async def _look(self) -> None:
        while True:
            self._note_peaks()
            await asyncio.sleep(_LOOK_S)

    def _note_peaks(self) -> None:
        self._peak = max([self._peak, *map(_peak_bytes, self._everybody())])

    def _now_cpu(self) -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime + sum(map(cpu_seconds, self._everybody()))

    def _everybody(self) -> list[int]:
        """Return the pids of the processes and of their descendants."""
        found = list(self._pids)
        for pid in found:
            found += _children(pid)
        return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of its children that ended; 0 when it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0  # it was waited for, and is counted there
    return sum(map(int, text.rpartition(") ")[2].split()[11:15])) * _TICK_S


def _forget_peak(pid: int) -> None:
    """Let the peak of a process begin anew, where the kernel lets us."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line for line in text.splitlines() if line.startswith("VmHWM:")]
    return int(found[0].split()[1]) * 1024 if found else 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        # Each thread has its own children.
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found
