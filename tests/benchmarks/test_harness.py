"""The benchmark harness: every kind of case, small, with real processes; no time is judged."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import delayed_link, measure
from benchmarks.cases import CASES, Case
from benchmarks.changes import Change, EditsAtBothEnds, Nothing, RenamedTop, SomeBytes
from benchmarks.errors import WrongCopy
from benchmarks.measure import Comparison, Places, Series, run_case
from benchmarks.report import as_markdown, as_text
from benchmarks.rivals import CopyArchive, Rsync
from benchmarks.stopwatch import Measured, Stopwatch
from benchmarks.trees import Tree

BY_NAME = {case.name: case for case in CASES}

SMALL = Tree(files=60, smallest_bytes=0, largest_bytes=300, per_directory=20)


def small(name: str) -> Case:
    return replace(BY_NAME[name].scaled(1e-9), rounds=1)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["large-file-changed", "small-files-far"])
async def test_a_case_runs(tmp_path: Path, name: str) -> None:
    if name == "small-files-far" and delayed_link.missing():
        pytest.skip(str(delayed_link.missing()))
    said: list[str] = []
    comparison = await run_case(
        small(name), Places(tmp_path, tmp_path), say=said.append, keep_out=frozenset({"cp"})
    )
    assert comparison.series[0].side is comparison.case.ours
    names = {one.side.name for one in comparison.series}
    assert names == {"baton"} | {
        rival.name for rival in comparison.case.rivals if not rival.missing()
    }
    for one in comparison.series:
        assert len(one.copies) == 1
        assert one.wall_s > 0
        assert one.peak_bytes > 1 << 20
    assert comparison.series[0].wire_bytes > 500
    text = as_text([comparison])
    document = as_markdown([comparison], ["a machine"], "a command")
    for one in comparison.series:
        assert one.side.name in text
        assert one.side.says in document
    assert os.listdir(tmp_path) == []


class _Missing(CopyArchive):
    name = "nowhere"

    def missing(self) -> str | None:
        return "there is none"


class _Broken(Rsync):
    def __init__(self) -> None:
        super().__init__("--no-such-option", name="broken")


@pytest.mark.timeout(120)
async def test_a_rival_that_is_missing_or_fails_is_left_out_and_named(tmp_path: Path) -> None:
    case = Case("some", "some files", SMALL, (_Missing(), _Broken(), CopyArchive()), rounds=1)
    comparison = await run_case(
        case, Places(tmp_path, tmp_path), say=lambda _: None, keep_out=frozenset()
    )
    assert [one.side.name for one in comparison.series] == ["baton", "cp"]
    assert [why.partition(":")[0] for why in comparison.left_out] == ["nowhere", "broken"]
    for why in comparison.left_out:
        assert why in as_text([comparison])
        assert why in as_markdown([comparison], [], "")


def test_a_ratio_is_the_median_of_pairs() -> None:
    ours, theirs = (
        Series(CopyArchive(), [Measured(wall_s, 0) for wall_s in times])
        for times in ((1, 2, 10), (2, 8, 20))
    )
    assert Comparison(small("large-file"), [ours, theirs]).ratio(theirs) == 2


def test_some_bytes_are_missed_where_they_did_not_arrive(tmp_path: Path) -> None:
    for name in ("tree", "copy"):
        Tree(files=1, smallest_bytes=9_000, largest_bytes=9_000).make(tmp_path / name)
    change = SomeBytes(100)
    change.make(tmp_path / "tree", 1)
    with pytest.raises(WrongCopy):
        change.check(tmp_path / "tree", tmp_path / "copy", by="nobody")
    (path,), (copy,) = ((tmp_path / name).glob("d*/f*") for name in ("tree", "copy"))
    copy.write_bytes(path.read_bytes())
    os.utime(copy, (path.stat().st_atime, path.stat().st_mtime))
    change.check(tmp_path / "tree", tmp_path / "copy", by="somebody")
    change.undo_at_copy(tmp_path / "copy")
    assert copy.read_bytes() != path.read_bytes()
    assert copy.stat().st_size == path.stat().st_size
    assert copy.stat().st_mtime < path.stat().st_mtime


@pytest.mark.parametrize("change", [RenamedTop(), EditsAtBothEnds(5)])
def test_what_else_changes_is_missed_where_it_did_not_arrive(
    tmp_path: Path, change: Change
) -> None:
    tree, copy = tmp_path / "tree", tmp_path / "copy"
    for top in (tree, copy):
        replace(SMALL, per_directory=60).make(top)
    change.make(tree, 1)
    Nothing().check(tree, copy, by="nobody")
    with pytest.raises((WrongCopy, FileNotFoundError)):
        change.check(tree, copy, by="nobody")


async def test_a_stopwatch_counts_what_its_processes_use() -> None:
    passed = iter([100, 350])
    watch = Stopwatch(lambda: [os.getpid()], lambda: next(passed))
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    measured = await watch.stop()
    assert measured.wire_bytes == 250
    assert measured.cpu_s >= 0.04
    assert measured.peak_bytes > 1 << 20


def test_what_does_not_fit_is_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME["large-file-changed"]
    own = {side.name: side.own_source for side in (case.ours, *case.rivals)}
    monkeypatch.setattr(measure, "_available_bytes", lambda: 4 << 30)
    fitting = measure.fitting(tmp_path, case, [case.ours, *case.rivals], own)
    # A source, ours, rsync's, and what rsync writes beside that.
    assert 4 * fitting.tree.largest_bytes <= 4 << 30
    assert fitting.tree.largest_bytes > 512 << 20 or shutil.disk_usage(tmp_path).free < 4 << 30
    case = replace(BY_NAME["unchanged"], tree=replace(BY_NAME["unchanged"].tree, files=10**12))
    inodes = os.statvfs(tmp_path).f_favail
    fitting = measure.fitting(tmp_path, case, [case.ours, *case.rivals], own)
    assert fitting.tree.files < 10**10
    assert not inodes or fitting.tree.files * 3 < inodes


def test_every_case_has_a_name_of_its_own_and_a_small_form() -> None:
    assert len(BY_NAME) == len(CASES)
    for case in CASES:
        assert case.quick().tree.files <= case.tree.files
        assert "," not in case.name
