"""What a push says: the records of its frames, their packing and their unpacking.

A frame is a MessagePack array of records, each an array with a number in front. Contents lie in
the frame itself and are given out as views of it. Unpacking checks types; what names, numbers and
orders may be is judged where the records are carried out.
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec

from syncengine.errors import MalformedFrame
from syncengine.model import Kind

MAX_FRAME_BYTES = 4 * 1024 * 1024 - 4_096
"""What a receiver accepts at most."""


REPLY_BYTES = 256 * 1024
"""What a frame of replies comes to, about."""


class Enter(msgspec.Struct, array_like=True, tag=1, gc=False):
    """The records that follow are of entries in this directory."""

    path: bytes


class Begin(msgspec.Struct, array_like=True, tag=2, gc=False):
    """From here on the records are of this phase; phases only go up."""

    phase: int


class NewDirectory(msgspec.Struct, array_like=True, tag=3, gc=False):
    """Make a directory."""

    name: bytes
    mode: int


class SmallFile(msgspec.Struct, array_like=True, tag=4, gc=False):
    """A whole file."""

    name: bytes
    seen: int
    mode: int
    mtime_ns: int
    digest: bytes
    content: memoryview


class OpenFile(msgspec.Struct, array_like=True, tag=5, gc=False):
    """A file that comes in parts: Data records follow, then CloseFile or DropFile."""

    name: bytes
    seen: int
    size: int


class Data(msgspec.Struct, array_like=True, tag=6, gc=False):
    """The next bytes of the file that is open."""

    content: memoryview


class CloseFile(msgspec.Struct, array_like=True, tag=7, gc=False):
    """The file that is open is whole."""

    mode: int
    mtime_ns: int
    digest: bytes


class DropFile(msgspec.Struct, array_like=True, tag=8, gc=False):
    """The file that is open changed while it was read: forget it."""


class Symlink(msgspec.Struct, array_like=True, tag=9, gc=False):
    """Put a symlink."""

    name: bytes
    seen: int
    link: bytes
    mtime_ns: int


class Metadata(msgspec.Struct, array_like=True, tag=10, gc=False):
    """Set mode and time of a file or a symlink."""

    name: bytes
    seen: int
    kind: Kind
    mode: int
    mtime_ns: int


class Delete(msgspec.Struct, array_like=True, tag=11, gc=False):
    """Remove an entry."""

    name: bytes
    seen: int
    kind: Kind


class DirectoryMetadata(msgspec.Struct, array_like=True, tag=12, gc=False):
    """Set mode and time of the directory at a path."""

    path: bytes
    seen: int
    mode: int
    mtime_ns: int
    differs: bool


class Finish(msgspec.Struct, array_like=True, tag=13, gc=False):
    """Nothing follows; publish what is staged, then answer Finished."""


Record = (
    Enter
    | Begin
    | NewDirectory
    | SmallFile
    | OpenFile
    | Data
    | CloseFile
    | DropFile
    | Symlink
    | Metadata
    | Delete
    | DirectoryMetadata
    | Finish
)


Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Published(msgspec.Struct, array_like=True, tag=1):
    """What has become visible since the last reply, durably if the job wants it so."""

    files_copied: Number
    bytes_copied: Number
    files_updated: Number
    files_deleted: Number


class Failed(msgspec.Struct, array_like=True, tag=2):
    """A path that the receiver did not carry out, and why."""

    path: bytes
    what: str
    detail: str


class Full(msgspec.Struct, array_like=True, tag=3):
    """No space is left: nothing more is written in this push."""

    path: bytes
    free_bytes: Number


class Finished(msgspec.Struct, array_like=True, tag=4):
    """Everything up to Finish has been dealt with."""


Reply = Published | Failed | Full | Finished

_ERRORS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)


class FrameDecoder:
    """Unpacks the frames of a push; one per receiver."""

    def __init__(self) -> None:
        self._decoder = msgspec.msgpack.Decoder(list[Record])

    def decode(self, frame: bytes | memoryview) -> list[Record]:
        """Return the records, whose contents are views of `frame`; raises MalformedFrame."""
        if len(frame) > MAX_FRAME_BYTES:
            raise MalformedFrame(f"a frame of {len(frame)} bytes")
        try:
            return self._decoder.decode(frame)
        except _ERRORS as error:
            raise MalformedFrame(f"no frame of a push: {error}") from error


class ReplyDecoder:
    """Unpacks the replies to a push; one per sender."""

    def __init__(self) -> None:
        self._decoder = msgspec.msgpack.Decoder(list[Reply])

    def decode(self, frame: bytes) -> list[Reply]:
        """Return the replies; raises MalformedFrame."""
        if len(frame) > MAX_FRAME_BYTES:
            raise MalformedFrame(f"a reply of {len(frame)} bytes")
        try:
            return self._decoder.decode(frame)
        except _ERRORS as error:
            raise MalformedFrame(f"no reply to a push: {error}") from error


def encode_replies(replies: Sequence[Reply]) -> list[bytes]:
    """Pack replies into frames of about REPLY_BYTES."""
    frames: list[bytes] = []
    batch: list[Reply] = []
    held = 0
    for reply in replies:
        batch.append(reply)
        held += len(reply.path) + len(reply.detail) + 50 if isinstance(reply, Failed) else 50
        if held >= REPLY_BYTES:
            frames.append(msgspec.msgpack.encode(batch))
            batch, held = [], 0
    if batch:
        frames.append(msgspec.msgpack.encode(batch))
    return frames
