"""Watching in a process of its own: without privileges, under another limit, or killed on the way."""

import json
import os
import sys
import time
from pathlib import Path

from tests.worker.watching.conftest import Watched, until
from tests.worker.watching.oracle import Snapshot
from worker.watching.pending import PendingBatch
from worker.watching.state import WatchPhase

NOBODY = 65_534


def limited(directory: Path) -> None:
    """Have fewer watches than directories; then more."""
    limit = Path("/proc/sys/user/max_inotify_watches")
    limit.write_text("10")
    watched = Watched(directory)
    for number in range(30):
        (watched.root / f"d{number}" / "below").mkdir(parents=True)
    watched.watch.register(watched.consumer)
    watched.watch.start()
    until(lambda: watched.watch.state().phase is WatchPhase.DEGRADED)
    until(lambda: watched.watch.is_ready(watched.consumer))
    state = watched.watch.state()
    assert "fs.inotify.max_user_watches=" in state.reason, state
    assert state.directories <= 10
    assert state.in_doubt_since is not None
    watched.take_all()
    before = watched.snapshot()
    for number in range(30):
        (watched.root / f"d{number}" / "below" / "f").write_text("x")
    watched.check(before)
    limit.write_text("1000")
    watched.catch_up()
    watched.settled()
    assert watched.watch.state().directories == 61
    assert watched.watch.state().in_doubt_since is None
    watched.watch.stop()


def unreadable(directory: Path) -> None:
    """Have a directory that may not be read; then may."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    watched = Watched(directory)
    closed = watched.root / "closed"
    (closed / "below").mkdir(parents=True)
    closed.chmod(0)
    watched.watch.register(watched.consumer)
    watched.watch.start()
    until(lambda: watched.watch.state().phase is WatchPhase.DEGRADED)
    assert "closed" in watched.watch.state().reason
    until(lambda: watched.watch.is_ready(watched.consumer))
    watched.take_all()
    closed.chmod(0o700)
    until(lambda: watched.watch.state().phase is WatchPhase.WATCHING, 60.0)
    watched.take_all()
    (closed / "below" / "f").write_text("x")
    watched.catch_up()
    assert watched.pending() == [(b"closed/below/f", False)]
    watched.watch.stop()


class Target:
    """What a consumer has made equal, in a file that survives it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.looks: dict[str, list[int]] = json.loads(file.read_text()) if file.exists() else {}

    def take(self, root: Path, batch: PendingBatch) -> None:
        """Make a batch's paths equal, durably as far as a killed process goes."""
        now = looks_of(root)
        for path, is_deep in batch.paths:
            name = os.fsdecode(path)
            inside = [
                one
                for one in self.looks.keys() | now.keys()
                if one == name or (is_deep and (not name or one.startswith(name + "/")))
            ]
            for one in inside:
                self.looks.pop(one, None)
                if one in now:
                    self.looks[one] = now[one]
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(self.looks))
        temporary.replace(self._file)


def looks_of(root: Path) -> dict[str, list[int]]:
    """Return what a target is to have, of files that nobody changes meanwhile."""
    return {os.fsdecode(path): list(look) for path, look in Snapshot(root).looks.items()}


def replicate(directory: Path) -> None:
    """Make what is pending equal, until somebody says that it is enough, or we are killed."""
    watched = Watched(directory)
    target = Target(directory / "target.json")
    watched.watch.register(watched.consumer)
    watched.watch.start()
    (directory / "ready").touch()
    enough = directory / "enough"
    while True:
        is_last = enough.exists()
        if is_last:
            watched.settled()
            watched.catch_up()
        batch = watched.take() if watched.watch.is_ready(watched.consumer) else None
        if batch is not None:
            target.take(watched.root, batch)
            watched.watch.journal.done(batch)
        elif is_last:
            break
        else:
            time.sleep(0.002)
    watched.watch.stop()


if __name__ == "__main__":
    {"limited": limited, "unreadable": unreadable, "replicate": replicate}[sys.argv[1]](
        Path(sys.argv[2])
    )
