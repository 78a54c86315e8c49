"""Watching a root on the real kernel: every kind of change is pending afterwards, and nothing else."""

import os
import random
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from tests.worker.watching.conftest import Watched, until
from worker.watching.pending import Consumer, RenameHint
from worker.watching.state import WatchPhase
from worker.watching.watched_tree import Node, WatchedTree


def test_a_new_consumer_is_ready_once_all_is_watched(fresh: Watched) -> None:
    (fresh.root / "a" / "b").mkdir(parents=True)
    fresh.start()
    batch = fresh.take_all()
    assert batch is not None
    assert batch.everything
    assert fresh.watch.state().directories == 3
    assert fresh.watch.is_ready(fresh.consumer)
    assert fresh.take_all() is None


def test_every_kind_of_change(watched: Watched) -> None:
    root = watched.root
    (root / "d").mkdir()
    for name in ("edit", "append", "delete", "move", "attr", "out"):
        (root / "d" / name).write_text("old")
    watched.take_all()
    before = watched.snapshot()
    (root / "d" / "edit").write_text("new")
    with (root / "d" / "append").open("a") as file:
        file.write("more")
    (root / "d" / "delete").unlink()
    (root / "d" / "move").rename(root / "moved")
    (root / "d" / "attr").chmod(0o600)
    (root / "d" / "out").rename(root.parent / "out")
    (root.parent / "out").rename(root / "in")
    (root / "link").symlink_to("d")
    os.link(root / "moved", root / "d" / "hard")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "d" / "edit", "user.a", b"1")
    (root / "d").chmod(0o700)
    root.chmod(0o750)
    (root / os.fsdecode(b"no \xff utf-8")).write_text("bytes")
    (root / ".baton~temporary").write_text("ours")
    batch = watched.check(before)
    assert batch is not None
    assert RenameHint(b"d/move", b"moved", is_directory=False) in batch.renames
    assert {path for path, _ in batch.paths} == {
        b"", b"d", b"d/append", b"d/attr", b"d/delete", b"d/edit", b"d/hard", b"d/move", b"d/out",
        b"fifo", b"in", b"link", b"moved", b"no \xff utf-8",
    }  # fmt: skip
    assert not any(is_deep for _, is_deep in batch.paths)


def test_what_is_written_is_told_without_being_asked_for(watched: Watched) -> None:
    before = watched.told
    (watched.root / "file").write_text("x")
    until(lambda: watched.told > before)
    assert watched.pending() == [(b"file", False)]


def test_renamed_directories_go_as_renames(watched: Watched) -> None:
    root = watched.root
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "f").write_text("x")
    watched.take_all()
    before = watched.snapshot()
    (root / "a").rename(root / "c")
    (root / "c" / "b" / "f").write_text("edited under the new name")
    (root / "c" / "b").rename(root / "top")
    batch = watched.check(before)
    assert batch is not None
    assert RenameHint(b"a", b"c", is_directory=True) in batch.renames
    assert (b"c", True) in batch.paths
    (root / "top" / "f").write_text("still watched")
    watched.catch_up()
    assert watched.pending() == [(b"top/f", False)]
    assert watched.watch.state().directories == 3


def test_a_directory_that_left_is_watched_no_more_until_it_is_back(watched: Watched) -> None:
    root = watched.root
    (root / "a" / "b").mkdir(parents=True)
    watched.take_all()
    (root / "a").rename(root.parent / "away")
    assert watched.take_all() is not None
    until(lambda: watched.watch.state().directories == 3 or len(_tree(watched)) == 1)
    assert len(_tree(watched)) == 1
    (root.parent / "away" / "b" / "f").write_text("nobody's business")
    assert watched.take_all() is None
    (root.parent / "away").rename(root / "again")
    assert watched.take_all() is not None
    (root / "again" / "b" / "f").write_text("seen")
    watched.catch_up()
    assert watched.pending() == [(b"again/b/f", False)]


def _tree(watched: Watched) -> dict[int, object]:
    inner = watched.watch._watched
    assert inner is not None
    return dict(inner.tree.by_wd)


def test_editors_save_by_rename(watched: Watched) -> None:
    root = watched.root
    (root / "text").write_text("one")
    watched.take_all()
    before = watched.snapshot()
    for number in range(20):
        swap = root / ".text.swp"
        swap.write_text(f"version {number}")
        (root / "text").rename(root / "text~")
        swap.rename(root / "text")
    batch = watched.check(before)
    assert batch is not None
    assert {path for path, _ in batch.paths} == {b"text", b"text~", b".text.swp"}


