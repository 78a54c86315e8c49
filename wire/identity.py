"""Who somebody is: a cluster, a role and a name, and the three ways to write them down.

As a URI in certificates (`spiffe://CLUSTER/ROLE/NAME`), as the DNS name that clients demand
(`NAME.ROLE.CLUSTER.baton`), and short in messages (`ROLE/NAME`). Pure; reads no certificate.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from wire.errors import IdentityInvalid

SUFFIX = "baton"
"""Last label of the DNS names made from identities; no host may be named below it."""

ANY = "any"
"""The label that stands for every member of a role; nobody can be called so."""

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class Role(StrEnum):
    """What a member of a cluster is there for."""

    COORDINATOR = "coordinator"
    WORKER = "worker"
    OPERATOR = "operator"


def is_label(text: str) -> bool:
    """Say whether `text` is a DNS label: 1 to 63 of a-z, 0-9 and `-`, no `-` at either end."""
    return _LABEL.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Identity:
    """One member of one cluster.

    Raises `IdentityInvalid` for a cluster or a name that is no DNS label, and for the name `any`.
    """

    cluster: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        for what, text in (("cluster", self.cluster), ("name", self.name)):
            if not is_label(text):
                raise IdentityInvalid(
                    f"{what} {text!r} is not a DNS label: use 1 to 63 of a-z, 0-9 and '-', "
                    "without '-' at either end"
                )
        if self.name == ANY:
            raise IdentityInvalid(f"nobody can be named {ANY!r}: it stands for every {self.role}")

    def __str__(self) -> str:
        return f"{self.role}/{self.name}"

    @property
    def uri(self) -> str:
        """The identity as it stands in a certificate."""
        return f"spiffe://{self.cluster}/{self.role}/{self.name}"

    @property
    def dns(self) -> str:
        """The DNS name that a client demands of exactly this member."""
        return f"{self.name}.{self.role}.{self.cluster}.{SUFFIX}"

    def colleague(self, role: Role, name: str) -> "Identity":
        """Return the identity of another member of the same cluster."""
        return Identity(self.cluster, role, name)


def role_dns(cluster: str, role: Role) -> str:
    """Return the DNS name that a client demands when any member of a role will do."""
    return f"{ANY}.{role}.{cluster}.{SUFFIX}"


def parse_role(text: str) -> Role:
    """Read a role. Raises `IdentityInvalid`."""
    try:
        return Role(text)
    except ValueError as error:
        known = ", ".join(Role)
        raise IdentityInvalid(f"{text!r} is no role: use one of {known}") from error


def parse_uri(uri: str) -> Identity:
    """Read `spiffe://CLUSTER/ROLE/NAME`, exactly. Raises `IdentityInvalid`."""
    scheme, _, rest = uri.partition("://")
    parts = rest.split("/")
    if scheme != "spiffe" or len(parts) != 3:
        raise IdentityInvalid(f"{uri!r} is not of the form spiffe://CLUSTER/ROLE/NAME")
    cluster, role, name = parts
    return Identity(cluster, parse_role(role), name)


def parse_short(cluster: str, text: str) -> Identity:
    """Read `ROLE/NAME` as a member of `cluster`. Raises `IdentityInvalid`."""
    role, slash, name = text.partition("/")
    if not slash:
        raise IdentityInvalid(f"{text!r} is not of the form ROLE/NAME")
    return Identity(cluster, parse_role(role), name)
