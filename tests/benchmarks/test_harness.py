"""The benchmark harness: every kind of case, small, with real processes; no time is judged."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmarks import delayed_link, measure
from benchmarks.cases import CASES, Case
from benchmarks.changes import Change, EditsAtBothEnds, Nothing, RenamedTop, SomeBytes
from benchmarks.errors import BenchmarkError, WrongCopy
from benchmarks.measure import Places, run_case
from benchmarks.report import as_markdown, as_text
from benchmarks.results import Result, Series, Store
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
    result = await run_case(
        small(name), Places(tmp_path, tmp_path), say=said.append, keep_out=frozenset({"cp"})
    )
    assert result.series[0].name == "baton"
    names = {one.name for one in result.series}
    assert names == {"baton"} | {
        rival.name for rival in BY_NAME[name].rivals if not rival.missing()
    }
    for one in result.series:
        assert len(one.copies) == 1
        assert one.wall_s > 0
        assert one.peak_bytes > 1 << 20
    assert result.series[0].wire_bytes > 500
    text, document = as_text([result]), as_markdown([result])
    for one in result.series:
        assert one.name in text
        assert one.says in document
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
    result = await run_case(
        case, Places(tmp_path, tmp_path), say=lambda _: None, keep_out=frozenset()
    )
    assert [one.name for one in result.series] == ["baton", "cp"]
    assert [why.partition(":")[0] for why in result.left_out] == ["nowhere", "broken"]
    for why in result.left_out:
        assert why in as_text([result])
        assert why in as_markdown([result])


def test_a_ratio_is_the_median_of_pairs() -> None:
    ours, theirs = (
        Series("one", "", [Measured(wall_s, 0) for wall_s in times])
        for times in ((1, 2, 10), (2, 8, 20))
    )
    assert Result("some", "", datetime.now(UTC), series=[ours, theirs]).ratio(theirs) == 2


def result_of(case: str, age: timedelta, machine: str) -> Result:
    series = [
        Series("baton", "a job", [Measured(2.0, 3.0, 5_000_000, 7 << 20, 1.5)]),
        Series("rsync", "rsync -a", [Measured(3.0, 4.0, 6_000_000, 8 << 20)]),
    ]
    at = datetime.now(UTC) - age
    return Result(case, f"about {case}", at, "a command", [machine], 60.0, series, ["cp: no"])


def test_what_is_kept_comes_back_whole(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    first = result_of("large-file", timedelta(hours=3), "a")
    second = result_of("unchanged", timedelta(hours=1), "b")
    store.keep(result_of("unchanged", timedelta(hours=30), "b"))
    store.keep(first)
    store.keep(second)
    names = [case.name for case in CASES]
    assert store.all(names) == [first, second]
    assert store.is_fresh("unchanged", 2)
    assert not store.is_fresh("large-file", 2)
    assert not store.is_fresh("two-way", 1_000)
    (tmp_path / "results" / "unchanged.json").write_text("{")
    with pytest.raises(BenchmarkError, match=r"unchanged\.json is no result, remove it"):
        store.read("unchanged")


def test_a_document_is_made_of_all_that_is_kept() -> None:
    first = result_of("large-file", timedelta(days=40), "a machine")
    second = result_of("unchanged", timedelta(days=3), "another machine")
    document = as_markdown([first, second], ["two-way"])
    for one in (first, second):
        assert f"| {one.case} | {one.at:%Y-%m-%d} | **baton** | 2.00 s |" in document
        assert f"{one.case}:\n\n- {one.machine[0]}\n" in document
        assert f"- **{one.case}**: about {one.case}." in document
    assert "| rsync | 3.00 s | 3.00 to 3.00 s |  | 4.0 s | 6.00 MB | 8 MiB | **1.50** |" in document
    assert "Not measured yet: two-way." in document
    same = as_markdown([first, replace(second, machine=first.machine)])
    assert same.count("- a machine\n") == 1
    assert "Not measured" not in same


@pytest.mark.timeout(400)
def test_only_what_is_due_is_measured_and_what_fails_stops_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    store.keep(result_of("renamed", timedelta(hours=1), "m"))
    document = tmp_path / "document.md"
    command = [sys.executable, "-m", "benchmarks", "--case", "renamed", "--older-than", "2"]
    command += ["--results", str(tmp_path / "results"), "--output", str(document)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    command += ["--memory", str(tmp_path / "nowhere"), "--case", "large-file", "--case", "two-way"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("failed: large-file, two-way\n")
    assert not document.exists()
    subprocess.run([*command, "--render"], capture_output=True, timeout=120, check=True)
    assert "| renamed | " in document.read_text()


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
