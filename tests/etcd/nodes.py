"""Coordinators reduced to their election, and a judge who watches that no job has two owners."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator.election import Campaign, Candidacy, Election, LostReason, Ownership
from coordinator.keys import Keys
from coordinator.lease_session import LeasePool
from coordinator.store import Store
from wire.clock import Clock


@dataclass
class Event:
    at: float
    node: str
    job: str
    ownership: Ownership | None
    """None when it was lost."""
    reason: LostReason | None = None


@dataclass
class World:
    """What all nodes of a test share."""

    clock: Clock
    keys: Keys = field(default_factory=Keys)
    jobs: set[str] = field(default_factory=set)
    nodes: "dict[str, Node]" = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    ttl_s: int = 2
    leases_are_kept: bool = True
    """False where a test has etcd take away live leases: tokens fence then, not clocks."""

    def holders(self, job: str) -> list[str]:
        """The nodes that would give orders for a job right now."""
        return [
            node.name
            for node in self.nodes.values()
            if (ownership := node.election.owned.get(job)) and ownership.is_held
        ]

    def check_one_owner(self) -> None:
        for job in self.jobs if self.leases_are_kept else ():
            assert len(self.holders(job)) <= 1, (job, self.holders(job))

    def all_know_all(self) -> bool:
        return self.all_owned() and all(
            self.jobs <= node.election.owners.keys() for node in self.nodes.values()
        )

    def all_owned(self) -> bool:
        return all(len(self.holders(job)) == 1 for job in self.jobs)

    async def until(self, condition: Callable[[], bool], within_s: float = 20.0) -> float:
        """Wait for a condition while no job ever has two owners; return how long it took."""
        started = self.clock.now()
        async with asyncio.timeout(within_s):
            while True:
                self.check_one_owner()
                if condition():
                    return self.clock.now() - started
                await asyncio.sleep(0.002)

    async def for_s(self, seconds: float) -> None:
        end = self.clock.now() + seconds
        await self.until(lambda: self.clock.now() >= end, seconds + 10)

    def check_history(self) -> None:
        """Each gain is followed by one loss at that node; tokens of a job only grow."""
        held: dict[tuple[str, str], Ownership] = {}
        highest: dict[str, Ownership] = {}
        for event in self.events:
            place = (event.node, event.job)
            if event.ownership is None:
                assert held.pop(place, None) is not None, f"{place} lost what it had not"
                continue
            assert place not in held, f"{place} gained twice"
            if event.job in highest:
                assert highest[event.job].token < event.ownership.token
            held[place] = highest[event.job] = event.ownership


class Node:
    """One coordinator's election. `rank` may be replaced by the test."""

    def __init__(
        self,
        world: World,
        name: str,
        store: Store,
        clock: Clock,
        rank: Callable[[str], int | None],
    ) -> None:
        self.world = world
        self.name = name
        self.store = store
        self.clock = clock
        self.rank = rank
        self.leases = LeasePool(store, clock)
        campaign = Campaign(name, lambda: world.jobs, self._candidacy, self._gained, self._lost)
        self.election = Election(store, clock, world.keys, self.leases, campaign)
        self.task = asyncio.create_task(self.election.run())
        world.nodes[name] = self

    def _candidacy(self, job: str) -> Candidacy | None:
        rank = self.rank(job)
        return None if rank is None else Candidacy(rank, self.world.ttl_s)

    def _gained(self, ownership: Ownership) -> None:
        self.world.events.append(Event(self.world.clock.now(), self.name, ownership.job, ownership))

    def _lost(self, job: str, reason: LostReason) -> None:
        self.world.events.append(Event(self.world.clock.now(), self.name, job, None, reason))

    async def die(self) -> None:
        """End without a word to etcd, as SIGKILL does."""
        del self.world.nodes[self.name]
        for (node, job), ownership in {
            (self.name, job): own for job, own in self.election.owned.items()
        }.items():
            self.world.events.append(Event(self.world.clock.now(), node, job, None))
            assert ownership.job == job
        await self._stop_tasks()

    async def close(self) -> None:
        """End in good order."""
        await self.election.release_all()
        await self._stop_tasks(close_leases=True)
        self.world.nodes.pop(self.name, None)

    async def _stop_tasks(self, *, close_leases: bool = False) -> None:
        tasks = [self.task]
        if not close_leases:
            tasks += self.leases._keepers.values()
            tasks += [session._task for session in self.leases._sessions.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if close_leases:
            await self.leases.close()
