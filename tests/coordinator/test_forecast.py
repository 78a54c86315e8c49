"""Who would take over, in every combination of placement and who is there."""

import itertools

import pytest

from coordinator.forecast import forecast
from coordinator.job import Placement
from coordinator.placement import decide

NODES = ("c1", "c2", "c3")
FIRST = "it is the first of the other preferred nodes that are there"


def ahead(placement: Placement, there: set[str], owner: str, draining: set[str]) -> tuple[str, str]:
    without = decide("job", placement, there - {owner}, draining=draining)
    found = forecast(placement, 5.0, owner, without)
    assert (found.worst_s, found.worst_with_etcd_s) == (6.0, 13.0)
    assert bool(found.warning) is (found.next_owner is None)
    return found.next_owner or "", found.rule


@pytest.mark.parametrize(
    ("nodes", "fallback"),
    [
        (nodes, fallback)
        for nodes in ((), ("c1",), ("c2",), ("c1", "c2"), ("c2", "c1", "c3"))
        for fallback in (True, False)
        if nodes or fallback
    ],
)
def test_whoever_is_said_is_there_takes_jobs_and_ranks_first(
    nodes: tuple[str, ...], fallback: bool
) -> None:
    placement = Placement(nodes=nodes, fallback=fallback)
    for there, draining in itertools.product(_subsets(), _subsets()):
        for owner in there:
            found, rule = ahead(placement, set(there), owner, set(draining))
            able = set(there) - {owner} - set(draining)
            wanted = [node for node in nodes if node in able]
            if wanted:
                assert (found, rule) == (wanted[0], FIRST)
            elif fallback and able:
                assert found in able
                assert "ranks first for this job's name" in rule
            else:
                assert found == ""


def _subsets() -> list[tuple[str, ...]]:
    return [some for n in range(4) for some in itertools.combinations(NODES, n)]


def test_why_nobody() -> None:
    there = {"c1", "c2"}
    alone = Placement(nodes=("c1",), fallback=False)
    assert ahead(alone, there, "c1", set())[1] == (
        "placement names c1 alone, and fallback is false"
    )
    pair = Placement(nodes=("c1", "c3"), fallback=False)
    assert ahead(pair, there, "c1", set())[1] == (
        "of c3 none is there that takes jobs, and fallback is false"
    )
    anybody = Placement()
    assert ahead(anybody, there, "c1", {"c2"})[1] == "no other coordinator is there that takes jobs"
    assert ahead(Placement(nodes=("c1",)), there, "c1", set()) == (
        "c2",
        (
            "no other preferred node is there, fallback allows any, "
            "and it ranks first for this job's name among the other 1"
        ),
    )
