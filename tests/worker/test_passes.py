"""Passes over a part of the trees: they come to what whole passes come to, and to nothing beyond."""

import os
import random
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syncengine.agreed import Graft
from syncengine.model import HoldReason, Often, Rule, RunOptions, Safety, What
from syncengine.other_names import find_names
from syncengine.scope import Scope, ScopePath
from syncengine.tree import Tree
from tests.faults.members import Members
from wire.orders import Outcome
from worker import member_tree
from worker.one_way_pass import OneWayPasses

NO_LIMITS = Safety(max_delete=None, max_delete_files=None)
OPTIONS = RunOptions(keep_hardlinks=True, safety=NO_LIMITS)


class Two:
    """Two real workers, the source's tree and the target's, and the passes between them."""

    def __init__(self, members: Members, passes: OneWayPasses) -> None:
        self.members, self.passes = members, passes
        self.source, self.target = members.roots

    def write(self, path: str, content: str = "", *, at: Path | None = None) -> None:
        place = (at or self.source) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content or f"<{path}>")

    def are_equal(self) -> bool:
        return picture(self.source) == picture(self.target)


@pytest.fixture
async def two(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Two]:
    """Give the options of the job by `request.param`."""
    options = getattr(request, "param", OPTIONS)
    members = Members(tmp_path, ["a", "b"], options)
    await members.open()
    passes = await members.passes()
    yield Two(members, passes)
    await passes.close()
    await members.close()


def picture(root: Path) -> dict[str, Any]:
    """Return all that a job with the usual options makes equal, which names are one file too."""
    found: dict[str, Any] = {}
    names: dict[int, list[str]] = {}
    for directory, folders, files in os.walk(root):
        if Path(directory) == root and ".baton" in folders:
            folders.remove(".baton")
        for name in [*folders, *files, "."]:
            place = Path(directory) / name
            status, shown = place.lstat(), os.path.relpath(place, root)
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(place)
            elif stat.S_ISREG(status.st_mode):
                content = place.read_bytes()
                names.setdefault(status.st_ino, []).append(shown)
            found[shown] = (oct(status.st_mode), status.st_mtime_ns, content)
    found["names of one file"] = sorted(sorted(one) for one in names.values() if len(one) > 1)
    return found


def shallow(*paths: str) -> Scope:
    return Scope(shallow=map(os.fsencode, paths))


# What changes is sent, and nothing else is looked at


async def test_a_change_is_sent_without_a_scan(two: Two) -> None:
    for number in range(20):
        two.write(f"d/f{number}")
    assert (await two.passes.pass_over(Scope.whole())).is_equal
    two.write("d/f7", "new")
    two.write("d/f8", "not told")
    done = await two.passes.pass_over(shallow("d/f7"))
    assert done.is_equal
    assert (done.changes, done.counts.files_copied, done.counts.files_scanned) == (2, 1, 2)
    assert (two.target / "d/f7").read_text() == "new"
    assert (two.target / "d/f8").read_text() == "<d/f8>"
    again = await two.passes.pass_over(shallow("d/f7", "d/gone", "gone/x"))
    assert (again.is_equal, again.changes) == (True, 0)


@pytest.mark.parametrize(
    "two",
    [replace(OPTIONS, compression=mode) for mode in (Often.AUTO, Often.OFF)],
    ids=["auto", "off"],
    indirect=True,
)
async def test_a_listing_is_compressed_as_the_job_says(two: Two) -> None:
    (two.source / "d").mkdir()
    for number in range(3_000):
        (two.source / f"d/of-a-common-name-{number:05}").touch()
    assert (await two.passes.pass_over(Scope.whole())).is_equal
    done = await two.passes.pass_over(Scope.whole())
    assert (done.is_equal, done.changes, done.counts.files_scanned) == (True, 0, 3_001)
    is_on = two.members.options.compression is Often.AUTO
    assert (done.counts.bytes_sent < 80_000) == is_on, "a listing of 3,000 names and numbers"
    assert done.counts.bytes_sent > 3_000 * 8


