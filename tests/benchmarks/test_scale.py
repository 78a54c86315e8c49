"""The section of docs/benchmarks.md about ten thousand jobs."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import report, scale
from benchmarks.due import Wave
from benchmarks.scale import Cost, Results


def results() -> Results:
    return Results(
        jobs=10_000,
        claimed_s=9.5,
        idle=[Cost("c1", 5_000, 3.25, 140.0), Cost("c2", 5_000, 4.75, 141.0)],
        idle_requests_per_s=31.5,
        moved=5_000,
        takeover_s=2.25,
        waves=[
            Wave(
                10_000,
                in_ledger=10_000,
                succeeded=9_990,
                not_ended=10,
                start_s=[0.007, 0.378, 0.919],
                end_s=[1.0, 2.0, 3.0],
                took_s=99.9,
                cpu_ms={"coordinators": 3.0, "worker": 7.5},
                answer_s=[0.01, 0.02, 0.03],
                urgent_s=1.25,
                load=0.75,
            )
        ],
    )


def test_what_was_measured_stands_in_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "scale.json"
    monkeypatch.setattr(scale, "RESULTS", file)
    assert scale.section() == "", "nothing was measured"
    found = {"command": "python -m benchmarks.scale", "day": "2026-11-22"}
    file.write_text(json.dumps({**found, "results": asdict(results())}))
    document = report.as_markdown([])
    for said in (
        "## 10,000 jobs",
        "the busiest of three coordinators | 4.8 % of a core | under 5 % |",
        "| takeover of 5,000 jobs, from detection to the last claim | 2.25 s | 3 s |",
        "10,000 jobs due over a minute: start, late by, p50, p99, most | 0.007 s, 0.378 s, 0.919 s |",
        "10,000; 9,990 succeeded, 10 had not ended | all |",
        "first instant to last end | 100 s, 100 runs a second |",
        "| CPU of a run | 10.5 ms (coordinators 3.0, worker 7.5) |",
    ):
        assert said in document
