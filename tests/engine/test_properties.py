"""Random trees: a mirror makes the target equal, and moves nothing when run again (I10, I11)."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from syncengine.changes import Remove, SetDirectory
from syncengine.model import Compare, RunOptions, Safety
from tests.engine.trees import FAST, T0, Pair, entries_of, rsync_differences

NAMES = st.sampled_from(["a", "b", "c", "a-", "a.b", "é", "\udcff"])
LEAVES = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=3), st.sampled_from([0o644, 0o600, 0o755])),
    st.tuples(st.just("link"), st.sampled_from(["a", "../b", "/nowhere"]), st.just(0)),
    st.tuples(st.just("big"), st.integers(129_000, 131_000), st.just(0o644)),
)
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=4),
    lambda inner: st.dictionaries(NAMES, st.one_of(LEAVES, inner), max_size=5),
    max_leaves=12,
)
TIMES = st.integers(0, 2)


def grow_any(folder: Path, tree: dict[str, object], times: Iterator[int]) -> None:
    folder.mkdir(exist_ok=True)
    for name, what in tree.items():
        path = folder / name
        when = T0 + next(times)
        if isinstance(what, dict):
            grow_any(path, what, times)
            continue
        assert isinstance(what, tuple)
        kind, content, mode = what
        if kind == "link":
            path.symlink_to(content)
        else:
            path.write_bytes(content if kind == "file" else b"b" * content)
            path.chmod(mode)
        os.utime(path, ns=(when, when), follow_symlinks=False)
    os.utime(folder, ns=(T0, T0 + next(times)))


@contextmanager
def two(source: dict[str, object], target: dict[str, object], turn: int) -> Iterator[Pair]:
    base = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        times = iter((n * (turn + 1)) % 3 for n in range(10_000))
        grow_any(base / "source", source, times)
        grow_any(base / "target", target, times)
        yield Pair(base / "source", base / "target", FAST)
    finally:
        shutil.rmtree(base)


@settings(max_examples=60, deadline=None)
@given(source=TREES, target=TREES, turn=TIMES, trash=st.booleans(), sums=st.booleans())
def test_i10_a_mirror_makes_any_two_trees_equal(
    source: dict[str, object], target: dict[str, object], turn: int, *, trash: bool, sums: bool
) -> None:
    with two(source, target, turn) as pair:
        compare = Compare.CHECKSUM if sums else Compare.MTIME
        pair.digests = sums
        safety = Safety(trash_s=86_400 if trash else None)
        pair.options = RunOptions(compare=compare, durability=FAST.durability, safety=safety)
        result = pair.run()
        assert result.problems == []
        assert result.retry == []
        assert result.is_complete
        for path in pair.source.rglob("*"):
            if not path.is_symlink():
                there = pair.target / path.relative_to(pair.source)
                assert there.stat().st_mode == path.stat().st_mode, path
        again = pair.run()
        assert again.counts == replace(again.counts, files_copied=0, files_deleted=0)
        if sums:
            # Content, size and time alike: only checksums can promise full equality.
            assert pair.run().counts.bytes_sent < 20
            if shutil.which("rsync"):
                assert rsync_differences(pair.source, pair.target) == ""


@settings(max_examples=60, deadline=None)
@given(source=TREES, target=TREES, turn=TIMES, complete=st.booleans())
def test_i11_the_planner_deletes_only_what_the_source_does_not_have(
    source: dict[str, object], target: dict[str, object], turn: int, *, complete: bool
) -> None:
    with two(source, target, turn) as pair:
        ours = {entry.path: entry.kind for entry in entries_of(pair.source)}
        theirs = {entry.path: entry.kind for entry in entries_of(pair.target)}
        with pair.preview() as plan:
            plan.summary.is_complete = complete
            changes = list(plan)
            assert plan.summary.source_entries == len(ours) - 1
            assert plan.summary.target_entries == len(theirs) - 1
        removed = [change.path for change in changes if isinstance(change, Remove)]
        assert len(removed) == len(set(removed))
        for path in removed:
            assert complete
            assert path in theirs
            assert ours.get(path) is not theirs[path]
        # What holds something goes after it, and every path has at most one making change.
        for number, path in enumerate(removed):
            assert not any(later.startswith(path + b"/") for later in removed[number + 1 :])
        made = [c.path for c in changes if not isinstance(c, Remove | SetDirectory)]
        assert len(made) == len(set(made))
        assert set(made) <= ours.keys()
        assert len(changes) <= len(ours) * 2 + len(theirs)
