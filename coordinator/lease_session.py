"""A lease as an object with one observable end, and a node's lease for each TTL in use.

The deadline is our own: it counts from before the last answered renewal was sent, less a margin, so it
always comes before etcd frees the keys. Whether a session is held is computed from the clock, never
from a task: a blocked event loop cannot make it lie. Knows nothing of jobs and owners.
"""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Protocol

import structlog

from coordinator.errors import StoreError, StoreUnavailable
from coordinator.store import LeaseGrant, Store
from wire.clock import Clock

_RENEWALS_PER_TTL = 4
_FAILOVER_S = 1.5
"""What shall be left after a renewal that was the last before an etcd member died: time to see that the
member is silent, and for an election. Short leases are renewed more often for it."""
_MARGIN = 0.1
"""Share of the TTL by which our deadline comes before etcd's: orders on their way arrive in it."""
_AFTER_FAILURE_S = 0.05
_GRANT_PAUSE_S = 0.2
_REVOKE_S = 5.0

log = structlog.get_logger()


class EndReason(StrEnum):
    """Why a session ended."""

    CLOSED = "closed"
    """We ended it."""
    LOST = "lost"
    """etcd says that the lease is gone; this can happen to a holder in good health."""
    EXPIRED = "expired"
    """Our own deadline passed without an answered renewal."""


class LeaseSession:
    """One lease, kept alive until it is closed, lost, or past its deadline; then over for good."""

    def __init__(
        self, store: Store, clock: Clock, granted: LeaseGrant, *, margin_s: float | None = None
    ) -> None:
        # Fixed at construction.
        self._store = store
        self._clock = clock
        self.lease_id = granted.lease_id
        self.ttl_s = granted.ttl_s
        self._margin_s = granted.ttl_s * _MARGIN if margin_s is None else margin_s
        # Owned by the event loop.
        self._deadline = granted.sent_at + granted.ttl_s - self._margin_s
        self._reason: EndReason | None = None
        self._ended = asyncio.Event()
        self._observers: list[Callable[[EndReason], None]] = []
        self._task = asyncio.create_task(self._keep(), name=f"lease {self.lease_id:x}")

    @classmethod
    async def open(
        cls, store: Store, clock: Clock, ttl_s: int, *, margin_s: float | None = None
    ) -> "LeaseSession":
        """Grant a lease of at least `ttl_s` whole seconds and keep it; raises StoreError.

        `margin_s` is how long before etcd's own end the session ends, a tenth of the TTL if not said.
        """
        return cls(store, clock, await store.grant(ttl_s), margin_s=margin_s)

    def remaining_s(self) -> float:
        """Return the seconds until the holder must fall silent; 0 or less when it must already."""
        left_s = self._deadline - self._clock.now()
        return left_s if self._reason is None else min(0.0, left_s)

    @property
    def is_held(self) -> bool:
        """Whether the holder may still act: true at no instant at which another could hold it."""
        return self.remaining_s() > 0

    @property
    def end_reason(self) -> EndReason | None:
        """Why the session ended; None while nobody has noticed an end."""
        return self._reason

    async def ended(self) -> EndReason:
        """Wait for the end and return its reason."""
        await self._ended.wait()
        assert self._reason is not None
        return self._reason

    def on_end(self, observer: Callable[[EndReason], None]) -> None:
        """Have `observer` called once at the end, on the loop; at once when it has come already."""
        if self._reason is not None:
            observer(self._reason)
        else:
            self._observers.append(observer)

    def declare_lost(self) -> None:
        """End the session because etcd said, in answer to another request, that the lease is gone."""
        self._end(EndReason.LOST)
        self._task.cancel()

    async def close(self) -> None:
        """End the session and revoke the lease, so that its keys go now; raises nothing.

        Takes up to 5 s when etcd does not answer: the lease then expires by itself.
        """
        self._end(EndReason.CLOSED)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await revoke_quietly(self._store, self.lease_id)

    def _end(self, reason: EndReason) -> None:
        if self._reason is None:
            self._reason = reason
            self._ended.set()
            for observer in self._observers:
                observer(reason)
            self._observers.clear()

    async def _keep(self) -> None:
        """Renew every quarter of the TTL or sooner; after a failure at once, until the deadline."""
        period_s = self.ttl_s / _RENEWALS_PER_TTL
        # A member that does not answer for a period is left for another, so that one is asked in time.
        spare_s = self.ttl_s - self._margin_s - _FAILOVER_S
        delay_s = often_s = max(period_s / 2, min(period_s, spare_s))
        while True:
            await self._clock.sleep(max(0.0, min(delay_s, self.remaining_s())))
            sent_at = self._clock.now()
            if sent_at >= self._deadline:
                self._end(EndReason.EXPIRED)
                return
            try:
                async with asyncio.timeout(self._deadline - sent_at):
                    ttl_s = await self._store.keep_alive(self.lease_id, patience_s=period_s)
            except TimeoutError:
                continue
            except StoreError as error:
                log.warning("lease_renewal_failed", lease=f"{self.lease_id:x}", error=str(error))
                delay_s = _AFTER_FAILURE_S
                continue
            if ttl_s <= 0:
                self._end(EndReason.LOST)
                return
            if self._clock.now() >= self._deadline:
                # The answer came after we had to fall silent: over is over, even if etcd renewed it.
                self._end(EndReason.EXPIRED)
                return
            self._deadline = sent_at + ttl_s - self._margin_s
            delay_s = often_s


