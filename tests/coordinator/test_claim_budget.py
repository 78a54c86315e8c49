"""Claims come as a ripple: never faster than the budget, and fast enough for thousands of jobs."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.campaign import Campaign, Candidacy
from coordinator.claim_budget import DEFAULT_PER_S, ClaimBudget
from coordinator.election import Election
from coordinator.lease_session import LeasePool
from coordinator.memory_store import MemoryStore
from coordinator.ownership import LostReason, Ownership
from tests.coordinator.worlds import Etcd
from tests.etcd.virtual_time import run_virtual


@given(
    st.floats(1, 10_000),
    st.lists(st.tuples(st.floats(0, 2), st.integers(0, 20_000)), max_size=50),
)
def test_no_stretch_of_time_has_more_than_its_share(
    per_s: float, wishes: list[tuple[float, int]]
) -> None:
    budget = ClaimBudget(per_s)
    now, taken, burst = 50.0, 0, max(100.0, per_s / 5)
    for pause_s, wanted in wishes:
        now += pause_s
        got = budget.take(wanted, now)
        assert 0 <= got <= wanted
        taken += got
        assert taken <= burst + per_s * (now - 50.0) + 1e-3
    assert budget.take(1, now + 1 + 1 / per_s) == 1, "it fills again"
    assert 0.49 * 100 / per_s <= budget.pause_s() <= 1.51 * 100 / per_s


@pytest.mark.parametrize(("per_s", "jobs", "least_s", "most_s"), [
    (500.0, 1_100, 1.9, 3.0),
    (DEFAULT_PER_S, 5_000, 0.9, 1.6),
])  # fmt: skip
def test_one_node_that_is_left_takes_them_all_in_time(
    per_s: float, jobs: int, least_s: float, most_s: float
) -> None:
    """The second: 5,000 jobs within 3 s, on one coordinator."""
    gained: list[float] = []

    async def main() -> None:
        world = Etcd()
        store = MemoryStore(world.etcd)
        leases = LeasePool(store, world.clock)
        names = {f"job-{number}" for number in range(jobs)}

        def gain(_: Ownership) -> None:
            gained.append(world.clock.now())

        def lose(_job: str, _reason: LostReason) -> None:
            assert len(gained) == jobs, "lost only at the end"

        campaign = Campaign("c1", lambda: names, _first, gain, lose, claims_per_s=per_s)
        await leases.session(5)
        election = Election(store, world.clock, world.keys, leases, campaign)
        running = asyncio.create_task(election.run())
        await election.ready()
        began = world.clock.now()
        async with asyncio.timeout(60):
            while len(gained) < jobs:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await leases.close()
        assert least_s <= gained[-1] - began <= most_s
        for number, at in enumerate(gained):
            assert number <= max(100, per_s / 5) + per_s * (at - began) + 100

    run_virtual(main())


def _first(_: str) -> Candidacy:
    return Candidacy(0, 5)
