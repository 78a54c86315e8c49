"""Grafts: a tree listed as if renames had been done in it already. Looks, and changes nothing."""

import os
import stat
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from syncengine.agreed import Graft
from syncengine.directories import Directories
from syncengine.names import check_path, parent_of

_GONE = (FileNotFoundError, NotADirectoryError)


class Grafts:
    """The grafts that a tree can show: something is to be renamed, and nothing is in its place.

    The others are left out, so the listing shows those entries where they are. `directories` are
    of the tree's top, and stay the caller's. Raises MalformedFrame for forbidden paths.
    """

    def __init__(self, directories: Directories, grafts: Iterable[Graft]) -> None:
        self._directories = directories
        self._to: dict[bytes, bytes] = {}
        for path, to in grafts:
            check_path(path)
            check_path(to)
            if path and to and not (to + b"/").startswith(path + b"/"):
                self._to.setdefault(to, path)
        self._drop_impossible()
        self.gone = frozenset(self._to.values())
        """Where entries really lie that are shown elsewhere."""
        self._children: dict[bytes, dict[bytes, bytes]] = {}
        for to in self._to:
            self._attach(to)

    def _drop_impossible(self) -> None:
        devices: dict[bytes, int] = {}
        froms: set[bytes] = set()
        for to, path in list(self._to.items()):
            status = self.look(path)
            if status is None or path in froms:
                del self._to[to]
            else:
                froms.add(path)
                devices[to] = status.st_dev
        # What is dropped stays where it is, and may so be in the way of another.
        while True:
            gone = set(self._to.values())
            bad = [to for to in self._to if not self._is_free(to, gone, devices[to])]
            if not bad:
                return
            for to in bad:
                del self._to[to]

    def _is_free(self, to: bytes, gone: set[bytes], device: int) -> bool:
        """Say whether nothing is at `to` when the others are done, in a directory of its device."""
        real = self.real(to, through_itself=False)
        if (
            self.look(real) is not None
            and real not in gone
            and not self._has_left(parent_of(to), parent_of(real), gone)
        ):
            return False
        at = parent_of(to)
        while True:
            real = self.real(at)
            status = self.look(real)
            if status is not None and not self._has_left(at, real, gone):
                return stat.S_ISDIR(status.st_mode) and status.st_dev == device
            if not at:
                return False
            at = parent_of(at)

    def real(self, path: bytes, *, through_itself: bool = True) -> bytes:
        """Return where that really lies which is shown at `path`."""
        at, rest = path, b""
        while at:
            if at in self._to and (rest or through_itself):
                return self._to[at] + rest
            at, _, name = at.rpartition(b"/")
            rest = b"/" + name + rest
        return path

    def _has_left(self, path: bytes, real: bytes, gone: AbstractSet[bytes]) -> bool:
        """Say whether what really is at `real` is not shown at `path`: it, or what holds it, has gone
        elsewhere.
        """
        left, at = path, real
        while at and left not in self._to:
            if at in gone:
                return True
            left, at = parent_of(left), parent_of(at)
        return False

    def look(self, path: bytes) -> os.stat_result | None:
        """Return the status of what really is at `path`, None for nothing."""
        parent, _, name = path.rpartition(b"/")
        try:
            fd = self._directories.fd(parent)
            return os.lstat(name, dir_fd=fd) if name else os.fstat(fd)
        except _GONE:
            return None

    def _attach(self, to: bytes) -> None:
        source = self._to[to]
        while True:
            parent, _, name = to.rpartition(b"/")
            children = self._children.setdefault(parent, {})
            if name in children and not source:
                return
            children[name] = source
            real = self.real(parent)
            status = self.look(real)
            if not parent or parent in self._to:
                return
            is_directory = status is not None and stat.S_ISDIR(status.st_mode)
            if is_directory and not self._has_left(parent, real, self.gone):
                return
            to, source = parent, b""  # to be pretended

    def children(self, path: bytes) -> dict[bytes, bytes]:
        """Return what is added to the directory shown at `path`: names, and where they really lie.

        Empty for a directory that is not there yet.
        """
        return self._children.get(path, {})
