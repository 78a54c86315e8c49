"""The one place where gRPC channels and servers are made, and where the other side is named.

A client demands a DNS name made from the identity it expects (`NAME.ROLE.CLUSTER.baton`) and does
not care at which address it found it. One that will talk to any coordinator demands the name of the
role (`any.coordinator.CLUSTER.baton`), which only certificates of that role carry: so authority and
role are proved although the name is not known. A server reads the client's identity from the one
URI in its certificate. Without certificates a client merely claims its identity, in metadata.
"""

import errno
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

import grpc
import grpc.aio

from wire.address import Address, parse_address
from wire.credentials import Credentials, Insecure, Tls, check_insecure, load_tls
from wire.errors import AddressInUse, BindFailed, IdentityInvalid, PeerRefused
from wire.identity import Identity, Role, parse_short, parse_uri, role_dns

__all__ = [
    "MAX_MESSAGE_BYTES",
    "WINDOW_BYTES",
    "Credentials",
    "Expect",
    "Insecure",
    "Tls",
    "bind",
    "check_insecure",
    "load_tls",
    "make_server",
    "open_channel",
    "peer_identity",
]

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""The largest message either side takes or sends; whoever has more sends several."""

WINDOW_BYTES = 16 * 1024 * 1024
"""What either side takes in of one stream before its program has asked for it."""

PEER_KEY = "baton-peer"
"""The metadata key under which a client without a certificate claims `ROLE/NAME`."""

Expect = Identity | tuple[Role, str] | Role
"""Whom a client wants: exactly somebody, somebody of its own cluster, or anybody of a role."""

_Options = Sequence[tuple[str, Any]]

# `grpc.keepalive_timeout_ms` alone does nothing in current grpcio: the wait for the answer to a
# ping is `grpc.http2.ping_timeout_ms`, 60 s unless set. With both, a hung or cut-off peer is
# noticed after the sum of both. It counts for gRPC's own bandwidth probes too, whose answers queue
# behind payload: on a slow link that may take seconds, so only channels without payload are strict.


def _keepalive(time_ms: int, timeout_ms: int) -> _Options:
    return (
        ("grpc.keepalive_time_ms", time_ms),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    )


_STRICT = _keepalive(2_000, 2_000)
_PATIENT = _keepalive(10_000, 20_000)
_MESSAGES: _Options = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)
# Left alone gRPC takes in as much as it guesses that the connection could carry, which on a fast link
# in front of a slow disk were hundreds of megabytes. This is 320 MB/s for one stream at 50 ms.
_WINDOW: _Options = (
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.http2.bdp_probe", 0),
)
_CLIENT: _Options = (
    *_MESSAGES,
    *_WINDOW,
    ("grpc.enable_http_proxy", 0),  # a proxy in the environment is not for the cluster's traffic
    ("grpc.service_config_disable_resolution", 1),  # no settings out of DNS
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.min_reconnect_backoff_ms", 3_000),  # in fact the time allowed for one connection attempt
)
_SERVER: _Options = (
    *_PATIENT,
    *_MESSAGES,
    *_WINDOW,
    ("grpc.so_reuseport", 0),  # else a second process on the port gets half of the connections
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),  # twice as often as clients ping
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_concurrent_streams", 1_024),
)


def open_channel(
    address: str, credentials: Credentials, expect: Expect, *, data: bool = False
) -> grpc.aio.Channel:
    """Make a channel to `address` (HOST:PORT) that talks to nobody but whom is expected.

    Connects when first used; a wrong peer then shows as UNAVAILABLE with "Hostname" in its details.
    A peer that hangs or is cut off ends the calls within 4 s; with `data`, which is for payload and
    gives the channel a connection of its own, within 30 s. Raises `AddressInvalid`, and
    `IdentityInvalid` for somebody of another cluster. Needs a running loop.
    """
    target = str(parse_address(address))
    wanted = _dns_of(expect, credentials.identity)
    options = [*_CLIENT, *(_PATIENT if data else _STRICT)]
    if data:
        options.append(("grpc.use_local_subchannel_pool", 1))
    match credentials:
        case Insecure(identity):
            plain = grpc.aio.insecure_channel(target, options=options)
            return cast("grpc.aio.Channel", _ClaimingChannel(plain, str(identity)))
        case Tls():
            options.append(("grpc.ssl_target_name_override", wanted))
            secrets = grpc.ssl_channel_credentials(
                credentials.ca_pem, credentials.key_pem, credentials.cert_pem
            )
            return grpc.aio.secure_channel(target, secrets, options=options)


def make_server(*, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> grpc.aio.Server:
    """Make a server with the cluster's limits; add services, `bind`, then start it."""
    return grpc.aio.server(interceptors=interceptors, options=_SERVER)


