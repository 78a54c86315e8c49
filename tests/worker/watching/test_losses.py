"""Nothing lost: overflows, limits, what cannot be read, roots that go, and death at any step."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from syncengine.failpoints import VARIABLE, JournalStep
from tests.faults.mount import mounted, why_not
from tests.worker.watching.child import Target, looks_of
from tests.worker.watching.conftest import Watched, until
from worker.watching.network_files import shared_by_hosts
from worker.watching.root_watch import RootWatch
from worker.watching.state import WatchPhase, WatchSource

QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")


@contextmanager
def tiny_queue() -> Iterator[None]:
    """Let inotify instances that are made meanwhile hold 16 events."""
    before = QUEUE.read_text()
    QUEUE.write_text("16")
    try:
        yield
    finally:
        QUEUE.write_text(before)


@pytest.mark.root
@pytest.mark.alone
def test_100_000_changes_overflow_a_tiny_queue_and_all_are_found(fresh: Watched) -> None:
    root = fresh.root
    with tiny_queue():
        fresh.start()
    fresh.take_all()
    before = fresh.snapshot()
    for number in range(500):
        place = root / f"d{number % 20}" / f"e{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        with (place / f"f{number}").open("wb", buffering=0) as file:
            for _ in range(200):
                file.write(b"x")
                os.utime(file.fileno(), ns=(1, number))
    until(lambda: fresh.watch.overflows > 0)
    fresh.settled()
    fresh.check(before)
    assert fresh.watch.state().in_doubt_since is None
    (root / "d1" / "later").write_text("x")
    fresh.catch_up()
    assert (b"d1/later", False) in fresh.pending()


def child(scenario: str, directory: Path, *before: str, **env: str) -> "subprocess.Popen[bytes]":
    words = [*before, sys.executable, "-m", "tests.worker.watching.child", scenario, str(directory)]
    return subprocess.Popen(words, env={**os.environ, **env})


def test_at_the_limit_of_watches_it_scans_and_says_what_to_set(tmp_path: Path) -> None:
    probe = subprocess.run(
        ["unshare", "-Ur", "test", "-w", "/proc/sys/user/max_inotify_watches"], check=False
    )
    if probe.returncode != 0:
        pytest.skip("needs user namespaces with a limit of watches of their own")
    assert child("limited", tmp_path, "unshare", "-Ur").wait(50) == 0


@pytest.mark.root
def test_a_directory_that_cannot_be_read_is_named_and_taken_up_later() -> None:
    with tempfile.TemporaryDirectory(prefix="baton-watch-") as place:
        Path(place).chmod(0o777)
        assert child("unreadable", Path(place)).wait(50) == 0


@pytest.mark.root
def test_an_unmounted_root_is_not_an_empty_one(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    watched = Watched(tmp_path)
    root = watched.root
    try:
        subprocess.run(["mount", "--bind", disk, root], check=True)
        (root / "d").mkdir()
        (root / "d" / "f").write_text("x")
        watched.start()
        watched.take_all()
        before = watched.snapshot()
        subprocess.run(["umount", "--lazy", root], check=True)
        until(lambda: watched.watch.state().phase is WatchPhase.DEGRADED)
        assert "is it mounted?" in watched.watch.state().reason
        assert watched.watch.state().in_doubt_since is not None
        assert watched.take() is None, "nothing was deleted"
        (disk / "d" / "g").write_text("changed while it was away")
        subprocess.run(["mount", "--bind", disk, root], check=True)
        watched.settled()
        watched.check(before)
        (root / "d" / "f").write_text("y")
        watched.catch_up()
        assert (b"d/f", False) in watched.pending()
    finally:
        watched.watch.stop()
        subprocess.run(["umount", "--lazy", root], check=False, capture_output=True)


def test_a_root_that_was_renamed_away_and_back(watched: Watched) -> None:
    root = watched.root
    (root / "f").write_text("x")
    watched.take_all()
    before = watched.snapshot()
    away = root.rename(root.with_name("away"))
    until(lambda: watched.watch.state().phase is WatchPhase.DEGRADED)
    (away / "g").write_text("x")
    away.rename(root)
    watched.settled()
    watched.check(before)


@pytest.mark.root
def test_a_mount_below_the_root_is_seen(watched: Watched, tmp_path: Path) -> None:
    place = watched.root / "d" / "here"
    place.mkdir(parents=True)
    (place / "under").write_text("x")
    watched.take_all()
    other = tmp_path / "other"
    (other / "e").mkdir(parents=True)
    before = watched.snapshot()
    subprocess.run(["mount", "--bind", other, place], check=True)
    try:
        until(lambda: b"d/here/e" in {path for path, _ in watched.pending()})
        watched.settled()
        watched.check(before)
        (place / "e" / "f").write_text("x")
        watched.catch_up()
        assert (b"d/here/e/f", False) in watched.pending()
        before = watched.snapshot()
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
    until(lambda: b"d/here/under" in {path for path, _ in watched.pending()})
    watched.settled()
    watched.check(before)


def test_an_error_of_the_journal_loses_nothing(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = watched.snapshot()
    add = watched.watch.journal.add
    failed: list[object] = []

    def fail_once(*arguments: object) -> object:
        if not failed:
            failed.append(arguments)
            raise OSError(28, "No space left on device")
        return add(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(watched.watch.journal, "add", fail_once)
    (watched.root / "f").write_text("x")
    until(lambda: watched.watch.state().phase is WatchPhase.DEGRADED)
    assert "No space left" in watched.watch.state().reason
    watched.settled()
    watched.check(before)


def test_on_a_network_file_system_scans_find_what_no_event_tells(tmp_path: Path) -> None:
    if why_not():
        pytest.skip(why_not())
    with mounted(tmp_path) as mount:
        (mount.root / "d").mkdir()
        for number in range(5):
            (mount.root / "d" / f"f{number}").write_text("x")
        watched = Watched(tmp_path)
        watched.watch.stop()
        watched.root.rmdir()
        watched.root = mount.root
        watched.watch = RootWatch("root", mount.root, watched.file, tell=lambda _: None)
        try:
            fd = os.open(mount.root, os.O_RDONLY)
            assert shared_by_hosts(fd) == "FUSE"
            os.close(fd)
            watched.start()
            state = watched.watch.state()
            assert state.source is WatchSource.POLLING
            assert state.reason.startswith("FUSE")
            assert state.in_doubt_since is not None, "who knows what other hosts do"
            watched.take_all()
            mount.clear()  # as another host would
            until(lambda: os.listdir(mount.root) == [])
            watched.catch_up()
            assert (b"d", True) in watched.pending()
        finally:
            watched.watch.stop()


@pytest.mark.parametrize("step", list(JournalStep))
@pytest.mark.parametrize("nth", [3])
def test_killed_at_any_step_nothing_is_lost(tmp_path: Path, step: JournalStep, nth: int) -> None:
    dice = random.Random(f"{step} {nth}")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "d").mkdir()
    process = child("replicate", tmp_path, **{VARIABLE: f"{step}:kill@{nth}"})
    until((tmp_path / "ready").exists)
    deadline = time.monotonic() + 30.0
    number = 0
    while process.poll() is None:
        assert time.monotonic() < deadline, "the step was not reached"
        number += 1
        change(dice, tmp_path / "root", number)
        time.sleep(0.005)
    assert process.returncode == -signal.SIGKILL
    for more in range(30):
        change(dice, tmp_path / "root", number + 1 + more)
    (tmp_path / "enough").touch()
    assert child("replicate", tmp_path).wait(50) == 0
    missing = looks_of(tmp_path / "root")
    held = Target(tmp_path / "target.json").looks
    assert held == missing


def change(dice: random.Random, root: Path, number: int) -> None:
    place = root / "d" / f"p{dice.randrange(5)}"
    place.mkdir(exist_ok=True)
    file = place / f"f{dice.randrange(9)}"
    kind = dice.randrange(5)
    if kind == 0 and file.exists():
        file.unlink()
    elif kind == 1 and file.exists():
        file.rename(root / f"moved{dice.randrange(9)}")
    elif kind == 2:
        place.rename(root / "d" / f"q{number}")
    else:
        file.write_text(str(number))
