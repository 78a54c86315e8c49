"""The writer of chaos runs notes everything that it takes away, whatever others do meanwhile."""

import random
from pathlib import Path
from typing import Any

import pytest

from cli.chaos import history as h
from cli.chaos import traffic
from cli.chaos.versions import make_version, version_of


def test_a_tree_is_taken_away_whole_though_names_in_it_vanish_and_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, scratch = tmp_path / "top", tmp_path / "scratch"
    names = [f"b/in/f{number}" for number in range(5)]
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(make_version(name, random.Random(1)))
    scratch.mkdir()
    noted: list[Any] = []
    writer = traffic.Writer(
        "s", "w", top, scratch, number=0, seed=1, rate=1, note=noted.append, now=lambda: 0.0
    )
    vanished: list[str] = []

    def meddle(content: bytes) -> str | None:
        below = scratch / "tree" / "in"
        if not vanished:
            gone = next(one for one in below.iterdir())
            vanished.append(version_of(gone.read_bytes()) or "")
            gone.unlink()
            (below / "late").write_bytes(make_version("late", random.Random(1)))
        return version_of(content)

    monkeypatch.setattr(traffic, "version_of", meddle)
    writer._remove_directory("b")
    assert list(scratch.iterdir()) == []
    assert all(isinstance(one, h.Changed) and one.what == "delete" for one in noted)
    assert {one.displaced for one in noted} == {*names, "late"} - set(vanished)
