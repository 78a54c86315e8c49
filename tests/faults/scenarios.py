"""Runs that together pass every step of `failpoints`, each with what must hold wherever it ends.

A new step is covered by a scenario that reaches it: the tests demand one. Register it with
`@scenario("name")`; it is made anew for each attempt, prepared, run in a process that dies or fails at
one step, checked, run again on a sound machine, and checked for its end.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from syncengine.inplace import undo_all
from syncengine.marker import advance_marker, check_marker
from syncengine.model import Often, RunOptions, Safety
from syncengine.tree import Tree
from tests.engine.renames import push, renaming
from tests.engine.trees import T0, Pair, Spec, grow, picture, temporaries

SCENARIOS: dict[str, Callable[[Path], "Scenario"]] = {}


class Scenario(Protocol):
    """One run below a directory of its own. It is used by several processes: it keeps nothing."""

    def prepare(self) -> None:
        """Make the trees."""

    def run(self) -> bool:
        """Run once; say whether everything went well."""

    def check(self) -> None:
        """Demand what holds at any moment: I1 and I7."""

    def check_end(self) -> None:
        """Demand what holds after a run in which nothing failed: I10."""


def scenario(
    name: str, *arguments: object
) -> Callable[[Callable[..., Scenario]], Callable[..., Scenario]]:
    """Register a class, or make of it a scenario more, with arguments after its place."""

    def register(make: Callable[..., Scenario]) -> Callable[..., Scenario]:
        assert name not in SCENARIOS
        SCENARIOS[name] = lambda base: make(base, *arguments)
        return make

    return register


def visible_files(root: Path) -> dict[str, bytes]:
    """Return what a reader finds, without what is reserved."""
    found: dict[str, bytes] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".baton")]
        for name in files:
            path = Path(folder, name)
            if not name.startswith(".baton") and path.is_file() and not path.is_symlink():
                found[str(path.relative_to(root))] = path.read_bytes()
    return found


def every_content(root: Path) -> set[bytes]:
    """Return all that can be found below, under whatever name."""
    return {p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.is_symlink()}


@scenario("mirror", RunOptions(safety=Safety(trash_s=86_400)))
@scenario("mirror, no trash", RunOptions(safety=Safety(trash_s=None)))
@scenario("mirror, all kept", RunOptions(safety=Safety(trash_s=86_400, keep_replaced=True)))
@dataclass
class Mirror:
    """One target made equal: new, replaced, large, touched, deleted, and of another kind."""

    base: Path
    options: RunOptions
    old: Spec = field(
        default_factory=lambda: {
            "replaced": b"old" * 9,
            "big": b"old" * 100_000,
            "same": b"same",
            "touched": b"touched",
            "gone/a": b"gone",
            "gone/b": b"gone too",
            "kind": b"a file",
            "way/in": b"in the way",
        }
    )
    new: Spec = field(
        default_factory=lambda: {
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
    )

    @property
    def pair(self) -> Pair:
        return Pair(self.base / "source", self.base / "target", self.options)

    def prepare(self) -> None:
        pair = self.pair
        grow(pair.source, self.new, T0 + 1)
        grow(pair.target, self.old)
        for name in ("same", "touched"):
            os.utime(pair.source / name, ns=(T0, T0))
        (pair.source / "touched").chmod(0o600)

    def run(self) -> bool:
        pair = self.pair
        with Tree.open(os.fsencode(pair.target)) as tree:
            advance_marker(tree, check_marker(tree, None), None)
        result = pair.run()
        return result.is_complete and not result.problems and not result.retry

    def check(self) -> None:
        for name, content in visible_files(self.pair.target).items():
            assert content in {self.old.get(name), self.new.get(name)}, f"{name} is torn (I1)"
        if self.options.safety.trash_s is not None:
            kept = every_content(self.pair.target)
            lost = [name for name, content in self.old.items() if name not in self.new]
            lost += ["kind", "way/in"]
            if self.options.safety.keep_replaced:
                lost += ["replaced", "big"]
            assert [name for name in lost if self.old[name] not in kept] == [], "lost (I7)"

    def check_end(self) -> None:
        pair = self.pair
        assert picture(pair.target) == picture(pair.source)
        assert temporaries(pair.target) == []
        with pair.preview() as plan:
            assert plan.is_empty


@scenario("renames, links, special files, attributes")
@dataclass
class Kinds:
    """A tree and files renamed, names linked, parted and joined, a FIFO, attributes."""

    base: Path

    @property
    def pair(self) -> Pair:
        options = RunOptions(
            keep_xattrs=True, keep_hardlinks=True, keep_devices=True, keep_acls=True
        )
        return Pair(self.base / "source", self.base / "target", options)

    renames = ((b"tree", b"new/place/tree"), (b"file", b"file2"), (b"edited", b"new/edited"))
    contents = (b"one", b"22", b"a file", b"edited", b"linked", b"was single", b"gone")

    def prepare(self) -> None:
        pair = self.pair
        one, two, file, edited, linked, single, gone = self.contents
        old: Spec = {"tree/1": one, "tree/deep/2": two, "file": file, "edited": edited}
        grow(pair.target, old | {"l/a": linked, "l/s": single, "gone": gone})
        os.link(pair.target / "l/a", pair.target / "l/b")
        new: Spec = {"new/place/tree/1": one, "new/place/tree/deep/2": two, "file2": file}
        grow(pair.source, new | {"new/edited": b"edited later", "l/a": linked, "l/b": b"parted"})
        os.link(pair.source / "l/a", pair.source / "l/c")
        os.link(pair.source / "l/a", pair.source / "l/s")
        os.mkfifo(pair.source / "pipe")
        os.setxattr(pair.source / "l/a", "user.x", b"1")
        os.setxattr(pair.source / "new", "user.x", b"2")
        os.utime(pair.source / "pipe", ns=(T0, T0))
        for folder in ("l", "."):
            os.utime(pair.source / folder, ns=(T0, T0))

    def run(self) -> bool:
        pair = self.pair
        with Tree.open(os.fsencode(pair.target)) as tree:
            advance_marker(tree, check_marker(tree, None), None)
        with renaming(pair, *self.renames) as plan:
            result = push(pair, plan)
        return result.is_complete and not result.problems and not result.retry

    def check(self) -> None:
        kept = every_content(self.pair.target)
        # An edited file is replaced, and a linked name gets the content of its new group.
        assert [c for c in self.contents if c not in kept | {b"edited", b"was single"}] == []
        for name, content in visible_files(self.pair.target).items():
            known = {*self.contents, b"edited later", b"parted"}
            assert content in known, f"{name} is torn (I1)"

    def check_end(self) -> None:
        pair = self.pair
        assert picture(pair.target) == picture(pair.source)
        assert temporaries(pair.target) == []
        names = ("l/a", "l/c", "l/s")
        assert len({(pair.target / name).stat().st_ino for name in names}) == 1
        assert os.getxattr(pair.target / "l/s", "user.x") == b"1"
        assert os.getxattr(pair.target / "new", "user.x") == b"2"
        with pair.preview() as plan:
            assert plan.is_empty


@scenario("delta", Often.AUTO)
@scenario("in place", Often.INPLACE)
@dataclass
class Delta:
    """A large file that changes, in place too: mixed at no moment that the next scan does not end."""

    base: Path
    delta: Often
    old: bytes = field(default_factory=lambda: random.Random(1).randbytes(600_000))

    @property
    def new(self) -> bytes:
        """The version of the source."""
        return self.old[:200_000] + b"new" + self.old[200_003:500_000]

    @property
    def pair(self) -> Pair:
        """The trees."""
        options = RunOptions(delta=self.delta)
        return Pair(self.base / "source", self.base / "target", options)

    def prepare(self) -> None:
        grow(self.pair.target, {"f": self.old}, T0)
        grow(self.pair.source, {"f": self.new}, T0 + 1)

    def run(self) -> bool:
        result = self.pair.run()
        return result.is_complete and not result.problems and not result.retry

    def check(self) -> None:
        with Tree.open(os.fsencode(self.pair.target)) as tree:
            undo_all(tree)
        assert (self.pair.target / "f").read_bytes() in {self.old, self.new}

    def check_end(self) -> None:
        self.pair.check_equal()
