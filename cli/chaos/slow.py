"""A disk that takes its time, as one process sees it: strace lets every flush of it wait."""

import asyncio
import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from cli.chaos.shell import ToolFailed
from wire.children import bound_to_us

DELAY_S = 0.2
_FLUSHES = "fsync,fdatasync,syncfs"
_ATTACHED_S = 10.0
_POLL_S = 0.02


@dataclass(slots=True)
class SlowDown:
    """One process whose flushes are slow."""

    pid: int
    _tracer: asyncio.subprocess.Process

    @classmethod
    async def begin(cls, pid: int) -> "SlowDown":
        """Slow a process down, all of its threads; raises ToolFailed."""
        program = shutil.which("strace")
        if program is None:
            raise ToolFailed("the command strace is missing (Debian: strace)")
        options = ("-f", "-qq", "-o", "/dev/null", "-e", f"trace={_FLUSHES}")
        delay = f"inject={_FLUSHES}:delay_enter={int(DELAY_S * 1e6)}"
        tracer = await asyncio.create_subprocess_exec(
            *bound_to_us([program, *options, "-e", delay, "-p", str(pid)]),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        made = cls(pid, tracer)
        deadline = time.monotonic() + _ATTACHED_S
        while not made.has_bitten():
            if tracer.returncode is not None or time.monotonic() > deadline:
                await made.end()
                raise ToolFailed(f"strace does not get hold of process {pid}")
            await asyncio.sleep(_POLL_S)
        return made

    def has_bitten(self) -> bool:
        """Say whether the process is held by the tracer."""
        with contextlib.suppress(OSError):
            return (
                f"\nTracerPid:\t{self._tracer.pid}\n"
                in Path(f"/proc/{self.pid}/status").read_text()
            )
        return False

    async def end(self) -> None:
        """Let go of the process."""
        with contextlib.suppress(ProcessLookupError):
            self._tracer.terminate()
        await self._tracer.wait()
