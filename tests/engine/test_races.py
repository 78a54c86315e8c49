"""I14, A3 and A4: a local racer swaps a directory for a symlink, as fast as it can."""

# Bytes, descriptors and bare system calls are what is tested.

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from syncengine.errors import TreeError
from syncengine.model import RunOptions, Safety
from tests.engine.trees import FAST, T0, Pair, grow, picture

RACE_S = 1.2

FLIPPER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDONLY)
sys.stdout.write("go"); sys.stdout.flush()
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1000):
        libc.renameat2(fd, b"d", fd, b"ln", 2)
"""


@contextmanager
def flipping(folder: Path) -> Iterator[None]:
    """Let `d` and `ln` in a folder change places in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", FLIPPER, folder], stdout=subprocess.PIPE
    ) as flipper:
        try:
            assert flipper.stdout is not None
            assert flipper.stdout.read(2) == b"go"
            yield
        finally:
            flipper.kill()


def racing() -> Iterator[int]:
    deadline = time.monotonic() + RACE_S
    turn = 0
    while time.monotonic() < deadline:
        turn += 1
        yield turn


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    grow(tmp_path / "outside", {"f1": b"secret", "f2": b"secret", "e/g": b"secret", "old": b"s"})
    return tmp_path / "outside"


@pytest.mark.parametrize("trash_s", [None, 86_400])
def test_i14_a3_a_racer_at_the_target_leads_nothing_outside(
    pair: Pair, outside: Path, trash_s: int | None
) -> None:
    pair.options = RunOptions(durability=FAST.durability, safety=Safety(trash_s=trash_s))
    grow(pair.target, {"d/f1": b"old", "d/old": b"old", "d/e/g": b"old"})
    (pair.target / "ln").symlink_to("../outside")
    before = picture(outside)
    with flipping(pair.target):
        for turn in racing():
            spec = {f"d/f{n}": b"%d" % (turn * n) for n in range(1, 8)}
            grow(pair.source, {**spec, "d/e/g": b"%d" % turn, "ln": "../outside"}, T0 + turn)
            os.chmod(pair.source / "d", 0o700 + turn % 8)
            os.chmod(pair.source / "d/f1", 0o600 + turn % 64)
            if turn % 3 == 0:
                (pair.source / "d/f3").unlink()
            pair.run()
    assert picture(outside) == before


def test_i14_a4_a_racer_at_the_source_shows_nothing_from_outside(pair: Pair, outside: Path) -> None:
    pair.options = FAST
    grow(pair.source, {f"d/f{n}": b"mine" for n in range(1, 8)})
    grow(pair.source, {"d/e/g": b"mine", "d/f2": b"m" * 300_000})
    (pair.source / "ln").symlink_to("../outside")
    copied = 0
    with flipping(pair.source):
        for turn in racing():
            for name in ("f1", "f4"):
                # What is touched is sent again, racer or not.
                for place in ("d", "ln"):
                    try:
                        fd = os.open(pair.source / place, os.O_RDONLY | os.O_NOFOLLOW)
                    except OSError:
                        continue
                    os.utime(name, ns=(T0, T0 + turn), dir_fd=fd)
                    os.close(fd)
            copied += pair.run().counts.files_copied
    assert copied > 10, "the racer kept us from doing anything at all"
    stolen = [
        path
        for base in (pair.target, pair.target / ".baton")
        for path in base.rglob("*")
        if path.is_file() and not path.is_symlink() and b"secret" in path.read_bytes()
    ]
    assert stolen == []


def test_a3_the_racer_wins_against_a_naive_build(tmp_path: Path, outside: Path) -> None:
    """Seeds the two tests above: resolving paths as strings loses this race within a moment."""
    root = tmp_path / "root"
    grow(root, {"d/f1": b"mine"})
    (root / "ln").symlink_to("../outside")
    deadline = time.monotonic() + 20
    with flipping(root):
        while (root / "d" / "f1").read_bytes() != b"secret":
            assert time.monotonic() < deadline
    assert outside.exists()


def test_i14_a5_a_root_that_is_swapped_is_not_followed(tmp_path: Path) -> None:
    grow(tmp_path / "source", {"a": b"x"})
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "root").symlink_to(outside)
    if os.geteuid() == 0:
        os.chown(tmp_path / "root", 12_345, 12_345, follow_symlinks=False)
        with pytest.raises(TreeError, match="12345"):
            Pair(tmp_path / "source", tmp_path / "root").run()
        assert os.listdir(outside) == []
        os.chown(tmp_path / "root", 0, 0, follow_symlinks=False)
    # A link of the operator's own is his word.
    Pair(tmp_path / "source", tmp_path / "root").run()
    assert (outside / "a").read_bytes() == b"x"
