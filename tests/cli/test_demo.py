"""`make demo`, as a newcomer sees it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest


async def demo(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.demo", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(140):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return process.returncode or 0, said.decode()


def names_below(top: Path) -> list[str]:
    return sorted(path.name for path in top.rglob("*"))


def line(said: str, beginning: str) -> str:
    """What the report says after these words."""
    (found,) = [one for one in said.splitlines() if one.startswith(beginning)]
    return found.removeprefix(beginning).strip()


@pytest.mark.timeout(180)
async def test_the_demo_ends_with_equal_trees_and_nothing_sent_twice() -> None:
    status, said = await demo()
    assert status == 0, said
    assert line(said, "trees equal") == "yes"
    assert line(said, "re-sent after the takeover") == "0 files, 0 bytes"
    assert float(line(said, "SIGKILL to the new owner's claim").split()[0]) < 10
    assert "SIGKILL to the next change arrived" in said


@pytest.mark.timeout(180)
async def test_the_demo_mirrors_a_directory_of_ones_own_and_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a file").write_text("content")
    status, said = await demo(str(tmp_path))
    assert status == 0, said
    assert line(said, "trees equal") == "yes"
    assert names_below(tmp_path) == ["a file", "below"]
