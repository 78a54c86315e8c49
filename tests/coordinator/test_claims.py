"""Over random lives of coordinators: the first of those free to take a job claims it; ledgers hold."""

import asyncio
import random
from typing import Any

import pytest

from coordinator.job import Placement
from coordinator.ledger_proof import prove
from coordinator.ownership import Ownership
from coordinator.placement import decide
from coordinator.records import RunRecord, decode
from coordinator.scheduler import Scheduler
from tests.coordinator.fake_workers import FakeWorker
from tests.coordinator.test_scheduler import Group, Member, in_group

SETTLED_S = 1.5
"""For how long a coordinator must have been as it is to count, since views lag."""
PLACEMENTS: dict[str, dict[str, Any]] = {
    "any-1": {},
    "any-2": {},
    "home": {"nodes": ["c1"]},
    "order": {"nodes": ["c3", "c2", "c1"]},
    "only": {"nodes": ["c2"], "fallback": False},
    "back": {"nodes": ["c1", "c2"], "failback": {"when_stable": "4s"}},
}


class Watch:
    """Knows which coordinators are really there, and judges every claim."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.since: dict[str, float] = {}
        self.draining: set[str] = set()
        self.claims: list[tuple[str, str]] = []
        self.wrong: list[str] = []

    def changed(self, name: str) -> None:
        self.since[name] = asyncio.get_running_loop().time()

    def healthy(self) -> set[str]:
        now = asyncio.get_running_loop().time()
        return {
            name
            for name, since in self.since.items()
            if now - since > SETTLED_S and name not in self.draining
        }

    def claimed(self, node: str, job: str) -> None:
        self.claims.append((node, job))
        plain = PLACEMENTS[job]
        placement = Placement(
            nodes=tuple(plain.get("nodes", ())), fallback=plain.get("fallback", True)
        )
        unsettled = set(self.since) - self.healthy() - {node}
        order = decide(job, placement, self.healthy() | {node}).order
        better = order[: order.index(node)] if node in order else order
        if node not in order or better:
            self.wrong.append(f"{node} took {job} although {better} (unsettled: {unsettled})")


@pytest.mark.parametrize("seed", range(5))
def test_nobody_claims_what_a_better_one_is_free_to_take(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    gained = Scheduler._gained

    async def test(group: Group) -> None:
        watch = Watch(group)

        def seen(scheduler: Scheduler, ownership: Ownership) -> None:
            watch.claimed(scheduler.node, ownership.job)
            gained(scheduler, ownership)

        monkeypatch.setattr(Scheduler, "_gained", seen)
        for name, placement in PLACEMENTS.items():
            source, target = f"{name}-s", f"{name}-t"
            group.workers |= {one: FakeWorker(one, run_s=2.0) for one in (source, target)}
            await group.world.register(source, target)
            await group.define(
                name,
                placement=placement,
                source=f"{source}:data",
                targets=[f"{target}:data"],
                trigger={"every": "5s"},
                missed=chance.choice(["skip", "latest", "all"]),
                overlap=chance.choice(["skip", "queue", "cancel"]),
            )
        for _ in range(25):
            await step(group, watch, chance)
            await asyncio.sleep(chance.choice([0.01, 0.2, 2.0, 7.0, 12.0]))
        for name in sorted(watch.draining):
            await undrain(group, watch, name)
        if not group.members:
            await start(group, watch, "c2")
        await asyncio.sleep(15)
        assert watch.wrong == []
        assert len(watch.claims) > len(PLACEMENTS)
        for job in PLACEMENTS:
            if job != "only" or "c2" in watch.since:
                assert group.owner_of(job) is not None, job
            await check_ledger(group, job)

    in_group(test)


async def check_ledger(group: Group, name: str) -> None:
    """Whoever owned a job: its ledger holds, and no run was begun twice at its worker."""
    one = group.members[0]
    state, raw = await one.ledger.whole(name)
    if state.last_due is None:
        return  # never owned
    job = one.catalog.jobs[name]
    findings = prove(name, job, state, raw, state.last_due).findings
    assert findings == (), name
    began = [order.run for order in group.workers[f"{name}-s"].starts]
    ran = {key for key, value in raw if decode(value, RunRecord).started is not None}
    assert set(began) <= ran, "in the ledger first"
    again = {run for run in began if began.count(run) > 1}
    for run in again:
        record = decode(dict(raw)[run], RunRecord)
        why = [one.why_ended for one in record.attempts]
        assert any("restarted by" in one for one in why), (run, why)


async def start(group: Group, watch: Watch, name: str) -> None:
    group.add(name)
    watch.changed(name)


async def undrain(group: Group, watch: Watch, name: str) -> None:
    await group.world.store().delete(group.world.keys.drain(name))
    watch.draining.discard(name)
    if name in watch.since:
        watch.changed(name)


async def step(group: Group, watch: Watch, chance: random.Random) -> None:
    """Have something happen: a start, a death, a stop, a drain or its end, a restart of a job."""
    down = sorted({"c1", "c2", "c3"} - set(watch.since))
    what = chance.choice(["start", "start", "die", "stop", "drain", "undrain", "restart"])
    member: Member | None = chance.choice(group.members) if group.members else None
    match what:
        case "start" if down:
            await start(group, watch, chance.choice(down))
        case "die" | "stop" if member is not None:
            group.members.remove(member)
            del watch.since[member.name]
            await (member.die() if what == "die" else member.stop())
        case "drain" if member is not None:
            watch.draining.add(member.name)
            await member.drain()
        case "undrain" if watch.draining:
            await undrain(group, watch, chance.choice(sorted(watch.draining)))
        case "restart":
            job = chance.choice(sorted(PLACEMENTS))
            owner = next((one for one in group.members if job in one.jobs), None)
            if owner is not None:
                await owner.scheduler.restart(job, "operator/alice")
        case _:
            pass
