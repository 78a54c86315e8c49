"""I1: somebody reads all the time while versions arrive, and the runs that bring them are killed."""

import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncengine.failpoints import Step
from tests.cluster.reader import Reader, content_of
from tests.engine.trees import T0
from tests.faults.test_steps import MEMORY, Births, births

__all__ = ["births"]

NAMES = [f"d{number % 3}/f{number}" for number in range(12)]
VERSIONS = 40


@pytest.fixture
def base() -> Iterator[Path]:
    where = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="baton-reader-", dir=where) as made:
        yield Path(made)


def write_version(source: Path, version: int) -> None:
    for number, name in enumerate(NAMES):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Large ones come in parts.
        path.write_bytes(content_of(name, version, blocks=300 if number % 4 == 0 else 3))
        os.utime(path, ns=(T0 + version, T0 + version))


@pytest.mark.timeout(120)
def test_i1_a_reader_sees_whole_versions_whatever_is_killed(base: Path, births: Births) -> None:
    dice = random.Random(7)
    source, target = base / "source", base / "target"
    target.mkdir()
    write_version(source, 0)
    assert births.run("mirror", base, "") == 0
    killed = 0
    with Reader(target, NAMES) as reader:
        for version in range(1, VERSIONS + 1):
            write_version(source, version)
            reader.newest = version
            step = dice.choice([s for s in Step if "trash" not in s and "delete" not in s])
            ended = births.run("mirror", base, f"{step}:kill@{dice.randint(1, 12)}")
            killed += ended == -signal.SIGKILL
            if ended == 0:
                reader.oldest = version
        assert births.run("mirror", base, "") in {0, 3}
        assert births.run("mirror", base, "") == 0
    assert reader.wrong == []
    assert killed > VERSIONS // 5
    assert reader.reads > VERSIONS
    assert len(reader.versions) > 3, "the reader saw nothing happen"
    for name in NAMES:
        assert (target / name).read_bytes() == (source / name).read_bytes()
