"""Renames: from what members recognize as moved to grafts, and from grafts to Rename changes. Pure.

A member recognizes an entry that it agreed to at another path (`Sighting.came_from`). Of a renamed tree
only the topmost entry counts. The others are listed anew with the renames as grafts; at each member
that shows a graft, the plan then begins with the renames that make it true.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from syncengine.agreed import Graft, Sighting
from syncengine.changes import Rename
from syncengine.conflict_names import is_copy_of, shortened
from syncengine.model import PRETENDED, Entry, Kind
from syncengine.names import MAX_NAME, join, order_key, parent_of

MAX_MOVES = 100_000
"""So many renames of one member are kept in mind; what is beyond is sent like anything new."""


class Moves:
    """Collects the topmost renames of one member from its listing, in tree order."""

    def __init__(self) -> None:
        self.found: list[Graft] = []
        self._open: list[Graft] = []

    def note(self, path: bytes, now: Entry | None, came_from: bytes) -> None:
        """Take the next path of the listing."""
        open_ = self._open
        while open_ and not path.startswith(open_[-1].to + b"/"):
            open_.pop()
        if not came_from or now is None:
            return
        if is_copy_of(path, came_from):
            # A run that died had just put a losing version aside. Nobody renamed it, and what others
            # have at its old name is another version of it, not an edit that is to follow.
            return
        if open_ and came_from == open_[-1].path + path[len(open_[-1].to) :]:
            return  # it moved with its directory
        graft = Graft(came_from, path)
        if now.kind is Kind.DIRECTORY:
            open_.append(graft)
        if len(self.found) < MAX_MOVES:
            self.found.append(graft)

    def watch(self, sightings: Iterable[Sighting]) -> Iterator[Entry]:
        """Yield what is there now, taking note on the way."""
        for sighting in sightings:
            self.note(sighting.path, sighting.now, sighting.came_from)
            if sighting.now is not None:
                yield sighting.now


def followed(hints: Iterable[Graft]) -> tuple[Graft, ...]:
    """Return renames that were done one after the other as if they had been done at once.

    Each is said as it was seen: of what moved before, by its new path. What came back to its place
    is no rename, and of two things that came to one place the later counts.
    """
    at: dict[bytes, bytes] = {}
    """Where something is now -> where it lay in the beginning."""
    for path, to in hints:
        if not path or not to or path == to or (to + b"/").startswith(path + b"/"):
            continue
        moved = {now: was for now, was in at.items() if _lies_in(now, path)}
        for now in [now for now in at if _lies_in(now, path) or _lies_in(now, to)]:
            del at[now]
        if path not in moved:
            at[to] = _origin(path, at)
        for now, was in moved.items():
            at[to + now[len(path) :]] = was
    return tuple(Graft(was, now) for now, was in at.items() if was != now)


def _lies_in(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory + b"/")


def _origin(path: bytes, at: dict[bytes, bytes]) -> bytes:
    """Return where what is at a path now lay in the beginning, by the directories that moved."""
    above = path
    while above:
        if above in at:
            return at[above] + path[len(above) :]
        above = parent_of(above)
    return path


def choose(moves: Sequence[Iterable[Graft]], *, with_rings: bool) -> tuple[Graft, ...]:
    """Return the grafts for what some members renamed, `moves` having a list for each.

    What was renamed in two ways, or two things to one name, is no rename: both names live. Nor is it
    one to put a thing into itself. Things that changed places, `with_rings` or not: a member that did
    this itself looks as if it had not, so it must not be listed with the grafts.
    """
    froms: dict[bytes, set[bytes]] = {}
    tos: dict[bytes, set[bytes]] = {}
    for one in moves:
        for path, to in one:
            froms.setdefault(path, set()).add(to)
            tos.setdefault(to, set()).add(path)
    chosen = {
        path: to
        for to, paths in sorted(tos.items(), key=lambda item: order_key(item[0]))
        for path in paths
        if len(paths) == 1 and len(froms[path]) == 1 and not to.startswith(path + b"/")
    }
    rings = set() if with_rings else _rings(chosen)
    return tuple(Graft(path, to) for path, to in chosen.items() if path not in rings)


def _rings(moved: dict[bytes, bytes]) -> set[bytes]:
    """Return what goes to places that others leave, until one takes the place of the first."""
    rings: set[bytes] = set()
    seen: set[bytes] = set()
    for first in moved:
        way: dict[bytes, None] = {}
        at = first
        while at in moved and at not in seen:
            seen.add(at)
            way[at] = None
            at = moved[at]
        if at in way:
            steps = list(way)
            rings.update(steps[steps.index(at) :])
    return rings


def placed(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Give everything below what a scan shows elsewhere the place where it lies, too."""
    open_: list[Entry] = []
    for entry in entries:
        path = entry.path
        while open_ and not path.startswith(open_[-1].path + b"/"):
            open_.pop()
        if entry.came_from or entry.seen == PRETENDED:
            open_.append(entry)
        elif open_ and open_[-1].came_from:
            at = open_[-1]
            entry = entry._replace(came_from=at.came_from + path[len(at.path) :])  # noqa: PLW2901
        yield entry


class GraftMap:
    """Where listings with grafts show what they have at which path: each at one, or not at all."""

    def __init__(self, grafts: Iterable[Graft]) -> None:
        self._by_from = {graft.path: graft for graft in grafts}
        self._tos = {graft.to for graft in self._by_from.values()}

    def shown(self, path: bytes) -> bytes | None:
        """Return where what is at `path` is shown; None when another thing takes that place.

        It goes with the deepest of the grafted paths that it is at or below.
        """
        place, least = path, 0
        at = path
        while at:
            graft = self._by_from.get(at)
            if graft is not None:
                place, least = graft.to + path[len(at) :], len(graft.to)
                break
            at = parent_of(at)
        at = place
        while len(at) > least:
            if at in self._tos:
                return None
            at = parent_of(at)
        return place


@dataclass(slots=True)
class _Pending:
    at: bytes
    """Where it is at this moment."""
    to: bytes
    kind: Kind
    seen: int


def sequence(grafted: Iterable[Entry], stamp: str) -> Iterator[Rename]:
    """Yield renames that bring entries from `came_from` to their paths, each into a free place.

    `grafted` are the topmost ones that a member shows in its listing. Chains go from their ends;
    what changes places goes by a name of its own in between, made from `stamp`.
    """
    pending = [_Pending(entry.came_from, entry.path, entry.kind, entry.seen) for entry in grafted]
    aside = 0
    while pending:
        one = next((one for one in pending if _is_free(one, pending)), None)
        if one is not None:
            pending.remove(one)
            to = one.to
        else:
            # All that is left waits for another of them: a ring.
            one = pending[0]
            aside += 1
            to = _aside(one.at, stamp, aside)
        yield Rename(one.at, to, one.kind, one.seen)
        moved, below = one.at, one.at + b"/"
        for other in pending:
            if other.at.startswith(below):
                other.at = to + other.at[len(moved) :]
        one.at = to


def _is_free(one: _Pending, pending: Iterable[_Pending]) -> bool:
    """Say whether the place that an entry goes to is free, and the directories on the way real."""
    for other in pending:
        if other is one:
            continue
        if one.to == other.at or one.to.startswith((other.at + b"/", other.to + b"/")):
            return False
    return not one.to.startswith(one.at + b"/")


def _aside(path: bytes, stamp: str, number: int) -> bytes:
    suffix = b".renamed-%s-%d" % (stamp.encode(), number)
    name = path.rpartition(b"/")[2]
    return join(parent_of(path), shortened(name, MAX_NAME - len(suffix)) + suffix)
