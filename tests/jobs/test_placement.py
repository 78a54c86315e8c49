from hypothesis import given
from hypothesis import strategies as st

from coordinator.job import Placement
from coordinator.placement import decide, rank

NODES = st.sets(st.sampled_from([f"c{n}" for n in range(9)]))
PLACEMENTS = st.one_of(
    st.just(Placement()),
    st.builds(
        Placement,
        nodes=st.lists(st.sampled_from([f"c{n}" for n in range(9)]), min_size=1, unique=True).map(
            tuple
        ),
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
