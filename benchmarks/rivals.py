"""The rivals: an rsync daemon on loopback, and `cp -a` as what one machine does by itself."""

import asyncio
import contextlib
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.sides import Area, Measured, Stopwatch
from cli.local_cluster import quiet_address
from wire.children import bound_to_us

_READY_S = 10.0
_POLL_S = 0.02


class Rsync:
    """A push to an rsync daemon, unencrypted, on loopback; further options as given."""

    name = "rsync"

    def __init__(self, *options: str) -> None:
        """Copy with `-a` and these options."""
        self._options = ("-a", *options)

    @property
    def says(self) -> str:
        """What exactly is run."""
        return f"rsync {' '.join(self._options)} TREE/ rsync://127.0.0.1/..., not encrypted"

    def missing(self) -> str | None:
        """Say that there is no rsync, if so."""
        return None if shutil.which("rsync") else "there is no rsync on PATH"

    @contextlib.asynccontextmanager
    async def start(self, area: Area) -> AsyncIterator["_RunningCommand"]:
        """Run a daemon until the block is left."""
        targets = area.targets(self.name)
        targets.mkdir(parents=True, exist_ok=True)
        address = quiet_address()
        config = area.directory / "rsyncd.conf"
        config.write_text(_daemon_config(targets))
        host, _, port = address.rpartition(":")
        flags = ("--no-detach", "--config", str(config), "--address", host, "--port", port)
        daemon = await asyncio.create_subprocess_exec(
            *bound_to_us([_rsync(), "--daemon", *flags]),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            await _wait_for_port(host, int(port), daemon)

            def command(target: str) -> list[str]:
                url = f"rsync://{address}/files/{target}/"
                return ["rsync", *self._options, f"{area.tree}/", url]

            yield _RunningCommand(command, [daemon.pid], area, durable=True)
        finally:
            with contextlib.suppress(ProcessLookupError):
                daemon.terminate()
            await daemon.wait()


class CopyArchive:
    """`cp -a` within the machine: no network, no comparison; where strict, with one syncfs after it."""

    name = "cp"

    @property
    def says(self) -> str:
        """What exactly is run."""
        return "cp -a (where strict: then sync -f), one process and no network"

    def missing(self) -> str | None:
        """Say that there is no cp, if so."""
        return None if shutil.which("cp") else "there is no cp on PATH"

    @contextlib.asynccontextmanager
    async def start(self, area: Area) -> AsyncIterator["_RunningCommand"]:
        """Prepare nothing."""
        targets = area.targets(self.name)
        targets.mkdir(parents=True, exist_ok=True)

        def command(target: str) -> list[str]:
            return ["cp", "-a", f"{area.tree}/.", str(targets / target)]

        yield _RunningCommand(command, [], area, durable=not area.strict)


class _RunningCommand:
    """A side that is one command for every copy."""

    def __init__(
        self,
        command: Callable[[str], list[str]],
        pids: Iterable[int],
        area: Area,
        *,
        durable: bool,
    ) -> None:
        self._command = command
        self._pids = list(pids)
        self._area = area
        self._durable = durable

    async def aim(self, target: str) -> None:
        """Nothing is to be prepared."""

    async def copy(self, target: str) -> Measured:
        """Run the command to its end."""
        watch = Stopwatch(lambda: self._pids)
        await _call(self._command(target))
        if not self._durable:
            await _call(["sync", "-f", str(self._area.directory)])
        return await watch.stop()


def _rsync() -> str:
    found = shutil.which("rsync")
    if found is None:
        raise BenchmarkError("there is no rsync on PATH")
    return found


async def _call(command: list[str]) -> None:
    """Run a command to its end; it dies with us."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise BenchmarkError(f"{' '.join(command)} failed: {said.decode(errors='replace')}")


def _daemon_config(targets: Path) -> str:
    """Return a daemon's configuration that costs it nothing: no chroot, no log of transfers."""
    lines = [
        f"pid file = {targets.parent / 'rsyncd.pid'}",
        f"log file = {targets.parent / 'rsyncd.log'}",
        "[files]",
        f"path = {targets}",
        "read only = no",
        "use chroot = no",
    ]
    if os.geteuid() == 0:
        lines += ["uid = 0", "gid = 0"]
    return "\n".join(lines) + "\n"


async def _wait_for_port(host: str, port: int, daemon: asyncio.subprocess.Process) -> None:
    until = time.monotonic() + _READY_S
    while daemon.returncode is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        await asyncio.sleep(_POLL_S)
    raise BenchmarkError("the rsync daemon did not start")
