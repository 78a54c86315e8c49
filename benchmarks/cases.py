"""The cases. To add one, add a `Case` to `CASES`; to add a rival, write a `Side`."""

from dataclasses import dataclass, replace

from benchmarks.changes import Change, EditsAtBothEnds, Nothing, RenamedTop, SomeBytes
from benchmarks.ours import Baton
from benchmarks.rivals import CopyArchive, Rsync
from benchmarks.sides import Side
from benchmarks.trees import Tree
from benchmarks.two_way import Bisync, Syncthing, Unison

_BATON = Baton()
_QUICK = 1 / 25
_QUICK_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Case:
    """One tree, copied by Baton and by each rival in turn."""

    name: str
    title: str
    tree: Tree
    rivals: tuple[Side, ...]
    ours: Side = _BATON
    on_disk: bool = False
    """Copied on a disk with every promise kept, and not in memory with `durability: fast`."""
    change: Change | None = None
    """What is done to a tree whose copies are kept before every run; None: first copies are made."""
    two_way: bool = False
    """Both ends change, and every side has its own two."""
    round_trip_s: float = 0.0
    """How long a packet takes there and back between the ends; 0 is the loopback."""
    rounds: int = 3

    @property
    def says(self) -> str:
        """What is copied, where and how often."""
        where = "on a disk, `strict`" if self.on_disk else "on tmpfs, `fast`"
        change = f"; {self.change.says}" if self.change is not None else ""
        return f"{self.title}: {self.tree}{change}; {where}; {self.rounds} rounds"

    def scaled(self, factor: float) -> "Case":
        """Return it with a larger or a smaller tree."""
        tree = self.tree
        if tree.files == 1:
            size = max(1 << 20, int(tree.largest_bytes * factor))
            return replace(self, tree=replace(tree, smallest_bytes=size, largest_bytes=size))
        files = max(200, int(tree.files * factor))
        return replace(self, tree=replace(tree, files=files))

    def quick(self) -> "Case":
        """Return it small enough for a look at whether everything works."""
        return replace(self.scaled(_QUICK), rounds=_QUICK_ROUNDS)


def _small(files: int) -> Tree:
    return Tree(files=files, smallest_bytes=200, largest_bytes=13_000)


def _one_file(gib: int) -> Tree:
    return Tree(files=1, smallest_bytes=gib << 30, largest_bytes=gib << 30)


CASES = (
    Case(
        "small-files",
        "first copy of small files, in memory",
        _small(100_000),
        (Rsync(), CopyArchive()),
    ),
    Case(
        "small-files-far",
        "first copy of small files over a link of 50 ms there and back",
        _small(10_000),
        (Rsync(), Baton(name="baton-near", is_near=True)),
        round_trip_s=0.05,
    ),
    Case(
        "large-file",
        "first copy of a large file, in memory",
        _one_file(4),
        (Rsync("--whole-file"), CopyArchive()),
        rounds=4,
    ),
    Case(
        "large-file-changed",
        "a few bytes changed in a large file, in memory",
        _one_file(4),
        (
            Rsync("--no-whole-file"),
            Rsync("--no-whole-file", "--inplace", name="rsync-inplace"),
        ),
        change=SomeBytes(100),
    ),
    Case(
        "unchanged",
        "nothing changed, in memory",
        Tree(files=1_000_000, smallest_bytes=0, largest_bytes=0, per_directory=200),
        (Rsync(),),
        change=Nothing(),
    ),
    Case(
        "renamed",
        "a directory renamed, in memory",
        replace(_small(10_000), per_directory=10_000),
        (Rsync("--delete"),),
        change=RenamedTop(),
    ),
    Case(
        "five-targets",
        "first copies of small files to five targets, in memory",
        _small(20_000),
        (Rsync(targets=5), Baton(name="baton-one")),
        ours=Baton(targets=5),
    ),
    Case(
        "small-files-disk",
        "first copy of small files, on a disk, durable",
        _small(10_000),
        (Rsync("--fsync"), CopyArchive()),
        on_disk=True,
    ),
    Case(
        "large-file-disk",
        "first copy of a large file, on a disk, durable",
        _one_file(1),
        (Rsync("--whole-file", "--fsync"), CopyArchive()),
        on_disk=True,
    ),
    Case(
        "two-way",
        "two ends that both changed, in memory",
        _small(10_000),
        (Unison(), Bisync(), Syncthing()),
        ours=Baton(rule="sync"),
        change=EditsAtBothEnds(100),
        two_way=True,
    ),
)
