"""The rivals: an rsync daemon on loopback, and `cp -a` as what one machine does by itself."""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.sides import Area
from benchmarks.stopwatch import Measured, Stopwatch
from wire.children import bound_to_us
from wire.ports import quiet_address

_READY_S = 20.0
_POLL_S = 0.02


class Rsync:
    """Pushes to an rsync daemon, unencrypted; further options as given.

    With several `targets` one rsync each pushes to the one daemon, all of them at once.
    """

    own_source = False

    def __init__(self, *options: str, name: str = "rsync", targets: int = 1) -> None:
        """Copy with `-a` and these options."""
        self.name = name
        self._options = ("-a", *options)
        self.targets = targets

    @property
    def says(self) -> str:
        """What exactly is run."""
        several = f"{self.targets} at once: " if self.targets > 1 else ""
        return f"{several}rsync {' '.join(self._options)} TREE/ rsync://..., not encrypted"

    def missing(self) -> str | None:
        """Say that there is no rsync, if so."""
        return None if shutil.which("rsync") else "there is no rsync on PATH"

    @contextlib.asynccontextmanager
    async def start(self, area: Area) -> AsyncIterator["RunningCommand"]:
        """Run a daemon until the block is left."""
        # Those who keep nothing from run to run can share their targets, which are large.
        targets = area.targets("rsync")
        targets.mkdir(parents=True, exist_ok=True)
        address = f"{area.far_host}:{quiet_address().rpartition(':')[2]}"
        config = area.directory / f"{self.name}d.conf"
        config.write_text(_daemon_config(targets, config))
        host, _, port = address.rpartition(":")
        flags = ("--no-detach", "--config", str(config), "--address", host, "--port", port)
        daemon = [_rsync(), "--daemon", *flags]
        async with running_daemon(daemon, area.far_prefix, (host, int(port))) as pid:
            names = [f"at-{one}" for one in range(1, self.targets + 1)]

            def commands(target: str) -> list[list[str]]:
                url = f"rsync://{address}/files"
                tree = f"{area.tree()}/"
                return [["rsync", *self._options, tree, f"{url}/{one}/{target}/"] for one in names]

            def places(target: str) -> list[Path]:
                return [targets / one / target for one in names]

            for one in names:
                (targets / one).mkdir(exist_ok=True)
            yield RunningCommand(commands, places, area, pids=[pid])


class CopyArchive:
    """`cp -a` within the machine: no network, no comparison; where strict, with one syncfs after it."""

    name = "cp"
    own_source = False
    targets = 1

    @property
    def says(self) -> str:
        """What exactly is run."""
        return "cp -a (where strict: then sync -f), one process and no network"

    def missing(self) -> str | None:
        """Say that there is no cp, if so."""
        return None if shutil.which("cp") else "there is no cp on PATH"

    @contextlib.asynccontextmanager
    async def start(self, area: Area) -> AsyncIterator["RunningCommand"]:
        """Prepare nothing."""
        targets = area.targets(self.name)
        targets.mkdir(parents=True, exist_ok=True)

        def commands(target: str) -> list[list[str]]:
            return [["cp", "-a", f"{area.tree()}/.", str(targets / target)]]

        yield RunningCommand(commands, lambda target: [targets / target], area, flush=area.strict)


class RunningCommand:
    """A side that is a command for every copy, or some at once."""

    def __init__(
        self,
        commands: Callable[[str], list[list[str]]],
        places: Callable[[str], list[Path]],
        area: Area,
        *,
        pids: Iterable[int] = (),
        flush: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Run `commands` of a target; `pids` serve them, `flush` makes the copy durable."""
        self._commands = commands
        self._places = places
        self._area = area
        self._pids = list(pids)
        self._flush = flush
        self._environment = environment

    def places(self, target: str) -> list[Path]:
        """Return where the copies are then."""
        return self._places(target)

    async def aim(self, target: str) -> None:
        """Nothing is to be prepared."""

    async def copy(self, target: str) -> Measured:
        """Run the commands to their ends."""
        watch = Stopwatch(lambda: self._pids, self._area.passed_bytes)
        commands = self._commands(target)
        await asyncio.gather(*(call(one, watch, self._environment) for one in commands))
        if self._flush:
            await call(["sync", "-f", str(self._area.directory)], watch)
        return await watch.stop()


@contextlib.asynccontextmanager
async def running_daemon(
    command: Sequence[str],
    prefix: Sequence[str],
    address: tuple[str, int],
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[int]:
    """Run a rival's daemon until the block is left; give its pid once it listens."""
    process = await asyncio.create_subprocess_exec(
        *prefix,
        *bound_to_us(command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        await _wait_for_port(address, process, command[0])
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _rsync() -> str:
    found = shutil.which("rsync")
    if found is None:
        raise BenchmarkError("there is no rsync on PATH")
    return found


async def call(
    command: list[str],
    watch: Stopwatch | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a command to its end; it dies with us. Raises BenchmarkError when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    if watch is not None:
        watch.also(process.pid)
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise BenchmarkError(f"{' '.join(command)} failed: {said.decode(errors='replace')[-800:]}")


def _daemon_config(targets: Path, config: Path) -> str:
    """Return a daemon's configuration that costs it nothing: no chroot, no log of transfers."""
    lines = [
        f"pid file = {config.with_suffix('.pid')}",
        f"log file = {config.with_suffix('.log')}",
        "[files]",
        f"path = {targets}",
        "read only = no",
        "use chroot = no",
    ]
    if os.geteuid() == 0:
        lines += ["uid = 0", "gid = 0"]
    return "\n".join(lines) + "\n"


async def _wait_for_port(
    address: tuple[str, int], daemon: asyncio.subprocess.Process, name: str
) -> None:
    until = time.monotonic() + _READY_S
    while daemon.returncode is None and time.monotonic() < until:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.wait_for(asyncio.open_connection(*address), 1)
            writer.close()
            await writer.wait_closed()
            return
        await asyncio.sleep(_POLL_S)
    raise BenchmarkError(f"{name} did not start")