class LeaseObserver(Protocol):
    """Who is told when a pool's sessions come and go."""

    def session_started(self, session: LeaseSession) -> None:
        """Hear of a new session."""

    def session_ended(self, session: LeaseSession, reason: EndReason) -> None:
        """Hear that a session is over; a new one for its TTL is on its way unless it was closed."""


class LeasePool:
    """A node's sessions, one for each TTL in use; a lost one is replaced without being asked."""

    def __init__(self, store: Store, clock: Clock) -> None:
        # Fixed at construction.
        self._store = store
        self._clock = clock
        # Owned by the event loop.
        self._observers: list[LeaseObserver] = []
        self._keepers: dict[int, asyncio.Task[None]] = {}
        self._sessions: dict[int, LeaseSession] = {}
        self._changed = asyncio.Event()
        self._is_closed = False
        self._revoking: set[asyncio.Task[None]] = set()

    def observe(self, observer: LeaseObserver) -> None:
        """Tell `observer` of every start and end from now on, and of the sessions there are."""
        self._observers.append(observer)
        for session in self._sessions.values():
            if session.end_reason is None:
                observer.session_started(session)

    def current(self, ttl_s: int) -> LeaseSession | None:
        """Return the session of a TTL when it is held now; starts one for later when there is none."""
        if ttl_s not in self._keepers and not self._is_closed:
            keeper = asyncio.create_task(self._keep(ttl_s), name=f"leases {ttl_s} s")
            keeper.add_done_callback(self._keeper_ended)
            self._keepers[ttl_s] = keeper
        session = self._sessions.get(ttl_s)
        return session if session is not None and session.is_held else None

    async def session(self, ttl_s: int) -> LeaseSession:
        """Return the session of a TTL, granting one when there is none; waits as long as it takes.

        Raises StoreUnavailable when the pool is closed.
        """
        while not self._is_closed:
            if session := self.current(ttl_s):
                return session
            self._changed.clear()
            await self._changed.wait()
        raise StoreUnavailable("the leases of this node are closed")

    async def close(self) -> None:
        """End and revoke every session; takes up to 5 s when etcd does not answer."""
        self._is_closed = True
        self._changed.set()
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        sessions = [one for one in self._sessions.values() if one.end_reason is None]
        await asyncio.gather(*(session.close() for session in sessions))
        if self._revoking:
            _, left = await asyncio.wait(self._revoking, timeout=_REVOKE_S)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _keep(self, ttl_s: int) -> None:
        while True:
            try:
                session = await LeaseSession.open(self._store, self._clock, ttl_s)
            except StoreError as error:
                log.warning("lease_not_granted", ttl_s=ttl_s, error=str(error))
                await self._clock.sleep(_GRANT_PAUSE_S)
                continue
            self._sessions[ttl_s] = session
            session.on_end(partial(self._tell_end, session))
            self._changed.set()
            for observer in self._observers:
                observer.session_started(session)
            reason = await session.ended()
            if reason is EndReason.EXPIRED:
                revoking = asyncio.create_task(self._let_go(session.lease_id))
                self._revoking.add(revoking)
                revoking.add_done_callback(self._revoking.discard)

    async def _let_go(self, lease_id: int) -> None:
        """Revoke the lease of a holder that fell silent, however long etcd is away.

        Without a quorum no lease ends; when there is one again, all of them begin anew, and the keys of
        this one would keep everybody off for a whole TTL more.
        """
        while True:
            try:
                await self._store.revoke(lease_id)
            except StoreUnavailable:
                await self._clock.sleep(_GRANT_PAUSE_S)
            except StoreError as error:
                log.warning("lease_not_revoked", lease=f"{lease_id:x}", error=str(error))
                return
            else:
                return

    def _keeper_ended(self, keeper: "asyncio.Task[None]") -> None:
        """Wake those who wait for a session when an observer's fault ended the keeper."""
        if not keeper.cancelled() and keeper.exception() is not None:
            log.error("lease_keeper_failed", exc_info=keeper.exception())
            self._is_closed = True
            self._changed.set()

    def _tell_end(self, session: LeaseSession, reason: EndReason) -> None:
        log.info("lease_ended", lease=f"{session.lease_id:x}", reason=str(reason))
        for observer in self._observers:
            observer.session_ended(session, reason)


async def revoke_quietly(store: Store, lease_id: int) -> None:
    """Revoke a lease if etcd answers within 5 s; else it expires by itself. Raises nothing."""
    try:
        async with asyncio.timeout(_REVOKE_S):
            await store.revoke(lease_id)
    except (StoreError, TimeoutError) as error:
        log.warning("lease_not_revoked", lease=f"{lease_id:x}", error=str(error))
