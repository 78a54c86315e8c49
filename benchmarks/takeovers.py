"""Trials of failover: a fault that hits the owner of a job, and the time until etcd shows the next.

Every trial is one job on a cluster of real processes, with an etcd of three members: wait for a random
moment, strike, and take the time until a watch of our own sees the next owner's claim. Afterwards the
harmed coordinator is started again, so that each trial begins with all of them up.
"""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.errors import BenchmarkError
from cli.local_cluster import LocalCluster, Member, Part
from coordinator.embedded_etcd import EtcdCluster, EtcdMember
from coordinator.etcd_config import Endpoint
from coordinator.etcd_connection import Connection, RpcFailed
from coordinator.etcd_messages import STATUS
from coordinator.etcd_store import EtcdConfig, EtcdStore
from coordinator.job_file import spec_from_plain, spec_to_plain
from coordinator.keys import Family, Keys
from coordinator.ownership import Claim
from coordinator.records import JobRecord, encode
from coordinator.store import Changed, Changes

JOB = "trial"
_NODES = ("c1", "c2", "c3")
_SETTLED_S = 30.0
_POLL_S = 0.02
_LEADER_S = 20.0
_ENDS_S = 15.0
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class NoTakeover(BenchmarkError):
    """Nobody claimed the job in time; the text says after which fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One way for an owner to go."""

    name: str
    title: str
    ttl_s: int
    goal_s: float
    """What design and users expect, for p99 or for the maximum."""
    strike: Callable[[Member], None]
    lanes: int = 1
    """How many clusters may be tried at once: more where waiting is all that a trial does."""
    with_leader: bool = False
    """Whether etcd's leader is killed in the same moment."""

    @property
    def about_s(self) -> float:
        """How long a trial takes about, with starting again what it harmed."""
        wait_s = {"killed": 0.1, "hung": 1.4, "stopped": 0.1}.get(self.name, self.ttl_s + 0.3)
        return (wait_s + 2.5 + (self.ttl_s + 4 if self.with_leader else 0)) / self.lanes


def _kill(member: Member) -> None:
    member.signal(signal.SIGKILL, Part.PROPER)


def _hang(member: Member) -> None:
    member.signal(signal.SIGSTOP, Part.PROPER)


def _stop(member: Member) -> None:
    member.signal(signal.SIGTERM)


def _silence(member: Member) -> None:
    """Freeze guardian and coordinator: no word and no closed connection, as from a host cut off."""
    member.signal(signal.SIGSTOP)


FAULTS = (
    Fault("killed", "the process is killed (SIGKILL)", 5, 0.5, _kill),
    Fault("hung", "the process hangs (SIGSTOP)", 5, 2.0, _hang),
    Fault("stopped", "graceful stop (SIGTERM)", 5, 0.3, _stop),
    Fault("host-ttl-2", "the host is cut off, lease of 2 s", 2, 3.0, _silence, lanes=4),
    Fault("host-ttl-5", "the host is cut off, lease of 5 s", 5, 6.0, _silence, lanes=4),
    Fault("host-ttl-10", "the host is cut off, lease of 10 s", 10, 11.0, _silence, lanes=4),
    Fault(
        "host-and-etcd-leader",
        "the host and etcd's leader die together, lease of 2 s",
        *(2, 7.0, _silence),
        with_leader=True,
    ),
)


