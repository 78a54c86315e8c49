"""The jobs of one coordinator: which it would own, which it owns, and a task for each of those."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog

from coordinator import drill
from coordinator.catalog import Catalog, Job
from coordinator.claim_budget import DEFAULT_PER_S
from coordinator.election import Campaign, Candidacy, Election
from coordinator.errors import StoreError
from coordinator.flapping import Hold
from coordinator.job_owner import JobOwner, utc_now
from coordinator.keys import Keys, instant_text
from coordinator.lease_session import LeasePool
from coordinator.ledger import Ledger, NotOwner
from coordinator.links import WorkerLinks
from coordinator.ownership import LostReason, Ownership
from coordinator.placement import Absence, Decision, claim_reason, decide, return_to
from coordinator.run_room import RunRoom
from coordinator.store import Store
from coordinator.views import DrillView
from wire.clock import Clock

log = structlog.get_logger()

AGAIN_S = 5.0
"""After which pause a job is taken up again whose work ended in an error of our own."""
SILENT_S = 0.25
"""How long a job's last owner may claim before those that may own it only in its absence."""
RETURN_LOOK_S = 0.5
"""How often jobs are looked at that go back to a preferred coordinator by themselves."""


@dataclass(slots=True)
class _Owned:
    """A job that is ours, and the task that does its work."""

    owner: JobOwner
    task: "asyncio.Task[None]"
    seen: Job | None = None
    """The definition that the owner was last told of."""


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
    wall: Callable[[], datetime] = utc_now
    room: RunRoom = field(default_factory=RunRoom)
    claims_per_s: float = DEFAULT_PER_S
    hold: Hold | None = None
    """Why and until when this coordinator is held down; see `hold_down`."""
    on_loss: Callable[[], None] = lambda: None
    """Called for each job that was lost with a lease."""
    election: Election = field(init=False)
    _owned: dict[str, _Owned] = field(default_factory=dict)
    _ending: "set[asyncio.Task[None]]" = field(default_factory=set)
    _stopping: bool = False
    _drilled: set[str] = field(default_factory=set)
    """Jobs that this node does not claim, since it lost them on purpose."""
    _there_since: dict[str, float] = field(default_factory=dict)
    """By coordinator that may take jobs: since when it was seen there, on our clock."""
    _left_at: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Stand for election, once `run` is called."""
        campaign = Campaign(
            node=self.node,
            jobs=lambda: self.catalog.jobs,
            candidacy=self._candidacy,
            gained=self._gained,
            lost=self._lost,
            wall=self.wall,
            claims_per_s=self.claims_per_s,
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
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.election.run())
            tasks.create_task(self._return_jobs())

    async def stop(self) -> None:
        """Hand every job over: stop the tasks, say so in the ledger, release the keys."""
        self._stopping = True
        try:
            await self.give_up(list(self._owned), "stopped")
        except StoreError as error:
            log.warning("jobs_not_released", why=str(error), then="the keys go with their lease")

    async def give_up(self, jobs: Iterable[str], reason: str) -> None:
        """Release jobs for whoever ranks first, this node included, at once.

        What runs goes on at the workers and is adopted. Raises StoreUnavailable when etcd did not
        answer; the keys are deleted then as soon as it does.
        """
        owned = [self._owned[job] for job in jobs if job in self._owned]
        for one in owned:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in owned), return_exceptions=True)
        await asyncio.gather(*(one.owner.hand_over(reason) for one in owned))
        await self.election.release_these([one.owner.name for one in owned], reason)

    async def restart(self, job: str, by: str) -> None:
        """Stop a job's run, to begin afresh, and release the job; does nothing when it is not ours."""
        owned = self._owned.get(job)
        if owned is not None:
            reason = f"restarted by {by}"
            await owned.owner.prepare_restart(reason)
            await self.give_up([job], reason)

    async def drill(self, job: str) -> DrillView:
        """Lose a job's lease on purpose, and measure until its next owner has claimed it.

        Raises NotOwner, DrillFailed, StoreUnavailable.
        """
        owned = self._owned.get(job)
        if owned is None or job in self._drilled:
            raise NotOwner(f"job {job} is not owned by {self.node}")
        owner, before = owned.owner, owned.owner.ownership
        ttl_s = int(owner.job.spec.lease_ttl.seconds)
        run = owner.current.instant if owner.current is not None else None
        self._drilled.add(job)
        try:
            await drill.lose(self.store, before, ttl_s)
            began = self.clock.now()
            self.election.fall_silent(job)
            log.info("drill_begins", job=job, token=str(before.token))
            times = await drill.measure(
                self.clock,
                began,
                lambda: self.election.owners.get(job),
                before,
                lambda: self._stand_again(job),
                2 * ttl_s + drill.ALONE_S + 5,
            )
        finally:
            self._stand_again(job)
        return DrillView(
            job,
            self.node,
            times.owner.node,
            float(ttl_s),
            times.detected,
            times.claimed - times.detected,
            0.0,
            times.claimed,
            instant_text(run) if run is not None else None,
        )

    def _stand_again(self, job: str) -> None:
        if job in self._drilled:
            self._drilled.discard(job)
            self.election.reconsider()

    def decide(self, job: Job, *, without: str | None = None) -> Decision:
        """Return who should own a job now, of all but one."""
        live = {*self.catalog.coordinators, self.node} - {without}
        spec = job.spec
        return decide(
            spec.name, spec.placement, live, draining=self.catalog.drains, held=self._held()
        )

    def _held(self) -> dict[str, str]:
        """Return who is held down; of itself this node knows it first."""
        held = {name: why for name, why in self.catalog.held.items() if name != self.node}
        return {**held, self.node: str(self.hold)} if self.hold is not None else held

    def hold_down(self, hold: Hold | None) -> None:
        """Take only what nobody else may own, until called again with None."""
        self.hold = hold
        self.election.reconsider()

    def absence(self, silent: str | None = None) -> Absence:
        """Return what is known of coordinators that are not to be had."""
        return Absence(self._left_at, self.catalog.drains, self._held(), silent)

    def _candidacy(self, name: str) -> Candidacy | None:
        job = self.catalog.jobs.get(name)
        if job is None or self._stopping or name in self._drilled:
            return None
        former = self.election.former.get(name)
        drilled = self.election.drilled.get(name)
        decision, later_s = self.decide(job, without=self._other(drilled)), 0.0
        if self.node not in decision.order:
            # Its last owner may be dead and still listed, under a lease longer than the job's.
            decision, later_s = self.decide(job, without=self._other(former)), SILENT_S
        if self.node not in decision.order:
            return None
        absence = self.absence(former if later_s else None)
        reason = claim_reason(job.spec.placement, decision, self.node, former, absence)
        rank = decision.order.index(self.node)
        return Candidacy(rank, int(job.spec.lease_ttl.seconds), reason, later_s)

    def _other(self, node: str | None) -> str | None:
        return node if node != self.node else None

    def _changed(self) -> None:
        self._see_coordinators()
        for name, owned in list(self._owned.items()):
            job = self.catalog.jobs.get(name)
            if job is not None:
                # Not every time that anything changes: there may be ten thousand.
                if job is not owned.seen:
                    owned.seen = job
                    owned.owner.definition_changed()
            else:
                owned.owner.abandon()
                self._release(name)
        self._drain_if_told()
        self.election.reconsider()

    def _see_coordinators(self) -> None:
        there = self.catalog.coordinators.keys()
        for node in [node for node in self._there_since if node not in there]:
            self._left_at[node] = self.wall().strftime("%H:%M:%S")
        usable = there - self.catalog.drains.keys()
        self._there_since = {node: self._there_since.get(node, self.clock.now()) for node in usable}
        for node in there:
            self._left_at.pop(node, None)

    def _drain_if_told(self) -> None:
        drain = self.catalog.drains.get(self.node)
        if drain is None or self._stopping:
            return
        jobs = [name for name, one in self._owned.items() if not one.owner.is_leaving]
        if not jobs:
            return
        for name in jobs:
            self._owned[name].owner.is_leaving = True
        self._later(self.give_up(jobs, f"drained by {drain.by}"), jobs)

    async def _return_jobs(self) -> None:
        """Let jobs go back to the coordinators that they prefer, between runs, where they ask for it."""
        while True:
            await self.clock.sleep(RETURN_LOOK_S)
            for name, one in list(self._owned.items()):
                job = self.catalog.jobs.get(name)
                home = None if job is None else self._home(job)
                if home is not None and one.owner.is_at_safe_point and not one.owner.is_leaving:
                    one.owner.is_leaving = True
                    self._later(self.give_up([name], f"{home}, preferred, is back"), [name])

    def _home(self, job: Job) -> str | None:
        """Return the preferred coordinator that has been there for long enough to go back to."""
        failback = job.spec.placement.failback
        if failback == "never":
            return None
        home = return_to(job.spec.placement, self.decide(job), self.node)
        since = None if home is None else self._there_since.get(home)
        if since is None or self.clock.now() - since < failback.when_stable.seconds:
            return None
        return home

    def _release(self, name: str) -> None:
        """A job was deleted: give up its key."""

        async def release() -> None:
            await self.election.release(name, "the job was deleted")

        self._later(release(), [name])

    def _later(self, work: Coroutine[Any, Any, None], jobs: list[str]) -> None:
        async def do() -> None:
            try:
                await work
            except StoreError as error:
                log.warning("jobs_not_released", jobs=jobs, why=str(error))

        task = asyncio.create_task(do())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _gained(self, ownership: Ownership) -> None:
        owner = JobOwner(
            self.node,
            ownership,
            self.catalog,
            self.ledger,
            self.links,
            self.clock,
            self.wall,
            room=self.room,
        )
        log.info("job_gained", job=ownership.job, token=str(ownership.token), why=ownership.reason)
        self._owned[ownership.job] = _Owned(owner, asyncio.create_task(self._own(owner)))
        self._drain_if_told()  # a claim may have been on its way

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
        if reason is LostReason.SESSION_ENDED:
            self.on_loss()
        owned = self._owned.pop(job, None)
        log.info("job_lost", job=job, why=reason.value)
        if owned is not None:
            owned.task.cancel()
