"""Grafts while a joint plan is made: what each member showed of them, and which cannot stay.

Pure. Memory grows with the grafts and the entries that are renamed.
"""

from typing import TYPE_CHECKING

from syncengine.agreed import Graft
from syncengine.levels import Place

if TYPE_CHECKING:
    from syncengine.model import Entry


class JointGrafts:
    """The grafts that the listings show, and what comes of them at each member."""

    def __init__(self, grafts: tuple[Graft, ...], count: int) -> None:
        self.wanted = grafts
        self.is_inside = False
        """Whether the path looked at last is shown at another place than it was agreed to."""
        self.shown: tuple[list[Entry], ...] = tuple([] for _ in range(count))
        """For each member the entries that are to be renamed."""
        self._by_to = {graft.to: graft for graft in grafts}
        self._froms = {graft.path for graft in grafts}
        self._open: list[Graft] = []
        self._inodes: dict[tuple[int, bytes], int] = {}
        self._records: dict[tuple[int, bytes], int] = {}
        self._deleted: set[bytes] = set()

    def look(self, place: Place) -> bytes:
        """Take the next path; returns where it was agreed to, or nothing."""
        path, nows, agreeds = place
        open_ = self._open
        while open_ and not path.startswith(open_[-1].to + b"/"):
            open_.pop()
        if path in self._froms:
            for member, now in enumerate(nows):
                if now is not None and not now.came_from:
                    self._inodes[member, path] = now.inode
        graft = self._by_to.get(path)
        if graft is not None:
            open_.append(graft)
            for member, (now, agreed) in enumerate(zip(nows, agreeds, strict=True)):
                if now is not None and now.came_from == graft.path:
                    self.shown[member].append(now)
                if agreed is not None and agreed.entry is not None:
                    self._records[member, graft.path] = agreed.entry.inode
                    if now is None:
                        self._deleted.add(graft.path)
        self.is_inside = bool(open_)
        return open_[-1].path + path[len(open_[-1].to) :] if open_ else b""

    def refused(self) -> set[Graft]:
        """Return the grafts that cannot stay: a member could not show one, or had deleted it."""
        refused = self._deleted | {
            path
            for (member, path), inode in self._inodes.items()
            if self._records.get((member, path)) in {0, inode}
        }
        return {graft for graft in self.wanted if graft.path in refused}
