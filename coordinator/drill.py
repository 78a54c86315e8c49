"""A planned loss of one job's lease: its owner falls silent, and the takeover is measured.

The owner key is bound to a lease of its own, as long as the job's, which nobody renews: etcd ends it
as it ends that of a dead host. The key says that it is a drill, so that the other coordinators count the
node as gone for this job. Other jobs of the node keep theirs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from coordinator.errors import CoordinatorError
from coordinator.ownership import DRILL, Claim, Owner, Ownership
from coordinator.store import Get, Put, Store
from wire.clock import Clock

ALONE_S = 2.0
"""How long nobody else may claim before the node that lost the job stands again itself."""
_LOOK_S = 0.002


class DrillFailed(CoordinatorError):
    """The drill did not come to its end; the sentence says how the job stands."""


@dataclass(frozen=True, slots=True)
class Times:
    """When things happened, in seconds after the owner fell silent."""

    detected: float
    claimed: float
    owner: Owner


class Exposure:
    """How exposed a job's targets are while it is drilled: at the beginning, and at worst."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.is_begun = asyncio.Event()
        self.before: dict[str, float | None] = {}
        self.highest: dict[str, float | None] = {}

    def note(self, seen: Mapping[str, float | None]) -> None:
        """Take what is seen now, in seconds by target; None where nothing was ever made equal."""
        if not self.before:
            self.before = dict(seen)
        for target, age in seen.items():
            known = self.highest.get(target)
            self.highest[target] = age if known is None or age is None else max(age, known)


async def lose(store: Store, owned: Ownership, ttl_s: int) -> None:
    """Bind an owner key to a lease that nobody renews; raises DrillFailed, StoreUnavailable."""
    found = await store.txn([owned.compare()], [Get(owned.key)])
    kv = found.gets[0] if found.succeeded and found.gets else None
    granted = await store.grant(ttl_s)
    if kv is not None:
        claim = replace(Claim.from_json(kv.value), reason=DRILL)
        last = Put(owned.key, claim.to_json(), granted.lease_id)
        put = await store.txn([owned.compare()], [last])
        if put.succeeded:
            return
    raise DrillFailed(f"job {owned.job} has changed hands meanwhile: try again")


async def measure(
    clock: Clock,
    began: float,
    owner: Callable[[], Owner | None],
    before: Ownership,
    stand_again: Callable[[], None],
    patience_s: float,
) -> Times:
    """Wait for the end of the old owner key and for the next; raises DrillFailed."""
    detected: float | None = None
    while clock.now() - began < patience_s:
        now, found = clock.now() - began, owner()
        if detected is None and (found is None or found.token != before.token):
            detected = now
        if detected is not None:
            if found is not None and found.token != before.token:
                return Times(detected, now, found)
            if now - detected > ALONE_S:
                stand_again()
        await clock.sleep(_LOOK_S)
    raise DrillFailed(
        f"job {before.job} was not claimed within {patience_s:g} s: see 'baton job explain'"
    )


async def adopted(wait: Callable[[], Awaitable[None]], patience_s: float, job: str) -> None:
    """Wait until the next owner gives orders again; raises DrillFailed."""
    try:
        async with asyncio.timeout(patience_s):
            await wait()
    except TimeoutError:
        raise DrillFailed(
            f"the next owner of job {job} has not gone on within {patience_s:g} s"
        ) from None
