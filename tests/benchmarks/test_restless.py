"""The writer of the soak: it does the same again, and what it thinks is there is there."""

import os
from pathlib import Path

from benchmarks.restless import Restless


def names(top: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(at, name), top)
        for at, folders, files in os.walk(top)
        for name in [*folders, *files]
    }


def test_the_same_seed_makes_the_same_tree(tmp_path: Path) -> None:
    tops = [tmp_path / name for name in ("one", "other", "third")]
    for top, seed in zip(tops, (1, 1, 2), strict=True):
        top.mkdir()
        writer = Restless(top, seed)
        for _ in range(600):
            writer.step()
        assert writer.done == 600
    assert len(names(tops[0])) > 100
    assert names(tops[0]) == names(tops[1]) != names(tops[2])
