"""How to reach an etcd cluster: endpoints, certificates, user, deadlines. Values only."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from coordinator.errors import BadConfig


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """PEM texts: the authority that signed etcd's certificates, and our own certificate."""

    ca: bytes
    cert: bytes | None = None
    key: bytes | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise BadConfig("a client certificate for etcd needs both the certificate and its key")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One member's client URL, taken apart."""

    url: str
    target: str
    """HOST:PORT as gRPC resolves it."""
    is_secure: bool

    @classmethod
    def parse(cls, url: str) -> "Endpoint":
        """Read `http://HOST:PORT`, `https://HOST:PORT` or `HOST:PORT`; raises BadConfig."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise BadConfig(f"not an etcd endpoint: {url!r} ({error})") from error
        plain = parts.path in {"", "/"} and not (parts.query or parts.fragment or parts.username)
        if parts.scheme not in {"http", "https"} or not host or not plain:
            raise BadConfig(f"not an etcd endpoint: {url!r} (like http://etcd1:2379)")
        name = f"[{host}]" if ":" in host else host
        return cls(url, f"{name}:{port or 2379}", parts.scheme == "https")


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """One etcd cluster as a client sees it."""

    endpoints: tuple[str, ...]
    tls: EtcdTls | None = None
    user: str | None = None
    password: str | None = None
    attempt_s: float = 1.0
    """How long one member may take to answer: 0.5 with leases of 2 s, 1.0 with 3 s and more."""
    total_s: float = 10.0
    """How long a call goes on trying before it raises StoreUnavailable."""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise BadConfig("no etcd endpoint was given")
        if len(set(self.endpoints)) != len(self.endpoints):
            raise BadConfig(f"an etcd endpoint is given twice: {', '.join(self.endpoints)}")
        if (self.user is None) != (self.password is None):
            raise BadConfig("an etcd user needs a password, and a password a user")
        if not 0 < self.attempt_s <= self.total_s:
            raise BadConfig("attempt_s must be above 0 and not above total_s")
        for endpoint in self.parsed:
            if endpoint.is_secure != (self.tls is not None):
                raise BadConfig(
                    f"{endpoint.url} is "
                    + ("https: give the authority's certificate" if endpoint.is_secure else "http")
                    + ("" if endpoint.is_secure else ", but certificates are given: use https")
                )

    @property
    def parsed(self) -> tuple[Endpoint, ...]:
        """The endpoints taken apart; raises BadConfig."""
        return tuple(Endpoint.parse(url) for url in self.endpoints)
