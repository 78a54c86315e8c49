"""The cases. To add one, add a `Case` to `CASES`; to add a rival, write a `Side`."""

from dataclasses import dataclass, replace

from benchmarks.rivals import CopyArchive, Rsync
from benchmarks.sides import Side
from benchmarks.trees import Tree

_SMALL = Tree(files=50_000, smallest_bytes=200, largest_bytes=13_000)
_TINY = Tree(files=100_000, smallest_bytes=100, largest_bytes=1_000)


@dataclass(frozen=True, slots=True)
class Case:
    """One tree, copied by Baton and by each rival in turn."""

    name: str
    title: str
    tree: Tree
    rivals: tuple[Side, ...]
    on_disk: bool = False
    """Copied on a disk with every promise kept, and not in memory with `durability: fast`."""
    unchanged: bool = False
    """Measured is a run over a target that is equal already, and not a first copy."""
    rounds: int = 5

    def quick(self) -> "Case":
        """Return it small enough for a look at whether everything works."""
        tree = self.tree
        if tree.files == 1:
            size = tree.largest_bytes // 32
            tree = replace(tree, smallest_bytes=size, largest_bytes=size)
        else:
            tree = replace(tree, files=tree.files // 25)
        return replace(self, tree=tree, rounds=2)


def _one_file(gib: int) -> Tree:
    return Tree(files=1, smallest_bytes=gib << 30, largest_bytes=gib << 30)


CASES = (
    Case(
        "small-files",
        "first copy of small files, in memory",
        _SMALL,
        (Rsync(), CopyArchive()),
    ),
    Case(
        "large-file",
        "first copy of a large file, in memory",
        _one_file(4),
        (Rsync("--whole-file"), CopyArchive()),
        rounds=4,
    ),
    Case(
        "unchanged",
        "nothing changed, in memory",
        _TINY,
        (Rsync(),),
        unchanged=True,
    ),
    Case(
        "small-files-disk",
        "first copy of small files, on a disk, durable",
        replace(_SMALL, files=10_000),
        (Rsync("--fsync"), CopyArchive()),
        on_disk=True,
        rounds=4,
    ),
    Case(
        "large-file-disk",
        "first copy of a large file, on a disk, durable",
        _one_file(1),
        (Rsync("--whole-file", "--fsync"), CopyArchive()),
        on_disk=True,
        rounds=3,
    ),
)