class Lane:
    """One cluster with one job, under a prefix of its own."""

    def __init__(self, etcd: EtcdCluster, directory: Path, number: int, ttl_s: int) -> None:
        """Prepare three coordinators; `running` starts them."""
        self.etcd = etcd
        self.keys = Keys(f"/failover/lane{number}-{random.randrange(1 << 40):x}/")
        self.cluster = LocalCluster(directory, etcd.endpoints, prefix=self.keys.prefix)
        self._ttl_s = ttl_s
        for name in _NODES:
            self.cluster.add_coordinator(name).arguments += ["--flap-losses", "0"]

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Lane"]:
        """Have the coordinators up, and the job owned, until the block is left."""
        spec = spec_from_plain(
            {
                "name": JOB,
                "rule": "mirror",
                "source": "w1:data",
                "targets": ["w2:data"],
                "trigger": {"manual": True},
                "lease_ttl": f"{self._ttl_s}s",
            }
        )
        record = JobRecord(
            spec=spec_to_plain(spec), generation=1, changed_by="benchmark", changed_at=_EPOCH
        )
        store = EtcdStore(EtcdConfig(self.etcd.endpoints))
        try:
            await store.put(self.keys.job(JOB), encode(record))
            async with self.cluster:
                await self.cluster.start()
                yield self
        finally:
            await store.close()

    async def trial(self, fault: Fault) -> float:
        """Strike the owner once; return the seconds until the next owner's claim. Raises NoTakeover."""
        leader = await leader_of(self.etcd) if fault.with_leader else None
        endpoints = [one.endpoint for one in self.etcd.members if one is not leader]
        eye = EtcdStore(EtcdConfig(tuple(endpoints), attempt_s=0.5))
        try:
            await _until(lambda: self._is_whole(eye), "all coordinators and an owner")
            async with eye.watch(self.keys.owner(JOB)) as items:
                await anext(items)
                kv = await eye.get(self.keys.owner(JOB))
                if kv is None:
                    raise NoTakeover("the job lost its owner before the fault")
                member = self.cluster.members[Claim.from_json(kv.value).node]
                await asyncio.sleep(random.uniform(0.1, 0.6 + self._ttl_s / 4))
                struck = time.monotonic()
                if leader is not None:
                    leader.signal(signal.SIGKILL)
                fault.strike(member)
                took_s = await self._claimed(items, kv.create_revision, fault) - struck
        finally:
            await eye.close()
        await self._heal(fault, member, leader)
        return took_s

    async def _claimed(self, items: AsyncIterator[object], revision: int, fault: Fault) -> float:
        with suppress(TimeoutError):
            async with asyncio.timeout(3 * fault.goal_s + 10):
                async for item in items:
                    events = item.events if isinstance(item, Changes) else ()
                    for event in events:
                        if isinstance(event, Changed) and event.kv.create_revision > revision:
                            return time.monotonic()
        raise NoTakeover(f"{fault.name}: no claim within {3 * fault.goal_s + 10:g} s")

    async def _is_whole(self, eye: EtcdStore) -> bool:
        there = await eye.range(self.keys.under(Family.COORDINATORS))
        return len(there.kvs) == len(_NODES) and await eye.get(self.keys.owner(JOB)) is not None

    async def _heal(self, fault: Fault, member: Member, leader: EtcdMember | None) -> None:
        if leader is not None:
            await leader.kill()
            await leader.start()
            await leader.wait_healthy()
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if fault.strike is _silence else _ENDS_S):
                await member.wait()
        if member.is_running:
            await member.kill()
        await self.cluster.start(member.name)


async def leader_of(etcd: EtcdCluster) -> EtcdMember:
    """Return the member that leads; raises BenchmarkError when there is none for long."""
    deadline = time.monotonic() + _LEADER_S
    while time.monotonic() < deadline:
        for member in etcd.members:
            connection = Connection(Endpoint.parse(member.endpoint), None)
            try:
                status = await connection.unary(STATUS, STATUS.request(), timeout_s=2)
            except RpcFailed:
                continue
            finally:
                await connection.close()
            if status.leader == status.header.member_id:
                return member
        await asyncio.sleep(_POLL_S)
    raise BenchmarkError("etcd has no leader")


async def _until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + _SETTLED_S
    while not await condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{what}: not within {_SETTLED_S:g} s")
        await asyncio.sleep(_POLL_S)


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the sample below or at which `share` of all are: the nearest rank."""
    ordered = sorted(samples)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
