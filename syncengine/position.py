"""Where a push is in its stream of records: the phase, the directory, what the next record is told.

Judges the order of what arrives, nothing else. A peer that breaks it gets MalformedFrame.
"""

from syncengine.changes import TO_TRASH
from syncengine.errors import MalformedFrame
from syncengine.names import check_name, check_path, parent_of
from syncengine.phases import Phase


class Position:
    """The state of one stream, as its records change it."""

    def __init__(self) -> None:
        self.phase = -1
        self.at: bytes | None = None
        self.in_file = False
        """Whether the peer is within a file in parts."""
        self.is_finished = False
        self.keep = b""
        """What becomes of what the next record displaces."""

    def expect(self, phase: Phase) -> None:
        """Refuse a record that belongs to another phase, or into no file."""
        if self.phase != phase or self.is_finished or self.in_file:
            raise MalformedFrame(f"a record that does not belong in phase {self.phase}")

    def check_begin(self, phase: int) -> None:
        """Refuse a phase that does not follow."""
        if not self.phase < phase <= Phase.DIRECTORIES or self.in_file:
            raise MalformedFrame(f"phase {phase} after phase {self.phase}")

    def begin(self, phase: int) -> None:
        """Note the phase that begins."""
        self.phase = phase
        self.keep = b""

    def enter(self, path: bytes) -> None:
        """Note the directory of the entries that follow."""
        if self.in_file:
            raise MalformedFrame("another directory within a file")
        check_path(path)
        self.at = path
        self.keep = b""

    def check_end(self) -> None:
        """Refuse an end in the middle of something, or a second one."""
        if self.is_finished or self.in_file:
            raise MalformedFrame("an end that is none")

    def parent(self, name: bytes) -> bytes:
        """Return the directory of the entry of this name."""
        if self.at is None:
            raise MalformedFrame("an entry in no directory")
        check_name(name)
        return self.at

    def note_keep(self, keep: bytes) -> None:
        """Note what becomes of what the next record displaces."""
        self.expect(Phase.MAKE)
        if keep != TO_TRASH:
            check_path(keep)
            if not keep or parent_of(keep) != self.at:
                raise MalformedFrame("what is displaced stays in its directory")
        self.keep = keep

    def kept(self, seen: int) -> bytes:
        """Return what becomes of what this record displaces, as it was said just before."""
        keep, self.keep = self.keep, b""
        if keep and not seen:
            raise MalformedFrame("to be kept: what is not there")
        return keep if keep == TO_TRASH else keep.rpartition(b"/")[2]
