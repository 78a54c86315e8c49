"""A connection of its own for the frames of one large push, beside the call that it belongs to.

gRPC copies a message six times and cuts TLS records of 16 KiB: on a fast link that is most of what a
large file costs. So the receiver offers another way over the call, whose mutual TLS has proved both
sides: a port, and a secret made for this one push. Each frame crosses as one record of AES-256-GCM
under keys derived from the secret (HKDF); records are numbered, so none can be changed, left out,
repeated or put elsewhere without being noticed. Whoever lacks the secret learns nothing, and is
learned nothing from.

The way is only a way: the call decides who may push and how long, and its end is the end of this.
Where the port cannot be reached the frames go over the call.
"""

import asyncio
import contextlib
import secrets
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from wire.channel import MAX_MESSAGE_BYTES
from wire.errors import PayloadBroken, ProtocolError

HANDSHAKE_S = 2.0
"""How long it may take to be connected and recognized: longer, and the call carries the frames."""

_SECRET_BYTES = 32
_OFFER = struct.Struct(f">H{_SECRET_BYTES}s")
_HELLO = b"baton payload 1"
_PUSHING, _TAKING = b"pushing", b"taking"
_LENGTH = struct.Struct(">I")
_TAG_BYTES = 16
_NONCE_BYTES = 12
_RECORDS_PER_KEY = 1 << 15
"""At most 128 GiB under one key, far below what AES-GCM is good for."""
_WAITING = 4


