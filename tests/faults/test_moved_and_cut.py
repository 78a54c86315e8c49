"""I2: rule move takes nothing away at the source that a target could still lose."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from syncengine.model import Rule, RunOptions, Safety
from tests.engine.trees import T0, grow
from tests.faults import disk
from tests.faults.members import Members
from tests.faults.mount import FaultyMount
from wire.orders import Outcome


@pytest.mark.parametrize("is_there", [True, False])
def test_i2_what_a_move_took_away_survives_a_power_cut_at_the_target(
    mount: FaultyMount, tmp_path: Path, *, is_there: bool
) -> None:
    """Also what somebody else had put there, and never flushed."""
    options = RunOptions(rule=Rule.MOVE, safety=Safety(max_delete=None))
    members = Members(tmp_path, ["a", "b"], options, places={"b": mount.root})
    source = tmp_path / "a/root"
    content = b"moved" * 100
    grow(source, {"d/e/f": content}, T0)
    if is_there:
        grow(mount.root, {"d/e/f": content}, T0)

    async def move() -> Outcome:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(members.close)
            await members.open()
            return (await members.run()).outcome

    assert asyncio.run(move()) is Outcome.SUCCEEDED
    assert not (source / "d/e/f").exists()
    left = disk.after_cut(mount.base(), mount.log(), len(mount.log()), disk.nothing)
    found = {os.fsdecode(path): bytes(node.data) for path, node in disk.walk(left)}
    assert found["d/e/f"] == content
