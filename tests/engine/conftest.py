# Bytes, descriptors and bare system calls are what is tested.


import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncengine import failpoints
from tests.engine.trees import Pair


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    return Pair(source, target)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No test leaves a failpoint armed or a descriptor open."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    failpoints.arm("")
    assert len(os.listdir("/proc/self/fd")) <= before
