"""One coordinator's ownership of a job on an etcd in memory, in virtual time."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from coordinator.election import Campaign, Candidacy, Election
from coordinator.job import JobSpec
from coordinator.job_file import spec_from_plain, spec_to_plain
from coordinator.keys import Keys
from coordinator.lease_session import LeasePool
from coordinator.memory_store import MemoryEtcd, MemoryStore
from coordinator.ownership import LostReason, Ownership
from coordinator.records import JobRecord, WorkerRecord, encode
from tests.etcd.virtual_time import VirtualClock

JOB = "job"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TTL_S = 5


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    """Let virtual time pass until a condition holds."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


def job_spec(**fields: object) -> JobSpec:
    """Return a mirror from w1 to w2 and w3, with these fields of the job file beside."""
    plain: dict[str, object] = {
        "name": JOB,
        "rule": "mirror",
        "source": "w1:data",
        "targets": ["w2:data", "w3:data"],
        **fields,
    }
    return spec_from_plain(plain)


class Etcd:
    """The cluster in memory, with a wall clock that goes with virtual time and can be set."""

    def __init__(self, seed: int = 1) -> None:
        self.clock = VirtualClock()
        self.etcd = MemoryEtcd(self.clock, seed=seed)
        self.keys = Keys()
        self._set_s = 0.0
        self._began = self.clock.now()

    def wall(self) -> datetime:
        return START + timedelta(seconds=self.clock.now() - self._began + self._set_s)

    def set_wall(self, seconds: float) -> None:
        """Move the wall clock, ahead or back."""
        self._set_s += seconds

    def store(self) -> MemoryStore:
        return MemoryStore(self.etcd)

    async def define(self, spec: JobSpec | None = None, generation: int = 1) -> None:
        """Write a job's definition."""
        spec = spec or job_spec()
        record = JobRecord(
            spec=spec_to_plain(spec), generation=generation, changed_by="me", changed_at=START
        )
        await self.store().put(self.keys.job(spec.name), encode(record))

    async def register(self, *workers: str) -> None:
        """Register workers."""
        for name in workers or ("w1", "w2", "w3"):
            record = WorkerRecord(address=f"{name}.example:7000")
            await self.store().put(self.keys.worker(name), encode(record))


class Node:
    """One coordinator that owns what it can get."""

    def __init__(self, world: Etcd, name: str, rank: int | None = 0) -> None:
        self.world = world
        self.name = name
        self.store = world.store()
        self.leases = LeasePool(self.store, world.clock)
        self.rank = rank
        self.jobs = {JOB}
        campaign = Campaign(name, lambda: self.jobs, self._candidacy, self._gained, self._lost)
        self.election = Election(self.store, world.clock, world.keys, self.leases, campaign)
        self._task = asyncio.create_task(self.election.run())

    def _candidacy(self, _: str) -> Candidacy | None:
        return None if self.rank is None else Candidacy(self.rank, TTL_S)

    def _gained(self, ownership: Ownership) -> None:
        pass

    def _lost(self, job: str, reason: LostReason) -> None:
        pass

    async def own(self, job: str = JOB) -> Ownership:
        """Wait until the job is this node's."""
        await until(lambda: job in self.election.owned)
        return self.election.owned[job]

    async def release(self, job: str = JOB) -> None:
        """Give the job up and take it no more."""
        self.rank = None
        await self.election.release(job, "test")

    async def close(self) -> None:
        self.store.is_cut = False
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.leases.close()
        await self.store.close()
