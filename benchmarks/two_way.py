"""Rivals that keep two ends equal which both change: Unison, rclone's bisync, Syncthing."""

import asyncio
import contextlib
import json
import secrets
import shutil
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.rivals import RunningCommand, call, running_daemon
from benchmarks.sides import Area
from benchmarks.stopwatch import Measured, Stopwatch
from wire.ports import HOST, quiet_address

_POLL_S = 0.02
_PATIENCE_S = 120.0
_ANSWER_S = 60.0
_TOP = "at-1"


class _TwoWay:
    """What these sides have in common."""

    own_source = True
    targets = 1
    name = ""

    def missing(self) -> str | None:
        """Say that it is not installed, if so."""
        return None if shutil.which(self.name) else f"there is no {self.name} on PATH"

    def _place(self, area: Area, target: str) -> Path:
        where = area.targets(self.name) / _TOP / target
        where.mkdir(parents=True, exist_ok=True)
        return where

    def _home(self, area: Area, end: str = "") -> Path:
        home = area.directory / f"{self.name}-home{end}"
        home.mkdir()
        return home


class Unison(_TwoWay):
    """Unison with a server at the far end, over a plain socket."""

    name = "unison"
    _flags = ("-batch", "-times", "-confirmbigdel=false", "-silent")

    @property
    def says(self) -> str:
        """What exactly is run."""
        return f"unison {' '.join(self._flags)} TREE socket://..., not encrypted"

    @contextlib.asynccontextmanager
    async def start(self, area: Area) -> AsyncIterator[RunningCommand]:
        """Run a server until the block is left."""
        unison = shutil.which(self.name)
        assert unison is not None
        port = quiet_address().rpartition(":")[2]
        client, server = ({"UNISON": str(self._home(area, end))} for end in ("-near", "-far"))
        command = [unison, "-socket", port]
        async with running_daemon(command, (), (HOST, int(port)), server) as pid:

            def commands(target: str) -> list[list[str]]:
                url = f"socket://{HOST}:{port}/{self._place(area, target)}"
                return [[unison, str(area.tree(self.name)), url, *self._flags]]

            def places(target: str) -> list[Path]:
                return [self._place(area, target)]

            yield RunningCommand(commands, places, area, pids=[pid], environment=client)


class Bisync(_TwoWay):
    """`rclone bisync` between two directories of this machine."""

    name = "rclone"

    @property
    def says(self) -> str:
        """What exactly is run."""
        return "rclone bisync TREE COPY --force, one process and no network"

    @contextlib.asynccontextmanager
    async def start(self, area: Area) -> AsyncIterator[RunningCommand]:
        """Prepare nothing but a place for its listings."""
        home = self._home(area)
        config = home / "rclone.conf"
        config.touch()
        known: set[str] = set()

        def commands(target: str) -> list[list[str]]:
            first = () if target in known else ("--resync",)
            known.add(target)
            ends = [str(area.tree(self.name)), str(self._place(area, target))]
            where = ["--workdir", str(home), "--config", str(config)]
            return [["rclone", "bisync", *ends, "--force", *where, *first]]

        yield RunningCommand(commands, lambda target: [self._place(area, target)], area)


class Syncthing(_TwoWay):
    """Two Syncthings, told to scan when something has changed; found equal by their own account."""

    name = "syncthing"

    @property
    def says(self) -> str:
        """What exactly is run."""
        return (
            "syncthing at both ends, scans ordered (it would wait 10 s by default), no fsync, TLS"
        )

    @contextlib.asynccontextmanager
    async def start(self, area: Area) -> AsyncIterator["_RunningSyncthing"]:
        """Make both ends known to each other; they run once the target is known."""
        async with contextlib.AsyncExitStack() as stack:
            ends = []
            for name in ("near", "far"):
                home = self._home(area, f"-{name}")
                flags = ("--skip-port-probing", "--no-default-folder")
                await call(["syncthing", "generate", f"--home={home}", *flags])
                device = await _output(["syncthing", f"--home={home}", "--device-id"])
                sync, gui = quiet_address(), quiet_address()
                ends.append(_End(home, device, sync, gui, secrets.token_hex(16)))
            yield _RunningSyncthing(self, area, ends, stack)


