"""Ports of loopback that a process can keep over restarts."""

import contextlib
import itertools
import os
import socket

HOST = "127.0.0.1"
_PORTS = range(15_000, 32_000)
# Every process begins elsewhere, and gives no port twice before it gave all of them.
_ports = itertools.cycle((*_PORTS[(at := os.getpid() * 997 % len(_PORTS)) :], *_PORTS[:at]))


def quiet_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on.

    They are below those that the kernel gives to outgoing connections, one of which could else sit on
    them before they are used, or while who uses them is down. RACE: another program may still take one;
    who finds so ends, and says so.
    """
    return [next(port for port in _ports if is_free(port)) for _ in range(count)]


def quiet_address() -> str:
    """Return HOST:PORT with such a port."""
    return f"{HOST}:{quiet_ports(1)[0]}"


def is_free(port: int) -> bool:
    """Say whether nobody listens on a port of loopback at this moment."""
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return True
    return False
