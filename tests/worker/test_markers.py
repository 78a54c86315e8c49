"""The marker of a root that many runs use at once: each has one that was begun after it asked."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from syncengine.marker import check_marker
from tests.worker.workers import Workbench
from wire.orders import Member
from worker.agreed_store import AgreedStores
from worker.member_tree import MemberTrees

DATA = Member("w1", "data", b"", "")


def marker_generation(root: Path) -> int:
    found = json.loads((root / ".baton" / "root.json").read_bytes())
    assert isinstance(found["generation"], int)
    return found["generation"]


def test_i8_runs_that_come_together_share_a_marker_that_none_of_them_came_after(
    tmp_path: Path,
) -> None:
    bench = Workbench(tmp_path)
    trees = MemberTrees(bench.roots, bench.journal, AgreedStores(tmp_path / "agreed"))
    root = tmp_path / "data"
    together = threading.Barrier(16)

    def run(_: int) -> None:
        with trees.open_target(DATA) as opened:
            together.wait(10)
            before = 0
            if (root / ".baton" / "root.json").exists():
                before = marker_generation(root)
            opened.mark()
            assert marker_generation(root) > before

    with ThreadPoolExecutor(16) as pool:
        for _ in range(10):
            list(pool.map(run, range(16)))
    known = bench.journal.known_root("data")
    assert known is not None
    assert 10 <= known.generation < 160
    assert known.generation == marker_generation(root)
    with trees.open_source(DATA) as opened:
        assert check_marker(opened.opened, known).holds == ()
    bench.journal.close()
    bench.roots.close()
