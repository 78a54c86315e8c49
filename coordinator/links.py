"""A coordinator's connections to workers: one link each, shared by all jobs that it owns there.

A link connects as long as somebody uses it, tells its users when it comes and goes, hands every report
to the job it concerns, and answers each pulse with the time that the leases still have.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator.conversation import Connect, Conversation, LinkBroken
from coordinator.lease_session import LeaseSession
from wire.clock import Clock
from wire.orders import Extend, Order, Pulse, Report

FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 1.0
LINGER_S = 30.0
"""How long a link without users stays connected."""


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The worker answers: open the session (again)."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The worker does not answer, or no longer."""

    why: str


LinkEvent = LinkUp | LinkDown | Report


@dataclass(slots=True)
class Subscription:
    """One job's share of a link."""

    job: str
    lease: LeaseSession
    deliver: Callable[[LinkEvent], None]
    link: "WorkerLink"

    def send(self, order: Order) -> None:
        """Give an order, unless the lease is over: an owner past its deadline says nothing (I12)."""
        self.link.send(order, self.lease)

    def close(self) -> None:
        """Hear no more."""
        self.link.unsubscribe(self)


@dataclass(slots=True)
class WorkerLink:
    """The link to one worker."""

    worker: str
    address: str
    connect: Connect
    clock: Clock
    is_up: bool = False
    _subscriptions: dict[str, list[Subscription]] = field(default_factory=dict)
    """By job, in the order in which they came: thousands of jobs may have runs at one worker."""
    _orders: "asyncio.Queue[tuple[Order, LeaseSession]]" = field(default_factory=asyncio.Queue)
    _task: "asyncio.Task[None] | None" = None

    def subscribe(
        self, job: str, lease: LeaseSession, deliver: Callable[[LinkEvent], None]
    ) -> Subscription:
        """Use the link for a job; `deliver` hears at once when the link is up already."""
        subscription = Subscription(job, lease, deliver, self)
        self._subscriptions.setdefault(job, []).append(subscription)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_connected())
        if self.is_up:
            deliver(LinkUp())
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop delivering; the link lingers for the next run."""
        of_job = self._subscriptions.get(subscription.job, [])
        if subscription in of_job:
            of_job.remove(subscription)
        if not of_job:
            self._subscriptions.pop(subscription.job, None)

    def send(self, order: Order, lease: LeaseSession) -> None:
        """Queue an order; dropped when no connection stands, or the lease is over."""
        if self.is_up and lease.remaining_s() > 0:
            self._orders.put_nowait((order, lease))

    async def close(self) -> None:
        """Hang up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_connected(self) -> None:
        backoff = FIRST_BACKOFF_S
        idle_since = self.clock.now()
        while True:
            if self._subscriptions:
                idle_since = self.clock.now()
            elif self.clock.now() - idle_since > LINGER_S:
                return
            why, was_up = await self._converse()
            self._tell(LinkDown(why))
            backoff = FIRST_BACKOFF_S if was_up else min(backoff * 2, LAST_BACKOFF_S)
            await self.clock.sleep(backoff)

    async def _converse(self) -> tuple[str, bool]:
        """Talk until the link breaks; return why, and whether it was up at all."""
        was_up = False
        speaker: asyncio.Task[None] | None = None
        try:
            async with self.connect(self.worker, self.address) as conversation:
                try:
                    while True:
                        report = await conversation.hear()
                        if not was_up:
                            was_up = self.is_up = True
                            self._orders = asyncio.Queue()
                            speaker = asyncio.create_task(self._speak(conversation, self._orders))
                            self._tell(LinkUp())
                        self._hear(report)
                finally:
                    self.is_up = False
                    if speaker is not None:
                        speaker.cancel()
        except LinkBroken as error:
            return str(error), was_up

    async def _speak(
        self, conversation: Conversation, queue: "asyncio.Queue[tuple[Order, LeaseSession]]"
    ) -> None:
        while True:
            order, lease = await queue.get()
            if lease.remaining_s() <= 0:
                continue  # the process stood still while the order waited
            try:
                await conversation.say(order)
            except LinkBroken:
                return  # the reader hears the reason

    def _hear(self, report: Report) -> None:
        if isinstance(report, Pulse):
            leases = {one.lease.lease_id: one.lease for one in self._all()}
            for lease_id, lease in leases.items():
                remaining_s = lease.remaining_s()
                if remaining_s > 0:
                    self.send(Extend(f"{lease_id:x}", report.stamp_ns, remaining_s), lease)
            return
        for subscription in list(self._subscriptions.get(report.job, ())):
            subscription.deliver(report)

    def _tell(self, event: LinkEvent) -> None:
        for subscription in self._all():
            subscription.deliver(event)

    def _all(self) -> list[Subscription]:
        return [one for of_job in self._subscriptions.values() for one in of_job]


@dataclass(slots=True)
class WorkerLinks:
    """All links of one coordinator."""

    connect: Connect
    clock: Clock
    _links: dict[tuple[str, str], WorkerLink] = field(default_factory=dict)

    def to(self, worker: str, address: str) -> WorkerLink:
        """Return the link to a worker at an address, made when first asked for."""
        key = (worker, address)
        if key not in self._links:
            self._links[key] = WorkerLink(worker, address, self.connect, self.clock)
        return self._links[key]

    async def close(self) -> None:
        """Hang up everywhere."""
        await asyncio.gather(*(link.close() for link in self._links.values()))
