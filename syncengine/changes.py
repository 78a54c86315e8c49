"""The changes that a plan is made of, as values that pack well.

They are MessagePack arrays with a number in front, so that a million of them can lie in a spool.
`seen` is always the fingerprint of the changed member's entry as the plan saw it; 0 says that nothing
was there. `attributes` are those of `attributes.encode`; empty leaves them as they are.
"""

import msgspec

from syncengine.model import Kind

TO_TRASH = b"/"
"""As `keep`: what is displaced goes to the trash, whatever the job says of ordinary updates."""


class MakeDirectory(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Make a directory where nothing is."""

    path: bytes
    mode: int


class WriteFile(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Give a path the content that the content's member has there."""

    path: bytes
    size: int
    mode: int
    mtime_ns: int
    source_seen: int
    """The fingerprint at the content's member; 0 when its size and time must do: it made the file
    in this very run."""
    seen: int
    attributes: bytes = b""
    origin: bytes = b""
    """The path to read, where it is another than `path`."""
    keep: bytes = b""
    """What becomes of the version displaced here: empty, as the options say; TO_TRASH; or the path
    that it gets, in the same directory (a conflict copy), where nothing is."""
    digest: bytes = b""
    """BLAKE3 of the content, where the plan knows it; else empty."""


class MakeSymlink(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Put a symlink at a path."""

    path: bytes
    link: bytes
    mtime_ns: int
    seen: int
    attributes: bytes = b""
    keep: bytes = b""


class SetMetadata(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Give what is no directory another mode, time or attributes, its content being right."""

    path: bytes
    kind: Kind
    mode: int
    mtime_ns: int
    seen: int
    attributes: bytes = b""


class SetDirectory(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Give a directory its mode, time and attributes, after all that happened in it."""

    path: bytes
    mode: int
    mtime_ns: int
    seen: int
    """0 for a directory that this plan makes."""
    differs: bool
    """Whether it differed in itself, and not merely had changes in it."""
    attributes: bytes = b""


class Remove(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Remove one entry; of a directory, everything else has been removed before."""

    path: bytes
    kind: Kind
    seen: int
    makes_way: bytes = b""
    """The path that takes the place; empty for what is merely extra."""


class Rename(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Give an entry, a directory with all that it holds, another path, where nothing is.

    Renames are carried out one after another: `path` and `to` are those of that moment. Directories
    that are missing on the way to `to` are made; a scan with grafts shows them as PRETENDED.
    """

    path: bytes
    to: bytes
    kind: Kind
    seen: int


class MakeLink(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Make a path a further name of the regular file that has another path by then."""

    path: bytes
    to: bytes
    """The path of the file, which this plan leaves or makes before."""
    seen: int


class MakeSpecial(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Make a FIFO, a socket or a device node."""

    path: bytes
    kind: Kind
    mode: int
    mtime_ns: int
    device: int
    seen: int
    attributes: bytes = b""


Change = (
    MakeDirectory
    | WriteFile
    | MakeSymlink
    | SetMetadata
    | SetDirectory
    | Remove
    | Rename
    | MakeLink
    | MakeSpecial
)
