"""Revoking leases at etcd with nothing but sockets, for a process that must stay small and never fail.

Speaks just enough of HTTP/2 and gRPC for two calls, since the libraries that do it take more memory than
all the rest of the guardian, and etcd's JSON gateway may be switched off and knows no user by
certificate. Blocking, with a deadline for every call. Imports next to nothing: no dataclasses either.
"""

from __future__ import annotations

import socket
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from ssl import SSLContext

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_STREAM = 1
_MAX_FRAME = 1 << 14
_PREFIX = struct.Struct(">BI")
"""Of a gRPC message: whether it is compressed, its length."""


class EtcdSilent(Exception):
    """A member gave no answer; the text says what happened instead."""


class EtcdRefused(Exception):
    """A member answered with an error: the lease is gone, or we may not."""


class BareEtcd:
    """The members of one cluster, and who we are there."""

    __slots__ = ("_password", "_tls", "_user", "addresses")

    def __init__(
        self,
        addresses: tuple[tuple[str, int], ...],
        tls: SSLContext | None = None,
        user: str | None = None,
        password: str | None = None,
    ) -> None:
        """Talk to these members, in plain HTTP without `tls`."""
        self.addresses = addresses
        self._tls = tls
        self._user = user
        self._password = password

    def revoke(self, lease_id: int, address: tuple[str, int], within_s: float) -> None:
        """End a lease at one member.

        Raises EtcdSilent, EtcdRefused. Blocks for `within_s` at most, twice that with a user: then it
        authenticates anew, since whatever token the coordinator had may have expired.
        """
        token = None
        if self._user is not None and self._password is not None:
            request = _field(1, self._user.encode()) + _field(2, self._password.encode())
            try:
                answer = self._call(address, "/etcdserverpb.Auth/Authenticate", request, within_s)
                token = _text_field(answer, 2)
            except EtcdRefused:
                token = None  # authentication is switched off, else the next call is refused too
        request = b"\x08" + _varint(lease_id)
        self._call(address, "/etcdserverpb.Lease/LeaseRevoke", request, within_s, token)

    def _call(
        self,
        address: tuple[str, int],
        path: str,
        request: bytes,
        within_s: float,
        token: str | None = None,
    ) -> bytes:
        deadline = time.monotonic() + within_s
        try:
            with socket.create_connection(address, within_s) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is None:
                    return _ask(plain, self._headers(address, path, token), request, deadline)
                with self._tls.wrap_socket(plain, server_hostname=address[0]) as secure:
                    return _ask(secure, self._headers(address, path, token), request, deadline)
        except (OSError, ValueError, IndexError, struct.error) as error:
            raise EtcdSilent(f"{address[0]}:{address[1]}: {error}") from error

    def _headers(self, address: tuple[str, int], path: str, token: str | None) -> bytes:
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        fields = [
            (":method", "POST"),
            (":scheme", "http" if self._tls is None else "https"),
            (":path", path),
            (":authority", f"{host}:{address[1]}"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("hasleader", "true"),
        ]
        if token is not None:
            fields.append(("token", token))
        return b"".join(
            b"\x00" + _hpack_text(name.encode()) + _hpack_text(value.encode())
            for name, value in fields
        )


def _ask(to: socket.socket, headers: bytes, request: bytes, deadline: float) -> bytes:
    """Send one call on a fresh connection and return the message that answers it."""
    message = _PREFIX.pack(0, len(request)) + request
    to.sendall(
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, _STREAM, headers)
        + _frame(_DATA, _END_STREAM, _STREAM, message)
    )
    answer = b""
    for kind, flags, stream, payload in _frames(to, deadline):
        if kind == _SETTINGS and not flags & _ACK:
            to.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            to.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _DATA and stream == _STREAM:
            answer += payload
            # A call that failed is answered without a message, so its status need not be read.
            if len(answer) >= _PREFIX.size:
                _, length = _PREFIX.unpack_from(answer)
                if len(answer) >= _PREFIX.size + length:
                    return answer[_PREFIX.size : _PREFIX.size + length]
        elif kind == _HEADERS and stream == _STREAM and flags & _END_STREAM:
            raise EtcdRefused("etcd refused: the lease has ended already, or we may not")
        elif kind in {_RST_STREAM, _GOAWAY}:
            raise OSError("the call was cut off")
    raise OSError("the connection was closed")


def _frames(of: socket.socket, deadline: float) -> Iterator[tuple[int, int, int, bytes]]:
    """Give the kind, flags, stream and payload of each frame; raises TimeoutError at the deadline."""
    buffer = b""
    while True:
        while len(buffer) >= 9:
            length = int.from_bytes(buffer[:3])
            if length > _MAX_FRAME:
                raise ValueError("not an HTTP/2 frame")
            if len(buffer) < 9 + length:
                break
            stream = int.from_bytes(buffer[5:9]) & 0x7FFF_FFFF
            yield buffer[3], buffer[4], stream, buffer[9 : 9 + length]
            buffer = buffer[9 + length :]
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("no answer in time")
        of.settimeout(left_s)
        data = of.recv(4096)
        if not data:
            return
        buffer += data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _hpack_text(text: bytes) -> bytes:
    """Write a text as HPACK does without Huffman's code: its length in 7 bits and more, then itself."""
    if len(text) < 127:
        return bytes((len(text),)) + text
    return b"\x7f" + _varint(len(text) - 127) + text


def _varint(number: int) -> bytes:
    """Write a number in groups of 7 bits, lowest first, as protobuf and HPACK both do."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, value: bytes) -> bytes:
    """Write a field of bytes of a protobuf message."""
    return bytes((number << 3 | 2,)) + _varint(len(value)) + value


def _text_field(message: bytes, wanted: int) -> str:
    """Return a text of a protobuf message whose fields are all of bytes; raises ValueError."""
    at = 0
    while at < len(message):
        number, at = message[at] >> 3, at + 1
        length = shift = 0
        while True:
            length |= (message[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if not message[at - 1] & 0x80:
                break
        if number == wanted:
            return message[at : at + length].decode()
        at += length
    raise ValueError("an answer without the field that was asked for")
