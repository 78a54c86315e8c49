"""A member's listing on its way in, and the failure of a member."""

import asyncio
import concurrent.futures
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import grpc.aio

from syncengine.agreed import Sighting
from syncengine.compression import is_packed, unpack
from syncengine.listing import MAX_FRAME_BYTES, decode_entries, decode_items
from syncengine.model import Counts, Entry
from syncengine.sightings import decode_sightings
from syncengine.stretches import Item
from wire.peer_convert import ListHeader, StreamEnd, read_end_of_stream

RawStream = grpc.aio.StreamStreamCall[bytes, bytes]


class PeerFailed(Exception):
    """The member cannot be listed or changed, or no longer; `str()` says why."""

    def __init__(self, why: str, sent: Counts | None = None, *, is_early: bool = False) -> None:
        """Keep what had been published before; `is_early` when nothing was, and it may be yet."""
        super().__init__(why)
        self.sent = sent or Counts()
        self.is_early = is_early


@dataclass(slots=True)
class Listing:
    """A member's listing on its way in. `entries` and `sightings` are for a thread: they block."""

    header: ListHeader
    loop: asyncio.AbstractEventLoop
    call: RawStream
    bytes_received: int = 0
    end: StreamEnd | None = None
    """How it ended, once it has been read to the end."""

    def entries(self) -> Iterator[Entry]:
        """Yield the tree; raises PeerFailed when it breaks off, EngineError when it is malformed."""
        return decode_entries(self._frames())

    def items(self) -> Iterator[Item]:
        """Yield the tree, stretches of files left together; raises as `entries` does."""
        return decode_items(self._frames())

    def sightings(self) -> Iterator[Sighting]:
        """Yield the tree with what was agreed to; raises as `entries` does."""
        return decode_sightings(self._frames())

    def is_complete(self) -> bool:
        """Whether it showed all there was; for when it has been read to the end."""
        return self.end is not None and self.end.is_complete

    def stop(self) -> None:
        """End the reading, from the event loop: the next read fails."""
        self.call.cancel()

    def _frames(self) -> Iterator[bytes]:
        while self.end is None:
            try:
                frame = asyncio.run_coroutine_threadsafe(self._next(), self.loop).result()
            except grpc.aio.AioRpcError as error:
                raise PeerFailed(describe_error(error)) from error
            except concurrent.futures.CancelledError:
                raise PeerFailed("the listing was broken off") from None
            self.bytes_received += len(frame)
            self.end = read_end_of_stream(frame)
            if self.end is None:
                yield unpack(frame, limit=MAX_FRAME_BYTES) if is_packed(frame) else frame

    async def _next(self) -> bytes:
        frame = await self.call.read()
        if isinstance(frame, bytes):
            return frame
        raise PeerFailed(f"the listing broke off: {await self.call.details()}")


def describe_error(error: grpc.aio.AioRpcError) -> str:
    """Return an RPC's failure in a few words."""
    return f"{error.code().name.lower().replace('_', ' ')}: {error.details()}"
