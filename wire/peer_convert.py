"""The Peer service's messages to and from values; its payload is raw and belongs to the engine."""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from baton.v1 import peer_pb2
from syncengine.agreed import Graft
from syncengine.errors import MalformedFrame
from syncengine.lineage import MOST as MOST_LINEAGE
from syncengine.lineage import Lineage
from syncengine.model import Hold, Problem
from syncengine.names import check_path
from syncengine.scope import Scope
from wire.errors import ProtocolError
from wire.orders import PeerGrant
from wire.worker_convert import (
    hold_from_wire,
    hold_to_wire,
    problem_from_wire,
    problem_to_wire,
    token_from_wire,
    token_to_wire,
)

MAX_GRAFTS = 10_000
_MAX_NUMBER = (1 << 63) - 1
_PROBLEM_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ListRequest:
    """What a run wants to know of a member's tree."""

    grant: PeerGrant
    sightings: bool = False
    """Say also what was agreed to, and what was renamed: for `sync` and `exchange`."""
    digests: bool = False
    """Paths follow, in tree order: the digests of these are asked for."""
    grafts: tuple[Graft, ...] = ()
    scope: Scope | None = None
    """What of the tree; None for all of it."""


@dataclass(frozen=True, slots=True)
class ListHeader:
    """What a member says of its tree before it lists it."""

    holds: tuple[Hold, ...]
    entries_before: int
    """Entries covered when the last run ended; -1 when unknown."""
    free_bytes: int
    agreed_number: int = 0
    """Of the last run in which the member agreed to anything; 0 before the first."""
    is_empty: bool = False
    """Nothing lies at its top, beside what Baton itself keeps there."""
    lineage: Lineage = ()
    """Where its tree lies, or will."""


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """How a listing, or the answers to a fetch, came to their end."""

    problems: tuple[Problem, ...]
    is_complete: bool


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


def list_request_to_bytes(request: ListRequest) -> bytes:
    """Return the serialized request of a listing; ValueError for a scope that cannot travel."""
    return peer_pb2.ListRequest(
        grant=grant_to_wire(request.grant),
        sightings=request.sightings,
        digests=request.digests,
        grafts=[peer_pb2.Graft(path=graft.path, to=graft.to) for graft in request.grafts],
        scope=b"" if request.scope is None else request.scope.encode(),
    ).SerializeToString()


def list_request_from_bytes(raw: bytes) -> ListRequest:
    """Return the request of a listing; raise ProtocolError for one that makes no sense."""
    try:
        message = peer_pb2.ListRequest.FromString(raw)
    except DecodeError:
        raise ProtocolError("the request of a listing must be a ListRequest") from None
    if len(message.grafts) > MAX_GRAFTS:
        raise ProtocolError(f"{len(message.grafts)} grafts, more than {MAX_GRAFTS}")
    grafts = tuple(Graft(graft.path, graft.to) for graft in message.grafts)
    try:
        for path in (path for graft in grafts for path in graft):
            check_path(path)
            if not path:
                raise ProtocolError("the top of a tree cannot be grafted")
        scope = Scope.decode(message.scope) if message.scope else None
    except MalformedFrame as error:
        raise ProtocolError(str(error)) from error
    grant = grant_from_wire(message.grant)
    return ListRequest(grant, message.sightings, message.digests, grafts, scope)


def header_to_bytes(header: ListHeader) -> bytes:
    """Return the serialized header of a listing."""
    return peer_pb2.ListHeader(
        holds=[hold_to_wire(hold) for hold in header.holds],
        entries_before=header.entries_before,
        free_bytes=header.free_bytes,
        agreed_number=header.agreed_number,
        is_empty=header.is_empty,
        lineage=header.lineage,
    ).SerializeToString()


def header_from_bytes(raw: bytes) -> ListHeader:
    """Return the header that begins a listing."""
    try:
        message = peer_pb2.ListHeader.FromString(raw)
    except DecodeError:
        raise ProtocolError("the first message of a listing must be a ListHeader") from None
    holds = tuple(hold_from_wire(hold) for hold in message.holds)
    if not 0 <= message.agreed_number < _MAX_NUMBER:
        raise ProtocolError(f"an impossible number of a run, {message.agreed_number}")
    lineage = tuple(message.lineage)
    if len(lineage) > MOST_LINEAGE or any(len(one) > MOST_LINEAGE for one in lineage):
        raise ProtocolError("an impossible place of a tree")
    return ListHeader(
        holds,
        message.entries_before,
        message.free_bytes,
        message.agreed_number,
        message.is_empty,
        lineage,
    )


@dataclass(frozen=True, slots=True)
class PushEnd:
    """What ends a push."""

    entries: int | None
    """How many entries the member should have now; None when its own count stands."""


def end_of_push(end: PushEnd) -> bytes:
    """Return the message that ends a push; its first byte is 0, which no frame begins with."""
    entries = _MAX_NUMBER if end.entries is None else end.entries
    return b"\0" + entries.to_bytes(8, "big")


def read_end_of_push(message: bytes) -> PushEnd | None:
    """Return what the message says that ends a push; None for a frame."""
    if message[:1] != b"\0":
        return None
    entries = int.from_bytes(message[1:9], "big")
    return PushEnd(entries if entries < _MAX_NUMBER else None)


def end_of_stream(problems: Sequence[Problem], *, is_complete: bool) -> bytes:
    """Return the message that ends a listing, or the answers to a fetch.

    Its first byte is 0, which no frame begins with. `problems` say what could not be listed or sent;
    the first of them travel.
    """
    end = peer_pb2.StreamEnd(is_complete=is_complete)
    room = _PROBLEM_BYTES
    for problem in problems:
        room -= len(problem.path) + len(problem.detail) + len(problem.member) + 20
        if room < 0:
            break
        end.problems.append(problem_to_wire(problem))
    return b"\0" + end.SerializeToString()


def read_end_of_stream(message: bytes) -> StreamEnd | None:
    """Return what ends a listing, or the answers to a fetch; None for a frame."""
    if message[:1] != b"\0":
        return None
    try:
        end = peer_pb2.StreamEnd.FromString(message[1:])
    except DecodeError:
        raise ProtocolError("a stream must end with a StreamEnd") from None
    return StreamEnd(tuple(map(problem_from_wire, end.problems)), end.is_complete)


def agree_response_to_bytes(taken: int) -> bytes:
    """Return the answer to agreements."""
    return peer_pb2.AgreeResponse(taken=taken).SerializeToString()


def agree_response_from_bytes(raw: bytes) -> int:
    """Return how many agreements were taken."""
    try:
        return max(0, peer_pb2.AgreeResponse.FromString(raw).taken)
    except DecodeError:
        raise ProtocolError("the answer to agreements must be an AgreeResponse") from None
