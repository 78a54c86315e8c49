"""`delta: inplace`: only what differs is written, and whatever happens the old version can be had."""

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from syncengine import failpoints
from syncengine.chunk_index import ChunkIndex
from syncengine.failpoints import Step
from syncengine.inplace import undo_all
from syncengine.model import Often, Safety
from syncengine.tree import Tree
from tests.engine.trees import FAST, T0, Pair, grow, temporaries, trashed

MIB = 1024 * 1024
OLD = random.Random(1).randbytes(6 * MIB)
NEW = OLD[: 2 * MIB] + b"changed" + OLD[2 * MIB + 7 : 4 * MIB] + b"again" + OLD[4 * MIB + 5 :]


def records(pair: Pair) -> list[Path]:
    return sorted((pair.target / ".baton" / "undo").glob("*"))


@pytest.fixture
def placed(pair: Pair) -> Iterator[Pair]:
    """A pair with one large file at both, changed at the source."""
    pair.options = replace(FAST, delta=Often.INPLACE)
    pair.target_index = ChunkIndex(None)
    grow(pair.source, {"d/f": OLD}, T0)
    assert pair.run().is_complete
    pair.check_equal()
    grow(pair.source, {"d/f": NEW}, T0 + 1)
    yield pair
    pair.target_index.close()
    assert temporaries(pair.target) == []
    assert records(pair) == []


def inode(pair: Pair) -> int:
    return (pair.target / "d/f").stat().st_ino


def test_the_file_stays_the_same_file(placed: Pair) -> None:
    before = inode(placed)
    result = placed.run()
    placed.check_equal()
    assert inode(placed) == before
    assert result.counts.bytes_sent < 200_000
    assert result.counts.files_copied == 1


@pytest.mark.parametrize(
    "content",
    [OLD[: 5 * MIB], OLD + b"more" * 50_000, OLD[: 5 * MIB] + b"other end", OLD[1:]],
    ids=["shorter", "longer", "another end", "shifted"],
)
def test_sizes_change(placed: Pair, content: bytes) -> None:
    before = inode(placed)
    grow(placed.source, {"d/f": content}, T0 + 2)
    os.chmod(placed.source / "d/f", 0o640)
    placed.run()
    placed.check_equal()
    # What is mostly new is a new file: there is nothing to be saved.
    assert (inode(placed) == before) is (content != OLD[1:])


def test_it_goes_on_and_on_with_what_it_remembers(placed: Pair) -> None:
    content = NEW
    for number in range(4):
        content = content[: number * MIB] + b"x" * 9 + content[number * MIB + 9 :]
        grow(placed.source, {"d/f": content}, T0 + 2 + number)
        assert placed.run().counts.bytes_sent < 200_000
        placed.check_equal()


def test_a_file_of_two_names_or_one_to_be_kept_is_replaced(placed: Pair) -> None:
    before = inode(placed)
    os.link(placed.target / "d/f", placed.target.parent / "another name")
    placed.run()
    placed.check_equal()
    assert inode(placed) != before
    assert (placed.target.parent / "another name").read_bytes() == OLD
    placed.options = replace(placed.options, safety=Safety(keep_replaced=True))
    grow(placed.source, {"d/f": OLD}, T0 + 3)
    placed.run()
    placed.check_equal()
    assert NEW in trashed(placed.target).values()


@pytest.mark.parametrize("step", [Step.BEFORE_PATCH, Step.AFTER_PATCH])
@pytest.mark.parametrize("fault", ["kill", "error"])
def test_i1_a_crash_leaves_what_the_record_undoes(placed: Pair, step: Step, fault: str) -> None:
    child = os.fork()
    if not child:
        failpoints.arm(f"{step}:{fault}")
        try:
            placed.run()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if fault == "kill":
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert len(records(placed)) == 1
    if step is Step.AFTER_PATCH and fault == "kill":
        assert (placed.target / "d/f").read_bytes() == NEW
    with Tree.open(os.fsencode(placed.target)) as tree:
        undo_all(tree)
    assert (placed.target / "d/f").read_bytes() == OLD
    assert (placed.target / "d/f").stat().st_mtime_ns == T0
    assert placed.run().is_complete
    placed.check_equal()


@pytest.mark.parametrize("size", [5 * MIB, 7 * MIB])
def test_a_half_written_file_is_brought_back(
    placed: Pair, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    grow(placed.source, {"d/f": (NEW + bytes(2 * MIB))[:size]}, T0 + 2)
    utime = os.utime

    def die(*arguments: object, **named: object) -> None:
        if isinstance(arguments[0], int) and records(placed):
            os.kill(os.getpid(), signal.SIGKILL)
        utime(*arguments, **named)  # type: ignore[arg-type]

    child = os.fork()
    if not child:
        monkeypatch.setattr(os, "utime", die)
        try:
            placed.run()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert (placed.target / "d/f").stat().st_size == size
    assert placed.preview() is not None
    with Tree.open(os.fsencode(placed.target)) as tree:
        undo_all(tree)
    assert (placed.target / "d/f").read_bytes() == OLD
    assert placed.run().is_complete
    placed.check_equal()


def test_a_record_that_is_not_whole_or_not_ours_touches_nothing(placed: Pair) -> None:
    child = os.fork()
    if not child:
        failpoints.arm(f"{Step.AFTER_PATCH}:kill")
        try:
            placed.run()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    (record,) = records(placed)
    whole = record.read_bytes()
    target = placed.target / "d/f"
    target.unlink()
    target.write_bytes(b"somebody else's")
    with Tree.open(os.fsencode(placed.target)) as tree:
        undo_all(tree)
        assert target.read_bytes() == b"somebody else's"
        for damaged in (whole[:-1], whole[:40], b"", whole[:-40] + bytes(40)):
            record.write_bytes(damaged)
            undo_all(tree)
            assert target.read_bytes() == b"somebody else's"
            assert records(placed) == []
    assert placed.run().is_complete
    placed.check_equal()


def test_another_job_of_the_root_leaves_the_record_alone(placed: Pair) -> None:
    child = os.fork()
    if not child:
        failpoints.arm(f"{Step.AFTER_PATCH}:kill")
        try:
            placed.run()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    grow(placed.target, {"e": None})
    with Tree.open(os.fsencode(placed.target), b"e") as other:
        undo_all(other)
    assert len(records(placed)) == 1
    with Tree.open(os.fsencode(placed.target), b"d") as tree:
        undo_all(tree)
    assert (placed.target / "d/f").read_bytes() == OLD
    assert placed.run().is_complete
    placed.check_equal()


def test_i6_a_target_that_changed_is_not_touched(placed: Pair) -> None:
    target = placed.target / "d/f"

    def tamper(number: int) -> None:
        if number == 1:
            with target.open("r+b") as file:
                file.write(b"tampered")

    result = placed.run(between=tamper)
    assert result.retry == [b"d/f"]
    assert target.read_bytes() == b"tampered" + OLD[8:]
    placed.run()
    placed.check_equal()
