"""What a push says: the records of its frames, their packing and their unpacking.

A frame is a MessagePack array of records, each an array with a number in front. Contents lie in
the frame itself and are given out as views of it. Unpacking checks types; what names, numbers and
orders may be is judged where the records are carried out.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated

import msgspec

from syncengine.compression import is_packed, unpack
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
    number: int = 0
    """Of the Ask that came before; 0 when there was none."""
    have: int = 0
    """How many bytes of the beginning are not sent, since the receiver has them."""


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


class Attributes(msgspec.Struct, array_like=True, tag=14, gc=False):
    """The entries of the records that follow have these attributes, until the next such record."""

    packed: bytes
    """As `attributes.encode` packs them; empty leaves them as they are."""


class Keep(msgspec.Struct, array_like=True, tag=15, gc=False):
    """What the next record displaces is kept, whatever the options say."""

    keep: bytes
    """TO_TRASH, or the path that it gets, in the same directory, where nothing is."""


class Move(msgspec.Struct, array_like=True, tag=16, gc=False):
    """Rename an entry; missing directories on the way to its new path are made."""

    path: bytes
    to: bytes
    kind: Kind
    seen: int


class Link(msgspec.Struct, array_like=True, tag=17, gc=False):
    """Make a further name of the regular file at the path `to`."""

    name: bytes
    seen: int
    to: bytes


class Special(msgspec.Struct, array_like=True, tag=18, gc=False):
    """Put a FIFO, a socket or a device node."""

    name: bytes
    seen: int
    kind: Kind
    mode: int
    mtime_ns: int
    device: int


class Offers(IntEnum):
    """Whether the sender is ready to offer the chunks of a file."""

    NEVER = 0
    WHERE_IT_PAYS = 1
    ALWAYS = 2


class Ask(msgspec.Struct, array_like=True, tag=30, gc=False):
    """What is there of a large file? Answered by Answer; other records may follow meanwhile.

    Then come OpenFile with its number, or Offer records and Whole, or Forget.
    """

    number: int
    """Unlike every other one in this push, and not 0."""
    name: bytes
    seen: int
    size: int
    mark: int
    """The version at the source: something that another version does not have."""
    bits: int
    """How it is cut: the logarithm of the average length of a chunk."""
    head: bytes
    """The digest of its beginning; empty when it is not to be remembered."""
    offers: int
    is_sparse: bool = False
    """Whether zeros in it should become holes."""


class Hole(msgspec.Struct, array_like=True, tag=19, gc=False):
    """The next bytes of the file that is open are zeros, and nothing need be kept of them."""

    length: int


class Offer(msgspec.Struct, array_like=True, tag=31, gc=False):
    """The next chunks of a file; answered by Missing."""

    number: int
    lengths: bytes
    """Four bytes each."""
    ids: bytes
    """The first 16 bytes of each."""


class Piece(msgspec.Struct, array_like=True, tag=32, gc=False):
    """One chunk that was missing."""

    number: int
    position: int
    """Among all chunks of the file."""
    content: memoryview


class Whole(msgspec.Struct, array_like=True, tag=33, gc=False):
    """All that was missing of a file has been sent."""

    number: int
    mode: int
    mtime_ns: int
    digest: bytes
    """Of the list of all its chunks, with their full ids."""


class Forget(msgspec.Struct, array_like=True, tag=34, gc=False):
    """A file that was asked about changed, or vanished."""

    number: int


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
    | Attributes
    | Keep
    | Move
    | Link
    | Special
    | Ask
    | Offer
    | Piece
    | Whole
    | Forget
    | Hole
)


Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Published(msgspec.Struct, array_like=True, tag=1):
    """What has become visible since the last reply, durably if the job wants it so."""

    files_copied: Number
    bytes_copied: Number
    files_updated: Number
    files_deleted: Number
    files_renamed: Number = 0


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


OFFER = -1
"""As `have`: offer the chunks."""
NOTHING = -2
"""As `have`: do not send it; why has been said."""


class Answer(msgspec.Struct, array_like=True, tag=10):
    """What there is of a file that the sender asked about."""

    number: int
    have: int
    """How many bytes of its beginning need not be sent; or OFFER, or NOTHING."""


class Missing(msgspec.Struct, array_like=True, tag=11):
    """Which of the chunks of the next Offer are to be sent."""

    number: int
    bitmap: bytes


Reply = Published | Failed | Full | Finished | Answer | Missing

_ERRORS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)


class FrameDecoder:
    """Unpacks the frames of a push; one per receiver."""

    def __init__(self) -> None:
        self._decoder = msgspec.msgpack.Decoder(list[Record])

    def decode(self, frame: bytes | memoryview) -> list[Record]:
        """Return the records, whose contents are views of `frame`; raises MalformedFrame."""
        if len(frame) > MAX_FRAME_BYTES:
            raise MalformedFrame(f"a frame of {len(frame)} bytes")
        if is_packed(frame):
            frame = unpack(frame, limit=MAX_FRAME_BYTES)
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
        held += 50
        if isinstance(reply, Failed):
            held += len(reply.path) + len(reply.detail)
        elif isinstance(reply, Missing):
            held += len(reply.bitmap)
        if held >= REPLY_BYTES:
            frames.append(msgspec.msgpack.encode(batch))
            batch, held = [], 0
    if batch:
        frames.append(msgspec.msgpack.encode(batch))
    return frames
