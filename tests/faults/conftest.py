"""The file systems on which the engine has to keep its word."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncengine import failpoints
from tests.engine.trees import Pair
from tests.faults.mount import FaultyMount, mounted, why_not


@pytest.fixture(scope="session")
def faulty_mount() -> Iterator[FaultyMount]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="baton-faults-") as base, mounted(Path(base)) as mount:
        yield mount


@pytest.fixture
def mount(faulty_mount: FaultyMount) -> Iterator[FaultyMount]:
    """The mounted disk, empty and sound."""
    faulty_mount.clear()
    yield faulty_mount
    faulty_mount.clear()


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    return Pair(source, target)


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")
