"""I1, I2: a large file that is changed in place, and the power that goes at any step of it."""

import os
import random
from pathlib import Path

import pytest

from syncengine.inplace import undo_all
from syncengine.model import Often, RunOptions
from syncengine.tree import Tree
from tests.engine.trees import T0, Pair, grow
from tests.faults.disk import Note, unfold
from tests.faults.mount import FaultyMount
from tests.faults.pushes import ACKNOWLEDGED, FINISHED, History, cuts, fill, push_noting

OLD = random.Random(1).randbytes(600_000)
NEW = OLD[:200_000] + b"new" + OLD[200_003:500_000]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["one by one", "one sweep"])
def test_i2_a_file_changed_in_place_is_old_or_new_after_any_cut(
    pair: Pair, mount: FaultyMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "one sweep":
        monkeypatch.setattr("syncengine.flush.syncfs_reaches_disk", lambda _fd: True)
        monkeypatch.setattr("syncengine.flush.syncfs", lambda _fd: mount.syncfs())
    # A FUSE server gives no handles, and so nothing would be changed in place there.
    for module in ("inplace", "incoming"):
        monkeypatch.setattr(f"syncengine.{module}.file_handle", lambda *_: b"handle")
    pair.options = RunOptions(delta=Often.INPLACE)
    grow(pair.target, {"f": OLD}, T0)
    fill(mount, pair.target)
    before = (mount.root / "f").stat().st_ino
    grow(pair.source, {"f": NEW}, T0 + 1)
    pair.target = mount.root
    assert push_noting(pair, mount, frame_bytes=100_000).problems == []
    assert (mount.root / "f").read_bytes() == NEW
    assert (mount.root / "f").stat().st_ino == before, "it was changed in place"
    history = History(mount.base(), mount.log())
    ends = [
        step
        for step, record in enumerate(history.log)
        if isinstance(record, Note) and record.text in {ACKNOWLEDGED, FINISHED}
    ]
    seen: set[bytes] = set()
    for number, (step, how, nodes) in enumerate(cuts(history, chances=2)):
        place = tmp_path / f"cut{number}"
        unfold(nodes, place)
        with Tree.open(os.fsencode(place)) as tree:
            undo_all(tree)
        found = (place / "f").read_bytes()
        (place / "f").unlink()
        where = f"step {step}, {how} kept, after {history.log[step - 1]!r:.100}"
        assert found in {OLD, NEW}, f"{where}: torn"
        if step > ends[-1]:
            assert found == NEW, where
        seen.add(found)
    assert seen == {OLD, NEW}
