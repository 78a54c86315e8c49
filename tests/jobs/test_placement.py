import itertools
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.job import Placement, WhenStable
from coordinator.placement import Absence, claim_reason, decide, rank, return_to
from coordinator.units import Duration

NODES_ALL = [f"c{n}" for n in range(1, 10)]
NODES = st.sets(st.sampled_from(NODES_ALL))
PLACEMENTS = st.one_of(
    st.just(Placement()),
    st.builds(
        Placement,
        nodes=st.lists(st.sampled_from(NODES_ALL), min_size=1, unique=True).map(tuple),
        fallback=st.booleans(),
    ),
)


@given(st.text(min_size=1), PLACEMENTS, NODES, NODES)
def test_ranks_are_one_order_of_nodes_that_are_there(
    job: str, placement: Placement, live: set[str], draining: set[str]
) -> None:
    order = decide(job, placement, live, draining=draining).order
    assert set(order) <= live - draining
    assert len(set(order)) == len(order)
    usable = live - draining
    assert {rank(job, placement, node, usable) for node in order} == set(range(len(order)))
    for node in usable - set(order):
        assert rank(job, placement, node, usable) is None


@given(st.text(min_size=1), PLACEMENTS, NODES)
def test_preferred_nodes_come_alone_in_their_order(
    job: str, placement: Placement, live: set[str]
) -> None:
    order = decide(job, placement, live).order
    there = tuple(node for node in placement.nodes if node in live)
    if there:
        assert order == there
    elif placement.nodes and not placement.fallback:
        assert order == ()
    else:
        assert set(order) == live


@given(st.text(min_size=1), NODES.filter(bool))
def test_a_node_that_goes_moves_only_its_own_jobs(job: str, live: set[str]) -> None:
    order = decide(job, Placement(), live).order
    for gone in live:
        assert decide(job, Placement(), live - {gone}).order == tuple(n for n in order if n != gone)


def test_jobs_spread_evenly() -> None:
    live = ["c1", "c2", "c3"]
    first = [decide(f"job-{n}", Placement(), live).order[0] for n in range(3000)]
    assert all(900 < first.count(node) < 1100 for node in live)


def test_reasons_say_why() -> None:
    only = Placement(nodes=("c1", "c2"), fallback=False)
    assert decide("j", only, ["c3"]).reasons == (
        "c1 is preferred but away",
        "c2 is preferred but away",
        "no preferred node is there and fallback is false: the job waits",
    )
    decision = decide("j", Placement(nodes=("c1",)), ["c1", "c3"], draining=["c1"])
    assert decision.order == ("c3",)
    assert "c1 is draining and takes no more" in decision.reasons
    assert decide("j", Placement(), []).reasons == ("no coordinator is there",)


@given(st.text(min_size=1), PLACEMENTS, NODES, NODES, NODES)
def test_never_a_lower_ranked_node_when_a_higher_ranked_one_is_free(
    job: str, placement: Placement, live: set[str], draining: set[str], held: set[str]
) -> None:
    """Whoever is asked to claim first ranks before all others that are free to take the job."""
    words = dict.fromkeys(held, "until 10:00")
    order = decide(job, placement, live, draining=draining, held=words).order
    by_hash = decide(job, Placement(), NODES_ALL).order
    may = set(NODES_ALL) if placement.fallback or not placement.nodes else set(placement.nodes)
    free = (live - draining - held) & may or (live - draining) & may
    assert bool(order) == bool(free)

    def place(node: str) -> tuple[bool, int]:
        preferred = node in placement.nodes
        return not preferred, (placement.nodes if preferred else by_hash).index(node)

    assert list(order) == sorted(order, key=place)
    if order:
        assert order[0] == min(free, key=place)
    assert set(order) <= free


