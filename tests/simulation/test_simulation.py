"""Thousands of clusters that everything goes wrong in; and that the checks see what they are for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.broken import BROKEN
from tests.simulation.plots import PLOTS

ROOT = Path(__file__).resolve().parents[2]
SEEDS = int(os.environ.get("BATON_SEEDS", "10000"))
"""How many `make test` runs: four minutes on two cores."""
FOUND_BY = {
    "deadline-ignored": 6,
    "deadline-ignored-at-worker": 305,
    "gate-without-badge": 157,
    "ledger-without-owner": 2,
    "orders-not-looked-at-again": 892,
    "token-not-durable": 0,
}
"""By what is broken a seed that shows it. When the simulation changes, `python -m tests.simulation
--broken WHAT` finds another."""
SHOWN_BY = {
    "ended-in-the-future": "clock-ahead-in-a-run",
    "late-write-overwritten": "drained-while-writing",
    "no-fence-check": "late-orders",
    "run-without-compare": "clock-back-to-instants-told",
    "unbegun-run-lost": "cancelled-at-once",
}
"""By what is broken, and what thousands of seeds do not come to, the plot that shows it."""
PLOTTED = ("--seeds", "4", "--processes", "1", "--plot")


def simulate(*arguments: str, hash_seed: str = "random") -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which nobody measures the coverage of."""
    environment = {name: value for name, value in os.environ.items() if "COV" not in name}
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        env={**environment, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(1800)
def test_i4_i5_i9_i12_hold_in_clusters_that_everything_goes_wrong_in() -> None:
    done = simulate("--seeds", str(SEEDS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SEEDS} seeds, 0 violations" in done.stdout


@pytest.mark.parametrize("seed", [5059, 13887])
def test_what_was_found_once_stays_mended(seed: int) -> None:
    done = simulate("--seed", str(seed))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_a_seed_is_the_same_story_every_time() -> None:
    stories = [simulate("--seed", "11", hash_seed=one).stdout for one in ("1", "2")]
    digests = [re.findall(r"^digest (\w+)$", story, re.MULTILINE) for story in stories]
    assert stories[0] == stories[1]
    assert len(digests[0]) == 1
    assert "FAULT" in stories[0]
    assert simulate("--seed", "12").stdout != stories[0]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("what", sorted(FOUND_BY))
def test_what_is_broken_on_purpose_is_found(what: str) -> None:
    seed = str(FOUND_BY[what])
    broken = simulate("--seed", seed, "--broken", what)
    assert broken.returncode == 1, broken.stdout[-2000:] + broken.stderr
    assert simulate("--seed", seed).returncode == 0, "and it is that which was found"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", sorted(SHOWN_BY))
def test_what_is_broken_on_purpose_is_shown_by_a_plot(what: str) -> None:
    plot = SHOWN_BY[what]
    broken = simulate(*PLOTTED, plot, "--broken", what)
    assert broken.returncode == 1, broken.stdout[-2000:] + broken.stderr
    assert "violations" in broken.stdout, broken.stderr
    sound = simulate(*PLOTTED, plot)
    assert (sound.returncode, "4 seeds, 0 violations" in sound.stdout) == (0, True), sound.stdout


def test_every_way_to_break_it_is_shown() -> None:
    assert {*FOUND_BY, *SHOWN_BY} == set(BROKEN)
    assert set(SHOWN_BY.values()) == set(PLOTS)
