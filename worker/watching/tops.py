"""Which part of a root is watched: the tops of its consumers, and the ways to them. Pure."""

from collections.abc import Iterable

from syncengine.names import join
from worker.watching.coalesce import is_below, relative_to


class Tops:
    """A set of paths that are watched with everything below them."""

    def __init__(self, tops: Iterable[bytes]) -> None:
        """Take the tops; those below others say nothing new."""
        self.tops: frozenset[bytes] = frozenset()
        for top in sorted(set(tops), key=len):
            if not self.holds(top):
                self.tops |= {top}
        self.is_all = b"" in self.tops

    def holds(self, path: bytes) -> bool:
        """Say whether all of a path is watched."""
        return any(is_below(path, top) for top in self.tops)

    def names(self, path: bytes) -> frozenset[bytes] | None:
        """Return the names in a directory that lead to a top; None when all names count."""
        if self.is_all or self.holds(path):
            return None
        found = (relative_to(path, top) for top in self.tops)
        return frozenset(below.split(b"/", 1)[0] for below in found if below)

    def concerns(self, directory: bytes, name: bytes) -> bool:
        """Say whether an entry is a top, lies below one, or on the way to one."""
        if self.is_all:
            return True
        names = self.names(directory)
        return names is None or name in names

    def are_within(self, others: "Tops") -> bool:
        """Say whether the others watch all that these do."""
        return all(others.holds(top) for top in self.tops)


def way_to(path: bytes) -> list[bytes]:
    """Return the directories on the way to a path, the root first."""
    found, at = [b""], b""
    for name in path.split(b"/")[:-1]:
        at = join(at, name)
        found.append(at)
    return found if path else []
