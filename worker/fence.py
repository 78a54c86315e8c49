"""Who may publish for a job at this worker, and until when.

A `Fence` holds the highest token accepted for one job and the deadline that its owner keeps extending.
A `Gate` is the permission of one push: it carries a badge, the token in whose name it publishes, and
lets a slice of renames through only while the badge is the highest token and the deadline lies ahead.
Publishing happens inside the fence's own lock, so that when `accept` has returned, nothing is
published under a lower token any more (I4).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from syncengine.errors import Fenced
from wire.clock import Clock
from wire.orders import RefusalReason
from wire.token import Token
from worker.errors import OrderRefused

log = structlog.get_logger()

PARK_LIMIT_S = 600.0
"""How long a push without a valid owner keeps what it staged before it gives up."""

PARKED_LOOK_S = 0.25


class Fence:
    """The highest token and the deadline of one job. Safe to use from several threads."""

    def __init__(self, job: str, clock: Clock) -> None:
        """Begin with no token and no deadline: nothing may be published."""
        self.job = job
        self._clock = clock
        self.changed = threading.Condition()
        self._highest: Token | None = None
        self._deadline: float | None = None

    @property
    def highest(self) -> Token | None:
        """The highest token accepted in this process's life."""
        return self._highest

    def accept(self, token: Token, known: Token | None, persist: Callable[[], None] | None) -> None:
        """Take a token at least as high as every one before; durable when this returns.

        `known` is the highest on disk, of the same cluster; `persist` writes the token there, None
        when it stands there already. Waits for a slice that is being published, and for the disk.
        Raises OrderRefused (stale-token), and whatever `persist` raises: nothing is accepted then.
        """
        with self.changed:
            highest = max((t for t in (self._highest, known) if t is not None), default=None)
            if highest is not None and token < highest:
                raise OrderRefused(
                    RefusalReason.STALE_TOKEN,
                    f"token {token} of job {self.job} is older than {highest}, already accepted: "
                    "another coordinator owns the job now",
                    highest,
                )
            if persist is not None:
                persist()
            if token != self._highest or not self.is_live:
                # A deadline that has passed belonged to what the owner begins anew with this.
                self._highest = token
                self._deadline = None
            self.changed.notify_all()

    def forget(self) -> None:
        """Drop the token of a cluster that the operator replaced; the next `accept` sets the new."""
        with self.changed:
            self._highest = None
            self._deadline = None

    def extend(self, deadline: float) -> None:
        """Let the owner's sessions go on until `deadline` on the worker's clock; never shortens.

        Does not wait for a slice that is being published: it is called on the event loop. Those who
        are parked look by themselves every PARKED_LOOK_S when they are not told.
        """
        known = self._deadline
        if known is None or deadline > known:
            self._deadline = deadline
            if self.changed.acquire(blocking=False):
                try:
                    self.changed.notify_all()
                finally:
                    self.changed.release()

    def end(self) -> None:
        """Let no further slice through until the next extension; does not wait either."""
        self._deadline = None

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Let nothing be published for the job in the block: keep it short. Waits for a slice."""
        with self.changed:
            yield

    @property
    def is_live(self) -> bool:
        """Whether the deadline lies ahead."""
        deadline = self._deadline
        return deadline is not None and self._clock.now() < deadline

    @property
    def is_expired(self) -> bool:
        """Whether there was a deadline and it has passed."""
        deadline = self._deadline
        return deadline is not None and self._clock.now() >= deadline

    def may_publish(self, badge: Token) -> bool:
        """Whether this badge is the highest and the deadline lies ahead; call it holding `changed`."""
        return badge == self._highest and self.is_live


class Gate:
    """The permission of one push to publish, under the badge that its source last showed."""

    def __init__(self, fence: Fence, badge: Token) -> None:
        """Begin with the badge that opened the push."""
        self._fence = fence
        self._badge = badge
        self._closed = False
        self._published_under: Token | None = None

    @property
    def job(self) -> str:
        """The job that publishes."""
        return self._fence.job

    @property
    def badge(self) -> Token:
        """The token in whose name the push publishes."""
        return self._badge

    def renew(self, badge: Token) -> None:
        """Show a newer badge after a takeover."""
        with self._fence.changed:
            if badge.cluster_id != self._badge.cluster_id:
                # Of the cluster that the operator accepted in the other's place.
                self._badge = badge
            else:
                self._badge = max(self._badge, badge)
            self._fence.changed.notify_all()

    def close(self) -> None:
        """Let nothing more through, ever: whoever waits gets `Fenced`."""
        with self._fence.changed:
            self._closed = True
            self._fence.changed.notify_all()

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Hold the right to publish one slice; parks while there is none, `Fenced` when it ended.

        Blocks its thread: up to PARK_LIMIT_S.
        """
        with self._fence.changed:
            looks = int(PARK_LIMIT_S / PARKED_LOOK_S)
            while not self._is_decided() and looks > 0:
                self._fence.changed.wait(PARKED_LOOK_S)
                looks -= 1
            if self._closed or not self._fence.may_publish(self._badge):
                raise Fenced(
                    f"job {self._fence.job}: token {self._badge} may publish no more; "
                    f"the highest accepted is {self._fence.highest}"
                )
            if self._badge != self._published_under:
                self._published_under = self._badge
                log.info("publishes_under", job=self._fence.job, token=str(self._badge))
            yield

    def _is_decided(self) -> bool:
        return self._closed or self._fence.may_publish(self._badge)
