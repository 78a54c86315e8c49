"""HOST:PORT as Baton reads and prints it. Pure: no name is ever resolved here."""

import ipaddress
import re
from dataclasses import dataclass

from wire.errors import AddressInvalid

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?")


@dataclass(frozen=True, slots=True)
class Address:
    """A host (a name or an IP address, without brackets) and a TCP port."""

    host: str
    port: int
    """0 to 65,535; 0 asks a server to choose one."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. Names other than `localhost` count as remote.

        A name says whatever a resolver says today, so no other name is believed.
        """
        if self.host.lower().rstrip(".") == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str, *, default_port: int | None = None) -> Address:
    """Read `HOST:PORT`, `[IPV6]:PORT`, or a bare host where a default port is given.

    Raises `AddressInvalid`.
    """
    wanted = "HOST:PORT, for example 127.0.0.1:7070 or [::1]:7070"
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        host, colon, port = text, "", ""
    elif not colon:
        host = text
    if not colon:
        if default_port is None:
            raise AddressInvalid(f"{text!r} has no port: use {wanted}")
        port = str(default_port)
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not (port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise AddressInvalid(f"{text!r}: {port!r} is no port (0 to 65535): use {wanted}")
    if ":" in host or bracketed:
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise AddressInvalid(f"{text!r} is no address: use {wanted}") from error
        if not bracketed:
            raise AddressInvalid(f"{text!r}: put the IPv6 address in brackets, as in [::1]:7070")
    elif _HOST.fullmatch(host) is None:
        raise AddressInvalid(f"{text!r}: {host!r} is no host: use {wanted}")
    return Address(host, int(port))
