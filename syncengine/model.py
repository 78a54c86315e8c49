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
    """A FIFO, socket or device node of a job without `devices`: named, and left alone."""
    FIFO = 5
    SOCKET = 6
    CHARACTER_DEVICE = 7
    BLOCK_DEVICE = 8
    EXCLUDED = 9
    """What the job's filters hide: left alone at every member, and its directory with it."""


SPECIAL_KINDS = frozenset({Kind.FIFO, Kind.SOCKET, Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE})
"""What a job has only with `devices`."""


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
    attributes: bytes = b""
    """Owner, extended attributes and ACLs as `attributes.encode` packs them; empty when not asked."""
    inode: int = 0
    """The number of the inode: two names of one file have the same. 0 where it does not matter."""
    links: int = 1
    """How many names a regular file has, in all of its file system. 0 for a top says that nothing
    below it can have several."""
    device: int = 0
    """The number of a device node, as `os.makedev` makes it."""
    ctime_ns: int = 0
    """When metadata changed last; 0 when not asked."""
    came_from: bytes = b""
    """Where it really lies, of what a scan with grafts shows at another path."""


PRETENDED = 1
"""The `seen` of a directory that a scan with grafts shows though it is not there yet: the rename
into it makes it."""

NOT_LOOKED_AT = 2
"""As `seen`: what the filters hide, whatever it is."""


class Rule(StrEnum):
    """What a run makes true of the trees."""

    MIRROR = "mirror"
    COPY = "copy"
    MOVE = "move"
    SYNC = "sync"
    EXCHANGE = "exchange"

    @property
    def is_one_way(self) -> bool:
        """Whether there is one source, and targets."""
        return self in {Rule.MIRROR, Rule.COPY, Rule.MOVE}


class CopyWhen(StrEnum):
    """When rule `copy` replaces what is there."""

    DIFFERING = "differing"
    NEWER = "newer"
    ALWAYS = "always"


class Conflict(StrEnum):
    """What rules `sync` and `exchange` do with two differing changes."""

    KEEP_BOTH = "keep-both"
    NEWEST = "newest"
    SUPPRESS = "suppress"


class Symlinks(StrEnum):
    """What is done with symlinks; they are never followed."""

    KEEP = "keep"
    INSIDE = "inside"


class Often(StrEnum):
    """How a means of transfer is used: where it pays, always, never."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"
    INPLACE = "inplace"
    """Of `delta` only: change large files in place, with a record that undoes it."""


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
class Limits:
    """Which regular files a job covers, by size and age; what lies outside is left alone."""

    min_size: int | None = None
    """Bytes; a file of just so many is covered."""
    max_size: int | None = None
    min_age_s: float | None = None
    """Seconds since the file's modification time; younger files wait until they are as old."""
    max_age_s: float | None = None


@dataclass(frozen=True, slots=True)
class RateTime:
    """A span of local time on some days of the week, and the limit that holds in it."""

    days: tuple[int, ...]
    """On which it opens, 0 for Monday."""
    opens: int
    """Minutes after midnight."""
    closes: int
    """Minutes after the same midnight; over 24 h for a span that ends on the next day."""
    zone: str
    """IANA name."""
    bandwidth: int | None
    """Bytes per second; None for no limit."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a job says about how its trees are compared and written."""

    rule: Rule = Rule.MIRROR
    copy_when: CopyWhen = CopyWhen.DIFFERING
    conflict: Conflict = Conflict.KEEP_BOTH
    compare: Compare = Compare.MTIME
    durability: Durability = Durability.STRICT
    keep_mode: bool = True
    keep_times: bool = True
    keep_owner: bool = False
    keep_xattrs: bool = False
    keep_acls: bool = False
    keep_hardlinks: bool = False
    keep_devices: bool = False
    keep_setuid: bool = False
    symlinks: Symlinks = Symlinks.KEEP
    compression: Often = Often.AUTO
    delta: Often = Often.AUTO
    bandwidth: int | None = None
    """Bytes per second that one worker may send for the job; None for no limit."""
    bandwidth_times: tuple["RateTime", ...] = ()
    """When another limit holds: the first that is open counts."""
    filters: tuple[str, ...] = ()
    """Lines of gitignore's form."""
    limits: Limits = field(default_factory=Limits)
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
    NAME_CLASH = "name-clash"
    """The file system there takes the name for that of another entry, which it names."""
    NAME_REFUSED = "name-refused"
    """Too long for the file system there, or not to its liking."""
    NOT_SUPPORTED = "not-supported"
    """The file system there keeps nothing of this kind, or not so large."""
    IMMUTABLE = "immutable"
    UNREACHABLE = "unreachable"
    SKIPPED = "skipped"
    """Left alone on purpose (special files, deletes after an incomplete scan)."""
    NOT_KEPT = "not-kept"
    """Written, but without an attribute that this worker or file system cannot give it."""
    CONFLICT = "conflict"
    """Members had changed it differently; what lost is kept, or nothing was done."""
    OUT_OF_TIME = "out-of-time"
    """The run was stopped at the job's time limit."""
    INTERNAL = "internal"

    @property
    def fails(self) -> bool:
        """Whether a run that has it did not do all of what it was to do."""
        return self not in {What.SKIPPED, What.NOT_KEPT, What.CONFLICT}


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