def bind(server: grpc.aio.Server, address: str, credentials: Credentials) -> int:
    """Listen on every address that HOST:PORT stands for; return the port (chosen when PORT is 0).

    Resolves names, so it may block: for start-up only. Raises `AddressInvalid`, `AddressInUse`, or
    `BindFailed` for whatever else keeps it from listening.
    """
    wanted = parse_address(address)
    port = wanted.port
    bound = 0
    for host in _resolve(wanted):
        one = Address(host, port)
        problem = _problem_of_binding(one)
        if problem == errno.EADDRNOTAVAIL and wanted.host != host:
            continue  # a name that stands for ::1 too, where there is no IPv6
        if problem:
            raise _bind_error(one, problem)
        port = _listen(server, one, credentials)
        bound += 1
    if not bound:
        raise _bind_error(wanted, errno.EADDRNOTAVAIL)
    return port


def peer_identity(
    context: grpc.aio.ServicerContext[Any, Any], credentials: Credentials
) -> Identity:
    """Return who calls, as a server with these credentials sees it. Raises `PeerRefused`."""
    if isinstance(credentials, Tls):
        auth = cast("Mapping[str, Sequence[bytes]]", context.auth_context())
        uris = auth.get("peer_uri", ())
        if len(uris) != 1:
            raise PeerRefused(f"the certificate carries {len(uris)} URIs instead of one identity")
        uri = uris[0].decode("ascii", "replace")
        peer = _refuse_unnamed(lambda: parse_uri(uri))
    else:
        metadata = context.invocation_metadata() or ()
        claims = [str(value) for key, value in metadata if key == PEER_KEY]
        if len(claims) != 1:
            raise PeerRefused(
                f"{len(claims)} claims of an identity in metadata {PEER_KEY}: is the caller baton?"
            )
        peer = _refuse_unnamed(lambda: parse_short(credentials.identity.cluster, claims[0]))
    if peer.cluster != credentials.identity.cluster:
        raise PeerRefused(
            f"{peer} is of cluster {peer.cluster}, not {credentials.identity.cluster}"
        )
    return peer


def _refuse_unnamed(read: Callable[[], Identity]) -> Identity:
    try:
        return read()
    except IdentityInvalid as error:
        raise PeerRefused(str(error)) from error


def _dns_of(expect: Expect, own: Identity) -> str:
    match expect:
        case Role() as role:
            return role_dns(own.cluster, role)
        case Identity() as peer:
            if peer.cluster != own.cluster:
                raise IdentityInvalid(f"{peer} is of cluster {peer.cluster}, not {own.cluster}")
            return peer.dns
        case (role, name):
            return own.colleague(role, name).dns


def _resolve(wanted: Address) -> list[str]:
    try:
        found = socket.getaddrinfo(
            wanted.host, wanted.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise BindFailed(f"cannot listen on {wanted}: {error.strerror}") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _problem_of_binding(address: Address) -> int:
    """Return why this address cannot be listened on, as an errno, or 0.

    gRPC gives no reason, and is content when it can listen on one of several addresses.
    RACE: another process may take the port before gRPC does; then gRPC fails, with a poorer text.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((address.host, address.port))
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return errno.EADDRNOTAVAIL
        return error.errno or errno.EIO
    return 0


def _bind_error(address: Address, problem: int) -> BindFailed:
    match problem:
        case errno.EADDRINUSE:
            return AddressInUse(
                f"cannot listen on {address}: another process listens there already; "
                f"stop it (ss -ltnp 'sport = :{address.port}' names it) or choose another port"
            )
        case errno.EADDRNOTAVAIL:
            return BindFailed(f"cannot listen on {address}: this machine has no such address")
        case errno.EACCES:
            return BindFailed(
                f"cannot listen on {address}: not allowed; ports below 1024 need root"
            )
        case _:
            return BindFailed(
                f"cannot listen on {address}: {errno.errorcode.get(problem, problem)}"
            )


def _listen(server: grpc.aio.Server, address: Address, credentials: Credentials) -> int:
    try:
        match credentials:
            case Insecure():
                return server.add_insecure_port(str(address))
            case Tls():
                secrets = grpc.ssl_server_credentials(
                    [(credentials.key_pem, credentials.cert_pem)],
                    root_certificates=credentials.ca_pem,
                    require_client_auth=True,
                )
                return server.add_secure_port(str(address), secrets)
    except RuntimeError as error:
        raise BindFailed(f"cannot listen on {address}: {error}") from error


class _ClaimingChannel:
    """A channel without certificates that says who it is, in the metadata of every call.

    Not an interceptor: those put a queue and a task around each stream.
    """

    def __init__(self, inner: grpc.aio.Channel, claim: str) -> None:
        self._inner = inner
        self._claim = (PEER_KEY, claim)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return self._claiming(self._inner.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return self._claiming(self._inner.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return self._claiming(self._inner.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return self._claiming(self._inner.stream_stream(*args, **kwargs))

    def _claiming(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def claiming(*args: Any, metadata: Any = None, **kwargs: Any) -> Any:
            return call(*args, metadata=(*(metadata or ()), self._claim), **kwargs)

        return claiming

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002  (gRPC's signature)
        return self._inner.get_state(try_to_connect)

    def wait_for_state_change(
        self, last_observed_state: grpc.ChannelConnectivity
    ) -> Awaitable[None]:
        return self._inner.wait_for_state_change(last_observed_state)

    def channel_ready(self) -> Awaitable[None]:
        return self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()
