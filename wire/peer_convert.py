"""The Peer service's messages to and from values; its payload is raw and belongs to the engine."""

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from baton.v1 import peer_pb2
from syncengine.model import Hold
from wire.errors import ProtocolError
from wire.orders import PeerGrant
from wire.worker_convert import hold_from_wire, hold_to_wire, token_from_wire, token_to_wire


@dataclass(frozen=True, slots=True)
class ListHeader:
    """What a target says of its tree before it lists it."""

    holds: tuple[Hold, ...]
    entries_before: int
    """Entries covered when the last run ended; -1 when unknown."""
    free_bytes: int


def grant_to_wire(grant: PeerGrant) -> peer_pb2.PeerGrant:
    """Return the message of a grant."""
    return peer_pb2.PeerGrant(
        job=grant.job, token=token_to_wire(grant.token), run=grant.run, member=grant.member
    )


def grant_from_wire(message: peer_pb2.PeerGrant) -> PeerGrant:
    """Return the grant of a message; raise ProtocolError for one that names no job or run."""
    if not (message.job and message.run and message.member):
        raise ProtocolError("a peer's grant must name job, run and member")
    return PeerGrant(message.job, token_from_wire(message.token), message.run, message.member)


def grant_from_bytes(raw: bytes) -> PeerGrant:
    """Return the grant that begins a raw stream."""
    try:
        return grant_from_wire(peer_pb2.PeerGrant.FromString(raw))
    except DecodeError:
        raise ProtocolError("the first message of a raw stream must be a PeerGrant") from None


def header_to_bytes(header: ListHeader) -> bytes:
    """Return the serialized header of a listing."""
    return peer_pb2.ListHeader(
        holds=[hold_to_wire(hold) for hold in header.holds],
        entries_before=header.entries_before,
        free_bytes=header.free_bytes,
    ).SerializeToString()


def header_from_bytes(raw: bytes) -> ListHeader:
    """Return the header that begins a listing."""
    try:
        message = peer_pb2.ListHeader.FromString(raw)
    except DecodeError:
        raise ProtocolError("the first message of a listing must be a ListHeader") from None
    holds = tuple(hold_from_wire(hold) for hold in message.holds)
    return ListHeader(holds, message.entries_before, message.free_bytes)


def end_of_push(entries: int) -> bytes:
    """Return the message that ends a push: how many entries the target should have now.

    Its first byte is 0, which no frame begins with.
    """
    return b"\0" + entries.to_bytes(8, "big")


def read_end_of_push(message: bytes) -> int | None:
    """Return the number in the message that ends a push; None for a frame."""
    if message[:1] != b"\0":
        return None
    return int.from_bytes(message[1:9], "big")
