"""Hard links while a plan is made: which names are one file at the source, and which at the target.

Pure. Memory grows with the files that have several names, not with the tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from syncengine.model import Entry


@dataclass(slots=True)
class Leader:
    """The name of a group that gets the content; the others are linked to it."""

    path: bytes
    inode_there: int
    """What the target has at that path and keeps; 0 when it is made anew."""
    is_displaced: bool
    """Whether it is made only when phase 1 has made room."""


class LinkGroups:
    """What was met so far of the files with several names."""

    def __init__(self) -> None:
        self.can_be = True
        """Whether the target can hold hard links."""
        self._leaders: dict[int, Leader] = {}
        self._kept: dict[int, bytes] = {}
        """Inodes of the target that stay -> the first path of the source that they stay for."""
        self._met: dict[int, tuple[int, int]] = {}
        """Inodes of the source -> how many names were met, and how many there are."""

    def count(self, ours: Entry) -> None:
        """Take one name of a file that has several."""
        self._met[ours.inode] = (self._met.get(ours.inode, (0, 0))[0] + 1, ours.links)

    def parted(self) -> dict[int, int]:
        """Return the inodes of the source of which not all names were met, and how many each has."""
        return {inode: links for inode, (met, links) in self._met.items() if met < links}

    def leader(self, ours: Entry) -> Leader | None:
        """Return the name that has the content of a file, None when this is the first one."""
        if ours.links > 1 and ours.inode and self.can_be:
            return self._leaders.get(ours.inode)
        return None

    def lead(self, ours: Entry, theirs: Entry | None, *, is_displaced: bool) -> None:
        """Note the first name of a group; `theirs` when the target keeps what it has there."""
        if ours.links > 1 and ours.inode:
            inode_there = 0 if theirs is None else theirs.inode
            self._leaders[ours.inode] = Leader(ours.path, inode_there, is_displaced)

    def must_split(self, ours: Entry, theirs: Entry) -> bool:
        """Say whether the target has one file here and at a path where the source has another.

        To be asked once for each first name whose content is right; the first to ask may stay.
        """
        if theirs.links < 2 or not theirs.inode:
            return False
        return self._kept.setdefault(theirs.inode, ours.path) != ours.path


@dataclass(slots=True)
class JointLeader:
    """The name of a group that all members link the others to."""

    version: Entry
    inodes: list[int]
    """What each member keeps there; 0 where it is made anew."""
    displaced: int
    """Members where it is made only when something has gone first."""
    late: int
    """Members where its content comes last of all: what is linked to it comes after."""


class JointLinks:
    """Which names some member has as one file, in a joint plan.

    What any of them has linked is linked at all, as long as it has one content and metadata.
    """

    def __init__(self) -> None:
        self.unable = 0
        """Members that cannot hold hard links."""
        self._leaders: dict[tuple[int, int], JointLeader] = {}

    def meet(
        self,
        version: Entry,
        nows: Sequence[Entry | None],
        have: int,
        *,
        displaced: int,
        losers: int,
    ) -> JointLeader | None:
        """Take the outcome for one path; returns the name to link it to, None for a first one."""
        keys = [
            (member, now.inode)
            for member, now in enumerate(nows)
            if now is not None and have >> member & 1 and now.links > 1 and now.inode
        ]
        found = None
        for key in keys:
            leader = self._leaders.get(key)
            if leader is not None and _is_alike(leader.version, version):
                found = leader
                break
        if keys and found is None:
            inodes = [
                now.inode if now is not None and have >> member & 1 else 0
                for member, now in enumerate(nows)
            ]
            leader = JointLeader(version, inodes, displaced, losers)
            self._leaders.update((key, leader) for key in keys)
        elif found is not None:
            for key in keys:
                self._leaders.setdefault(key, found)
        return found

    def of_copy(self, holder: int, version: Entry, *, displaced: int) -> JointLeader | None:
        """Take a conflict copy, under its new name, of what `holder` has; returns as `meet` does.

        To be asked when all paths have been met: what it is linked to may come after it.
        """
        if version.links < 2 or not version.inode:
            return None
        first = JointLeader(version, [], displaced, 0)
        leader = self._leaders.setdefault((holder, version.inode), first)
        return None if leader is first or not _is_alike(leader.version, version) else leader


def _is_alike(one: Entry, other: Entry) -> bool:
    return one[1:5] == other[1:5] and one.attributes == other.attributes
