"""The changes that a plan is made of, as values that pack well.

They are MessagePack arrays with a number in front, so that a million of them can lie in a spool.
`seen` is always the target's fingerprint as the plan saw it; 0 says that nothing was there.
"""

import msgspec

from syncengine.model import Kind


class MakeDirectory(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Make a directory where nothing is."""

    path: bytes
    mode: int


class WriteFile(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Give a path the content that the source has there."""

    path: bytes
    size: int
    mode: int
    mtime_ns: int
    source_seen: int
    seen: int


class MakeSymlink(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Put a symlink at a path."""

    path: bytes
    link: bytes
    mtime_ns: int
    seen: int


class SetMetadata(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Give a file or a symlink another mode or time, its content being right."""

    path: bytes
    kind: Kind
    mode: int
    mtime_ns: int
    seen: int


class SetDirectory(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Give a directory its mode and time, after all that happened in it."""

    path: bytes
    mode: int
    mtime_ns: int
    seen: int
    """0 for a directory that this plan makes."""
    differs: bool
    """Whether it differed in itself, and not merely had changes in it."""


class Remove(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Remove one entry; of a directory, everything else has been removed before."""

    path: bytes
    kind: Kind
    seen: int
    makes_way: bytes = b""
    """The source's path that takes the place; empty for what is merely extra."""


Change = MakeDirectory | WriteFile | MakeSymlink | SetMetadata | SetDirectory | Remove
