"""One seed: a cluster that everything happens to, and then nothing any more, until it is well again."""

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from coordinator.catalog import Job
from coordinator.ledger_proof import prove
from coordinator.records import JobRecord, RunRecord, StateRecord, decode
from coordinator.timetable import due_next
from tests.simulation.checks import Violation
from tests.simulation.faults import Faults
from tests.simulation.loop import Halted, SimulatedLoop
from tests.simulation.plots import Plot
from tests.simulation.trace import Trace
from tests.simulation.world import World
from wire.orders import Outcome

FAULTS_S = (6.0, 20.0)
"""For how long things go wrong."""
WELL_S = 120.0
"""How long a cluster may take to be well again after that."""
_LATE = timedelta(seconds=5)
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Story:
    """What became of a seed."""

    seed: int
    violation: Violation | None
    checks: int
    """How many orders, commits and slices were looked at."""
    steps: int
    simulated_s: float
    trace: Trace


def simulate(seed: int, state: Path, plot: Plot | None = None) -> Story:
    """Run a seed; `state` is an empty directory for what coordinators keep on disk.

    With a `plot`, that happens in place of what the seed would let go wrong.
    """
    loop = SimulatedLoop(seed)  # type: ignore[abstract]  # what asyncio's tasks need
    world = World(loop, state)
    with contextlib.suppress(Halted, Violation):
        loop.run(_main(world, plot))
    if loop.errors and world.violation is None:
        world.violation = Violation(f"errors: {'; '.join(loop.errors)}")
    return Story(
        seed,
        world.violation,
        world.checks.count,
        loop.steps,
        loop.time() - 1_000,
        world.trace,
    )


async def _main(world: World, plot: Plot | None) -> None:
    faults = Faults(world)
    await asyncio.sleep(world.random.uniform(0, 3))
    if plot is None:
        await faults.run(world.random.uniform(*FAULTS_S))
    else:
        await plot(world)
    faults.end()
    world.trace.add("FAULT", "no more")
    await _until_well(world)
    world.trace.is_closed = True  # what is dropped now has no say


async def _until_well(world: World) -> None:
    """Wait until every job is owned, on time, has succeeded since, and has a ledger that holds."""
    healed_at = world.wall()
    until = world.clock.now() + WELL_S
    ill = dict.fromkeys(world.jobs, "")
    while ill:
        for name in tuple(ill):
            why = _why_ill(world, name, healed_at)
            if why:
                ill[name] = why
            else:
                del ill[name]
        if ill and world.clock.now() > until:
            world.trace.add("CHECK", ill)
            world.violation = Violation(f"liveness: {WELL_S:.0f} s after the last fault: {ill}")
            return
        await asyncio.sleep(_LOOK_S)


def _why_ill(world: World, name: str, healed_at: datetime) -> str:
    etcd, keys, now = world.etcd, world.keys, world.wall()
    if not any(
        not one.process.is_dead and one.scheduler is not None and one.scheduler.owner(name)
        for one in world.coordinators.values()
    ):
        return "nobody owns it"
    found = etcd.get(keys.job(name))
    assert found is not None, "nobody deletes jobs"
    record = decode(found.value, JobRecord)
    job = Job(world.specs[name], record)
    kv = etcd.get(keys.state(name))
    state = StateRecord() if kv is None else decode(kv.value, StateRecord)
    prefix = keys.runs(name)
    raw = [(kv.key.removeprefix(prefix), kv.value) for kv in etcd.read(prefix)]
    due = due_next(job, state)
    if due is None or now - due > _LATE:
        return f"due since {due}, it is {now}"
    proof = prove(name, job, state, raw, now)
    if proof.findings:
        return f"the ledger does not hold: {proof.findings}"
    for _, value in reversed(raw):
        run = decode(value, RunRecord)
        if run.outcome is not Outcome.SUCCEEDED or run.ended is None:
            continue
        if healed_at < run.ended <= now:  # by a clock that was right
            return ""
    return "no run has succeeded since"
