"""Campaigns for all jobs of a node: one watch, claims by rank, many keys to a transaction.

The election decides nothing about placement: it asks a pure function whether and how late this node
should claim a vacant job. It tells its user what was gained and lost, each exactly once per token.
"""

import asyncio
import secrets
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import structlog

from coordinator.campaign import Campaign, Candidacy, PlannedClaim
from coordinator.claim_budget import ClaimBudget
from coordinator.errors import BadKey, LeaseNotFound, StoreError, StoreUnavailable
from coordinator.keys import Family, Keys
from coordinator.lease_session import EndReason, LeasePool, LeaseSession
from coordinator.ownership import DRILL, Claim, LostReason, Owner, Ownership
from coordinator.store import (
    Changed,
    Changes,
    Compare,
    Delete,
    Field,
    Get,
    KeyValue,
    Put,
    Snapshot,
    Store,
)
from wire.clock import Clock

__all__ = ["Campaign", "Candidacy", "Claim", "Election", "LostReason", "Owner", "Ownership"]

_KEYS_PER_TXN = 100
_TXNS_AT_ONCE = 4
_AFTER_FAILURE_S = 0.2
_AT_A_TIME = 500
"""How many vacant jobs are looked at before others have their turn: some ten milliseconds."""
_REFUSED_PAUSE_S = 1.0
"""After which pause etcd is asked again that takes no writes, or not ours."""

log = structlog.get_logger()


