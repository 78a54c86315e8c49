"""What the tests of a worker have in common."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.worker.workers import Workbench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Workbench]:
    bench = Workbench(tmp_path)
    yield bench
    await bench.close()
