"""What goes wrong, when and for how long: all by the seed."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from coordinator.records import DrainRecord, encode
from coordinator.store import Delete, Put
from tests.simulation.loop import Process
from tests.simulation.world import NODES, WORKERS

if TYPE_CHECKING:
    from tests.simulation.coordinators import SimulatedCoordinator
    from tests.simulation.workers import SimulatedWorker
    from tests.simulation.world import World

_BETWEEN_S = 1.2
"""How long nothing new goes wrong, on average."""
_JUMPS_S = (-86_400.0, -3_600.0, -30.0, -2.0, 2.0, 30.0, 3_600.0, 86_400.0)


class Faults:
    """Breaks things for a while, and puts everything right again."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._is_over = False
        self._random = world.random
        self._menu: tuple[tuple[int, Callable[[], None]], ...] = (
            (4, self._kill_coordinator),
            (4, self._pause_coordinator),
            (2, self._stop_coordinator),
            (4, self._cut_store),
            (4, self._cut_worker),
            (2, self._cut_workers),
            (2, self._kill_worker),
            (2, self._pause_worker),
            (3, self._set_clock),
            (3, self._spoil_store),
            (2, self._lose_quorum),
            (1, self._revoke_leases),
            (1, self._compact),
            (2, self._drain),
            (2, self._change_job),
            (2, self._ask_for_run),
        )
        self._weights = [weight for weight, _ in self._menu]

    async def run(self, for_s: float) -> None:
        """Let things go wrong for so long."""
        world = self._world
        until = world.clock.now() + for_s
        while (now := world.clock.now()) < until:
            delay_s = min(self._random.expovariate(1 / _BETWEEN_S), until - now)
            await asyncio.sleep(delay_s)
            ((_, break_something),) = self._random.choices(self._menu, self._weights)
            break_something()

    def end(self) -> None:
        """Put everything right: from here on nothing goes wrong."""
        world = self._world
        self._is_over = True
        world.store_faults = 0.0
        world.network.slowness_s = 0.0
        world.network.heal(*tuple(world.network.cuts))
        world.set_quorum(True)
        for coordinator in world.coordinators.values():
            coordinator.clock_error_s = 0.0
            self._put_right(coordinator)
            world.operate(Delete(world.keys.drain(coordinator.name)))
        for worker in world.workers.values():
            self._put_right(worker)
        for job in tuple(world.paused):
            world.define(job)

    def _put_right(self, member: "SimulatedCoordinator | SimulatedWorker") -> None:
        member.process.resume()
        if member.process.is_dead:
            member.start()

    # One by one

    def _note(self, what: str) -> None:
        self._world.trace.add("FAULT", what)

    def _later(self, act: Callable[[], None], most_s: float = 6.0) -> None:
        after_s = self._random.uniform(0.05, most_s)
        self._world.loop.outside.call_at(self._world.clock.now() + after_s, act)

    def _soon(
        self,
        act: Callable[["SimulatedCoordinator | SimulatedWorker"], None],
        member: "SimulatedCoordinator | SimulatedWorker",
    ) -> None:
        """Strike now, when nothing happens, or in the middle of what happens next."""
        steps = self._random.choice((0, 0, 30, 300))
        if not steps:
            act(member)
            return

        def strike() -> None:
            if not self._is_over:
                act(member)

        self._world.loop.after_steps(int(self._random.random() * steps), strike)

    def _coordinator(self) -> "SimulatedCoordinator":
        return self._world.coordinators[self._random.choice(NODES)]

    def _worker(self) -> "SimulatedWorker":
        return self._world.workers[self._random.choice(WORKERS)]

    def _kill(self, member: "SimulatedCoordinator | SimulatedWorker") -> None:
        if member.process.is_dead:
            return
        self._note(f"kill {member.name}")
        process = member.process
        process.kill()
        self._world.network.died(process)
        self._later(lambda: self._start_again(member, process), 8.0)

    def _start_again(
        self, member: "SimulatedCoordinator | SimulatedWorker", process: Process
    ) -> None:
        if member.process is process:
            self._note(f"start {member.name}")
            member.start()

    def _pause(self, member: "SimulatedCoordinator | SimulatedWorker") -> None:
        process = member.process
        if process.is_dead or process.is_paused:
            return
        self._note(f"pause {member.name}")
        process.pause()
        self._world.network.paused(process)

        def resume() -> None:
            if process.is_paused and not process.is_dead:
                self._note(f"resume {member.name}")
                process.resume()

        self._later(resume, self._random.choice((1.0, 4.0, 9.0)))

    def _kill_coordinator(self) -> None:
        self._soon(self._kill, self._coordinator())

    def _pause_coordinator(self) -> None:
        self._soon(self._pause, self._coordinator())

    def _kill_worker(self) -> None:
        self._soon(self._kill, self._worker())

    def _pause_worker(self) -> None:
        self._soon(self._pause, self._worker())

    def _stop_coordinator(self) -> None:
        coordinator = self._coordinator()
        if not coordinator.process.is_dead:
            self._note(f"stop {coordinator.name}")
            coordinator.process.context.run(coordinator.stopping.set)

    def _cut(self, one: str, other: str) -> None:
        ways = ((one, other), (other, one))
        chosen = self._random.choice((ways, ways, ways[:1], ways[1:]))
        self._note("cut " + ", ".join(f"{a}>{b}" for a, b in chosen))
        network = self._world.network
        network.cut(*chosen)

        def heal() -> None:
            self._note("heal " + ", ".join(f"{a}>{b}" for a, b in chosen))
            network.heal(*chosen)
            self._world.etcd.tell_listeners()

        self._later(heal, self._random.choice((1.0, 9.0)))

    def _cut_store(self) -> None:
        self._cut(self._coordinator().name, "etcd")

    def _cut_worker(self) -> None:
        self._cut(self._coordinator().name, self._worker().name)

    def _cut_workers(self) -> None:
        self._cut(*WORKERS)

    def _set_clock(self) -> None:
        coordinator = self._coordinator()
        seconds = self._random.choice(_JUMPS_S)
        self._note(f"set the clock of {coordinator.name} by {seconds:+.0f} s")
        coordinator.clock_error_s += seconds
        self._world.was_set_back = True  # at the latest when it is put right

    def _spoil_store(self) -> None:
        self._note("requests to etcd go wrong")
        world = self._world
        world.store_faults = self._random.choice((0.05, 0.3))
        world.network.slowness_s = self._random.choice((0.1, 1.0))

        def heal() -> None:
            world.store_faults = world.network.slowness_s = 0.0

        self._later(heal)

    def _lose_quorum(self) -> None:
        self._note("no quorum")
        self._world.set_quorum(False)

        def heal() -> None:
            if not self._world.etcd.has_quorum:
                self._note("quorum")
                self._world.set_quorum(True)

        self._later(heal, 8.0)

    def _revoke_leases(self) -> None:
        self._note("etcd revokes every lease")
        self._world.etcd.revoke_all()

    def _compact(self) -> None:
        self._note("compact")
        self._world.etcd.compact(self._world.etcd.revision)

    # Operators

    def _drain(self) -> None:
        world, name = self._world, self._coordinator().name
        key = world.keys.drain(name)
        if world.etcd.get(key) is not None:
            self._note(f"undrain {name}")
            world.operate(Delete(key))
        else:
            self._note(f"drain {name}")
            record = DrainRecord(by="operator", since=world.wall() - timedelta(seconds=1))
            world.operate(Put(key, encode(record)))

    def _change_job(self) -> None:
        world = self._world
        name = self._random.choice(tuple(world.jobs))
        is_paused = name not in world.paused and self._random.random() < 0.5
        self._note(f"{'pause' if is_paused else 'change'} {name}")
        world.define(name, paused=is_paused)

    def _ask_for_run(self) -> None:
        world = self._world
        name = self._random.choice(tuple(world.jobs))
        for coordinator in world.coordinators.values():
            process, scheduler = coordinator.process, coordinator.scheduler
            owner = None if scheduler is None else scheduler.owner(name)
            if owner is not None and not (process.is_dead or process.is_paused):
                self._note(f"ask {coordinator.name} to run {name}")
                asked = process.start(owner.request_run("operator"))
                asked.add_done_callback(lambda task: task.cancelled() or task.exception())
