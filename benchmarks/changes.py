"""What happens to a tree between two runs of a case that keeps its copies."""

import os
import random
from pathlib import Path
from typing import Protocol

from benchmarks.errors import WrongCopy
from benchmarks.trees import require_equal

_STEP_S = 1_000
"""By how much times move on, so that whole seconds differ too."""


class Change(Protocol):
    """A change, and how to see that it has arrived."""

    @property
    def says(self) -> str:
        """What is changed, in words."""

    def make(self, tree: Path, number: int) -> None:
        """Change the tree; `number` counts the rounds from 1."""

    def make_at_copy(self, copy: Path, number: int) -> None:
        """Change the copy, for those who bring that back."""

    def undo_at_copy(self, copy: Path) -> None:
        """Let a copy that has followed be as before, for the next one who brings it the change."""

    def check(self, tree: Path, copy: Path, *, by: str) -> None:
        """Raise WrongCopy unless the copy has followed."""


class Nothing:
    """Nothing changes."""

    says = "nothing is changed"

    def make(self, tree: Path, number: int) -> None:
        """Do nothing."""

    def make_at_copy(self, copy: Path, number: int) -> None:
        """Do nothing."""

    def undo_at_copy(self, copy: Path) -> None:
        """Do nothing."""

    def check(self, tree: Path, copy: Path, *, by: str) -> None:
        """Believe it."""


class SomeBytes:
    """A few bytes within the first file, at a place of each round's own."""

    def __init__(self, count: int) -> None:
        """Change so many."""
        self._count = count
        self._at = 0
        self._wanted = b""

    @property
    def says(self) -> str:
        """What is changed, in words."""
        return f"{self._count} bytes in the middle of the file are changed"

    def make(self, tree: Path, number: int) -> None:
        """Write them in place."""
        path = _first_file(tree)
        status = path.stat()
        self._at = random.Random(number).randrange(max(1, status.st_size - self._count))
        self._wanted = random.Random(-number).randbytes(self._count)
        with path.open("r+b") as file:
            file.seek(self._at)
            file.write(self._wanted)
        os.utime(path, (status.st_atime, status.st_mtime + _STEP_S))

    def make_at_copy(self, copy: Path, number: int) -> None:
        """Do nothing."""

    def undo_at_copy(self, copy: Path) -> None:
        """Write others there, and an earlier time."""
        path = _first_file(copy)
        status = path.stat()
        with path.open("r+b") as file:
            file.seek(self._at)
            file.write(bytes(len(self._wanted)))
        os.utime(path, (status.st_atime, status.st_mtime - _STEP_S))

    def check(self, tree: Path, copy: Path, *, by: str) -> None:
        """Look at the bytes, and at the sizes."""
        require_equal(tree, copy, by=by)
        with _first_file(copy).open("rb") as file:
            file.seek(self._at)
            if file.read(self._count) != self._wanted:
                raise WrongCopy(f"{by} left other bytes at {self._at} of {file.name}")


class RenamedTop:
    """The one directory that holds everything gets another name."""

    says = "the directory that holds all of it is renamed"

    def make(self, tree: Path, number: int) -> None:
        """Rename it."""
        (only,) = (one for one in tree.iterdir() if not one.name.startswith(".baton"))
        only.rename(tree / f"moved-{number:04}")

    def make_at_copy(self, copy: Path, number: int) -> None:
        """Do nothing."""

    def undo_at_copy(self, copy: Path) -> None:
        """Do nothing."""

    def check(self, tree: Path, copy: Path, *, by: str) -> None:
        """Look for the new name, and count."""
        (only,) = (one for one in tree.iterdir() if not one.name.startswith(".baton"))
        require_equal(only, copy / only.name, by=by)
        require_equal(tree, copy, by=by)


class EditsAtBothEnds:
    """At each end some files are written anew and some are made, none of them at both."""

    def __init__(self, files: int) -> None:
        """Change so many at each end."""
        self._files = files

    @property
    def says(self) -> str:
        """What is changed, in words."""
        return f"at each end {self._files} files are written anew and {self._files} are made"

    def make(self, tree: Path, number: int) -> None:
        """Edit the first files of directories."""
        self._edit(tree, number, "a")

    def make_at_copy(self, copy: Path, number: int) -> None:
        """Edit the second files of directories."""
        self._edit(copy, number, "b")

    def undo_at_copy(self, copy: Path) -> None:
        """Nobody shares a copy that has a life of its own."""
        raise NotImplementedError

    def check(self, tree: Path, copy: Path, *, by: str) -> None:
        """Count, and read what was changed."""
        require_equal(tree, copy, by=by)
        for path in tree.glob("d*/new-*"):
            if (copy / path.relative_to(tree)).read_bytes() != path.read_bytes():
                raise WrongCopy(f"{by} left {path.name} different at both ends")

    def _edit(self, top: Path, number: int, end: str) -> None:
        directories = sorted(one for one in top.iterdir() if one.name.startswith("d"))
        for index in range(self._files):
            directory = directories[index % len(directories)]
            text = f"{end} {number} {index}\n".encode() * 100
            (directory / f"new-{end}-{number:04}-{index:05}").write_bytes(text)
            old = sorted(one.name for one in directory.iterdir() if one.name.startswith("f"))
            pick = 2 * (index // len(directories)) + (end == "b")
            if pick < len(old):
                (directory / old[pick]).write_bytes(text)


def _first_file(top: Path) -> Path:
    return min(path for path in top.glob("d*/f*") if path.is_file())