@dataclass(frozen=True, slots=True)
class Offer:
    """Where a receiver listens for one push, and what proves who comes. Not to be logged."""

    port: int
    secret: bytes

    def to_bytes(self) -> bytes:
        """Return it for the metadata of the call."""
        return _OFFER.pack(self.port, self.secret)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read what `to_bytes` made; raises ProtocolError."""
        try:
            port, secret = _OFFER.unpack(raw)
        except struct.error as error:
            raise ProtocolError(f"no offer of a way for payload: {error}") from error
        return cls(port, secret)


class _Records:
    """Seals or opens the records of one direction, in order."""

    def __init__(self, secret: bytes, direction: bytes) -> None:
        self._secret = secret
        self._direction = direction
        self._number = 0
        self._cipher: AESGCM

    def _next(self) -> bytes:
        """Return the nonce of the next record, which no other under its key has."""
        era, within = divmod(self._number, _RECORDS_PER_KEY)
        if not within:
            info = b"%s %s %d" % (_HELLO, self._direction, era)
            self._cipher = AESGCM(HKDFExpand(SHA256(), 32, info).derive(self._secret))
        self._number += 1
        return within.to_bytes(_NONCE_BYTES)

    def seal(self, content: bytes) -> tuple[bytes, bytes]:
        """Return the length of the next record, and the record."""
        length = _LENGTH.pack(len(content) + _TAG_BYTES)
        nonce = self._next()
        return length, self._cipher.encrypt(nonce, content, length)

    def open(self, length: bytes, sealed: memoryview) -> bytes:
        """Return the content of the next record; raises PayloadBroken."""
        nonce = self._next()
        try:
            return self._cipher.decrypt(nonce, sealed, length)
        except InvalidTag:
            raise PayloadBroken("a record of payload is not what was sent") from None


class Payload:
    """A connected way. `send` and `frames` block, each for one thread; `abort` wakes both."""

    def __init__(self, connection: socket.socket, secret: bytes, *, pushing: bool) -> None:
        """Take over a connection that is not blocking yet."""
        self._socket = connection
        ours, theirs = (_PUSHING, _TAKING) if pushing else (_TAKING, _PUSHING)
        self._sealing = _Records(secret, ours)
        self._opening = _Records(secret, theirs)

    def send(self, frame: bytes) -> None:
        """Send a frame; blocks until the kernel has taken it. Raises PayloadBroken."""
        length, sealed = self._sealing.seal(frame)
        try:
            self._socket.sendall(length, socket.MSG_MORE)
            self._socket.sendall(sealed)
        except OSError as error:
            raise PayloadBroken(f"the way of the payload broke off: {error.strerror}") from error

    def frames(self) -> Iterator[bytes]:
        """Yield the frames that come, for ever; blocks. Raises PayloadBroken at the end."""
        length = bytearray(_LENGTH.size)
        room = bytearray()
        while True:
            self._fill(memoryview(length))
            size = _size_of(length)
            if size > len(room):
                room = bytearray(size)
            sealed = memoryview(room)[:size]
            self._fill(sealed)
            yield self._opening.open(bytes(length), sealed)

    def _fill(self, room: memoryview) -> None:
        while room:
            try:
                got = self._socket.recv_into(room, 0, socket.MSG_WAITALL)
            except OSError as error:
                why = f"the way of the payload broke off: {error.strerror}"
                raise PayloadBroken(why) from error
            if not got:
                raise PayloadBroken("the way of the payload ended before the push did")
            room = room[got:]

    def abort(self) -> None:
        """End whatever waits here, from any thread; harmless at any time before `close` and after."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the connection; no thread may use it any more."""
        self._socket.close()

    async def greet(self) -> None:
        """Prove to each other that both know the secret; raises PayloadBroken, OSError."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, b"".join(self._sealing.seal(_HELLO)))
        length = await self._received(_LENGTH.size)
        size = _size_of(length)
        if size != len(_HELLO) + _TAG_BYTES:
            raise PayloadBroken("a greeting that is none")
        if self._opening.open(length, memoryview(await self._received(size))) != _HELLO:
            raise PayloadBroken("a greeting in another language")
        self._socket.setblocking(True)

    async def _received(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            loop = asyncio.get_running_loop()
            more = await loop.sock_recv(self._socket, size - len(received))
            if not more:
                raise PayloadBroken("hung up on")
            received += more
        return bytes(received)


class Listener:
    """Waits for the one connection of one push."""

    def __init__(self, host: str) -> None:
        """Listen on any free port of the first address of `host`; may block; raises OSError."""
        found = socket.getaddrinfo(
            host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        self._socket = socket.socket(family, kind, protocol)
        try:
            self._socket.setblocking(False)
            self._socket.bind(address)
            self._socket.listen(_WAITING)
        except BaseException:
            self._socket.close()
            raise
        port: int = self._socket.getsockname()[1]
        self.offer = Offer(port, secrets.token_bytes(_SECRET_BYTES))
        self._accepted: Payload | None = None

    async def accept(self) -> Payload:
        """Wait for somebody who knows the secret; others are hung up on. Raises OSError."""
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._socket)
            payload = Payload(connection, self.offer.secret, pushing=False)
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    await payload.greet()
            except (PayloadBroken, OSError):
                payload.close()
            except BaseException:
                payload.close()
                raise
            else:
                self._accepted = payload
                return payload

    def close(self) -> None:
        """Listen no more, and let go of what was accepted."""
        self._socket.close()
        if self._accepted is not None:
            self._accepted.close()


async def reach(host: str, offer: Offer) -> Payload | None:
    """Connect to where a receiver listens; None where that is not it, or not to be reached in time."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):  # which a time-out is, too
        async with asyncio.timeout(HANDSHAKE_S):
            found = await loop.getaddrinfo(host, offer.port, type=socket.SOCK_STREAM)
            for family, kind, protocol, _, address in found:
                with contextlib.suppress(PayloadBroken, ConnectionError):
                    connection = socket.socket(family, kind, protocol)
                    return await _greeted(connection, address, offer)
    return None


async def _greeted(connection: socket.socket, address: Any, offer: Offer) -> Payload:
    payload = Payload(connection, offer.secret, pushing=True)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, address)
        await payload.greet()
    except BaseException:
        payload.close()
        raise
    return payload


def _size_of(length: bytes | bytearray) -> int:
    size: int = _LENGTH.unpack(length)[0]
    if not _TAG_BYTES < size <= MAX_MESSAGE_BYTES + _TAG_BYTES:
        raise PayloadBroken(f"a record of {size} bytes")
    return size