async def test_deletes_stay_in_the_scope(two: Two) -> None:
    for path in ("d/a", "d/b", "e/a", "f", "g"):
        two.write(path)
    await two.passes.pass_over(Scope.whole())
    for path in ("d", "e"):
        shutil.rmtree(two.source / path)
    (two.source / "f").unlink()
    done = await two.passes.pass_over(shallow("d/a", "d", "d/b"))
    assert (done.is_equal, done.counts.files_deleted) == (True, 3)
    assert not (two.target / "d").exists()
    assert (two.target / "e/a").exists()
    assert (two.target / "f").exists()
    # Of a directory that is gone, one path is enough to see that.
    assert (await two.passes.pass_over(shallow("e/a"))).is_equal
    assert not (two.target / "e").exists()
    assert (two.target / "f").exists()


async def test_what_one_side_lacks_is_looked_at_whole(two: Two) -> None:
    for path in ("d/e/a", "d/e/b", "k/x"):
        two.write(path)
    await two.passes.pass_over(Scope.whole())
    shutil.rmtree(two.target / "d")
    shutil.rmtree(two.source / "k")
    two.write("k", "a file now")
    two.write("d/e/a", "new")
    assert (await two.passes.pass_over(shallow("d/e/a", "k"))).is_equal
    assert two.are_equal()
    (two.source / "k").unlink()
    two.write("k/y/z")
    two.write("k/y/w")
    assert (await two.passes.pass_over(shallow("k/y/z"))).is_equal
    assert two.are_equal()


async def test_a_rename_that_was_seen_sends_nothing(two: Two) -> None:
    for number in range(50):
        two.write(f"d/{number}", "x" * 1000)
    two.write("f", "y" * 1000)
    await two.passes.pass_over(Scope.whole())
    inode = (two.target / "d/7").stat().st_ino
    (two.source / "d").rename(two.source / "e")
    (two.source / "f").rename(two.source / "e/f")
    hints = [Graft(b"d", b"e"), Graft(b"f", b"e/f")]
    done = await two.passes.pass_over(Scope(), hints=hints)
    assert done.is_equal
    assert (done.counts.files_copied, done.counts.files_renamed) == (0, 2)
    assert done.changes == 4, "the two, and the times of two directories"
    assert (two.target / "e/7").stat().st_ino == inode
    assert two.are_equal()


async def test_hints_that_are_wrong_cost_nothing_but_time(two: Two) -> None:
    for path in ("a", "b", "d/x"):
        two.write(path)
    await two.passes.pass_over(Scope.whole())
    two.write("a", "new")
    wrong = [(b"a", b"b"), (b"d", b"new"), (b"gone", b"d/gone"), (b"a", b"d/a"), (b"d", b"d/x/y")]
    done = await two.passes.pass_over(shallow("a"), hints=[Graft(*one) for one in wrong])
    assert done.is_equal
    assert two.are_equal()


def _moved_on(two: Two) -> None:
    (two.source / "p").mkdir()
    (two.source / "a").rename(two.source / "p/a")
    (two.source / "p").rename(two.source / "q")


def _gone_for_a_file(two: Two) -> None:
    shutil.rmtree(two.source / "a")
    two.write("p", "a file now")


def _hidden(two: Two) -> None:
    for root in (two.source, two.target):
        (root / "cache").mkdir()
    (two.source / "a").rename(two.source / "cache/a")


@pytest.mark.parametrize(
    ("two", "change", "to", "found"),
    [
        (OPTIONS, _moved_on, b"p/a", {"k", "q/a/x", "q/a/y/z"}),
        (OPTIONS, _gone_for_a_file, b"p/a", {"k", "p"}),
        (replace(OPTIONS, filters=("cache/",)), _hidden, b"cache/a", {"k"}),
        (
            replace(OPTIONS, rule=Rule.COPY),
            _moved_on,
            b"q/a",
            {"a/x", "a/y/z", "k", "q/a/x", "q/a/y/z"},
        ),
    ],
    ids=["moved on", "gone", "hidden", "copy"],
    indirect=["two"],
)
async def test_a_rename_that_the_source_has_outlived_leaves_nothing_behind(
    two: Two, change: Callable[[Two], None], to: bytes, found: set[str]
) -> None:
    """What a hint shows where the source has no place for it was compared with nothing."""
    for path in ("a/x", "a/y/z", "k"):
        two.write(path)
    await two.passes.pass_over(Scope.whole())
    change(two)
    scope = Scope(deep=[b"a", b"p", b"q", to])
    done = await two.passes.pass_over(scope, hints=[Graft(b"a", to)])
    assert done.is_equal
    there = {path.relative_to(two.target) for path in two.target.rglob("*") if path.is_file()}
    assert {str(path) for path in there if path.parts[0] != ".baton"} == found


