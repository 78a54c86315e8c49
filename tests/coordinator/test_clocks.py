"""How far clocks are apart, from answers that take their time."""

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from coordinator.clocks import FRESH_S, SILENT_S, Clocks, apart, offset_s, warnings
from coordinator.records import CoordinatorRecord
from tests.worker.clocks import ManualClock

T = datetime(2026, 3, 1, 12, tzinfo=UTC)


@given(st.floats(-1e6, 1e6), st.floats(0, 2), st.floats(0, 2))
def test_an_offset_is_wrong_by_half_the_round_trip_at_most(
    ahead_s: float, there_s: float, back_s: float
) -> None:
    said = T + timedelta(seconds=there_s + ahead_s)
    found = offset_s(T, said, T + timedelta(seconds=there_s + back_s))
    assert abs(found - ahead_s) <= (there_s + back_s) / 2 + 1e-3


def test_pairs_beyond_a_second_are_named() -> None:
    ((one, other, seconds),) = apart({"c1": 0.0, "c2": 0.9, "c3": -0.2})
    assert (one, other, round(seconds, 3)) == ("c2", "c3", 1.1)
    (warning,) = warnings({"c1": 0.0, "c2": -86_400.0})
    assert warning.startswith("the clocks of c1 and c2 are 86400.0 s apart: let NTP (chrony) set")
    assert warnings({"c1": 0.0, "c2": None}) == [
        "coordinator c2 is there and does not answer: its clock is not known"
    ]


async def test_others_are_asked_seldom_and_forgotten_when_they_go() -> None:
    asked: Counter[str] = Counter()
    answers: dict[str, float | None] = {"c2": 3.0, "c3": None}

    async def ask(name: str, address: str) -> float | None:
        assert address == f"{name}:1"
        asked[name] += 1
        return answers[name]

    clock = ManualClock()
    clocks = Clocks("c1", clock, ask)
    there = {
        name: CoordinatorRecord(address=f"{name}:1", http="", version="", since=T, instance=name)
        for name in ("c1", "c2", "c3")
    }
    for _ in range(3):
        assert await clocks.offsets(there) == {"c1": 0.0, "c2": 3.0, "c3": None}
    assert asked == {"c2": 1, "c3": 1}, "nobody asks itself, nor twice in a moment"
    clock.advance(SILENT_S + 0.5)
    answers["c3"] = 1.0
    assert await clocks.offsets(there) == {"c1": 0.0, "c2": 3.0, "c3": 1.0}
    assert asked == {"c2": 1, "c3": 2}, "who was silent is asked again soon"
    clock.advance(FRESH_S + 1)
    answers["c2"] = 0.5
    del there["c3"]
    assert await clocks.offsets(there) == {"c1": 0.0, "c2": 0.5}
