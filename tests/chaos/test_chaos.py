"""A chaos run as users start it: a cluster of its own, trouble by a seed, a verdict, and a report."""

from pathlib import Path

import pytest

from cli.chaos import history as h
from tests.cluster.harness import run_baton

pytestmark = pytest.mark.timeout(300)


async def test_half_a_minute_of_trouble_breaks_no_promise(tmp_path: Path) -> None:
    out = tmp_path / "report"
    ended = await run_baton(
        *("chaos", "run", "--seconds", "30", "--seed", "7", "--out", str(out)),
        env={},
        within_s=280,
    )
    assert ended.code == 0, ended.out + ended.err
    events = h.load(out / "history.jsonl")
    assert sum(isinstance(event, h.Injected) for event in events) >= 3
    assert sum(isinstance(event, h.Changed) for event in events) > 200
    assert "not exercised" not in ended.out
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", ""), "nothing comes from elsewhere"


async def test_wrong_faults_and_used_directories_are_refused(tmp_path: Path) -> None:
    ended = await run_baton("chaos", "run", "--fault", "bogus", env={})
    assert ended.code == 2
    assert "power-cut" in ended.err
    (tmp_path / "something").touch()
    ended = await run_baton("chaos", "run", "--out", str(tmp_path), env={})
    assert ended.code == 2
    assert "not empty" in ended.err
