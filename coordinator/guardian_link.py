"""A coordinator's end of the socket to its guardian: beats, leases, and news for the service manager.

Without a guardian, as in tests that call the daemon directly, nothing is said to anybody but the service
manager.
"""

import asyncio
import json
import os
import socket
from collections.abc import Callable
from typing import Any

import structlog

from coordinator.etcd_config import EtcdConfig
from coordinator.guardian import BEAT, BEAT_S, LINK
from coordinator.lease_session import EndReason, LeaseSession
from wire.process import notify_service_manager

log = structlog.get_logger()


class GuardianLink:
    """Tells the guardian what it must know to free this coordinator's jobs. Belongs to the loop."""

    def __init__(self, link: socket.socket | None, serving: Callable[[], str | None]) -> None:
        """Use a socket, None when nobody guards us; `serving` names the etcd member in use."""
        # Fixed at construction.
        self._link = link
        self._serving = serving
        # Owned by the event loop.
        self._leases: dict[int, float] = {}
        self._said: dict[str, Any] = {}
        self._next: asyncio.TimerHandle | None = None

    @classmethod
    def from_environment(cls, serving: Callable[[], str | None]) -> "GuardianLink":
        """Find the socket that the guardian left to us; it is then for no further child."""
        number = os.environ.pop(LINK, None)
        if number is None:
            return cls(None, serving)
        link = socket.socket(fileno=int(number))
        link.set_inheritable(False)
        link.setblocking(False)
        return cls(link, serving)

    def begin(self, name: str, etcd: EtcdConfig, orphaned: Callable[[], None]) -> None:
        """Introduce us and beat from now on; `orphaned` is called when the guardian has gone."""
        if self._link is None:
            return
        self._send({"name": name, "etcd": describe_etcd(etcd)})
        asyncio.get_running_loop().add_reader(self._link, self._hung_up, orphaned)
        self._beat()

    def session_started(self, session: LeaseSession) -> None:
        """Tell of a lease before anything is bound to it; called by the pool."""
        self._leases[session.lease_id] = session.ttl_s
        self._say_leases()

    def session_ended(self, session: LeaseSession, reason: EndReason) -> None:
        """Tell of an end; called by the pool. One that we close stays until `all_revoked`."""
        if reason is not EndReason.CLOSED:
            self._leases.pop(session.lease_id, None)
            self._say_leases()

    def all_revoked(self) -> None:
        """Tell that no lease is left, after the pool was closed."""
        self._leases.clear()
        self._say_leases()

    def notify(self, state: str) -> None:
        """Tell the service manager, by way of the guardian: it believes nobody else."""
        if self._link is None:
            notify_service_manager(state)
        else:
            self._send({"notify": state})

    def leave(self) -> None:
        """Say that the event loop is about to end, so that no beat is missed."""
        if self._link is None:
            return
        if self._next is not None:
            self._next.cancel()
        self._send({"leaving": True})
        asyncio.get_running_loop().remove_reader(self._link)

    def _beat(self) -> None:
        self._next = asyncio.get_running_loop().call_later(BEAT_S, self._beat)
        self._say_leases()
        assert self._link is not None
        try:
            self._link.send(BEAT)
        except OSError:
            return  # the guardian is stopped and has beats enough, or gone, which its end tells

    def _say_leases(self) -> None:
        """Tell what is held and which member serves, when that has changed since it was told."""
        serving = self._serving()
        state = {
            "leases": sorted(self._leases.items()),
            "serving": None if serving is None else _address(serving),
        }
        if state != self._said and self._send(state):
            self._said = state

    def _send(self, message: dict[str, Any]) -> bool:
        if self._link is None:
            return True
        try:
            self._link.send(json.dumps(message).encode())
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("guardian_not_told", why=str(error))
        return True

    def _hung_up(self, orphaned: Callable[[], None]) -> None:
        assert self._link is not None
        try:
            if self._link.recv(1):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        asyncio.get_running_loop().remove_reader(self._link)
        log.error("guardian_gone", then="this coordinator hands its jobs over and stops")
        orphaned()


def describe_etcd(etcd: EtcdConfig) -> dict[str, Any]:
    """Return how to reach etcd as the guardian reads it."""
    tls = etcd.tls
    return {
        "addresses": [_address(one.target) for one in etcd.parsed],
        "ca": tls and tls.ca.decode(),
        "cert": tls and tls.cert and tls.cert.decode(),
        "key": tls and tls.key and tls.key.decode(),
        "user": etcd.user,
        "password": etcd.password,
    }


def _address(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    return host.strip("[]"), int(port)
