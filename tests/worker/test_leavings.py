"""What a killed worker left beside its targets goes away by itself, and what lives stays."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncengine import failpoints
from syncengine.entries import fingerprint
from syncengine.failpoints import Step
from syncengine.leavings import walk_leavings
from syncengine.model import Kind, RunOptions
from syncengine.moves import Mover, OwnMarks
from syncengine.operations import Move, Temporaries
from syncengine.staging import Staging
from syncengine.tree import Tree
from tests.engine.trees import T0, Pair, Spec, grow, temporaries
from tests.worker.clocks import until
from tests.worker.workers import Workbench
from wire.orders import Member
from worker.agreed_store import AgreedStores
from worker.fence import Fence
from worker.journal import Written
from worker.leavings import Leavings
from worker.member_tree import MemberTrees

HERE = Member("w1", "data", b"", "")
JOB = Written("job", "data", b"")
OLD: Spec = {"d/replaced": b"old", "gone/a": b"a", "d/large": b"o" * 300_000}
NEW: Spec = {
    "d/replaced": b"new",
    "d/large": b"n" * 300_001,
    "d/fresh": b"fresh",
    "tree/of/new": b"new" * 100_000,
}


def killed(pair: Pair, step: Step, nth: int = 1) -> None:
    """Push in a process that dies at a step."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.engine.crash_child", pair.source, pair.target, "none"],
        env={**os.environ, failpoints.VARIABLE: f"{step}:kill@{nth}"},
        check=False,
        timeout=60,
    )
    assert ended.returncode < 0, "it was to be killed"


@pytest.fixture
def trees(bench: Workbench) -> MemberTrees:
    return MemberTrees(bench.roots, bench.journal, AgreedStores(bench.directory / "agreed"))


@pytest.fixture
def pair(bench: Workbench) -> Pair:
    (bench.directory / "source").mkdir()
    pair = Pair(bench.directory / "source", bench.directory / "data")
    grow(pair.source, NEW, T0 + 1)
    grow(pair.target, OLD)
    return pair


async def clean(bench: Workbench) -> None:
    """Begin a life of the worker that only cleans."""
    trees = MemberTrees(bench.roots, bench.journal, AgreedStores(bench.directory / "agreed"))
    await trees.leavings.clean(trees.open_target, bench.sessions.fence, bench.clock)


@pytest.mark.parametrize(
    ("step", "nth"),
    [
        (Step.AFTER_STAGE, 1),
        (Step.AFTER_STAGE, 2),
        (Step.BEFORE_RENAME, 1),
        (Step.BEFORE_DISPLACED, 1),
        (Step.AFTER_RENAME, 1),
        (Step.AFTER_ADOPT, 1),
    ],
)
async def test_i7_leavings_go_without_a_listing_and_no_older_version_is_lost(
    bench: Workbench, pair: Pair, step: Step, nth: int
) -> None:
    bench.journal.note_written(JOB)
    killed(pair, step, nth)
    left = temporaries(pair.target)
    assert left
    folders = {Path(path).parent for path in left}
    before = {folder: folder.stat().st_mtime_ns for folder in folders}
    shown = {
        path: path.read_bytes()
        for path in pair.target.rglob("*")
        if ".baton" not in str(path) and path.is_file()
    }
    await clean(bench)
    assert temporaries(pair.target) == []
    assert {folder: folder.stat().st_mtime_ns for folder in folders} == before
    assert all(path.read_bytes() == content for path, content in shown.items())
    found = {path.read_bytes() for path in pair.target.rglob("*") if path.is_file()}
    assert set(OLD.values()) - {b"a"} <= found | {NEW[name] for name in NEW if name in OLD}
    if step is Step.BEFORE_DISPLACED:
        kept = (pair.target / ".baton/trash").rglob("*")
        assert {path.read_bytes() for path in kept if path.is_file()} & set(OLD.values())
    assert bench.journal.written() == []


async def test_temporaries_of_this_life_and_other_names_stay(bench: Workbench, pair: Pair) -> None:
    mine = Temporaries()
    names = [mine.staged(), mine.displacing(b"replaced")]
    for name in names:
        (pair.target / "d" / os.fsdecode(name)).write_bytes(b"on its way")
    (pair.target / "d" / ".baton~n~0123456789ab~1").write_bytes(b"of an earlier life")
    (pair.target / "d" / ".batonette").write_bytes(b"somebody's")
    bench.journal.note_written(JOB)
    await clean(bench)
    left = {os.fsencode(Path(path).name) for path in temporaries(pair.target)}
    assert left == set(names)
    assert (pair.target / "d" / ".batonette").exists()


async def test_what_is_written_to_is_noted_first_and_forgotten_at_an_orderly_end(
    bench: Workbench, trees: MemberTrees
) -> None:
    with trees.open_target(HERE) as opened:
        opened.note_written("job")
        assert bench.journal.written() == [JOB]
        opened.note_written("job")
    assert Leavings(bench.journal)._left == {JOB}, "what a life after a death finds"
    trees.leavings.end()
    assert bench.journal.written() == []


async def test_a_walk_that_did_not_end_is_made_again_at_the_next_start(
    bench: Workbench, pair: Pair
) -> None:
    bench.journal.note_written(Written("job", "later", b""))  # a root that is not there yet
    trees = MemberTrees(bench.roots, bench.journal, AgreedStores(bench.directory / "agreed"))
    cleaning = asyncio.create_task(
        trees.leavings.clean(trees.open_target, bench.sessions.fence, bench.clock)
    )
    await until(lambda: bool(bench.clock._sleepers))
    cleaning.cancel()
    await asyncio.gather(cleaning, return_exceptions=True)
    trees.leavings.end()
    assert bench.journal.written() == [Written("job", "later", b"")]


async def test_nothing_is_published_while_a_directory_is_cleaned(
    bench: Workbench, pair: Pair
) -> None:
    """Its times are set back: a push must not set them meanwhile."""
    fence = Fence("job", bench.clock)
    held = []

    with Tree.open(os.fsencode(pair.target)) as tree:
        (pair.target / ".baton~n~0123456789ab~1").write_bytes(b"")

        @contextlib.contextmanager
        def quiet() -> Iterator[None]:
            with fence.quiet():
                held.append((pair.target / ".baton~n~0123456789ab~1").exists())
                yield
                held.append((pair.target / ".baton~n~0123456789ab~1").exists())

        assert walk_leavings(tree, quiet, lambda: False)
    assert held == [True, False]


async def test_a_tree_in_which_directories_move_meanwhile_is_walked_again(
    bench: Workbench, pair: Pair
) -> None:
    """RACE: what moves from where the walk comes to where it was is seen by nobody."""
    for number in range(2):
        (pair.target / f".baton~n~0123456789ab~{number}").write_bytes(b"")
    (pair.target / "gone/.baton~n~0123456789ab~1").write_bytes(b"")
    moves = [b"moved", b""]

    with Tree.open(os.fsencode(pair.target)) as tree:
        directories = tree.directories()
        enter = Staging(tree, directories, RunOptions(), Temporaries()).enter
        mover = Mover(directories, OwnMarks(), Temporaries(), enter)

        @contextlib.contextmanager
        def while_it_moves() -> Iterator[None]:
            yield
            if moves and (to := moves.pop(0)):
                seen = fingerprint((pair.target / "gone").stat())
                mover.move(Move(b"gone", to, seen, Kind.DIRECTORY))

        assert not walk_leavings(tree, while_it_moves, lambda: False)
        assert walk_leavings(tree, while_it_moves, lambda: False)
        directories.close()
    assert temporaries(pair.target) == []
