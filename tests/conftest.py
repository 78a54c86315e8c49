"""What all tests have in common: nothing may be left out where CI says that everything is there."""

import os
import shutil
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.turns import Turns

# How long an example takes says more about the machine than about the code: pytest's time-out of each
# test is the limit.
settings.register_profile("baton", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("baton")

_WATCHING = ("watching", "realtime", "monitor")

# Modules that are no tests, but assert: they are to say what they found.
pytest.register_assert_rewrite("tests.engine.trees", "tests.faults.pushes")


_turns = pytest.StashKey[Turns]()


def pytest_configure(config: pytest.Config) -> None:
    """Let the processes of a run take turns; one that has all tests needs none."""
    if worker := getattr(config, "workerinput", None):
        config.stash[_turns] = Turns(worker["testrunuid"])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give up the turns. RACE: who removes the files while another still opens them has no test left."""
    if turns := config.stash.get(_turns, None):
        turns.close()
        turns.forget()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Wait for the turn of a test, outside its time-out."""
    turns = item.config.stash.get(_turns, None)
    if turns is None:
        return (yield)
    keep = nextitem is not None and _is_alone(nextitem)
    with turns.turn(alone=_is_alone(item), keep=keep):
        return (yield)


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def scope_of(nodeid: str) -> str:
    """Return the name of what a test is kept together with."""
    path = nodeid.partition("::")[0]
    return "watching" if any(word in path for word in _WATCHING) else path


class Files(LoadScopeScheduling):  # type: ignore[misc]
    """Keeps a file's tests in one process, since they share clusters.

    Tests of the kernel's own limits change these for the whole machine, so all that watch are in one
    process too. (`--dist loadgroup` of xdist 3.8 keeps nothing together under pytest 9.2.)
    """

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Files:
    """Distribute by file, whatever --dist says."""
    return Files(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Order what is alone; say where a test is left out because it needs root."""
    yield  # the order becomes random
    # What is alone comes last in its file, so that the others of the run are waited for once.
    files: dict[object, int] = {}
    for item in items:
        files.setdefault(item.path, len(files))
    items.sort(key=lambda item: (files[item.path], _is_alone(item)))
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root")
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(skip)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With CI=true a skipped test fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or reporter is None or exitstatus != pytest.ExitCode.OK:
        return
    skipped = len(reporter.stats.get("skipped", ()))
    if skipped:
        reporter.write_line(f"CI: {skipped} tests were left out, and none may be", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def rsync() -> str:
    """The independent eye that compares trees."""
    found = shutil.which("rsync")
    if found is None:
        pytest.skip("rsync is not installed")
    return found
