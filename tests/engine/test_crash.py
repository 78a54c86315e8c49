"""What an error or a death at some step costs; `tests/faults/test_steps.py` tries all of them."""

# Bytes, descriptors and bare system calls are what is tested.

import os
import subprocess
import sys
from pathlib import Path

import pytest

from syncengine import failpoints
from syncengine.failpoints import Step
from syncengine.marker import advance_marker, check_marker
from syncengine.tree import Tree
from tests.engine.trees import T0, Pair, Spec, grow, temporaries, trashed

OLD: Spec = {
    "replaced": b"old" * 9,
    "big": b"old" * 100_000,
    "same": b"same",
    "touched": b"touched",
    "gone/a": b"gone",
    "gone/b": b"gone too",
    "kind": b"a file",
    "way/in": b"in the way",
}
NEW: Spec = {
    "replaced": b"new" * 9,
    "big": b"new" * 100_001,
    "same": b"same",
    "touched": b"touched",
    "kind/now": b"a directory",
    "way": b"now a file",
    "fresh/1": b"1",
    "fresh/deep/2": b"2" * 200_000,
    "also": b"new",
}


def make(pair: Pair) -> None:
    grow(pair.source, NEW, T0 + 1)
    grow(pair.target, OLD)
    for name in ("same", "touched"):
        os.utime(pair.source / name, ns=(T0, T0))
    os.chmod(pair.source / "touched", 0o600)


def check_old_or_new(pair: Pair) -> None:
    """I1: whatever a reader finds is a complete old or a complete new version."""
    for path in [p for p in pair.target.rglob("*") if p.is_file()]:
        name = str(path.relative_to(pair.target))
        if name.startswith(".baton") or "/.baton~" in f"/{name}":
            continue
        assert path.read_bytes() in {OLD.get(name), NEW.get(name)}, name


def check_nothing_lost(pair: Pair) -> None:
    """I7: what was to be deleted is in its place, under a temporary name or in the trash."""
    found = {p.read_bytes() for p in pair.target.rglob("*") if p.is_file()}
    for name in ("gone/a", "gone/b", "kind", "way/in"):
        assert OLD[name] in found


ELSEWHERE = ("marker", "patch", "link")
"""Steps that this tree does not pass: `tests/faults` tries every one."""


@pytest.mark.parametrize("step", [s for s in Step if not any(word in s for word in ELSEWHERE)])
def test_an_error_at_any_step_costs_paths_but_not_the_run(pair: Pair, step: Step) -> None:
    make(pair)
    failpoints.arm(f"{step}:error")
    if step is Step.BEFORE_ACK:
        with pytest.raises(OSError, match="injected"):
            pair.run()
    else:
        result = pair.run()
        assert result.problems
        assert result.is_complete
    check_old_or_new(pair)
    check_nothing_lost(pair)
    pair.run()
    pair.check_equal()


@pytest.mark.parametrize("step", [Step.BEFORE_STAGE, Step.BEFORE_FSYNC, Step.BEFORE_RENAME])
def test_what_could_not_be_written_keeps_what_would_be_deleted(pair: Pair, step: Step) -> None:
    make(pair)
    failpoints.arm(f"{step}:error")
    result = pair.run()
    assert result.counts.files_deleted == 3, "phase 1 went before; phase 3 is left out"
    assert (pair.target / "gone/a").exists()
    assert any("deletes left out" in p.detail for p in result.problems)
    assert temporaries(pair.target) == []


def test_an_older_version_met_after_a_crash_goes_to_the_trash(pair: Pair) -> None:
    """I7: between exchange and look the displaced version may be anybody's edit."""
    grow(pair.source, {"d/a": b"new"}, T0 + 1)
    grow(pair.target, {"d/a": b"old"})
    subprocess.run(
        [sys.executable, "-m", "tests.engine.crash_child", pair.source, pair.target, "trash"],
        env={**os.environ, failpoints.VARIABLE: f"{Step.BEFORE_DISPLACED}:kill"},
        check=False,
        timeout=90,
    )
    assert len(temporaries(pair.target)) == 1
    pair.run()
    pair.check_equal()
    kept = [p for p in (pair.target / ".baton/trash").rglob("*") if p.is_file()]
    assert [p.read_bytes() for p in kept] == [b"old"]
    assert kept[0].name == "a"
    assert trashed(pair.target) == {}, "under the day of the scan, not of the test runs"


@pytest.mark.parametrize("step", [Step.BEFORE_MARKER, Step.AFTER_MARKER])
def test_i3_a_marker_is_never_half_written(tmp_path: Path, step: Step) -> None:
    with Tree.open(os.fsencode(tmp_path)) as tree:
        known = advance_marker(tree, check_marker(tree, None), None)
        failpoints.arm(f"{step}:error")
        with pytest.raises(Exception, match=r"injected|marker"):
            advance_marker(tree, check_marker(tree, known), known)
        state = check_marker(tree, known)
        assert state.holds == ()
        assert state.generation in {known.generation, known.generation + 1}


def test_a_misspelt_failpoint_is_refused() -> None:
    for spec in ("before_nothing:kill", "before_rename:explode", "before_rename"):
        with pytest.raises(ValueError, match=r".+"):
            failpoints.arm(spec)
