"""Where the merge of a joint plan is: a path with what all members have there, and what is above."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from syncengine.agreed import Agreed
from syncengine.model import Entry

if TYPE_CHECKING:
    from syncengine.reconcile import Verdict


class Place(NamedTuple):
    """One path, and for each member what it has there and what it agreed to."""

    path: bytes
    nows: Sequence[Entry | None] = ()
    agreeds: Sequence[Agreed | None] = ()


TOP = Place(b"")
"""What is above everything."""


class Level:
    """A directory of any member on the way from the top to where the merge is."""

    __slots__ = (
        "below",
        "certain",
        "changed",
        "displaced",
        "forgets",
        "is_alive",
        "is_ignored",
        "keeps",
        "makes_way",
        "path",
        "place",
        "pretended",
        "verdict",
    )

    def __init__(self, place: Place) -> None:
        path = self.path = place.path
        self.below = path + b"/" if path else b""
        self.place = place
        self.verdict: Verdict | None = None
        self.is_alive = False
        """It is a directory everywhere in the end."""
        self.is_ignored = False
        """Nothing below is looked at."""
        self.forgets = False
        """Nor remembered."""
        self.changed = 0
        """Members where an entry directly in it is made, replaced or removed."""
        self.displaced = 0
        """Members where it is made in place of something that goes first."""
        self.keeps = 0
        """Members where it holds something that is left alone: there it cannot be removed."""
        self.certain = 0
        """Members where it is certain that nothing is below it."""
        self.makes_way = b""
        """What goes below it goes for this path, should that become a file."""
        self.pretended = 0
        """Members where a rename makes it."""
