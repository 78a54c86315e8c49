"""The last agreed state: what a member of a `sync` or `exchange` job had when all last agreed.

Every member keeps its own, durably, beside its journal: for each path the entry that it had when it
last agreed to it with the others, and the number of the run that this was. So any member can run the
job, a member that was away for a week knows what it knew then, and losing the record of one member
costs no data: a path without a record is new there, and nothing is deleted because of it. That a path
is agreed to be absent is a record too, never the lack of one.
"""

from typing import NamedTuple

import msgspec

from syncengine.model import Entry


class Agreed(NamedTuple):
    """What one member agreed to for one path."""

    number: int
    """Of the run in which it agreed: 1 and up, growing with every run of the job."""
    entry: Entry | None
    """As it was at this member then; None when the path was agreed to be absent."""


class Sighting(NamedTuple):
    """One path at one member: what is there, what it agreed to, and where it came from."""

    path: bytes
    now: Entry | None
    """None when there is nothing; then there is an `agreed`."""
    agreed: Agreed | None = None
    """None when the path is new to this member, or its record was lost."""
    came_from: bytes = b""
    """The agreed path that this very entry (same inode, kind, and for files same size and time) had,
    which is gone from there now: it was renamed. Empty when it was not, or nothing is known. The top
    cannot be renamed, so empty is never a path here."""


class Graft(NamedTuple):
    """A rename that a member is to list itself with: what lies at `path` as if it lay at `to`.

    Several are done all at once: `path` is where it lies in truth. The records of `path` and of
    everything below are shown at `to` instead, also where the tree has nothing at `path` (any more).
    Those that were at `to` are not shown; `renames.GraftMap` says it of each.
    """

    path: bytes
    to: bytes


class Agreement(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a member is told to record for one path, once its tree is so."""

    path: bytes
    number: int
    """That of this run, or of the earlier one in which the others agreed to the same; 0 drops the
    record: the path is none of the job's business any more."""
    entry: Entry | None = None
    """As the member should have it now; None when nothing should be there. What it records is its
    own entry, if kind, size, link and (with `keep_times`) time are these, else nothing (I3)."""
    as_is: bool = False
    """It could not be given all attributes of `entry`: those that it has are recorded. To miss the
    others is no change of its own then, and takes them from nobody."""
