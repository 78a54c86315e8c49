"""One scan for several readers."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncengine.model import Entry, Kind, Problem, What
from syncengine.scan import scan, scan_stretches
from syncengine.shared_scan import SharedScan
from syncengine.stretches import Item, Stretch, unfolded
from syncengine.tree import Tree
from tests.engine.trees import grow

TOP = Entry(b"", Kind.DIRECTORY, 0o755, 0, 0, seen=1)


def many(count: int) -> Iterator[Item]:
    yield TOP
    for number in range(count):
        yield Entry(b"%08d" % number, Kind.FILE, 0o644, 1 << 63, 0, seen=number + 1)


@pytest.mark.parametrize("memory_bytes", [0, 300_000, 1 << 30])
def test_all_read_the_same_and_a_scan_is_made_once(tmp_path: Path, memory_bytes: int) -> None:
    grow(tmp_path, {**{f"d{n % 7}/{n:05}": b"" for n in range(9_000)}, "l": "to", "d1/x/y": b"x"})
    scans: list[int] = []

    def once(problems: list[Problem]) -> Iterator[Item]:
        scans.append(1)
        yield from scan_stretches(tree, problems=problems, member="m")
        problems.append(Problem(b"x", "m", What.UNREADABLE, "noted"))

    read: list[list[Entry]] = []
    stretches: list[int] = []
    with Tree.open(os.fsencode(tmp_path), read_only=True) as tree:
        expected = list(scan(tree, problems=[], member="m"))
        shared = SharedScan(once, folder=str(tmp_path), memory_bytes=memory_bytes)

        def reads() -> None:
            items = list(shared.items())
            assert shared.problems[0].detail == "noted"
            stretches.append(sum(isinstance(item, Stretch) for item in items))
            read.append(list(unfolded(items)))

        threads = [threading.Thread(target=reads) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reads()  # after all others
        shared.close()
    assert [entries == expected for entries in read] == [True] * 5
    assert min(stretches) == max(stretches) > 0
    assert scans == [1]


def test_who_stops_holds_up_nobody() -> None:
    shared = SharedScan(lambda _: many(20_000))
    one, other = shared.items(), shared.items()
    assert next(one).path == b""
    assert sum(1 for _ in other) == 20_001
    assert sum(1 for _ in one) == 20_000
    shared.close()


def test_what_goes_wrong_goes_wrong_for_all() -> None:
    def broken(_: list[Problem]) -> Iterator[Item]:
        yield from many(9_000)
        raise PermissionError("broken")

    shared = SharedScan(broken)
    for _ in range(2):
        items = shared.items()
        with pytest.raises(PermissionError, match="broken"):
            list(items)
    shared.close()


def test_a_scan_that_is_given_up_is_closed() -> None:
    ended: list[int] = []

    def endless(_: list[Problem]) -> Iterator[Item]:
        try:
            yield from many(1 << 40)
        finally:
            ended.append(1)

    shared = SharedScan(endless)
    assert next(shared.items()).path == b""
    shared.close()
    assert ended == [1]
