"""What arrived of a large file is not sent again, whatever ended the push; and it never lies about."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from syncengine import partials
from syncengine.chunk_index import ChunkIndex
from syncengine.model import Often
from syncengine.scope import Scope
from syncengine.sender import SendResult
from tests.engine.trees import FAST, T0, Pair, grow, temporaries

MIB = 1024 * 1024


class Broken(Exception):
    """The link broke."""


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def kept(pair: Pair) -> list[Path]:
    """The partial content at the target, logs aside."""
    folder = pair.target / ".baton" / "partial"
    return sorted(p for p in folder.glob("*") if not p.name.endswith(".log"))


def arrived(pair: Pair) -> int:
    return sum(path.stat().st_blocks * 512 for path in kept(pair))


def break_off(pair: Pair, bytes_: int) -> None:
    """Push until about so much lies at the target, and break the link."""

    before = arrived(pair)

    def between(_: int) -> None:
        if arrived(pair) >= before + bytes_:
            raise Broken

    with pytest.raises(Broken):
        pair.run(between=between)


def killed(pair: Pair, bytes_: int) -> None:
    """Push in a process of its own that is killed on the way."""

    before = arrived(pair)

    def between(_: int) -> None:
        if arrived(pair) >= before + bytes_:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            pair.run(between=between)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def go_on(pair: Pair) -> SendResult:
    result = pair.run()
    assert result.is_complete
    assert result.problems == []
    assert result.retry == []
    pair.check_equal()
    assert kept(pair) == []
    return result


@pytest.fixture
def large(pair: Pair) -> Iterator[Pair]:
    pair.options = replace(FAST, compression=Often.OFF)
    grow(pair.source, {"new/deep/f": noise(24 * MIB), "small": b"s"}, T0)
    yield pair
    assert temporaries(pair.target) == []


@pytest.mark.parametrize("end", [break_off, killed])
@pytest.mark.parametrize("delta", [Often.AUTO, Often.OFF, Often.ON])
def test_only_the_rest_of_a_new_file_is_sent(
    large: Pair, end: Callable[[Pair, int], None], delta: Often
) -> None:
    large.options = replace(large.options, delta=delta)
    end(large, 16 * MIB)
    assert len(kept(large)) == 1
    assert go_on(large).counts.bytes_sent < 10 * MIB


def test_it_gets_there_however_often_it_is_interrupted(large: Pair) -> None:
    for _ in range(5):
        killed(large, 4 * MIB)
    assert go_on(large).counts.bytes_sent < 6 * MIB


@pytest.mark.parametrize("end", [break_off, killed])
def test_chunks_that_arrived_of_a_newer_version_are_not_sent_again(
    pair: Pair, end: Callable[[Pair, int], None]
) -> None:
    pair.options = replace(FAST, compression=Often.OFF)
    old = noise(20 * MIB)
    grow(pair.source, {"f": old}, T0)
    go_on(pair)
    grow(pair.source, {"f": old[: 6 * MIB] + noise(16 * MIB, 2) + old[6 * MIB :]}, T0 + 1)
    end(pair, 12 * MIB)
    assert (pair.target / "f").read_bytes() == old
    assert len(kept(pair)) == 1
    # Of 12 MiB that were written 6 came from the older version: 10 of the 16 new ones are missing.
    assert go_on(pair).counts.bytes_sent < 11 * MIB


def test_what_arrived_of_another_version_of_the_source_is_not_used(large: Pair) -> None:
    break_off(large, 16 * MIB)
    grow(large.source, {"new/deep/f": noise(24 * MIB, 3)}, T0 + 1)
    assert go_on(large).counts.bytes_sent > 24 * MIB


def test_content_that_was_damaged_meanwhile_is_found_out(large: Pair) -> None:
    killed(large, 16 * MIB)
    (path,) = kept(large)
    with path.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"damaged")
    result = large.run()
    assert result.retry == [b"new/deep/f"]
    assert not (large.target / "new/deep/f").exists()
    assert kept(large) == []
    go_on(large)


def test_chunks_that_were_damaged_meanwhile_are_sent_again(pair: Pair) -> None:
    pair.options = replace(FAST, compression=Often.OFF)
    old = noise(4 * MIB)
    grow(pair.source, {"f": old}, T0)
    go_on(pair)
    grow(pair.source, {"f": old + noise(16 * MIB, 2)}, T0 + 1)
    killed(pair, 12 * MIB)
    (path,) = kept(pair)
    path.write_bytes(bytes(path.stat().st_size))
    assert go_on(pair).counts.bytes_sent > 16 * MIB


def test_a_small_beginning_is_not_kept(large: Pair) -> None:
    grow(large.source, {"new/deep/f": noise(1_100_000)}, T0)

    def between(_: int) -> None:
        if kept(large):
            raise Broken

    with pytest.raises(Broken):
        large.run(between=between, frame_bytes=64 * 1024)
    assert kept(large) == []


def test_what_is_kept_expires(large: Pair) -> None:
    break_off(large, 16 * MIB)
    (path,) = kept(large)
    old = time.time() - partials.KEEP_S - 60
    os.utime(path, (old, old))
    assert go_on(large).counts.bytes_sent > 24 * MIB


def test_so_much_is_kept_and_no_more(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partials, "MOST", 3)
    pair.options = FAST
    for number in range(6):
        grow(pair.source, {f"f{number}": noise(3 * MIB, number)}, T0)
        pair.scope = Scope(shallow=[b"f%d" % number])
        break_off(pair, 2 * MIB)
        assert len(kept(pair)) <= 3
    assert len(kept(pair)) == 3


def test_nothing_is_kept_when_the_disk_is_full(
    large: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from syncengine.tree import Tree

    monkeypatch.setattr(Tree, "free_bytes", lambda _: 10 * MIB)
    break_off(large, 16 * MIB)
    assert kept(large) == []


def test_a_planted_link_in_place_of_the_partial_is_not_followed(
    large: Pair, tmp_path: Path
) -> None:
    """A6: whoever can write there is told nothing and can make us write nowhere else."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"o" * 8 * MIB)
    break_off(large, 16 * MIB)
    (path,) = kept(large)
    path.unlink()
    path.symlink_to(outside)
    result = large.run()
    assert outside.read_bytes() == b"o" * 8 * MIB
    assert (large.target / "new/deep/f").read_bytes() == noise(24 * MIB) or result.retry


@pytest.mark.parametrize("shape", ["setgid", "plain"])
def test_a_file_inherits_what_its_directory_gives(pair: Pair, shape: str) -> None:
    """A file that lay elsewhere on its way is what it would have been had it been made in place."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a directory of another group")
    pair.options = replace(FAST, keep_mode=True)
    grow(pair.source, {"d/f": noise(3 * MIB), "d/g": b"small"}, T0)
    grow(pair.target, {"d": None})
    os.chown(pair.target / "d", 0, 1234)
    if shape == "setgid":
        os.chmod(pair.target / "d", 0o2755)
    assert pair.run().is_complete
    groups = {(pair.target / "d" / name).stat().st_gid for name in "fg"}
    assert groups == ({1234} if shape == "setgid" else {0})


def test_other_local_files_help_a_resumed_push_too(large: Pair) -> None:
    large.target_index = ChunkIndex(None)
    killed(large, 20 * MIB)
    assert go_on(large).counts.bytes_sent < 6 * MIB
    large.target_index.close()