@dataclass(frozen=True, slots=True)
class _End:
    """One Syncthing."""

    home: Path
    device: str
    sync: str
    """Where it listens for others."""
    gui: str
    """Where its REST API is."""
    key: str

    def configuration(self, other: "_End", folder: Path) -> str:
        """Return a configuration that talks to nobody but the other end."""
        devices = "".join(
            f'<device id="{one.device}" name="{one.home.name}"><address>tcp://{one.sync}</address>'
            "</device>"
            for one in (self, other)
        )
        shared = "".join(f'<device id="{one.device}"></device>' for one in (self, other))
        never = ("globalAnnounce", "localAnnounce", "relays", "nat", "crashReporting")
        options = "".join(f"<{name}Enabled>false</{name}Enabled>" for name in never)
        return f"""<configuration version="35">
<folder id="tree" path="{folder}" type="sendreceive" rescanIntervalS="86400"
 fsWatcherEnabled="false"><filesystemType>basic</filesystemType>{shared}
<disableFsync>true</disableFsync></folder>{devices}
<gui enabled="true"><address>{self.gui}</address><apikey>{self.key}</apikey></gui>
<options><listenAddress>tcp://{self.sync}</listenAddress>{options}<urAccepted>-1</urAccepted>
<startBrowser>false</startBrowser><reconnectionIntervalS>1</reconnectionIntervalS></options>
</configuration>"""

    async def ask(self, path: str, method: str = "GET") -> Any:
        """Call its REST API. Raises OSError."""

        def ask() -> Any:
            request = urllib.request.Request(
                f"http://{self.gui}/rest/{path}", headers={"X-API-Key": self.key}, method=method
            )
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                text = answer.read()
            return json.loads(text) if text.strip() else None

        return await asyncio.to_thread(ask)

    async def is_settled(self, other: "_End") -> bool:
        """Say whether it needs nothing, and knows that the other end does not either."""
        ours = await self.ask("db/status?folder=tree")
        theirs = await self.ask(f"db/completion?folder=tree&device={other.device}")
        needs = ours["needTotalItems"] + theirs["needItems"] + theirs["needDeletes"]
        return bool(needs == 0 and theirs["completion"] == 100 and ours["state"] == "idle")


class _RunningSyncthing:
    def __init__(
        self, side: Syncthing, area: Area, ends: list[_End], stack: contextlib.AsyncExitStack
    ) -> None:
        self._side = side
        self._area = area
        self._ends = ends
        self._stack = stack
        self._pids: list[int] = []

    def places(self, target: str) -> list[Path]:
        """Return where the copies are then."""
        return [self._area.targets(self._side.name) / _TOP / target]

    async def aim(self, target: str) -> None:
        """Start both ends."""
        (there,) = self.places(target)
        there.mkdir(parents=True)
        folders = [self._area.tree(self._side.name), there]
        for end, other, folder in zip(self._ends, reversed(self._ends), folders, strict=True):
            (folder / ".stfolder").mkdir()
            (end.home / "config.xml").write_text(end.configuration(other, folder))
            program = shutil.which("syncthing")
            assert program is not None
            flags = ("--no-browser", "--no-restart", "--no-upgrade", f"--home={end.home}")
            host, _, port = end.gui.rpartition(":")
            daemon = running_daemon([program, "serve", *flags], (), (host, int(port)))
            self._pids.append(await self._stack.enter_async_context(daemon))

    async def copy(self, target: str) -> Measured:  # noqa: ARG002 - it has but one
        """Order scans, and wait until both ends are content."""
        watch = Stopwatch(lambda: self._pids, self._area.passed_bytes)
        near, far = self._ends
        scan = ("db/scan?folder=tree", "POST")
        try:
            await asyncio.gather(near.ask(*scan), far.ask(*scan))
            until = time.monotonic() + _PATIENCE_S
            while not (await near.is_settled(far) and await far.is_settled(near)):
                if time.monotonic() > until:
                    raise BenchmarkError(f"the two ends were not equal after {_PATIENCE_S:g} s")
                await asyncio.sleep(_POLL_S)
        except OSError as error:
            raise BenchmarkError(f"syncthing's API: {error}") from error
        return await watch.stop()


async def _output(command: list[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise BenchmarkError(f"{' '.join(command)} failed")
    return said.decode().strip()


@contextlib.asynccontextmanager
async def followed_by_syncthing(directory: Path) -> AsyncIterator[tuple[Path, Path, list[int]]]:
    """Run two Syncthings whose watchers wait as little as they can; give both folders, and the pids."""
    program = shutil.which("syncthing")
    assert program is not None
    folders = directory / "source", directory / "target"
    ends = []
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / ".stfolder").mkdir()
        home = directory / f"home-{folder.name}"
        home.mkdir()
        await call(
            [
                "syncthing",
                "generate",
                f"--home={home}",
                "--skip-port-probing",
                "--no-default-folder",
            ]
        )
        device = await _output(["syncthing", f"--home={home}", "--device-id"])
        ends.append(_End(home, device, quiet_address(), quiet_address(), secrets.token_hex(16)))
    async with contextlib.AsyncExitStack() as stack:
        pids = []
        for end, other, folder in zip(ends, reversed(ends), folders, strict=True):
            never, always = (
                'fsWatcherEnabled="false"',
                'fsWatcherEnabled="true" fsWatcherDelayS="1"',
            )
            text = end.configuration(other, folder).replace(never, always)
            (end.home / "config.xml").write_text(text)
            flags = ("--no-browser", "--no-restart", "--no-upgrade", f"--home={end.home}")
            host, _, port = end.gui.rpartition(":")
            daemon = running_daemon([program, "serve", *flags], (), (host, int(port)))
            pids.append(await stack.enter_async_context(daemon))
        yield *folders, pids
