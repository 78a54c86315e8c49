"""On a file system that can, the unchanged parts of a new version are shared with the older one."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from syncengine.model import Safety
from syncengine.ranges import copy_range
from tests.engine.trees import FAST, T0, Pair, grow, trashed

MIB = 1024 * 1024
NEEDS = "needs root, mkfs.xfs (Debian: xfsprogs) and a loop device"


def mounted(image: Path, where: Path) -> str | None:
    """Mount a new XFS with reflinks; returns why not."""
    if os.geteuid() != 0 or shutil.which("mkfs.xfs") is None:
        return NEEDS
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    where.mkdir()
    for command in (
        ["mkfs.xfs", "-q", "-m", "reflink=1", str(image)],
        ["mount", "-o", "loop", str(image), str(where)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{NEEDS}: {done.stderr.strip()}"
    return None


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    image, where = tmp_path / "image", tmp_path / "xfs"
    why_not = mounted(image, where)
    if why_not:
        pytest.skip(why_not)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def used(where: Path) -> int:
    os.sync()
    state = os.statvfs(where)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


@pytest.mark.root
def test_unchanged_parts_take_no_room(tmp_path: Path, xfs: Path) -> None:
    options = replace(FAST, safety=Safety(keep_replaced=True))
    pair = Pair(tmp_path / "source", xfs / "target", options)
    grow(pair.target, {})
    content = random.Random(1).randbytes(64 * MIB)
    grow(pair.source, {"f": content}, T0)
    assert pair.run().is_complete
    before = used(xfs)
    middle = 30 * MIB + 12_345
    changed = content[:middle] + b"x" * 100 + content[middle + 100 :]
    grow(pair.source, {"f": changed}, T0 + 1)
    assert pair.run().is_complete
    pair.check_equal()
    assert trashed(pair.target) != {}, "both versions are there"
    assert used(xfs) - before < 4 * MIB


@pytest.mark.root
@pytest.mark.parametrize("shift", [0, 1, 4_096, 5_000])
def test_ranges_are_copied_exactly_whatever_can_be_shared(xfs: Path, shift: int) -> None:
    content = random.Random(2).randbytes(3 * MIB)
    (xfs / "a").write_bytes(content)
    with (xfs / "a").open("rb") as source, (xfs / "b").open("wb") as target:
        for at, length in ((777, 100), (5_000, 2 * MIB + 3), (4_096, 4_096), (2 * MIB, MIB)):
            copy_range((source.fileno(), at), (target.fileno(), at + shift), length)
            target.flush()
            got = (xfs / "b").read_bytes()[at + shift : at + shift + length]
            assert got == content[at : at + length]
