"""A chaos run as users start it: a cluster of its own, trouble by a seed, a verdict, and a report."""

from pathlib import Path

import pytest

from cli.chaos import history as h
from tests.cluster.harness import run_baton

# Of every kind something (where root and all tools are there), and nothing that restarts everything.
SEED = "78"

pytestmark = pytest.mark.timeout(700)


async def test_ten_faults_break_no_promise(tmp_path: Path) -> None:
    out = tmp_path / "report"
    ended = await run_baton(
        *("chaos", "run", "--seconds", "120", "--faults", "10", "--seed", SEED, "--out", str(out)),
        env={},
        within_s=650,
    )
    assert ended.code == 0, ended.out + ended.err
    events = h.load(out / "history.jsonl")
    assert sum(isinstance(event, h.Injected) for event in events) >= 3
    assert sum(isinstance(event, h.Changed) for event in events) > 200
    unseen = {line.split()[0] for line in ended.out.splitlines() if "not exercised" in line}
    # Whether an owner falls, and whether a root can be unmounted, is not in the seed.
    assert unseen <= {"I8", "I15"}
    bitten = [event.seen for event in events if isinstance(event, h.Bitten)]
    assert sum(bitten) >= 8, "faults that do nothing prove nothing"
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
