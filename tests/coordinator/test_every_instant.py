"""Whoever dies when: every instant ends as ran, skipped or missed, and the ledger proves it alone."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.job_owner import JobOwner
from coordinator.ledger import Ledger
from coordinator.ledger_proof import prove
from tests.coordinator.owners import OwnerNode, OwnerScene, in_owner_scene
from tests.coordinator.test_attempts import FULL
from tests.coordinator.test_scheduled import at, until_wall
from tests.coordinator.worlds import JOB, START, until
from wire.orders import Outcome

EVERY_S = 60
RETRIES = {"attempts": 3, "delay": "10s", "backoff": 1}
DONE = {Outcome.SUCCEEDED, Outcome.FAILED, Outcome.CANCELLED, Outcome.MISSED, Outcome.SKIPPED}


@dataclass(frozen=True)
class Death:
    """An owner lives for so long, then nobody owns the job for a while."""

    after_s: float
    away_s: float
    in_order: bool
    run_s: float
    fails: bool


deaths = st.builds(
    Death,
    st.floats(0.5, 150),
    st.floats(0.1, 260),
    st.booleans(),
    st.sampled_from([0.5, 5.0, 70.0]),
    st.booleans(),
)


async def proved(scene: OwnerScene, node: OwnerNode, upto_s: float) -> Counter[Outcome]:
    """Check that the ledger has every instant once, each with an end; return how they ended."""
    records = await scene.runs()
    scheduled = {record.due: record for _, record in records if not record.by_hand}
    assert len(scheduled) == sum(not record.by_hand for _, record in records)
    wanted = [at(EVERY_S * n) for n in range(1, int(upto_s // EVERY_S) + 1)]
    assert sorted(due for due in scheduled if due <= at(upto_s)) == wanted
    for due, record in scheduled.items():
        assert record.outcome in DONE or record.is_open, (due, record)
        assert record.started is not None or record.reason, "passed over, without a reason"
    state, raw = await scene.ledger.whole(JOB)
    proof = prove(JOB, node.catalog.jobs[JOB], state, raw, scene.world.wall())
    assert proof.findings == (), proof.findings
    return Counter(record.outcome for record in scheduled.values())


@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
@pytest.mark.parametrize("overlap", ["skip", "queue", "cancel"])
def test_i9_through_deaths_at_any_moment(missed: str, overlap: str) -> None:
    @given(st.lists(deaths, min_size=1, max_size=4))
    @settings(max_examples=3)
    def check(lives: list[Death]) -> None:
        async def test(scene: OwnerScene, node: OwnerNode) -> None:
            for number, death in enumerate(lives):
                scene.source.run_s = death.run_s
                scene.source.problems = FULL if death.fails else ()
                await scene.sleep(death.after_s)
                await (node.stop() if death.in_order else node.die())
                await scene.sleep(death.away_s)
                node = scene.add(f"c{number + 2}")
                await node.begin()
            scene.source.problems, scene.source.run_s = (), 0.5
            now_s = (scene.world.wall() - START) / timedelta(seconds=1)
            end_s = (now_s // EVERY_S + 4) * EVERY_S + 30
            await until_wall(scene, end_s)
            await until(lambda: node.owner.current is None)
            ended = await proved(scene, node, end_s)
            assert ended[Outcome.RUNNING] == 0
            assert ended[Outcome.SUCCEEDED] > 0

        fields: dict[str, Any] = {"missed": missed, "overlap": overlap, "retries": RETRIES}
        in_owner_scene(test, trigger={"every": f"{EVERY_S}s"}, **fields)

    check()


async def continued(scene: OwnerScene, node: OwnerNode, attempts: list[str]) -> None:
    """Kill the owner; the next one must end the run of the first minute."""
    await node.die()
    heir = scene.add("c2")
    await heir.begin()
    scene.source.problems, scene.source.run_s = (), 0.5
    await until_wall(scene, 115)
    record = dict(await scene.runs())[at(60)]
    assert record.outcome is Outcome.SUCCEEDED
    assert [one.owner for one in record.attempts] == attempts
    await proved(scene, heir, 115)


def test_i9_the_owner_dies_between_the_making_of_a_run_and_its_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    create = Ledger.create
    execute = JobOwner._execute

    async def create_only(self: Ledger, *of: Any) -> None:
        await create(self, *of)
        made.append("run")

    async def never(self: JobOwner, *of: Any) -> None:
        if self.node == "c1":
            await asyncio.sleep(3600)
        await execute(self, *of)

    monkeypatch.setattr(Ledger, "create", create_only)
    monkeypatch.setattr(JobOwner, "_execute", never)

    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until(lambda: bool(made), 120)
        assert scene.starts == [], "made with its first attempt, and not begun"
        await continued(scene, node, ["c1", "c2"])
        assert len(scene.starts) == 1

    in_owner_scene(test, trigger={"every": "60s"})


def test_i9_the_owner_dies_in_the_middle_of_a_run() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 20
        await until(lambda: bool(scene.starts), 120)
        await scene.sleep(3)
        await continued(scene, node, ["c1", "c2"])
        assert len(scene.starts) == 1, "adopted, not begun again"

    in_owner_scene(test, trigger={"every": "60s"})


def test_i9_the_owner_dies_between_two_attempts() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.problems = FULL
        await until(lambda: node.owner._stored.phase == "waiting", 120)
        await continued(scene, node, ["c1", "c2"])
        assert len(scene.starts) == 2

    in_owner_scene(test, trigger={"every": "60s"}, retries=RETRIES)
