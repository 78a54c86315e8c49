"""Every named step of the engine, in every scenario that passes it: killed there, or failing there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncengine import failpoints
from syncengine.failpoints import Step
from tests.faults import joint_scenarios  # noqa: F401 - registers its scenarios
from tests.faults.scenarios import SCENARIOS
from tests.faults.zygote import FAILED, TOLD, WELL

MEMORY = Path("/dev/shm")


class Recorder(dict[str, object]):
    """Stands where failpoints keep their faults, arms none, and counts who asks."""

    def __init__(self) -> None:
        super().__init__({"": None})  # an empty one would not be asked
        self.counts: Counter[str] = Counter()

    def get(self, key: str, default: object = None) -> None:
        self.counts[Step(key)] += 1


class Births:
    """A zygote that runs scenarios for the tests."""

    def __init__(self, zygote: "subprocess.Popen[str]") -> None:
        self._zygote = zygote

    def run(self, name: str, base: Path, spec: str) -> int:
        """Run a scenario with failpoints armed; returns an exit code, negative for a signal."""
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(json.dumps([name, str(base), spec]) + "\n")
        self._zygote.stdin.flush()
        return os.waitstatus_to_exitcode(int(self._zygote.stdout.readline()))


@pytest.fixture(scope="module")
def births() -> Iterator[Births]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.zygote"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as zygote:
        yield Births(zygote)
        assert zygote.stdin is not None
        zygote.stdin.close()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in memory, where there is one: hundreds of runs are made in it."""
    where = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="baton-steps-", dir=where) as base:
        yield Path(base)


def recorded(name: str, base: Path) -> Counter[str]:
    """Run a scenario with nothing armed, and return how often it passed each step."""
    run = SCENARIOS[name](base)
    base.mkdir()
    run.prepare()
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failpoints, "_armed", recorder)
        assert run.run()
    run.check()
    run.check_end()
    shutil.rmtree(base)
    return recorder.counts


def arrivals(count: int) -> list[int]:
    """Choose the first, the second, one in the middle, and the last."""
    return sorted({1, min(2, count), (count + 1) // 2, count})


def test_every_step_is_passed_by_some_scenario(place: Path) -> None:
    """A step that nothing reaches is a fault that nobody has tried."""
    reached: set[str] = set()
    for name in SCENARIOS:
        reached |= set(recorded(name, place / "run"))
    missing = sorted(set(Step) - reached)
    assert missing == [], "add a scenario that reaches these to tests/faults/scenarios.py"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("action", ["kill", "error"])
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_i1_i7_i10_whatever_happens_at_any_step(
    place: Path, births: Births, name: str, action: str
) -> None:
    for step, count in sorted(recorded(name, place / "run").items()):
        slow = getattr(SCENARIOS[name](place), "is_slow", False)
        for nth in [(count + 1) // 2] if slow else arrivals(count):
            base = place / f"{step}{nth}"
            base.mkdir()
            run = SCENARIOS[name](base)
            run.prepare()
            ended = births.run(name, base, f"{step}:{action}@{nth}")
            where = f"{name}: {action} at the {nth}th {step}"
            if action == "kill":
                assert ended == -signal.SIGKILL, where
            else:
                assert ended in {WELL, TOLD, FAILED}, where
            try:
                if ended == WELL:
                    run.check_end()  # it was overcome within the run: nobody need be told
                run.check()
                # What a failed run left may have to be cleaned before a plan can be carried out.
                assert births.run(name, base, "") in {WELL, TOLD}
                assert births.run(name, base, "") == WELL
                run.check()
                run.check_end()
            except AssertionError as error:
                error.add_note(where)
                raise
            shutil.rmtree(base)


def test_a_recorder_sees_what_is_passed_and_arms_nothing() -> None:
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failpoints, "_armed", recorder)
        failpoints.reach(Step.BEFORE_ACK)
        failpoints.reach(Step.BEFORE_ACK)
    assert recorder.counts == {Step.BEFORE_ACK: 2}
