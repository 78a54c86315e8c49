"""A plan that another worker asks this one to read: which files, and nothing else.

What comes in is checked like everything of a peer.
"""

from typing import Self

import msgspec

from syncengine.changes import WriteFile
from syncengine.errors import MalformedFrame
from syncengine.listing import MAX_FRAME_BYTES
from syncengine.model import RunOptions
from syncengine.names import check_path
from syncengine.phases import Plan

_MAX_INT64 = (1 << 63) - 1


class FetchPlan:
    """The plan of one fetch. A context manager; its methods block on the disk."""

    def __init__(self, options: RunOptions) -> None:
        """Begin with nothing asked for."""
        self.plan = Plan(options)
        self._decoder = msgspec.msgpack.Decoder(list[WriteFile])

    def add(self, frame: bytes) -> None:
        """Take one frame of changes; raises MalformedFrame for what cannot be fetched."""
        if len(frame) > MAX_FRAME_BYTES:
            raise MalformedFrame(f"a frame of changes of {len(frame)} bytes")
        try:
            changes = self._decoder.decode(frame)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            raise MalformedFrame(f"no changes to be fetched: {error}") from error
        for change in changes:
            _check(change)
            self.plan.changes.append(change)
            self.plan.summary.files += 1
            self.plan.summary.bytes += change.size

    def seal(self) -> None:
        """End the making of it."""
        self.plan.seal(is_complete=True)

    def __enter__(self) -> Self:
        """Use it in a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of it."""
        self.plan.close()


def _check(change: WriteFile) -> None:
    for path in (change.path, change.origin):
        check_path(path)
    if not change.path or not 0 <= change.size <= _MAX_INT64 or not 0 <= change.mode <= 0o7777:
        raise MalformedFrame(f"impossible numbers at {change.path[:300]!r}")