def test_a_node_that_joins_or_goes_keeps_the_load_in_proportion() -> None:
    """Of 6,000 jobs each of n nodes has its n-th part within a tenth, whoever came or went."""
    jobs = [f"job-{number}" for number in range(6000)]
    for live in (["c1"], ["c1", "c2"], ["c1", "c2", "c3"], ["c1", "c3"], NODES_ALL):
        first = [decide(job, Placement(), live).order[0] for job in jobs]
        share = len(jobs) / len(live)
        assert all(0.85 * share < first.count(node) < 1.15 * share for node in live), live
    gone = [decide(job, Placement(), NODES_ALL).order for job in jobs]
    heirs = [order[1] for order in gone if order[0] == "c1"]
    share = len(heirs) / 8
    assert all(0.6 * share < heirs.count(node) < 1.4 * share for node in NODES_ALL[1:])


UP, DOWN, DRAINING, HELD = "up", "down", "draining", "held down"
FAILBACKS: tuple[Literal["never"] | WhenStable, ...] = (
    "never",
    WhenStable(when_stable=Duration.parse("5m")),
)


@pytest.mark.parametrize("states", list(itertools.product([UP, DOWN, DRAINING, HELD], repeat=3)))
@pytest.mark.parametrize("nodes", [(), ("c1",), ("c2", "c1"), ("c9",)])
@pytest.mark.parametrize("fallback", [True, False])
def test_the_whole_table(states: tuple[str, ...], nodes: tuple[str, ...], fallback: bool) -> None:
    """Placement x fallback x failback x what each of three coordinators is: who owns it, and why."""
    if not nodes and not fallback:
        return  # refused in the job file
    is_ = dict(zip(("c1", "c2", "c3"), states, strict=True))
    live = {node for node, state in is_.items() if state != DOWN}
    draining = {node for node, state in is_.items() if state == DRAINING}
    usable = live - draining
    held = {node: "until 10:07" for node, state in is_.items() if state == HELD}
    decisions = [
        decide(
            "j",
            Placement(nodes=nodes, fallback=fallback, failback=failback),
            live,
            draining=draining,
            held=held,
        )
        for failback in FAILBACKS
    ]
    assert decisions[0] == decisions[1], "failback moves a job that has an owner, and claims none"
    placement, decision = Placement(nodes=nodes, fallback=fallback), decisions[0]
    said = "; ".join(decision.reasons)
    may = usable if fallback else usable & set(nodes)
    if may - set(held):
        usable -= set(held)
    elif may:
        assert "those that are held down may" in said
    preferred = tuple(node for node in nodes if node in usable)
    for node in held:
        assert f"{node} is held down until 10:07" in said
    if preferred:
        assert decision.order == preferred
    elif nodes and not fallback:
        assert decision.order == ()
        assert "fallback is false: the job waits" in said
    else:
        assert set(decision.order) == usable
        assert decision.order or "no coordinator is there" in said
    for node in draining:
        assert f"{node} is draining and takes no more" in said
    for node in nodes:
        assert (f"{node} is preferred but away" in said) == (node not in live)
    absence = Absence({node: "10:02:00" for node in is_ if is_[node] == DOWN}, draining, held)
    for place, node in enumerate(decision.order):
        why = claim_reason(placement, decision, node, None, absence)
        if place:
            assert why == f"{', '.join(decision.order[:place])}, ranked before it, did not claim"
        elif nodes:
            first = nodes[0]
            gone = {
                DOWN: "left at 10:02:00",
                DRAINING: "is draining",
                HELD: "is held down",
            }.get(is_.get(first, ""), "was not there")
            assert why.startswith(
                "it is the preferred" if node == first else f"{first}, preferred, {gone}"
            )
        home = return_to(placement, decision, node)
        assert home == (preferred[0] if preferred and preferred[0] != node else None)


def test_why_a_job_without_preferences_moved() -> None:
    decision = decide("j", Placement(), ["c2", "c3"])
    first = decision.order[0]
    gone = Absence({"c1": "10:02:00"})
    assert claim_reason(Placement(), decision, first, "c1", gone) == (
        "c1, which had it, left at 10:02:00"
    )
    assert claim_reason(Placement(), decision, first, None, gone) == (
        "it ranks first for this job's name among 2"
    )