class Election:
    """One node's part in all campaigns. `run` it as a task; everything else may be called meanwhile."""

    def __init__(
        self, store: Store, clock: Clock, keys: Keys, leases: LeasePool, campaign: Campaign
    ) -> None:
        # Fixed at construction.
        self._store = store
        self._clock = clock
        self._keys = keys
        self._leases = leases
        self._campaign = campaign
        self._life = secrets.token_hex(8)
        # Owned by the event loop.
        self._cluster_id = 0
        self._is_ready = asyncio.Event()
        self._owners: dict[str, Owner] = {}
        self._owned: dict[str, Ownership] = {}
        self.drilled: dict[str, str] = {}
        """By vacant job the node that lost it on purpose and counts as gone for it."""
        self.former: dict[str, str] = {}
        """By job the node that was seen to own it last."""
        self._seen: dict[str, int] = {}
        """By job the revision up to which its key is known: what a late answer says is older."""
        self._planned: dict[str, PlannedClaim] = {}
        self._claiming: set[str] = set()
        self._leftover: dict[str, Ownership] = {}
        """Given up, but etcd did not answer: deleted as soon as it does."""
        self._sessions: dict[int, LeaseSession] = {}
        self._wake = asyncio.Event()
        self._has_leftover = asyncio.Event()
        self._to_consider: list[str] = []
        self._considering: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(_TXNS_AT_ONCE)
        self._claims_made = 0
        self._budget = ClaimBudget(campaign.claims_per_s)
        leases.observe(self)
        self.owners: Mapping[str, Owner] = MappingProxyType(self._owners)
        """The present owner of every job that has one."""
        self.owned: Mapping[str, Ownership] = MappingProxyType(self._owned)
        """What this node owns."""

    @property
    def is_ready(self) -> bool:
        """Whether the owners have been read once."""
        return self._is_ready.is_set()

    async def ready(self) -> None:
        """Wait until the owners have been read once."""
        await self._is_ready.wait()

    async def run(self) -> None:
        """Campaign until cancelled; raises StoreDenied. Ownerships stay: see `release_all`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="election-watch")
            tasks.create_task(self._claim_when_due(tasks), name="election-claims")
            tasks.create_task(self._clear_leftover(), name="election-leftover")

    def reconsider(self) -> None:
        """Look at every vacant job again: jobs, coordinators or placement have changed."""
        if not self._is_ready.is_set():
            return
        jobs = self._campaign.jobs()
        for job in [job for job in self._planned if job not in jobs]:
            del self._planned[job]
        vacant = [job for job in jobs if job not in self._owners]
        for job in vacant[:_AT_A_TIME]:
            self._consider(job)
        self._to_consider = vacant[_AT_A_TIME:]
        if self._to_consider and (self._considering is None or self._considering.done()):
            self._considering = asyncio.create_task(self._consider_rest(), name="election-rest")

    async def _consider_rest(self) -> None:
        """Look at thousands of vacant jobs a few at a time: the loop has leases to keep."""
        while self._to_consider:
            await asyncio.sleep(0)
            some = self._to_consider[:_AT_A_TIME]
            del self._to_consider[:_AT_A_TIME]
            for job in some:
                self._consider(job)

    async def release(self, job: str, reason: str) -> bool:
        """Give up a job so that another can claim it at once; say whether it was ours.

        The ownership ends before etcd is asked. When etcd does not answer in time, StoreUnavailable is
        raised and `run` deletes the key as soon as it can.
        """
        ownership = self._owned.get(job)
        if ownership is None:
            return False
        await self._release([ownership], reason)
        return True

    async def release_all(self, reason: str = "shutdown") -> None:
        """Give up every job; raises StoreUnavailable as `release` does."""
        await self._release(list(self._owned.values()), reason)

    def fall_silent(self, job: str) -> None:
        """End an ownership of ours without a word to etcd: its key stays until its lease ends."""
        if (ownership := self._owned.get(job)) is not None:
            self._lose(ownership, LostReason.DRILLED)

    async def release_these(self, jobs: Iterable[str], reason: str) -> None:
        """Give up those of these jobs that are ours; raises StoreUnavailable as `release` does."""
        await self._release([self._owned[job] for job in jobs if job in self._owned], reason)

    # What etcd says

    async def _follow(self) -> None:
        async with self._store.watch(self._keys.under(Family.OWNERS)) as items:
            async for item in items:
                match item:
                    case Snapshot():
                        await self._learn_cluster_id()
                        self._take(item)
                    case Changes():
                        self._apply(item)

    async def _learn_cluster_id(self) -> None:
        while True:
            try:
                self._cluster_id = await self._store.cluster_id()
            except StoreUnavailable:
                await self._clock.sleep(_AFTER_FAILURE_S)
            else:
                return

    def _take(self, snapshot: Snapshot) -> None:
        """Believe a snapshot in place of everything known before."""
        if any(revision > snapshot.revision for revision in self._seen.values()):
            self._seen.clear()  # either a release overtook it, or etcd was set back to a backup
        there: set[str] = set()
        for kv in snapshot.kvs:
            if (job := self._job(kv.key)) is not None:
                there.add(job)
                self._see(job, kv)
        for job in [job for job in (*self._owners, *self._owned) if job not in there]:
            self._vanish(job, snapshot.revision)
        self._is_ready.set()
        self.reconsider()

    def _apply(self, changes: Changes) -> None:
        for event in changes.events:
            key = event.kv.key if isinstance(event, Changed) else event.key
            if (job := self._job(key)) is None:
                continue
            if isinstance(event, Changed):
                self._see(job, event.kv)
            elif event.revision >= self._seen.get(job, 0):
                self._vanish(job, event.revision)
                self._consider(job)

    def _job(self, key: str) -> str | None:
        try:
            return self._keys.parse(key).name
        except BadKey:
            log.warning("strange_key", key=key)
            return None

    def _see(self, job: str, kv: KeyValue) -> None:
        """Learn of an owner key from the watch, a transaction or a look: in whichever order."""
        if kv.mod_revision < self._seen.get(job, 0):
            return
        self._seen[job] = kv.mod_revision
        owner = Owner.of(kv, self._cluster_id)
        self._owners[job] = owner
        self.drilled.pop(job, None)
        self._planned.pop(job, None)
        ours = self._owned.get(job)
        if ours is not None and (ours.token != owner.token or not self._is_ours(owner)):
            self._lose(ours, LostReason.CHANGED)
            ours = None
        if ours is None and kv.version == 1 and self._is_ours(owner):
            self._gain(job, kv.key, owner)

    def _is_ours(self, owner: Owner) -> bool:
        """Tell a key of this process from one of an earlier life of the node, or of a namesake."""
        return owner.nonce.startswith(f"{self._life}.")

    def _gain(self, job: str, key: str, owner: Owner) -> None:
        session = self._sessions.get(owner.lease_id)
        if session is None or not session.is_held:
            # The claim came through after its session had ended: the key goes with the lease.
            return
        ownership = Ownership(job, key, owner.token, session, owner.since, owner.reason)
        self._owned[job] = ownership
        log.info("ownership_gained", job=job, token=str(owner.token), reason=owner.reason)
        self._campaign.gained(ownership)

    def _vanish(self, job: str, revision: int) -> None:
        self._seen[job] = max(revision, self._seen.get(job, 0))
        if (former := self._owners.pop(job, None)) is not None:
            self.former[job] = former.node
            if former.reason == DRILL:
                self.drilled[job] = former.node
        if (ours := self._owned.get(job)) is not None:
            self._lose(ours, LostReason.VANISHED)

    def _lose(self, ownership: Ownership, reason: LostReason) -> None:
        ownership.lost = reason
        del self._owned[ownership.job]
        log.info(
            "ownership_lost",
            job=ownership.job,
            token=str(ownership.token),
            reason=str(reason),
        )
        self._campaign.lost(ownership.job, reason)

    # What our leases say

    def session_started(self, session: LeaseSession) -> None:
        """Claim what waits for a lease; called by the pool."""
        self._sessions[session.lease_id] = session
        self._wake.set()

    def session_ended(self, session: LeaseSession, reason: EndReason) -> None:
        """Lose what was held under a lease; called by the pool."""
        self._sessions.pop(session.lease_id, None)
        held = [one for one in self._owned.values() if one.session is session]
        log.info("jobs_lost_with_lease", jobs=len(held), reason=str(reason))
        for ownership in held:
            self._lose(ownership, LostReason.SESSION_ENDED)

    # Claiming

    def _consider(self, job: str) -> None:
        """Plan a claim when the job is vacant and this node is a candidate; else plan none."""
        if job in self._owners or job in self._claiming or job not in self._campaign.jobs():
            return
        candidacy = self._campaign.candidacy(job)
        if candidacy is None:
            self._planned.pop(job, None)
            return
        planned = self._planned.get(job)
        vacant_at = self._clock.now() if planned is None else planned.vacant_at
        self._planned[job] = PlannedClaim(vacant_at, candidacy)
        self._wake.set()

    async def _claim_when_due(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            self._wake.clear()
            now = self._clock.now()
            due = [job for job, planned in self._planned.items() if planned.due <= now]
            ttls = {self._planned[job].candidacy.ttl_s for job in due}
            sessions = {ttl_s: self._leases.current(ttl_s) for ttl_s in ttls}
            by_ttl: dict[int, list[str]] = {}
            for job in self._in_budget(due, sessions, now):
                by_ttl.setdefault(self._planned[job].candidacy.ttl_s, []).append(job)
            for ttl_s, jobs in by_ttl.items():
                session = sessions[ttl_s]
                assert session is not None, "else it would not be claimed now"
                for first in range(0, len(jobs), _KEYS_PER_TXN):
                    batch = {
                        job: self._planned.pop(job).candidacy.reason
                        for job in jobs[first : first + _KEYS_PER_TXN]
                    }
                    self._claiming.update(batch)
                    tasks.create_task(self._claim(batch, session), name="election-claim")
            later = [planned.due - now for planned in self._planned.values() if planned.due > now]
            if any(
                sessions[self._planned[job].candidacy.ttl_s] for job in due if job in self._planned
            ):
                later.append(self._budget.pause_s())
            try:
                async with asyncio.timeout(min(later) if later else None):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _in_budget(
        self, due: list[str], sessions: Mapping[int, LeaseSession | None], now: float
    ) -> list[str]:
        """Return which jobs to claim now, those first that are due longest: a better rank comes first.

        Left out are those for which there is no lease: its start wakes the claims.
        """
        ready = [job for job in due if sessions[self._planned[job].candidacy.ttl_s] is not None]
        ready.sort(key=lambda job: self._planned[job].due)
        return ready[: self._budget.take(len(ready), now)]

    async def _claim(self, batch: dict[str, str], session: LeaseSession) -> None:
        """Claim jobs under one lease until each has an owner or the session is over."""
        try:
            async with self._slots:
                rest = [job for job in batch if job not in self._owners]
                while rest and session.is_held:
                    rest = await self._claim_once({job: batch[job] for job in rest}, session)
        except LeaseNotFound:
            session.declare_lost()
        except StoreError as error:
            log.warning("claim_failed", jobs=len(batch), error=str(error))
            if not isinstance(error, StoreUnavailable):  # which has taken its time already
                await self._clock.sleep(_REFUSED_PAUSE_S)
            await self._look(list(batch), session)
        finally:
            self._claiming.difference_update(batch)
        for job in batch:
            self._consider(job)

    async def _claim_once(self, batch: dict[str, str], session: LeaseSession) -> list[str]:
        """Try to claim all jobs of a batch at once; return those to try again without the others."""
        self._claims_made += 1
        nonce = f"{self._life}.{self._claims_made}"
        since = self._campaign.wall()
        values = {
            job: Claim(self._campaign.node, since, reason, nonce).to_json()
            for job, reason in batch.items()
        }
        keys = {job: self._keys.owner(job) for job in batch}
        lease = session.lease_id
        result = await self._store.txn(
            [Compare(key, Field.CREATE, 0) for key in keys.values()],
            [Put(keys[job], value, lease) for job, value in values.items()],
            [Get(key) for key in keys.values()],
        )
        if result.succeeded:
            revision = result.revision
            for job, value in values.items():
                self._see(job, KeyValue(keys[job], value, revision, revision, 1, lease))
            return []
        return self._see_all(batch, result.gets)

    def _see_all(self, jobs: Iterable[str], found: Iterable[KeyValue | None]) -> list[str]:
        """Learn of owner keys that were read; return the jobs that have none."""
        vacant = []
        for job, kv in zip(jobs, found, strict=True):
            if kv is None:
                vacant.append(job)
            else:
                self._see(job, kv)
        return vacant

    async def _look(self, jobs: list[str], session: LeaseSession) -> None:
        """Find out whether a claim without an answer came through: the nonce says whose key it is.

        RACE: the claim may still be on its way. When it lands later, the watch shows a key with our
        nonce, which is then ours just the same.
        """
        while session.is_held:
            try:
                result = await self._store.txn((), [Get(self._keys.owner(job)) for job in jobs])
            except StoreUnavailable:
                await self._clock.sleep(_AFTER_FAILURE_S)
            else:
                self._see_all(jobs, result.gets)
                return

    # Giving up

    async def _release(self, ownerships: list[Ownership], reason: str) -> None:
        for ownership in ownerships:
            # What the watch still has to say of the key we are about to delete is old by now.
            self._seen[ownership.job] = ownership.token.revision + 1
            self._leftover[ownership.job] = ownership
            log.info("ownership_released", job=ownership.job, reason=reason)
            self._lose(ownership, LostReason.RELEASED)
        try:
            for first in range(0, len(ownerships), _KEYS_PER_TXN):
                await self._delete(ownerships[first : first + _KEYS_PER_TXN])
        finally:
            if self._leftover:
                self._has_leftover.set()

    async def _delete(self, ownerships: list[Ownership]) -> None:
        """Delete the keys that are still the ones we made."""
        rest = ownerships
        while rest:
            result = await self._store.txn(
                [ownership.compare() for ownership in rest],
                [Delete(ownership.key) for ownership in rest],
                [Get(ownership.key) for ownership in rest],
            )
            for ownership, kv in zip(rest, result.gets or [None] * len(rest), strict=True):
                if kv is None or kv.create_revision != ownership.token.revision:
                    self._leftover.pop(ownership.job, None)
            if result.succeeded:
                for ownership in rest:
                    if self._seen.get(ownership.job, 0) < result.revision:
                        self._vanish(ownership.job, result.revision)
            rest = [one for one in rest if self._leftover.get(one.job) is one]

    async def _clear_leftover(self) -> None:
        while True:
            await self._has_leftover.wait()
            self._has_leftover.clear()
            await self._clock.sleep(_AFTER_FAILURE_S)
            leftover = [one for one in self._leftover.values() if one.session.is_held]
            self._leftover = {one.job: one for one in leftover}
            try:
                for first in range(0, len(leftover), _KEYS_PER_TXN):
                    await self._delete(leftover[first : first + _KEYS_PER_TXN])
            except StoreUnavailable as error:
                log.warning("release_failed", jobs=len(leftover), error=str(error))
                self._has_leftover.set()
