"""Disks of the run's own: for each worker a tmpfs of limited size, shown to it by a second mount.

The second mount is the worker's root: it can be taken away and given back with everything in it, while
writers and readers go on below the first. Without root both are one plain directory.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from cli.chaos.shell import ToolFailed, call, why_not

_MARK = "baton-chaos"
SIZE_BYTES = 192 << 20
_LEFT_BYTES = 16 << 10
_TRIES = 20


@cache
def missing() -> str:
    """Return why disks cannot be mounted here, nothing when they can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if shutil.which("mount") is None or shutil.which("umount") is None:
        return "the commands mount and umount are missing (Debian: mount)"
    # It vanishes with the command.
    why = why_not("unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt")
    return f"this machine lets nobody mount: {why}" if why else ""


class Disks:
    """The disks of one run; `disks` makes and removes them."""

    def __init__(self, directory: Path, root: str, *, is_mounted: bool) -> None:
        self._directory = directory
        self._root = root
        self.is_mounted = is_mounted

    def disk(self, worker: str) -> Path:
        """Where a worker's disk is, whatever is done to its root."""
        return self._directory / f"{worker}-files"

    def files(self, worker: str) -> Path:
        """Where the files of a worker's root are, whatever is done to it."""
        return self.disk(worker) / self._root

    def root(self, worker: str) -> Path:
        """What a worker exports."""
        return self._directory / f"{worker}-root" if self.is_mounted else self.files(worker)

    def fill(self, worker: str) -> None:
        """Leave no room on a disk. Blocks for a moment."""
        with self._ballast(worker).open("wb") as file:
            for _ in range(_TRIES):
                room = self.room(worker)
                if room <= _LEFT_BYTES:
                    break
                with contextlib.suppress(OSError):  # somebody was quicker
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), room)

    def free(self, worker: str) -> None:
        """Give the room back."""
        self._ballast(worker).unlink(missing_ok=True)

    def room(self, worker: str) -> int:
        """Return how many bytes are free on a disk."""
        there = os.statvfs(self.disk(worker))
        return there.f_bavail * there.f_frsize

    async def detach(self, worker: str) -> None:
        """Take a worker's root away: an empty directory is left."""
        await call("umount", "--lazy", str(self.root(worker)))

    async def attach(self, worker: str) -> None:
        """Give it back."""
        await call("mount", "--bind", str(self.files(worker)), str(self.root(worker)))

    async def up(self, worker: str) -> None:
        """Make a worker's disk, empty, with its root."""
        self.disk(worker).mkdir(parents=True)
        if self.is_mounted:
            options = ("-t", "tmpfs", "-o", f"size={SIZE_BYTES},mode=755", f"{_MARK}-{os.getpid()}")
            await call("mount", *options, str(self.disk(worker)))
            self.root(worker).mkdir()
        self.files(worker).mkdir()
        if self.is_mounted:
            await self.attach(worker)

    async def down(self, worker: str) -> None:
        """Unmount what is mounted, whatever else was done."""
        for place in (self.root(worker), self.disk(worker)):
            while place.is_mount():
                await call("umount", "--lazy", str(place))

    def _ballast(self, worker: str) -> Path:
        return self.disk(worker) / "ballast"


def _left_behind() -> list[str]:
    """Return where runs that were killed have mounted something."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, place = line.split()[:2]
        number = source.removeprefix(f"{_MARK}-")
        if number != source and number.isdigit() and not Path("/proc", number).exists():
            found.append(place.encode().decode("unicode_escape"))
    return found


async def sweep() -> None:
    """Unmount the disks of runs that were killed."""
    for place in _left_behind():
        with contextlib.suppress(ToolFailed):  # another run may sweep as well
            await call("umount", "--lazy", place)


@asynccontextmanager
async def disks(directory: Path, workers: Sequence[str], root: str) -> AsyncIterator[Disks]:
    """Make a disk for each worker until the block is left; the trees on them go with them."""
    is_mounted = not await asyncio.to_thread(missing)
    if is_mounted:
        await sweep()
    made = Disks(directory, root, is_mounted=is_mounted)
    try:
        for worker in workers:
            await made.up(worker)
        yield made
    finally:
        if is_mounted:
            for worker in workers:
                await made.down(worker)
