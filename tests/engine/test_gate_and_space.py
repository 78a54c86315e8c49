"""Who may publish, and what happens when the disk is full."""

# Bytes, descriptors and bare system calls are what is tested.

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from syncengine.errors import Fenced
from syncengine.model import RunOptions, Safety, What
from syncengine.publish import SLICE
from tests.engine.trees import FAST, T0, Pair, Spec, grow, picture, temporaries, trashed


class FencingGate:
    """Lets some slices through, then none ever again; counts what each slice did."""

    def __init__(self, root: Path, slices: int) -> None:
        self.root = root
        self.left = slices
        self.sizes: list[int] = []

    @contextmanager
    def publishing(self) -> Iterator[None]:
        if self.left == 0:
            raise Fenced("token 7 is older than 8")
        self.left -= 1
        before = self._visible()
        yield
        self.sizes.append(len(before ^ self._visible()))

    def _visible(self) -> set[str]:
        return {n for n in os.listdir(self.root) if not n.startswith(".baton")}


def test_i4_nothing_is_published_after_the_gate_has_closed(pair: Pair) -> None:
    grow(pair.source, {f"f{n:03}": b"x" for n in range(300)})
    pair.gate = FencingGate(pair.target, 0)
    with pytest.raises(Fenced):
        pair.run()
    assert os.listdir(pair.target) == []


@pytest.mark.parametrize("slices", [1, 3])
def test_i4_a_gate_that_closes_midway_stops_at_the_slice(pair: Pair, slices: int) -> None:
    grow(pair.source, {f"f{n:03}": b"x" for n in range(300)})
    grow(pair.target, {f"g{n:03}": b"x" for n in range(10)})
    pair.gate = gate = FencingGate(pair.target, slices)
    with pytest.raises(Fenced):
        pair.run()
    assert gate.sizes == [SLICE] * slices
    assert len(os.listdir(pair.target)) == 10 + SLICE * slices
    assert temporaries(pair.target) == []
    pair.gate = FencingGate(pair.target, 10_000)
    pair.run()
    pair.check_equal()


def test_i4_deletes_and_metadata_pass_the_gate_too(pair: Pair) -> None:
    grow(pair.source, {"a": b"same"})
    grow(pair.target, {"a": b"same", "extra": b"x"})
    os.chmod(pair.source / "a", 0o600)
    os.chmod(pair.source, 0o711)
    before = picture(pair.target)
    for let_through in range(3):
        pair.gate = FencingGate(pair.target, let_through)
        with pytest.raises(Fenced):
            pair.run()
        if let_through == 0:
            assert picture(pair.target) == before
        grow(pair.target, {"a": b"same", "extra": b"x"})
        os.chmod(pair.target / "a", 0o644)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    place = tmp_path / "disk"
    place.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount here: {error}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.root
@pytest.mark.parametrize("size", [100_000, 6_000_000, 1_000])
def test_a_full_disk_is_named_and_leaves_no_junk(pair: Pair, small_disk: Path, size: int) -> None:
    pair.target = small_disk
    grow(pair.target, {"a000": b"old", "extra": b"kept"})
    number = 6_000_000 // size if size > 1_000 else 6_000
    grow(pair.source, {f"a{n:03}": os.urandom(size) for n in range(number)}, T0 + 1)
    result = pair.run()
    assert not result.is_complete
    full = [p for p in result.problems if p.what is What.NO_SPACE]
    assert len(full) == 1
    numbers = re.fullmatch(r"(\d+) bytes still to be written, (\d+) free", full[0].detail)
    assert numbers is not None
    assert int(numbers[1]) == 6_000_000 - result.counts.bytes_copied
    assert (pair.target / "extra").read_bytes() == b"kept"
    assert temporaries(pair.target) == []
    for name in os.listdir(pair.target):
        if name.startswith("a") and name != "a000":
            assert (pair.target / name).read_bytes() == (pair.source / name).read_bytes()
    # Room is made: the rest arrives.
    for path in pair.source.iterdir():
        if path.name > "a010":
            path.unlink()
    with contextlib.suppress(FileNotFoundError):
        os.truncate(pair.source / "a000", 1_000)
    pair.options = RunOptions(safety=Safety(trash_s=None, max_delete=None))
    assert pair.run().counts.files_deleted > 0
    pair.run()
    pair.check_equal()


@pytest.mark.root
def test_a_file_system_below_the_root_is_written_but_has_no_trash_of_its_own(
    pair: Pair, small_disk: Path
) -> None:
    """A rename cannot cross into the root's trash, so what lies there is not deleted."""
    pair.target = small_disk.parent
    (pair.source / "inner").mkdir()
    pair.target = small_disk.parent / "outer"
    (pair.target / "disk").mkdir(parents=True)
    subprocess.run(["mount", "--bind", small_disk, pair.target / "disk"], check=True)
    try:
        grow(pair.target / "disk", {"extra": b"kept"})
        grow(pair.source, {"disk/new": b"x", "disk/sub/new": b"y"})
        (pair.source / "inner").rmdir()
        result = pair.run()
        assert (pair.target / "disk/sub/new").read_bytes() == b"y"
        assert [(p.path, p.what) for p in result.problems] == [(b"disk/extra", What.NOT_WRITTEN)]
        assert (pair.target / "disk/extra").read_bytes() == b"kept"
    finally:
        subprocess.run(["umount", pair.target / "disk"], check=True)


def test_batches_are_published_one_after_another(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went out before an abort stays: it will not be sent again."""
    from syncengine import receiver

    monkeypatch.setattr(receiver, "BATCH_FILES", 10)
    pair.options = FAST
    spec: Spec = {f"d{n}/{m}": b"x" * 1_000 for n in range(10) for m in range(7)}
    grow(pair.source, spec)

    class Broken(Exception):
        pass

    def cut(number: int) -> None:
        if number == 5:
            raise Broken

    with pytest.raises(Broken):
        pair.run(between=cut, frame_bytes=8_000)
    arrived = [p for p in pair.target.rglob("*") if p.is_file()]
    assert 20 <= len(arrived) < 70
    assert temporaries(pair.target) == []
    assert pair.run().counts.files_copied == 70 - len(arrived)
    pair.check_equal()


def test_a_large_file_is_not_revealed_by_halves_with_its_directory(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I1: it lies under its final name in a hidden directory while batches come and go."""
    from syncengine import receiver

    monkeypatch.setattr(receiver, "BATCH_FILES", 2)
    monkeypatch.setattr(receiver, "BATCH_BYTES", 1_000)
    pair.options = FAST
    grow(pair.source, {"d/a": b"1", "d/big": b"b" * 1_000_000, "d/c": b"3", "d/e/f": b"4"})

    def look(_number: int) -> None:
        for path in pair.target.rglob("*"):
            if path.is_file() and ".baton" not in str(path.relative_to(pair.target)):
                source = pair.source / path.relative_to(pair.target)
                assert path.read_bytes() == source.read_bytes()

    pair.run(between=look, frame_bytes=50_000)
    pair.check_equal()
    assert trashed(pair.target) == {}
