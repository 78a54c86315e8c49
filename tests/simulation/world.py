"""One cluster: etcd, three coordinators, two workers, a job or two, and an operator now and then."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from coordinator.job_file import spec_from_plain, spec_to_plain
from coordinator.keys import Keys
from coordinator.records import JobRecord, PauseRecord, WorkerRecord, encode
from coordinator.store import Op, Put
from tests.simulation.checks import Checks, Violation
from tests.simulation.coordinators import SimulatedCoordinator
from tests.simulation.etcd import Fate, SimulatedEtcd
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.network import Network
from tests.simulation.trace import Trace
from tests.simulation.workers import SimulatedWorker

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
NODES = ("c1", "c2", "c3")
WORKERS = ("w1", "w2")
_FATES = tuple(Fate)


class _Clock:
    """CLOCK_BOOTTIME of every machine."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self.now = loop.time

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


class World:
    """Everything there is, by a seed."""

    def __init__(self, loop: SimulatedLoop, state: Path) -> None:
        self.loop = loop
        self.random = loop.random
        self.clock = _Clock(loop)
        self.trace = Trace(loop.time)
        self.keys = Keys()
        self.network = Network(loop)
        self.checks = Checks(self)
        self.violation: Violation | None = None
        self.was_set_back = False
        """A wall clock was set back: instants may come again."""
        self.store_faults = 0.0
        """The share of requests to etcd that something happens to."""
        self._began = loop.time()
        self._counted = 0
        self._at_quorum: list[Callable[[], None]] = []
        self.etcd_process = Process(loop, "etcd")
        self.etcd = SimulatedEtcd(self)
        self.jobs = self._jobs()
        self.specs = {name: spec_from_plain(plain) for name, plain in self.jobs.items()}
        self.paused: set[str] = set()
        self._generations = dict.fromkeys(self.jobs, 0)
        for name in WORKERS:
            self.operate(Put(self.keys.worker(name), encode(WorkerRecord(address=f"{name}:7000"))))
        for name in self.jobs:
            self.define(name)
        self.workers = {name: SimulatedWorker(self, name) for name in WORKERS}
        self.coordinators = {name: SimulatedCoordinator(self, name, state) for name in NODES}

    def count(self) -> int:
        """Return another number every time."""
        self._counted += 1
        return self._counted

    def wall(self) -> datetime:
        """Return the right time."""
        return START + timedelta(seconds=self.clock.now() - self._began)

    def violated(self, violation: Violation) -> None:
        """End the simulation."""
        self.violation = self.violation or violation
        self.loop.halt()

    def fate(self) -> Fate | None:
        """Return what happens to a request to etcd."""
        if not self.store_faults or self.random.random() >= self.store_faults:
            return None
        return _FATES[int(self.random.random() * len(_FATES))]

    def at_quorum(self, act: Callable[[], None]) -> None:
        """Have something done when etcd has a quorum again."""
        self._at_quorum.append(act)

    def set_quorum(self, has_quorum: bool) -> None:
        """Take etcd its quorum, or give it back."""
        self.etcd_process.context.run(setattr, self.etcd, "has_quorum", has_quorum)
        if has_quorum:
            waiting, self._at_quorum = self._at_quorum, []
            for act in waiting:
                self.etcd_process.call_at(self.network.arrival(), act)

    # What operators do

    def define(self, name: str, *, paused: bool = False) -> None:
        """Write a job's definition, the next generation of it."""
        self._generations[name] += 1
        record = JobRecord(
            spec=spec_to_plain(self.specs[name]),
            generation=self._generations[name],
            changed_by="operator",
            changed_at=self.wall(),
            paused=PauseRecord(by="operator", since=self.wall()) if paused else None,
        )
        (self.paused.add if paused else self.paused.discard)(name)
        self.operate(Put(self.keys.job(name), encode(record)))

    def operate(self, op: Op) -> None:
        """Do something to etcd that nothing goes wrong with."""
        self.etcd_process.context.run(self.etcd.txn, (), (op,), ())

    def _jobs(self) -> dict[str, dict[str, Any]]:
        choice = self.random.choice
        jobs = {}
        for number in range(choice((1, 2))):
            name = f"j{number}"
            jobs[name] = {
                "name": name,
                "rule": "mirror",
                "source": f"{WORKERS[number]}:data",
                "targets": [f"{WORKERS[1 - number]}:data/{name}"],
                "trigger": {"every": choice(("3s", "5s", "8s"))}
                | choice(({}, {}, {"from": "end"})),
                "overlap": choice(("skip", "queue", "cancel")),
                "missed": choice(("skip", "latest", "all")),
                "lease_ttl": choice(("2s", "2s", "5s")),
                "retries": {"attempts": choice((1, 2)), "delay": "1s"},
                "placement": choice(
                    ({}, {}, {"nodes": ["c1"]}, {"nodes": ["c2", "c1"], "fallback": False})
                ),
            }
        return jobs
