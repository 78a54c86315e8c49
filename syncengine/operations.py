"""What a batch consists of: things staged, and things to be done to what is visible."""

import os
from dataclasses import dataclass

from syncengine.attribute_giver import Given
from syncengine.model import TEMPORARY_PREFIX, Kind
from syncengine.names import MAX_NAME, join

DISPLACED_PREFIX = TEMPORARY_PREFIX + b"x~"
"""Names under which an older version may lie for a moment: a scan keeps these in the trash."""

_STAGED_PREFIX = TEMPORARY_PREFIX + b"n~"

_LIFE = os.urandom(4).hex().encode()
"""What the temporaries of this process begin with, behind their prefix."""


class Temporaries:
    """Gives names for temporary entries, that no peer chooses and nobody can foretell."""

    def __init__(self) -> None:
        push = _LIFE + os.urandom(4).hex().encode() + b"~"
        self._staged = _STAGED_PREFIX + push
        self._displaced = DISPLACED_PREFIX + push
        self._number = 0

    def staged(self) -> bytes:
        """Return a name for what is new."""
        self._number += 1
        return self._staged + b"%x" % self._number

    def displacing(self, name: bytes) -> bytes:
        """Return a name for what changes places with `name`, from which that can be read again."""
        self._number += 1
        return (self._displaced + b"%x~" % self._number + name)[:MAX_NAME]


def is_of_this_process(temporary: bytes) -> bool:
    """Say whether a temporary was made since this process began: its push may still go on."""
    return temporary.startswith((_STAGED_PREFIX + _LIFE, DISPLACED_PREFIX + _LIFE))


def displaced_name(temporary: bytes) -> bytes | None:
    """Return the name that a temporary of `displacing` stands for; None for other temporaries."""
    if not temporary.startswith(DISPLACED_PREFIX):
        return None
    return temporary.removeprefix(DISPLACED_PREFIX).split(b"~", 2)[-1] or None


@dataclass(slots=True, eq=False)
class Place:
    """A staged file or symlink that is to take its place in a visible directory."""

    parent: bytes
    name: bytes
    temporary: bytes
    seen: int
    kind: Kind
    size: int
    keep: bytes = b""
    """What becomes of what it displaces, as in the changes."""
    is_exchanged: bool = False
    """Whether its temporary name holds, by now, what it took the place of."""
    ranges: list[tuple[int, int]] | None = None
    """For a file that is changed in place: what is staged of it, as offsets and lengths."""
    given: Given | None = None
    """The attributes that it gets then."""


@dataclass(slots=True, eq=False)
class Reveal:
    """A staged directory, with all that was staged in it; it is `hidden_in` of those."""

    parent: bytes
    name: bytes
    temporary: bytes
    files: int = 0
    bytes: int = 0
    directories: int = 0


@dataclass(slots=True, eq=False)
class Touch:
    """Mode, time and attributes for a file, symlink or special file whose content stays."""

    parent: bytes
    name: bytes
    seen: int
    kind: Kind
    mode: int
    mtime_ns: int
    given: Given | None = None


@dataclass(slots=True, eq=False)
class Drop:
    """An entry to be removed."""

    parent: bytes
    name: bytes
    seen: int
    kind: Kind


@dataclass(slots=True, eq=False)
class Move:
    """An entry that is to get another path."""

    path: bytes
    to: bytes
    seen: int
    kind: Kind


@dataclass(slots=True, eq=False)
class Link:
    """A further name for the file that has the path `to` by then."""

    parent: bytes
    name: bytes
    seen: int
    to: bytes


@dataclass(slots=True, eq=False)
class Settle:
    """Mode, time and attributes for a directory, when nothing else will change in it."""

    path: bytes
    seen: int
    mode: int
    mtime_ns: int
    differs: bool
    given: Given | None = None


Operation = Place | Reveal | Touch | Drop | Move | Link | Settle


def path_of(operation: Operation) -> bytes:
    """Return the path that an operation is about."""
    if isinstance(operation, Settle):
        return operation.path
    if isinstance(operation, Move):
        return operation.to
    return join(operation.parent, operation.name)