def test_a_git_checkout(watched: Watched) -> None:
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    root = watched.root

    def run(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run([git, *who, "-C", root, *words], check=True, capture_output=True)

    run("init", "-b", "main", ".")
    for number in range(40):
        (root / f"d{number % 7}").mkdir(exist_ok=True)
        (root / f"d{number % 7}" / f"f{number}").write_text("one")
    run("add", "-A")
    run("commit", "-m", "one")
    run("checkout", "-b", "other")
    shutil.rmtree(root / "d1")
    (root / "d2").rename(root / "e2")
    (root / "new" / "deep").mkdir(parents=True)
    (root / "new" / "deep" / "f").write_text("two")
    run("add", "-A")
    run("commit", "-m", "two")
    watched.take_all()
    for branch in ("main", "other", "main"):
        before = watched.snapshot()
        run("checkout", branch)
        watched.check(before)


def test_unpacking_an_archive_and_removing_all_of_it(watched: Watched, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(300):
        place = source / f"a{number % 10}" / f"b{number % 30}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"f{number}").write_text("x" * number)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(source, "tree")
    before = watched.snapshot()
    with tarfile.open(tmp_path / "all.tar") as archive:
        archive.extractall(watched.root, filter="tar")
    watched.check(before)
    before = watched.snapshot()
    shutil.rmtree(watched.root / "tree")
    batch = watched.check(before)
    assert batch is not None
    assert (b"tree", True) in batch.paths
    assert watched.watch.state().directories == 1 or len(_tree(watched)) == 1


def test_making_and_filling_directories_in_one_go_misses_nothing(watched: Watched) -> None:
    """The race between mkdir and the watch, tried by three writers and renames in between."""

    def write(worker: int) -> None:
        dice = random.Random(worker)
        for turn in range(60):
            place = watched.root / f"w{worker}" / f"d{turn}" / "x" / "y"
            place.mkdir(parents=True)
            (place / "f").write_text("1")
            (place / "z").mkdir()
            if dice.random() < 0.5:
                up = watched.root / f"w{worker}" / f"d{turn}"
                up.rename(up.with_name(f"e{turn}"))
                place = watched.root / f"w{worker}" / f"e{turn}" / "x" / "y"
            (place / "z" / "g").write_text("2")

    before = watched.snapshot()
    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    watched.check(before)
    # All of it is watched by now, wherever it went.
    before = watched.snapshot()
    for file in list(watched.root.rglob("f")) + list(watched.root.rglob("g")):
        file.write_text("changed later")
    batch = watched.check(before)
    assert batch is not None
    assert len(batch.paths) == 360


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_is_made_around_the_moment_of_a_watch_is_watched(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The same race at its narrowest."""
    raced = watched.root / "d" / "raced"
    watch = WatchedTree.watch

    def make_around(tree: WatchedTree, node: Node, fd: int) -> None:
        if node.name == b"d" and moment == "before":
            raced.mkdir(exist_ok=True)
        watch(tree, node, fd)
        if node.name == b"d" and moment == "after":
            raced.mkdir(exist_ok=True)

    monkeypatch.setattr(WatchedTree, "watch", make_around)
    (watched.root / "d").mkdir()
    watched.take_all()
    watched.take_all()
    (raced / "f").write_text("x")
    watched.catch_up()
    assert watched.pending() == [(b"d/raced/f", False)]


def test_random_changes_are_all_pending(watched: Watched) -> None:
    dice = random.Random(7)
    root = watched.root
    for _ in range(6):
        before = watched.snapshot()
        for _ in range(200):
            _change(dice, root)
        watched.check(before)
    # What the watch believes to be there is there.
    wanted = {bytes(p.relative_to(root)) for p in root.rglob("*") if p.is_dir()} | {b""}
    inner = watched.watch._watched
    assert inner is not None
    assert {b"" if n is inner.tree.root else n.path for n in inner.tree.by_wd.values()} == {
        b"" if path == b"." else path for path in wanted
    }


def _change(dice: random.Random, root: Path) -> None:
    places = [root, *(path for path in root.rglob("*") if path.is_dir())]
    entries = list(root.rglob("*"))
    place = dice.choice(places) / f"n{dice.randrange(12)}"
    kind = dice.choice(("write", "write", "mkdir", "rename", "rename", "remove", "chmod"))
    try:
        if kind == "write":
            place.write_text(str(dice.random()))
        elif kind == "mkdir":
            place.mkdir()
        elif kind == "rename" and entries:
            dice.choice(entries).rename(place)
        elif kind == "remove" and entries:
            victim = dice.choice(entries)
            shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
        elif kind == "chmod" and entries:
            dice.choice(entries).chmod(dice.choice((0o700, 0o750, 0o755)))
    except OSError:
        pass  # a directory into itself, a file over a directory: that is no change


def test_a_file_that_is_written_all_the_time_goes_now_and_then(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.watching.settling.CAP_S", 0.3)
    stop = threading.Event()

    def write() -> None:
        with (watched.root / "database").open("wb", buffering=0) as file:
            while not stop.wait(0.005):
                file.write(b"x")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2):
            until(lambda: watched.take() is not None)
            batch = watched.take()
            assert batch is not None
            assert [path for path, _ in batch.paths] == [b"database"]
            watched.watch.journal.done(batch)
    finally:
        stop.set()
        writer.join()


def test_only_what_a_top_covers_is_watched(fresh: Watched) -> None:
    root = fresh.root
    (root / "in" / "side" / "a").mkdir(parents=True)
    (root / "out" / "b").mkdir(parents=True)
    fresh.start(Consumer("job", "t", b"in/side"))
    fresh.take_all()
    assert {node.path for node in _tree(fresh).values()} == {b"", b"in", b"in/side", b"in/side/a"}  # type: ignore[attr-defined]
    (root / "out" / "b" / "f").write_text("x")
    (root / "in" / "beside").write_text("x")
    assert fresh.take_all() is None
    (root / "in" / "side" / "a" / "f").write_text("x")
    fresh.catch_up()
    assert fresh.pending() == [(b"a/f", False)]
    (root / "in").rename(root / "other")
    batch = fresh.take_all()
    assert batch is not None
    assert batch.everything is not None
    (root / "in" / "side").mkdir(parents=True)
    (root / "in" / "side" / "new").write_text("x")
    batch = fresh.take_all()
    assert batch is not None
    assert batch.everything is not None
    (root / "in" / "side" / "new").write_text("y")
    fresh.catch_up()
    assert fresh.pending() == [(b"new", False)]


def test_another_consumer_with_another_top_widens_what_is_watched(fresh: Watched) -> None:
    root = fresh.root
    (root / "one").mkdir()
    (root / "two").mkdir()
    fresh.start(Consumer("job", "t", b"one"))
    fresh.take_all()
    until(lambda: _rests(fresh))
    other = Consumer("other", "t", b"two")
    fresh.watch.register(other)
    until(lambda: fresh.watch.is_ready(other))
    batch = fresh.watch.journal.pending(other)
    assert batch is not None
    fresh.watch.journal.done(batch)
    assert fresh.take_all() is None, "who was there before has nothing to do"
    (root / "two" / "f").write_text("x")
    fresh.catch_up()
    assert fresh.watch.journal.has_pending(other)
    assert fresh.pending() == []


def test_after_a_stop_a_stat_scan_finds_what_changed_meanwhile(watched: Watched) -> None:
    root = watched.root
    for number in range(50):
        (root / f"d{number % 5}").mkdir(exist_ok=True)
        (root / f"d{number % 5}" / f"f{number}").write_text("x")
    watched.take_all()
    until(lambda: _rests(watched))
    watched.watch.stop()
    before = watched.snapshot()
    (root / "d1" / "f1").write_text("edited while nobody looked")
    (root / "d2").rename(root / "e2")
    shutil.rmtree(root / "d3")
    (root / "d4" / "new").mkdir()
    (root / "d4" / "new" / "f").write_text("x")
    (root / "d0").chmod(0o700)
    watched.restart()
    batch = watched.check(before)
    assert batch is not None
    assert batch.everything is None
    assert {path for path, _ in batch.paths} >= {b"d0", b"d1/f1", b"d2", b"d3", b"d4/new", b"e2"}
    assert not {path for path, _ in batch.paths} & {b"d0/f0", b"d1/f6", b"d4/f4"}


def test_what_comes_and_is_told_and_goes_while_nobody_looks_is_missed(watched: Watched) -> None:
    (watched.root / "d").mkdir()
    watched.take_all()
    (watched.root / "d" / "f").write_text("told at once, long before the index takes it up")
    assert watched.take_all() is not None
    before = watched.snapshot()
    watched.watch.stop()
    (watched.root / "d" / "f").unlink()
    watched.restart()
    assert watched.check(before) is not None


def test_after_a_stop_without_changes_nothing_is_pending(watched: Watched) -> None:
    (watched.root / "d").mkdir()
    (watched.root / "d" / "f").write_text("x")
    watched.take_all()
    until(lambda: _rests(watched))
    watched.watch.stop()
    watched.restart()
    assert watched.take_all() is None


def _rests(watched: Watched) -> bool:
    """Whether the index has taken up everything that changed."""
    inner = watched.watch._watched
    return inner is not None and not inner.events.changed


def test_what_is_pending_and_not_done_survives(watched: Watched) -> None:
    (watched.root / "f").write_text("x")
    watched.catch_up()
    assert watched.pending() == [(b"f", False)]
    watched.watch.stop()
    watched.restart()
    assert (b"f", False) in watched.pending()
    assert watched.watch.state().phase is WatchPhase.WATCHING
