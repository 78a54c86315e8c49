"""The words of a run that every part of Baton shares: entries, options, counts, problems, results.

Plain values only. This module owns no file, no clock and no network, and it is the one module of the
engine that coordinators read.
"""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple

RESERVED_NAME = b".baton"
"""The directory at a root for Baton's own use: marker, trash. Reserved at every depth."""

TEMPORARY_PREFIX = b".baton~"
"""What the names of temporary files beside their targets begin with. Reserved at every depth."""


class Kind(IntEnum):
    """What a directory entry is; the values travel on the wire."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    SPECIAL = 4
    """FIFOs, sockets and device nodes: named, and left alone."""


class Entry(NamedTuple):
    """One directory entry as a scan saw it. A tuple, since millions of them are made."""

    path: bytes
    """Relative to the top of the tree, components joined by `/`; empty for the top itself."""
    kind: Kind
    mode: int
    """Permission bits, 0 to 0o7777; 0 for symlinks."""
    mtime_ns: int
    size: int
    """Bytes of a regular file; 0 for every other kind."""
    link: bytes = b""
    """What a symlink points to."""
    seen: int = 0
    """An opaque 64-bit fingerprint of the very thing that was seen; never 0 for what exists."""
    digest: bytes = b""
    """BLAKE3 of the content, 32 bytes, when the scan was asked to read it; else empty."""


class Compare(StrEnum):
    """How two regular files are found to be equal."""

    MTIME = "mtime"
    CHECKSUM = "checksum"


class Durability(StrEnum):
    """What an acknowledgement means: on the disk, or merely written."""

    STRICT = "strict"
    FAST = "fast"


@dataclass(frozen=True, slots=True)
class Safety:
    """The limits beyond which a plan is held, and how long what is deleted is kept."""

    max_delete: float | None = 0.5
    """Share of the covered entries that one run may delete at one member, 0 to 1; None is off."""
    max_delete_files: int | None = 100_000
    trash_s: int | None = 30 * 86_400
    """How long deleted entries stay in the trash, in seconds; None deletes them at once."""
    keep_replaced: bool = False
    """Whether versions replaced by ordinary updates go to the trash too."""


@dataclass(frozen=True, slots=True)
class MirrorOptions:
    """What a job says about how its trees are compared and written."""

    compare: Compare = Compare.MTIME
    durability: Durability = Durability.STRICT
    keep_mode: bool = True
    keep_times: bool = True
    keep_setuid: bool = False
    safety: Safety = field(default_factory=Safety)


class HoldReason(StrEnum):
    """Why a guard holds a plan until somebody approves it."""

    ROOT_MISSING = "root-missing"
    MARKER_MISSING = "marker-missing"
    MARKER_FOREIGN = "marker-foreign"
    MARKER_SET_BACK = "marker-set-back"
    FILE_SYSTEM_CHANGED = "file-system-changed"
    EMPTIED = "emptied"
    MAX_DELETE = "max-delete"
    MAX_DELETE_FILES = "max-delete-files"


@dataclass(frozen=True, slots=True)
class Hold:
    """One reason to wait for an approval, in a sentence that says what was seen."""

    reason: HoldReason
    member: str
    """WORKER:ROOT[/PATH] as the job names it."""
    detail: str


class What(StrEnum):
    """What went wrong with one path."""

    UNREADABLE = "unreadable"
    UNSTABLE = "unstable"
    """It kept changing while it was read, in every try."""
    TARGET_CHANGED = "target-changed"
    """The target was changed between plan and publish, in every try."""
    NOT_WRITTEN = "not-written"
    NO_SPACE = "no-space"
    UNREACHABLE = "unreachable"
    SKIPPED = "skipped"
    """Left alone on purpose (special files, deletes after an incomplete scan)."""
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that a run could not do, and where."""

    path: bytes
    member: str
    what: What
    detail: str


@dataclass(slots=True)
class Counts:
    """What a run did, summed over its targets."""

    files_scanned: int = 0
    files_copied: int = 0
    files_updated: int = 0
    files_deleted: int = 0
    files_renamed: int = 0
    bytes_copied: int = 0
    bytes_sent: int = 0
    conflicts: int = 0

    def add(self, other: "Counts") -> None:
        """Add another count to this one, field by field."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