async def test_all_names_of_a_file_follow_one_of_them(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.write("d/one", "old")
    (two.source / "e").mkdir()
    os.link(two.source / "d/one", two.source / "e/two")
    await two.passes.pass_over(Scope.whole())
    (two.source / "e/two").write_text("new")
    done = await two.passes.pass_over(shallow("e/two"))
    assert done.is_equal
    assert (two.target / "d/one").read_text() == "new"
    os.link(two.source / "e/two", two.source / "three")
    assert (await two.passes.pass_over(shallow("three"))).is_equal
    assert two.are_equal()
    (two.source / "three").write_text("newer")
    assert (await two.passes.pass_over(shallow("three"))).is_equal
    assert two.are_equal()
    # One that nobody knew to have two names, and one that has a name elsewhere.
    two.write("k/four")
    assert (await two.passes.pass_over(shallow("k/four"))).is_equal
    os.link(two.source / "k/four", two.source / "five")
    (two.source / "five").write_text("new")
    assert (await two.passes.pass_over(shallow("five"))).is_equal
    assert two.are_equal()
    os.link(two.source / "five", two.source.parent / "outside")
    (two.source / "k/four").write_text("newer")
    walks: list[Mapping[int, int]] = []

    def counted(tree: Tree, wanted: Mapping[int, int]) -> Iterator[bytes]:
        walks.append(wanted)
        return find_names(tree, wanted)

    monkeypatch.setattr(member_tree, "find_names", counted)
    for content in ("newer", "newest", "last"):
        (two.source.parent / "outside").write_text(content)
        assert (await two.passes.pass_over(shallow("k/four"))).is_equal
        assert two.are_equal()
    assert len(walks) == 1


async def test_a_change_through_a_name_that_went_shows_at_the_others(two: Two) -> None:
    two.write("one", "old")
    os.link(two.source / "one", two.source / "two")
    await two.passes.pass_over(Scope.whole())
    (two.source / "two").write_text("new")
    (two.source / "two").unlink()
    assert (await two.passes.pass_over(shallow("two"))).is_equal
    assert two.are_equal()


@pytest.mark.parametrize("two", [replace(OPTIONS, keep_hardlinks=False)], indirect=True)
async def test_all_names_of_a_file_follow_where_links_are_not_kept(two: Two) -> None:
    two.write("one", "old")
    two.write("two", "x")
    os.link(two.source / "one", two.source / "three")
    await two.passes.pass_over(Scope.whole())
    (two.source / "three").write_text("new")
    assert (await two.passes.pass_over(shallow("three"))).is_equal
    assert (two.target / "one").read_text() == "new"
    assert (two.target / "one").stat().st_nlink == 1


@pytest.mark.parametrize("two", [replace(OPTIONS, filters=("*.tmp", "/cache/"))], indirect=True)
async def test_filters_hold_in_a_scope(two: Two) -> None:
    for path in ("a.tmp", "cache/x", "d/cache/x"):
        two.write(path)
        two.write(path, "at the target", at=two.target)
    done = await two.passes.pass_over(shallow("a.tmp", "cache/x", "cache", "d/cache/x"))
    assert done.is_equal
    assert (two.target / "a.tmp").read_text() == "at the target"
    assert (two.target / "cache/x").read_text() == "at the target"
    assert (two.target / "d/cache/x").read_text() == "<d/cache/x>"


@pytest.mark.parametrize("two", [replace(OPTIONS, rule=Rule.COPY)], indirect=True)
async def test_a_copy_removes_nothing_in_a_scope_either(two: Two) -> None:
    two.write("d/a")
    two.write("d/b")
    await two.passes.pass_over(Scope.whole())
    (two.source / "d/a").unlink()
    two.write("d/b", "new")
    assert (await two.passes.pass_over(shallow("d/a", "d/b"))).is_equal
    assert (two.target / "d/a").exists()
    assert (two.target / "d/b").read_text() == "new"


# What could not be done is named


async def test_what_failed_is_to_be_passed_over_again(two: Two) -> None:
    two.write("d/a")
    two.write("b")
    await two.passes.pass_over(Scope.whole())
    two.write("d/a", "new")
    two.write("b", "new")
    # The target's file system refuses one of them.
    (two.target / "d/a").unlink()
    (two.target / "d").rmdir()
    await two.members.workers[1].stop()
    away = await two.passes.pass_over(shallow("d/a", "b"))
    assert away.is_away
    assert away.unequal == shallow("d/a", "b")
    assert [problem.what for problem in away.problems] == [What.UNREACHABLE]
    await two.members.workers[1].start()
    two.passes = await two.members.passes()
    assert (await two.passes.pass_over(away.unequal)).is_equal
    assert two.are_equal()
    await two.passes.close()


async def test_i8_a_scope_is_judged_against_the_whole(two: Two) -> None:
    two.members.options = RunOptions(safety=Safety(max_delete=0.5))
    passes = await two.members.passes()
    for number in range(10):
        two.write(f"f{number}")
    assert (await passes.pass_over(Scope.whole())).is_equal
    for number in range(4):
        (two.source / f"f{number}").unlink()
        assert (await passes.pass_over(shallow(f"f{number}"))).is_equal
    (two.source / "f4").unlink()
    (two.source / "f5").unlink()
    held = await passes.pass_over(shallow("f4", "f5"))
    assert [hold.reason for hold in held.holds] == [HoldReason.MAX_DELETE]
    assert held.unequal == shallow("f4", "f5")
    assert (two.target / "f5").exists()
    assert (await passes.pass_over(shallow("f4", "f5"), approved=bytes(32))).holds
    assert (two.target / "f4").exists()
    done = await passes.pass_over(shallow("f4", "f5"), approved=held.digest)
    assert done.is_equal
    # From here on it counts from what was approved.
    (two.source / "f6").unlink()
    assert (await passes.pass_over(shallow("f6"))).is_equal
    assert two.are_equal()
    await passes.close()


async def test_i8_an_emptied_source_is_held(two: Two) -> None:
    two.write("only")
    assert (await two.passes.pass_over(Scope.whole())).is_equal
    (two.source / "only").unlink()
    held = await two.passes.pass_over(shallow("only"))
    assert [(hold.reason, hold.member) for hold in held.holds] == [(HoldReason.EMPTIED, "a:data")]
    assert (two.target / "only").exists()
    shutil.rmtree(two.target / ".baton")
    held = await two.passes.pass_over(shallow("only"))
    assert HoldReason.MARKER_MISSING in [hold.reason for hold in held.holds]
    done = await two.passes.pass_over(shallow("only"), approved=held.digest)
    assert done.is_equal
    assert not (two.target / "only").exists()


async def test_many_paths_go_in_pieces(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Scope.pieces
    monkeypatch.setattr(Scope, "pieces", lambda self: whole(self, paths=3))
    paths = [f"d{number % 3}/{number}" for number in range(10)]
    for path in paths:
        two.write(path)
    done = await two.passes.pass_over(shallow(*paths))
    assert (done.is_equal, done.counts.files_copied) == (True, 10)
    assert done.scope == shallow(*paths)
    assert two.are_equal()
    two.write("d0/0", "new")
    (two.source / "d1/1").rename(two.source / "z")
    done = await two.passes.pass_over(shallow(*paths, "z"), hints=[Graft(b"d1/1", b"z")])
    assert (done.is_equal, done.counts.files_renamed) == (True, 1)
    assert two.are_equal()


# Any changes at all


class Writer:
    """Does anything at all to a tree, and knows the paths that a watcher would have told of."""

    def __init__(self, root: Path, seed: int, *, links: bool = True) -> None:
        self.root, self.random, self.links = root, random.Random(seed), links
        self.told: list[ScopePath] = []
        self.hints: list[Graft] = []
        self._number = 0

    def change(self) -> None:
        acts: list[Callable[[], None]] = [
            *[self._write] * 4,
            self._mkdir,
            self._remove,
            self._rename,
            self._symlink,
            self._metadata,
        ]
        if self.links:
            acts.append(self._link)
        self.random.choice(acts)()

    def taken(self) -> tuple[Scope, list[Graft]]:
        told = Scope.of(self.told), self.hints
        self.told, self.hints = [], []
        return told

    def _tell(self, place: Path, *, is_deep: bool = False) -> None:
        self.told.append(ScopePath(os.fsencode(place.relative_to(self.root)), is_deep))

    def _all(self, *, files: bool = False, directories: bool = False) -> list[Path]:
        found = [
            place
            for place in self.root.rglob("*")
            if ".baton" not in place.parts
            and (
                (files and place.is_file() and not place.is_symlink())
                or (directories and place.is_dir() and not place.is_symlink())
            )
        ]
        return sorted(found)

    def _files_in(self, directory: Path) -> list[Path]:
        return [place for place in self._all(files=True) if place.is_relative_to(directory)]

    def _place(self) -> Path:
        """Return a place to make something: mostly free."""
        parents = [self.root, *self._all(directories=True)]
        return self.random.choice(parents) / self.random.choice("abcdefgh")

    def _write(self) -> None:
        place = self._place()
        if place.is_dir() and not place.is_symlink():
            return
        self._number += 1
        place.unlink(missing_ok=True) if place.is_symlink() else None
        place.write_text(f"{self._number}" * self.random.choice([1, 50]))
        self._tell(place)

    def _mkdir(self) -> None:
        place = self._place()
        if os.path.lexists(place):
            return
        place.mkdir()
        self._tell(place)

    def _remove(self) -> None:
        found = self._all(files=True, directories=True)
        if not found:
            return
        place = self.random.choice(found)
        if place.is_dir() and any(one.lstat().st_nlink > 1 for one in self._files_in(place)):
            return  # what was changed through a name in it just before, the next audit finds
        self._tell(place, is_deep=place.is_dir())
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()

    def _rename(self) -> None:
        found = self._all(files=True, directories=True)
        to = self._place()
        if not found:
            return
        place = self.random.choice(found)
        if os.path.lexists(to) or to.is_relative_to(place):
            return
        self._tell(place, is_deep=place.is_dir())
        place.rename(to)
        self._tell(to, is_deep=True)
        if self.random.random() < 0.7:
            names = [os.fsencode(one.relative_to(self.root)) for one in (place, to)]
            self.hints.append(Graft(*names))

    def _symlink(self) -> None:
        place = self._place()
        if not os.path.lexists(place):
            place.symlink_to("anywhere")
            self._tell(place)

    def _link(self) -> None:
        found, place = self._all(files=True), self._place()
        if found and not os.path.lexists(place):
            os.link(self.random.choice(found), place)
            self._tell(place)

    def _metadata(self) -> None:
        found = self._all(files=True, directories=True)
        if not found:
            return
        place = self.random.choice(found)
        if self.random.random() < 0.5:
            place.chmod(self.random.choice([0o700, 0o755] if place.is_dir() else [0o600, 0o644]))
        else:
            os.utime(place, ns=(1, self.random.randrange(10**18)))
        self._tell(place)


@pytest.mark.parametrize("seed", range(3))
async def test_i10_scoped_passes_come_to_what_a_whole_one_would(two: Two, seed: int) -> None:
    """After any changes, passes over just the paths told leave nothing for a whole pass to find."""
    writer = Writer(two.source, seed)
    for _ in range(60):
        writer.change()
    writer.taken()
    assert (await two.passes.pass_over(Scope.whole())).is_equal
    assert two.are_equal()
    for number in range(25):
        for _ in range(writer.random.randrange(1, 12)):
            writer.change()
        if not any(two.source.iterdir()):
            break  # that is held, and another test
        scope, hints = writer.taken()
        for _ in range(3):
            # What it did to one name of a file may look like a change of another.
            done = await two.passes.pass_over(scope, hints=hints)
            scope, hints = done.unequal, []
            if done.is_equal:
                break
        assert done.is_equal, (number, scope, hints, done)
        assert two.are_equal(), (number, scope, hints)
    audit = await two.passes.pass_over(Scope.whole())
    assert (audit.is_equal, audit.changes) == (True, 0)
    ended = await two.members.run()
    assert ended.outcome is Outcome.SUCCEEDED
    counts = ended.counts
    assert (counts.files_copied, counts.files_updated, counts.files_deleted) == (0, 0, 0)
