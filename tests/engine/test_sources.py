"""Sources that change, vanish or cannot be read while they are sent."""

# Bytes, descriptors and bare system calls are what is tested.

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncengine.errors import PushAborted
from syncengine.model import What
from syncengine.scan import scan_is_complete
from syncengine.sender import Sender
from syncengine.tree import Tree
from tests.engine.nobody_child import NOBODY
from tests.engine.trees import T0, Pair, grow, picture


def test_a_file_that_changed_after_the_scan_arrives_as_it_is_now(pair: Pair) -> None:
    grow(pair.source, {"a": b"scanned", "big": b"b" * 300_000, "grows": b""})
    pair.run(before_push=lambda: grow(pair.source, {"a": b"now", "grows": b"g" * 400_000}, T0 + 5))
    assert (pair.target / "a").read_bytes() == b"now"
    assert (pair.target / "grows").stat().st_mtime_ns == T0 + 5
    assert pair.run().counts.files_copied == 0, "but the directory's own time was the scan's"
    pair.check_equal()


def test_a_file_that_vanished_is_no_error_and_costs_nothing_at_the_target(pair: Pair) -> None:
    grow(pair.source, {"a": b"new", "d/b": b"new", "c": b"new"}, T0 + 1)
    grow(pair.target, {"a": b"old", "d/b": b"old"})

    def vanish() -> None:
        (pair.source / "a").unlink()
        shutil.rmtree(pair.source / "d")

    result = pair.run(before_push=vanish)
    assert result.problems == []
    assert result.counts.files_copied == 1
    assert (pair.target / "a").read_bytes() == (pair.target / "d/b").read_bytes() == b"old"


def test_nothing_makes_way_for_what_vanished(pair: Pair) -> None:
    grow(pair.source, {"a": b"file"})
    grow(pair.target, {"a/kept": b"old"})
    result = pair.run(before_push=(pair.source / "a").unlink)
    assert result.problems == []
    assert (pair.target / "a/kept").read_bytes() == b"old"


@pytest.mark.parametrize("size", [20_000, 3_000_000])
def test_a_file_that_keeps_changing_is_unstable_and_never_half_published(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    grow(pair.source, {"a": b"\0" * size, "b": b"calm"}, T0 + 1)
    grow(pair.target, {"a": b"old"})
    real = os.read

    def disturbed(fd: int, length: int) -> bytes:
        data = real(fd, length)
        if os.readlink(f"/proc/self/fd/{fd}") == str(pair.source / "a"):
            with (pair.source / "a").open("r+b") as file:
                file.write(os.urandom(8))
        return data

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", disturbed)
        result = pair.run()
    assert [(p.path, p.what, p.member) for p in result.problems] == [(b"a", What.UNSTABLE, "s")]
    assert (pair.target / "a").read_bytes() == b"old"
    assert (pair.target / "b").read_bytes() == b"calm"
    assert pair.run().problems == []
    pair.check_equal()


@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_a_file_that_became_something_else_is_not_followed_and_does_not_hang(
    pair: Pair, kind: str
) -> None:
    grow(pair.source, {"a": b"scanned"}, T0 + 1)
    grow(pair.target, {"a": b"old"})

    def become() -> None:
        path = pair.source / "a"
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to("/etc/passwd")
        else:
            path.mkdir()

    result = pair.run(before_push=become)
    assert [p.path for p in result.problems] == [b"a"]
    assert (pair.target / "a").read_bytes() == b"old"


def test_an_aborted_sender_stops(pair: Pair) -> None:
    grow(pair.source, {"a": b"x" * 500_000})
    with (
        Tree.open(os.fsencode(pair.source), read_only=True) as source,
        Tree.open(os.fsencode(pair.target), read_only=True) as target,
        pair.plan(source, target) as plan,
    ):
        sender = Sender(source, plan, member="s", frame_bytes=100_000)
        frames = sender.frames()
        next(frames)
        sender.abort()
        with pytest.raises(PushAborted):
            next(frames)
        assert not sender.result().is_complete


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody can enter: pytest's own are for their owner alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def run_as_nobody(
    source: Path, target: Path, *, own: bool = True, full: bool = False
) -> dict[str, list[list[str]]]:
    """Mirror in a process without privileges (in one like ours when we have none)."""
    if own and os.geteuid() == 0:
        for folder, _, files in os.walk(target):
            os.chown(folder, NOBODY, NOBODY)
            for name in files:
                os.lchown(Path(folder, name), NOBODY, NOBODY)
    child = subprocess.run(
        [sys.executable, "-m", "tests.engine.nobody_child", source, target, "full" if full else ""],
        check=True,
        capture_output=True,
        timeout=90,
    )
    answer: dict[str, list[list[str]]] = json.loads(child.stdout)
    return answer


