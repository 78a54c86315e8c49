"""The trials of failover: the hardest of them once, which is the double fault; no time is judged."""

import json

import pytest

from benchmarks.failover import Row, as_markdown, measure
from benchmarks.takeovers import FAULTS, percentile

BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.mark.timeout(180)
async def test_the_owner_and_etcds_leader_die_together_and_another_claims() -> None:
    said: list[str] = []
    (row,) = await measure([BY_NAME["host-and-etcd-leader"]], 1, 4, said.append)
    assert not row.failed
    (took_s,) = row.samples
    assert took_s > 1, "the lease of the dead owner has to expire"
    assert "host-and-etcd-leader: 1 trials; about" in said[0]


def test_percentiles_and_the_table() -> None:
    samples = [float(number) for number in range(1, 101)]
    assert [percentile(samples, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([3.0], 0.5) == percentile([3.0], 0.99) == 3.0
    row = {
        "name": "n",
        "title": "it goes",
        "ttl_s": 2,
        "goal_s": 3.0,
        "samples": samples,
        "failed": [],
    }
    results = json.loads(json.dumps({"command": "c", "day": "2026-01-01", "rows": [row]}))
    assert "| it goes | 50.000 s | 99.000 s | 100.000 s | 3 s | 100 |" in as_markdown(results)
    assert Row("n", "t", 2, 3.0).at(0.5) != Row("n", "t", 2, 3.0).at(0.5), "not a number"
