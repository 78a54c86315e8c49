"""A plan as data: its changes in five phases, what they come to, and their digest.

How a rule arrives at the changes is the business of `plan`; how they are carried out, of `sender`
and `receiver`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from blake3 import blake3

from syncengine.changes import Change
from syncengine.model import Problem, RunOptions
from syncengine.spool import Spool, ValueSpool


class Phase(IntEnum):
    """The steps of a plan, in their order; the values travel on the wire."""

    RENAME = 0
    """Rename what was renamed at the other side, one after another: each path is that of its moment."""
    MAKE_WAY = 1
    """Remove, at the target, what has another kind at the source; children first."""
    MAKE = 2
    """Make and update: in tree order, then what phase 1 made room for."""
    DELETE = 3
    """Remove what the source does not have; children first."""
    DIRECTORIES = 4
    """Modes and times of directories that differ or had changes in them; children first."""


@dataclass(slots=True)
class Summary:
    """What a plan comes to, before anything is done."""

    source_entries: int = 0
    """Entries that the job covers at the source, its top not counted."""
    target_entries: int = 0
    """Entries that the job covers at the target, its top not counted."""
    source_hidden: int = 0
    """Entries seen there besides, which the filters of the job hide at either side."""
    target_hidden: int = 0
    deletes: int = 0
    files: int = 0
    """Regular files whose content is to be sent."""
    bytes: int = 0
    """Bytes of these files."""
    is_complete: bool = True
    """Whether the source was seen whole; if not, nothing is deleted."""


class Plan:
    """The changes of one run for one target. Iterate for all of them, or ask for one phase.

    May be read any number of times, by one thread at a time. A context manager: it may hold
    unlinked temporary files. `seal` ends the making of it.
    """

    def __init__(self, options: RunOptions, folder: str | None = None) -> None:
        self.options = options
        self.summary = Summary()
        self.problems: list[Problem] = []
        self.digest = b""
        """BLAKE3 over all changes, 32 bytes: what an operator approves."""
        self.narrow: list[bytes] = []
        """Directories that only one side has, and that the plan's scope does not cover whole: a plan
        with any is not to be carried out, but to be made anew with these deep."""
        self.grafted: set[bytes] = set()
        """Where that lies at the target which a graft shows elsewhere, and was compared there. Of any
        other graft nothing is known: it may hide what should go. A plan with such a one is not to be
        carried out, but to be made anew without it."""
        self.renames = Spool(folder)
        self.in_way = Spool(folder)
        self.changes = Spool(folder)
        self.replacements = Spool(folder)
        """What phase 1 makes room for."""
        self.extras = Spool(folder)
        self.directories = Spool(folder)

        self.parted: dict[int, int] = {}
        """Inodes of files of the source of which the plan's scope has some names, and not all; with
        the number of all."""
        self.linked = ValueSpool(folder, list[bytes])
        """The source's files with several names, in tree order."""

    def seal(self, *, is_complete: bool) -> None:
        """End the making: from here on the plan is only read."""
        digests = [spool.seal() for spool in self.spools()]
        self.linked.seal()
        self.summary.is_complete = is_complete
        self.summary.deletes = len(self.in_way) + len(self.extras) if is_complete else 0
        self.digest = blake3(b"".join([bytes([is_complete]), *digests])).digest()

    def spools(self) -> tuple[Spool, ...]:
        """Return where all changes lie, in the order of the phases."""
        return (
            self.renames,
            self.in_way,
            self.changes,
            self.replacements,
            self.extras,
            self.directories,
        )

    def _in_phase(self, phase: Phase) -> tuple[Spool, ...]:
        # INVARIANT I8: after an incomplete scan nothing is deleted, and so nothing is put where
        # something would have had to go first either.
        whole = self.summary.is_complete
        match phase:
            case Phase.RENAME:
                return (self.renames,)
            case Phase.MAKE_WAY:
                return (self.in_way,) if whole else ()
            case Phase.MAKE:
                return (self.changes, self.replacements) if whole else (self.changes,)
            case Phase.DELETE:
                return (self.extras,) if whole else ()
            case Phase.DIRECTORIES:
                return (self.directories,)

    def phase(self, phase: Phase) -> Iterator[Change]:
        """Iterate over the changes of one phase."""
        for spool in self._in_phase(phase):
            yield from spool

    def __iter__(self) -> Iterator[Change]:
        for phase in Phase:
            yield from self.phase(phase)

    def __len__(self) -> int:
        return sum(len(spool) for phase in Phase for spool in self._in_phase(phase))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return len(self) == 0

    def close(self) -> None:
        """Let go of the changes; the summary, the problems and the digest stay."""
        for spool in self.spools():
            spool.close()
        self.linked.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
