"""What all tests have in common: nothing may be left out where CI says that everything is there."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about the code: pytest's time-out of each
# test is the limit.
settings.register_profile("baton", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("baton")

_WATCHING = ("watching", "realtime", "monitor")

# Modules that are no tests, but assert: they are to say what they found.
pytest.register_assert_rewrite("tests.engine.trees", "tests.faults.pushes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares fixtures; say where a test is left out because it needs root."""
    for item in items:
        # A file's tests share clusters, so they run in one process. Tests of the kernel's own limits
        # change these for the whole machine, so nothing else that watches may run meanwhile.
        path = item.path.relative_to(item.config.rootpath).as_posix()
        group = "watching" if any(word in path for word in _WATCHING) else path
        item.add_marker(pytest.mark.xdist_group(group))
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
