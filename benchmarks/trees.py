"""The trees that are copied: the same bytes for the same specification, in every run.

Contents do not compress, and no two files are equal.
"""

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import WrongCopy

_BLOCK_BYTES = 4 << 20
_SEED = 20_260_101
_NOT_COPIED = (".baton", ".stfolder")


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree by what it consists of."""

    files: int
    smallest_bytes: int
    largest_bytes: int
    per_directory: int = 100

    def __str__(self) -> str:
        if self.files == 1:
            return f"one file of {self.largest_bytes / (1 << 20):,.0f} MiB"
        if self.largest_bytes == 0:
            return f"{self.files:,} empty files, {self.per_directory:,} to a directory"
        total_mb = self.files * (self.smallest_bytes + self.largest_bytes) / 2e6
        return (
            f"{self.files:,} files of {self.smallest_bytes:,} to {self.largest_bytes:,} bytes"
            f" ({total_mb:,.0f} MB), {self.per_directory:,} to a directory"
        )

    def make(self, top: Path) -> None:
        """Write it; `top` must not exist. Blocks on the disk."""
        chance = random.Random(_SEED)
        block = chance.randbytes(_BLOCK_BYTES)
        top.mkdir(parents=True)
        directory = top
        for number in range(self.files):
            if number % self.per_directory == 0:
                directory = top / f"d{number // self.per_directory:05}"
                directory.mkdir()
            size = chance.randint(self.smallest_bytes, self.largest_bytes)
            with (directory / f"f{number:07}").open("wb") as file:
                for part in _content(number, size, block):
                    file.write(part)


def _content(number: int, size: int, block: bytes) -> Iterator[bytes]:
    """Yield `size` bytes: a number that makes them unique, then random ones."""
    at = number * 7_919 % (_BLOCK_BYTES // 2)
    head = (b"%016x" % number)[:size]
    yield head
    left = size - len(head)
    while left > 0:
        part = block[at : at + left]
        yield part
        left -= len(part)
        at = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What a walk over a tree found."""

    files: int
    size: int


def count(top: Path) -> Found:
    """Count the regular files below `top`, and their bytes, what sides keep for themselves left out."""
    files = size = 0
    waiting = [top]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith(_NOT_COPIED):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    files += 1
                    size += entry.stat(follow_symlinks=False).st_size
    return Found(files, size)


def require_equal(source: Path, target: Path, *, by: str) -> None:
    """Raise WrongCopy unless both trees have as many files and bytes."""
    wanted, found = count(source), count(target)
    if wanted != found:
        raise WrongCopy(f"{by} left {found} at {target} instead of {wanted}")


def remove(top: Path) -> None:
    """Remove a tree, if it is there."""
    if top.exists():
        shutil.rmtree(top)
