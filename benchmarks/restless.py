"""A seeded writer that never rests: every kind of change that people and programs make to a tree."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

_NAMES = ("notes", "draft", "données", "a b", "x'y", "report.tar", "~tmp", "données\udcff")
_MOST_FILES = 3_000
_MOST_DIRECTORIES = 150


class Restless:
    """Changes a tree that nobody else writes to; the same seed makes the same changes."""

    def __init__(self, top: Path, seed: int) -> None:
        """Write below `top`, which exists."""
        self.top = top
        self.done = 0
        self._dice = random.Random(seed)
        self._number = 0
        self._directories = [top]
        self._files: list[Path] = []
        self._kinds: tuple[tuple[int, Callable[[], None]], ...] = (
            (30, self._create),
            (16, self._overwrite),
            (10, self._append),
            (8, self._save_by_rename),
            (12, self._delete),
            (6, self._rename),
            (3, self._rename_directory),
            (4, self._make_and_fill),
            (1, self._remove_tree),
            (4, self._metadata),
            (3, self._symlink),
            (2, self._hard_link),
            (2, self._truncate),
            (1, self._large),
            (2, self._replace_by_directory),
        )
        self._weights = [weight for weight, _ in self._kinds]

    def step(self) -> None:
        """Make one change."""
        ((_, change),) = self._dice.choices(self._kinds, self._weights)
        change()
        self.done += 1

    def _name(self) -> str:
        self._number += 1
        return f"{self._dice.choice(_NAMES)}-{self._number}"

    def _content(self) -> bytes:
        return self._dice.randbytes(self._dice.randrange(0, 4_000))

    def _somewhere(self) -> Path:
        return self._dice.choice(self._directories)

    def _file(self) -> Path | None:
        return self._dice.choice(self._files) if self._files else None

    def _create(self) -> None:
        if len(self._files) >= _MOST_FILES:
            return self._delete()
        path = self._somewhere() / self._name()
        path.write_bytes(self._content())
        self._files.append(path)
        return None

    def _overwrite(self) -> None:
        if (path := self._file()) is not None and not path.is_symlink():
            path.write_bytes(self._content())

    def _append(self) -> None:
        if (path := self._file()) is not None and not path.is_symlink():
            with path.open("ab") as file:
                file.write(self._dice.randbytes(300))

    def _save_by_rename(self) -> None:
        if (path := self._file()) is not None:
            beside = path.with_name(self._name())
            beside.write_bytes(self._content())
            beside.rename(path)

    def _delete(self) -> None:
        if (path := self._file()) is not None:
            path.unlink()
            self._files.remove(path)

    def _rename(self) -> None:
        if (path := self._file()) is not None:
            to = self._somewhere() / self._name()
            path.rename(to)
            self._files[self._files.index(path)] = to

    def _below(self, directory: Path) -> Callable[[Path], bool]:
        prefix = f"{directory}/"
        return lambda path: path == directory or str(path).startswith(prefix)

    def _rename_directory(self) -> None:
        if len(self._directories) < 2:
            return
        path = self._dice.choice(self._directories[1:])
        is_below = self._below(path)
        others = [one for one in self._directories if not is_below(one)]
        to = self._dice.choice(others) / self._name()
        path.rename(to)

        def moved(one: Path) -> Path:
            return to / one.relative_to(path) if is_below(one) else one

        self._directories = [moved(one) for one in self._directories]
        self._files = [moved(one) for one in self._files]

    def _make_and_fill(self) -> None:
        """Make directories in one go, and fill them at once: the race that watchers lose."""
        if len(self._directories) >= _MOST_DIRECTORIES:
            return
        path = self._somewhere()
        for _ in range(self._dice.randrange(1, 4)):
            path /= self._name()
            self._directories.append(path)
        path.mkdir(parents=True)
        for _ in range(self._dice.randrange(1, 12)):
            file = path / self._name()
            file.write_bytes(self._content())
            self._files.append(file)

    def _remove_tree(self) -> None:
        if len(self._directories) < 10:
            return
        some = self._dice.sample(self._directories[1:], 4)
        path = max(some, key=lambda one: len(one.parts))
        is_below = self._below(path)
        shutil.rmtree(path)
        self._directories = [one for one in self._directories if not is_below(one)]
        self._files = [one for one in self._files if not is_below(one)]

    def _metadata(self) -> None:
        if (path := self._file()) is not None and not path.is_symlink():
            path.chmod(self._dice.choice((0o600, 0o640, 0o644, 0o755)))
            when = 1_600_000_000_000_000_000 + self._dice.randrange(10**17)
            os.utime(path, ns=(when, when))

    def _symlink(self) -> None:
        path = self._somewhere() / self._name()
        path.symlink_to(self._name())
        self._files.append(path)

    def _hard_link(self) -> None:
        if (path := self._file()) is not None and not path.is_symlink():
            to = self._somewhere() / self._name()
            to.hardlink_to(path)
            self._files.append(to)

    def _truncate(self) -> None:
        if (path := self._file()) is not None and not path.is_symlink():
            os.truncate(path, self._dice.randrange(0, 500))

    def _large(self) -> None:
        path = self._somewhere() / self._name()
        path.write_bytes(self._dice.randbytes(1 << 20))
        self._files.append(path)

    def _replace_by_directory(self) -> None:
        if (path := self._file()) is not None and len(self._directories) < _MOST_DIRECTORIES:
            path.unlink()
            self._files.remove(path)
            path.mkdir()
            self._directories.append(path)
