"""The directories that this worker exports, by the names that only its own configuration gives."""

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from syncengine.errors import TreeError
from syncengine.inplace import undo_all
from syncengine.tree import Tree
from wire.orders import NOT_WATCHED, RootDescription, WatchDescription
from worker.errors import StartRefused
from worker.watching.state import WatchMode

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ExportedRoot:
    """One root as configured: its name is all that the network ever says."""

    name: str
    path: Path
    read_only: bool
    watch: WatchMode = WatchMode.AUTO


def unwatched(_root: str) -> WatchDescription:
    """Say that nobody watches."""
    return NOT_WATCHED


class Roots:
    """The configured roots, each locked against a second worker that serves the same directory."""

    def __init__(self, roots: tuple[ExportedRoot, ...]) -> None:
        """Lock what is there; raise StartRefused when another worker holds it. Blocks on files."""
        self._roots = {root.name: root for root in roots}
        self._locks: dict[str, int] = {}
        for root in roots:
            self._lock(root)

    def __getitem__(self, name: str) -> ExportedRoot:
        """Return a root; KeyError when this worker does not export it."""
        root = self._roots[name]
        if name not in self._locks:
            self._lock(root)
        return root

    def __contains__(self, name: object) -> bool:
        """Whether this worker exports a root of that name."""
        return name in self._roots

    @property
    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._roots)

    def mode(self, name: str) -> WatchMode:
        """Return whether a root is to be watched, as configured; KeyError when it is not exported."""
        return self._roots[name].watch

    def describe(
        self, watch: Callable[[str], WatchDescription] = unwatched
    ) -> tuple[RootDescription, ...]:
        """Say what is exported, whether it is there, and how it is watched. Blocks on files."""
        return tuple(_describe(root, watch(root.name)) for _, root in sorted(self._roots.items()))

    def undo(self) -> None:
        """Bring back what a crash left half changed in place. Blocks on files."""
        for root in self._roots.values():
            if root.read_only or root.name not in self._locks:
                continue
            try:
                with Tree.open(bytes(root.path)) as tree:
                    undo_all(tree)
            except (TreeError, OSError) as error:
                log.warning("root_not_undone", root=root.name, why=str(error))

    def close(self) -> None:
        """Let go of the locks."""
        for fd in self._locks.values():
            os.close(fd)
        self._locks.clear()

    def _lock(self, root: ExportedRoot) -> None:
        try:
            fd = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            # A root may come later (a disk not mounted yet): a run says so, the worker still serves.
            log.warning("root_unavailable", root=root.name, path=str(root.path), why=error.strerror)
            return
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if root.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise StartRefused(
                f"root {root.name} at {root.path} is served by another worker process; "
                "stop that one, or export another directory"
            ) from None
        self._locks[root.name] = fd


def _describe(root: ExportedRoot, watch: WatchDescription) -> RootDescription:
    available, free = True, 0
    try:
        space = os.statvfs(root.path)
        free = space.f_bavail * space.f_frsize
    except OSError:
        available = False
    return RootDescription(root.name, str(root.path), root.read_only, available, free, watch)
