"""What a journal hands out: which paths may differ since somebody last looked. Values, no behaviour."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Consumer:
    """Who wants to know of changes: one reader of one job, such as one of its targets."""

    job: str
    name: str
    """Which reader of the job: a target as WORKER:ROOT[/PATH], for example. Opaque here."""
    top: bytes
    """The path below the root that its paths are relative to; b"" is the root itself."""

    def __str__(self) -> str:
        """Name it in messages."""
        return f"{self.job}/{self.name}"


class PendingPath(NamedTuple):
    """A path below the consumer's top that may have changed."""

    path: bytes
    is_deep: bool
    """Everything below it too: it is a directory that came, went, moved, or was not watched."""


class RenameHint(NamedTuple):
    """What was seen to be renamed. Both paths are in the batch too: a hint may be ignored."""

    old: bytes
    new: bytes
    is_directory: bool


@dataclass(frozen=True, slots=True)
class PendingBatch:
    """What a consumer is to look at, as of one moment of the journal.

    It stays pending until `done` is told so. A path that changes after the batch was made stays
    pending, whatever becomes of the batch.
    """

    consumer: Consumer
    paths: tuple[PendingPath, ...]
    """In tree order; what lies below a deep path is not named again. `Scope.of` takes them."""
    renames: tuple[RenameHint, ...]
    """In the order in which they happened; a chain of renames is one."""
    upto: int
    """The journal's number as of this batch: changes with a greater one are not in it."""
    oldest_change_at: float
    """When the oldest change in it happened, in seconds of the epoch."""
    everything: str | None
    """Why the whole tree is to be looked at, if it is: then the journal was not continuous since the
    consumer's last whole pass, and `paths` is just the top, deep. Else the batch is all that changed
    among what it covers."""
    has_more: bool
    """Whether more was pending than the limit let through."""
