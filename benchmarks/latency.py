"""`python -m benchmarks.latency`: how long it takes from a write at the source until it is visible.

Beside Baton: lsyncd without a delay, Syncthing with the shortest delay of its watcher, and rsync in a
loop. A file counts as visible when its final name appears at the target, which is complete then with all
of them. Every rate is written into a directory of its own.
"""

import argparse
import asyncio
import contextlib
import json
import os
import select
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.following import following
from benchmarks.stopwatch import Stopwatch
from benchmarks.takeovers import percentile
from benchmarks.two_way import followed_by_syncthing
from wire.children import bound_to_us
from worker.watching.inotify import IN_CREATE, IN_MOVED_TO, Inotify

_PATIENCE_S = 120.0
_BYTES = 1000

Pair = tuple[Path, Path, list[int]]
"""Where to write, where it appears, and the processes that see to it."""


class Eye:
    """Notes when names appear in a directory, in a thread of its own."""

    def __init__(self, directory: Path) -> None:
        """Look at a directory that exists."""
        self.seen: dict[bytes, float] = {}
        self._inotify = Inotify()
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self._inotify.watch(self._fd)
        self._is_over = False
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        poller = select.poll()
        poller.register(self._inotify.fd, select.POLLIN)
        while not self._is_over:
            poller.poll(100)
            now = time.monotonic()
            for event in self._inotify.events():
                if event.mask & (IN_CREATE | IN_MOVED_TO):
                    self.seen.setdefault(event.name, now)

    def close(self) -> None:
        """Look no more."""
        self._is_over = True
        self._thread.join()
        self._inotify.close()
        os.close(self._fd)


async def measure(pair: Pair, name: str, *, rate: float, count: int) -> dict[str, float | int]:
    """Write `count` files, `rate` a second (0: all at once); return percentiles in milliseconds."""
    source, target, pids = pair
    (source / name).mkdir()
    deadline = time.monotonic() + _PATIENCE_S
    while not (target / name).is_dir():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{name}: the directory did not appear")
        await asyncio.sleep(0.01)
    await asyncio.sleep(1)  # let everybody come to rest
    eye = Eye(target / name)
    written: dict[bytes, float] = {}

    def write() -> None:
        began = time.monotonic()
        for number in range(count):
            if rate:
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
            file = f"f{number}"
            (source / name / file).write_bytes(os.urandom(_BYTES))
            written[file.encode()] = time.monotonic()

    watch = Stopwatch(lambda: pids, lambda: 0)
    try:
        await asyncio.to_thread(write)
        deadline = time.monotonic() + _PATIENCE_S
        while not written.keys() <= eye.seen.keys() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
    finally:
        cost = await watch.stop()
        eye.close()
    late = [1000 * (eye.seen[file] - at) for file, at in written.items() if file in eye.seen]
    if not late:
        raise BenchmarkError(f"{name}: nothing arrived")
    return {
        "p50_ms": round(max(0.0, percentile(late, 0.5)), 1),
        "p99_ms": round(max(0.0, percentile(late, 0.99)), 1),
        "all_after_s": round(max(eye.seen.values()) - min(written.values()), 2),
        "missing": len(written) - len(late),
        "cpu_s": round(cost.cpu_s, 2),
    }


@contextlib.asynccontextmanager
async def _baton(directory: Path) -> AsyncIterator[Pair]:
    async with following(directory, settle="10ms") as scene:
        yield scene.source, scene.target, [one.pid for one in scene.cluster.members.values()]


@contextlib.asynccontextmanager
async def _command(directory: Path, make: Callable[[Path, Path], list[str]]) -> AsyncIterator[Pair]:
    """Run a command that copies from one directory to another until the block is left."""
    source, target = directory / "source", directory / "target"
    source.mkdir(parents=True)
    target.mkdir()
    program, *arguments = make(source, target)
    process = await asyncio.create_subprocess_exec(
        *bound_to_us([shutil.which(program) or program, *arguments]),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        await asyncio.sleep(1)
        if process.returncode is not None:
            raise BenchmarkError(f"it ended at once with {process.returncode}")
        yield source, target, [process.pid]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        await process.wait()


def _lsyncd(directory: Path) -> AbstractAsyncContextManager[Pair]:
    def make(source: Path, target: Path) -> list[str]:
        config = directory / "lsyncd.lua"
        config.write_text(
            "settings { nodaemon = true }\n"
            f'sync {{ default.rsync, source = "{source}", target = "{target}", delay = 0 }}\n'
        )
        return ["lsyncd", str(config)]

    return _command(directory, make)


def _rsync(directory: Path) -> AbstractAsyncContextManager[Pair]:
    def make(source: Path, target: Path) -> list[str]:
        return ["sh", "-c", f"while :; do rsync -a --delete '{source}/' '{target}/'; done"]

    return _command(directory, make)


SIDES: dict[str, Callable[[Path], AbstractAsyncContextManager[Pair]]] = {
    "baton": _baton,
    "lsyncd": _lsyncd,
    "syncthing": followed_by_syncthing,
    "rsync": _rsync,
}


async def _all(told: argparse.Namespace) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for side in told.side or SIDES:
        if side != "baton" and shutil.which(side) is None:
            print(f"{side}: not on PATH", file=sys.stderr)
            continue
        found[side] = {}
        with tempfile.TemporaryDirectory(prefix="baton-latency-", dir=told.directory) as name:
            try:
                async with SIDES[side](Path(name) / side) as pair:
                    for rate in told.rate or (1, 100, 1000):
                        count = max(10, int(rate * told.seconds))
                        one = await measure(pair, f"at-{rate:g}", rate=rate, count=count)
                        found[side][f"{rate:g}/s"] = one
                        print(side, f"{rate:g}/s", one, file=sys.stderr)
                    one = await measure(pair, "burst", rate=0, count=told.burst)
                    found[side][f"burst of {told.burst}"] = one
                    print(side, "burst", one, file=sys.stderr)
            except BenchmarkError as error:
                print(f"{side}: {error}", file=sys.stderr)
                found[side]["error"] = str(error)
    return found


def main() -> int:
    """Measure as the command line says; print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--side", action="append", choices=list(SIDES))
    parser.add_argument("--rate", action="append", type=float, help="changes a second; repeatable")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--burst", type=int, default=10_000)
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    print(json.dumps(asyncio.run(_all(parser.parse_args())), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