def test_i8_an_unreadable_file_is_named_and_then_nothing_is_deleted(public: Path) -> None:
    source, target = public / "source", public / "target"
    grow(source, {"secret": b"x", "open": b"y", "kind": b"z"})
    grow(target, {"extra": b"kept", "kind/dir": b"kept"})
    (source / "secret").chmod(0)
    (source / "kind").chmod(0)
    answer = run_as_nobody(source, target)
    assert sorted(answer["push"]) == [
        ["", "skipped"],
        ["kind", "unreadable"],
        ["secret", "unreadable"],
    ]
    assert (target / "open").read_bytes() == b"y"
    assert (target / "extra").read_bytes() == (target / "kind/dir").read_bytes() == b"kept"


def test_i8_an_unreadable_directory_makes_the_scan_incomplete(public: Path) -> None:
    source, target = public / "source", public / "target"
    grow(source, {"closed/in": b"x", "open": b"y"})
    grow(target, {"closed/in": b"kept", "closed/more": b"kept", "extra/x": b"kept", "open/z": b""})
    before = {k: v for k, v in picture(target).items() if k != b"open"}
    (source / "closed").chmod(0o311)
    answer = run_as_nobody(source, target)
    assert ["closed", "unreadable"] in answer["scan"]
    assert answer["plan"] == [["", "skipped"]]
    assert (target / "extra/x").read_bytes() == b"kept"
    assert (target / "closed/more").read_bytes() == b"kept"
    assert (target / "open/z").exists(), "what would have to make way for a file stays too"
    assert before.keys() <= picture(target).keys()


def test_what_cannot_be_written_is_named_and_the_rest_goes_on(public: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make what nobody cannot write")
    source, target = public / "source", public / "target"
    grow(source, {"closed/new": b"x", "open": b"y", "own": b"z"})
    grow(target, {"extra": b"kept"})
    (target / "closed").mkdir()
    answer = run_as_nobody(source, target)
    assert answer["push"] == []
    (source / "closed/new2").write_bytes(b"x")
    grow(target, {"extra": b"kept"})
    os.chown(target / "closed", 0, 0)
    os.chown(target / "own", 0, 0)
    os.utime(source / "own", ns=(T0, T0 + 9))
    answer = run_as_nobody(source, target, own=False)
    assert ["closed/new2", "not-written"] in answer["push"]
    assert (target / "own").read_bytes() == b"z", "a stranger's file in a directory of ours"
    assert (target / "extra").read_bytes() == b"kept", "no deletes after what was not written"


def test_directories_that_their_owner_may_not_write_in_are_kept_up_all_the_same(
    public: Path,
) -> None:
    """A worker that is not root has no way around modes."""
    source, target = public / "source", public / "target"
    grow(source, {"ro/a": b"1", "ro/sub/b": b"2"})
    grow(target, {})
    for mode in (0o755, 0o555):
        (source / "ro/sub").chmod(mode)
        (source / "ro").chmod(mode)
    assert run_as_nobody(source, target)["push"] == []
    assert picture(target) == picture(source)
    (source / "ro").chmod(0o755)
    (source / "ro/sub").chmod(0o755)
    grow(source, {"ro/new": b"3", "ro/a": b"other", "ro/sub/c": b"4"}, T0 + 1)
    (source / "ro/sub/b").unlink()
    (source / "ro/sub").chmod(0o555)
    (source / "ro").chmod(0o555)
    assert run_as_nobody(source, target)["push"] == []
    assert picture(target) == picture(source)


def test_scan_completeness_is_a_matter_of_what_was_unreadable(pair: Pair) -> None:
    assert scan_is_complete([])


def test_without_privileges_everything_on_makes_no_noise(public: Path) -> None:
    """A job's defaults, for a user whose files are his own."""
    source, target = public / "source", public / "target"
    grow(source, {"a": b"x", "d/b": b"y", "l": "to", "big": b"z" * 200_000})
    target.mkdir()
    os.setxattr(source / "a", "user.x", b"1")
    os.link(source / "a", source / "d/a2")
    os.mkfifo(source / "pipe")
    (source / "d").chmod(0o500)
    if os.geteuid() == 0:
        for name in ("", "a", "d", "d/b", "l", "big", "pipe"):
            os.lchown(source / name, NOBODY, NOBODY)
    for updated in ("1", "0"):
        answer = run_as_nobody(source, target, full=True)
        assert answer["scan"] == answer["plan"] == answer["push"] == []
        assert answer["updated"] == [[updated]], "the link is one, the first time"
    assert picture(target) == picture(source)
    assert os.getxattr(target / "a", "user.x") == b"1"
    assert (target / "a").stat().st_ino == (target / "d/a2").stat().st_ino


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of other users: needs root")
def test_without_privileges_what_cannot_be_given_is_said_once(public: Path) -> None:
    source, target = public / "source", public / "target"
    grow(source, {"a": b"x", "b": b"y", "null": b""})
    (source / "null").unlink()
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chown(source / "a", 1, 1)
    os.chown(source / "b", 2, 2)
    target.mkdir()
    answer = run_as_nobody(source, target, full=True)
    assert sorted(answer["push"]) == [["a", "not-kept"], ["null", "not-supported"]]
    answer = run_as_nobody(source, target, full=True)
    assert answer["push"] == [["null", "not-supported"]]
    assert answer["updated"] == [["0"]]
