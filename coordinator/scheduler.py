"""The jobs of one coordinator: which it would own, which it owns, and a task for each of those."""

import asyncio
from dataclasses import dataclass, field

import structlog

from coordinator.catalog import Catalog
from coordinator.election import Campaign, Candidacy, Election
from coordinator.errors import StoreError
from coordinator.job_owner import JobOwner
from coordinator.keys import Keys
from coordinator.lease_session import LeasePool
from coordinator.ledger import Ledger
from coordinator.links import WorkerLinks
from coordinator.ownership import LostReason, Ownership
from coordinator.placement import decide
from coordinator.store import Store
from wire.clock import Clock

log = structlog.get_logger()

AGAIN_S = 5.0
"""After which pause a job is taken up again whose work ended in an error of our own."""


@dataclass(slots=True)
class _Owned:
    """A job that is ours, and the task that does its work."""

    owner: JobOwner
    task: "asyncio.Task[None]"


@dataclass(slots=True)
class Scheduler:
    """Campaigns for jobs and runs those that it wins."""

    node: str
    store: Store
    keys: Keys
    clock: Clock
    leases: LeasePool
    catalog: Catalog
    links: WorkerLinks
    ledger: Ledger
    election: Election = field(init=False)
    _owned: dict[str, _Owned] = field(default_factory=dict)
    _ending: "set[asyncio.Task[None]]" = field(default_factory=set)
    _stopping: bool = False

    def __post_init__(self) -> None:
        """Stand for election, once `run` is called."""
        campaign = Campaign(
            node=self.node,
            jobs=lambda: self.catalog.jobs,
            candidacy=self._candidacy,
            gained=self._gained,
            lost=self._lost,
        )
        self.election = Election(self.store, self.clock, self.keys, self.leases, campaign)
        self.catalog.on_change(self._changed)

    def owner(self, job: str) -> JobOwner | None:
        """Return the owner of a job when it is this coordinator."""
        owned = self._owned.get(job)
        return owned.owner if owned is not None else None

    async def run(self) -> None:
        """Campaign until cancelled."""
        await self.catalog.ready()
        await self.election.run()

    async def stop(self) -> None:
        """Hand every job over: stop the tasks, say so in the ledger, release the keys."""
        self._stopping = True
        owned = list(self._owned.values())
        for one in owned:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in owned), return_exceptions=True)
        await asyncio.gather(*(one.owner.hand_over() for one in owned))
        try:
            await self.election.release_all("stopped")
        except StoreError as error:
            log.warning("jobs_not_released", why=str(error), then="the keys go with their lease")

    def _candidacy(self, name: str) -> Candidacy | None:
        job = self.catalog.jobs.get(name)
        if job is None or self._stopping:
            return None
        nodes = self.catalog.coordinators
        draining = [node for node, record in nodes.items() if record.draining]
        live = {*nodes, self.node}
        decision = decide(name, job.spec.placement, live, draining=draining)
        if self.node not in decision.order:
            return None
        rank = decision.order.index(self.node)
        better = ", ".join(decision.order[:rank])
        reason = f"{better} ranked before and did not claim" if better else decision.reasons[-1]
        return Candidacy(rank, int(job.spec.lease_ttl.seconds), reason)

    def _changed(self) -> None:
        for name, owned in list(self._owned.items()):
            if name in self.catalog.jobs:
                owned.owner.definition_changed()
            else:
                owned.owner.abandon()
                self._let_go(name)
        self.election.reconsider()

    def _let_go(self, name: str) -> None:
        """A job was deleted: give up its key."""

        async def release() -> None:
            try:
                await self.election.release(name, "the job was deleted")
            except StoreError as error:
                log.warning("job_not_released", job=name, why=str(error))

        task = asyncio.create_task(release())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _gained(self, ownership: Ownership) -> None:
        owner = JobOwner(self.node, ownership, self.catalog, self.ledger, self.links, self.clock)
        log.info("job_gained", job=ownership.job, token=str(ownership.token), why=ownership.reason)
        self._owned[ownership.job] = _Owned(owner, asyncio.create_task(self._own(owner)))

    async def _own(self, owner: JobOwner) -> None:
        with structlog.contextvars.bound_contextvars(
            job=owner.name, token=str(owner.ownership.token)
        ):
            while True:
                try:
                    await owner.own()
                except Exception:
                    log.exception("job_failed", again_in_s=AGAIN_S)
                else:
                    if not owner.ownership.is_held:
                        return
                    # A worker knows a newer owner, and etcd still says that it is we: either the
                    # news is on its way, or etcd was set back to a backup and a later claim helps.
                    log.warning("job_not_ours_at_a_worker", again_in_s=AGAIN_S)
                await self.clock.sleep(AGAIN_S)

    def _lost(self, job: str, reason: LostReason) -> None:
        owned = self._owned.pop(job, None)
        log.info("job_lost", job=job, why=reason.value)
        if owned is not None:
            owned.task.cancel()
