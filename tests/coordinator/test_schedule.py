"""When runs are due: whatever the clock does, every instant ends once, as a run or passed over."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.job import From, JobSpec, Missed, Trigger
from coordinator.schedule import ALL_AT_MOST, TOLD_AT_MOST, Due, Every, next_due, what_is_due
from coordinator.units import Duration
from syncengine.model import Rule

ANCHOR = datetime(2026, 3, 1, 12, tzinfo=UTC)


def spec(
    every: str | None = "60s",
    *,
    missed: Missed = Missed.LATEST,
    within: str = "24h",
    counts_from: From | None = None,
) -> JobSpec:
    if every is None:
        trigger = Trigger(manual=True)
    else:
        trigger = Trigger(every=Duration.parse(every), from_=counts_from)
    return JobSpec(
        name="job",
        rule=Rule.MIRROR,
        source="w1:data",
        targets=("w2:data",),
        trigger=trigger,
        missed=missed,
        missed_within=Duration.parse(within),
    )


def at(seconds: float) -> datetime:
    return ANCHOR + timedelta(seconds=seconds)


def minutes(*numbers: int) -> tuple[datetime, ...]:
    return tuple(at(60 * number) for number in numbers)


# Single looks


@pytest.mark.parametrize("counts_from", list(From))
def test_the_first_instant_lies_one_interval_after_the_definition(counts_from: From) -> None:
    job = spec(counts_from=counts_from)
    assert next_due(job, anchor=ANCHOR, last_due=None, last_ended=None) == at(60)


def test_counted_from_the_start_the_end_of_a_run_does_not_matter() -> None:
    job = spec(counts_from=From.START)
    assert next_due(job, anchor=ANCHOR, last_due=at(60), last_ended=at(95)) == at(120)


def test_counted_from_the_end_the_interval_begins_there() -> None:
    job = spec(counts_from=From.END)
    assert next_due(job, anchor=ANCHOR, last_due=at(60), last_ended=at(95)) == at(155)


def test_counted_from_the_end_instants_passed_over_later_count_as_well() -> None:
    job = spec(counts_from=From.END)
    assert next_due(job, anchor=ANCHOR, last_due=at(300), last_ended=at(95)) == at(360)


def test_a_manual_job_is_never_due() -> None:
    job = spec(None)
    assert next_due(job, anchor=ANCHOR, last_due=at(1), last_ended=at(2)) is None
    assert what_is_due(job, None, at(1e6)) == Due(None)


@pytest.mark.parametrize("missed", list(Missed))
def test_an_instant_is_due_when_it_comes_and_not_before(missed: Missed) -> None:
    job = spec(missed=missed)
    assert what_is_due(job, at(60), at(59.999)) == Due(None)
    assert what_is_due(job, at(60), at(60)) == Due(at(60))
    assert what_is_due(job, at(60), at(119.999)) == Due(at(60))


@pytest.mark.parametrize(
    ("missed", "run", "passed"),
    [
        (Missed.SKIP, None, minutes(1, 2, 3)),
        (Missed.LATEST, at(180), minutes(1, 2)),
        (Missed.ALL, at(60), ()),
    ],
)
def test_after_three_instants_at_once(
    missed: Missed, run: datetime | None, passed: tuple[datetime, ...]
) -> None:
    assert what_is_due(spec(missed=missed), at(60), at(181)) == Due(run, passed)


@pytest.mark.parametrize(
    ("missed", "run", "passed"),
    [
        (Missed.SKIP, None, minutes(1, 2, 3, 4, 5)),
        (Missed.LATEST, at(300), minutes(1, 2, 3, 4)),
        (Missed.ALL, at(240), minutes(1, 2, 3)),
    ],
)
def test_instants_older_than_missed_within_are_let_go(
    missed: Missed, run: datetime | None, passed: tuple[datetime, ...]
) -> None:
    job = spec(missed=missed, within="90s")
    assert what_is_due(job, at(60), at(310)) == Due(run, passed)


@pytest.mark.parametrize("missed", [Missed.LATEST, Missed.ALL])
def test_even_the_latest_is_let_go_when_it_is_too_old(missed: Missed) -> None:
    job = spec(missed=missed, within="5s")
    assert what_is_due(job, at(60), at(130)) == Due(None, minutes(1, 2))


@pytest.mark.parametrize("missed", list(Missed))
def test_a_gap_of_a_hundred_years_takes_no_loop_over_its_instants(missed: Missed) -> None:
    job = spec("1s", missed=missed, within="36500d")
    now = ANCHOR + timedelta(days=36_500)
    began = time.perf_counter()
    due = what_is_due(job, at(1), now)
    assert time.perf_counter() - began < 1.0
    assert len(due.passed_over) <= TOLD_AT_MOST
    assert due.older is None or due.older[0] == at(1)
    assert (due.instant is None) == (missed is Missed.SKIP)
    if missed is Missed.ALL:
        assert due.instant == now - timedelta(seconds=ALL_AT_MOST - 1)
    if due.passed_over and due.instant:
        assert due.passed_over[-1] == due.instant - timedelta(seconds=1)


def test_a_clock_set_back_makes_nothing_due() -> None:
    job = spec()
    first = next_due(job, anchor=ANCHOR, last_due=at(3_600), last_ended=at(3_610))
    assert first == at(3_660)
    assert what_is_due(job, first, at(100)) == Due(None)


# Histories


@dataclass
class History:
    """What an owner would record, look after look."""

    job: JobSpec
    last_due: datetime | None = None
    last_ended: datetime | None = None
    runs: list[datetime] = field(default_factory=list)
    passed: list[datetime] = field(default_factory=list)

    def look(self, now: datetime, run_s: float) -> None:
        """Do all that is due, as `JobOwner` does it; a run takes `run_s`."""
        while True:
            first = next_due(
                self.job, anchor=ANCHOR, last_due=self.last_due, last_ended=self.last_ended
            )
            due = what_is_due(self.job, first, now)
            if due.older is not None:
                step = timedelta(seconds=self.job.trigger.every.seconds)  # type: ignore[union-attr]
                self.passed += Every(due.older[0], step).newest(*due.older, 10**9)
            if due.passed_over:
                self.passed += due.passed_over
                self.last_due = due.passed_over[-1]
            if due.instant is not None:
                assert due.instant <= now, "never early"
                self.runs.append(due.instant)
                self.last_due = due.instant
                now += timedelta(seconds=run_s)
                self.last_ended = now
            if due == Due(None):
                return


steps = st.floats(-900, 900, allow_nan=False).map(lambda s: round(s, 3))
looks = st.lists(st.tuples(steps, st.floats(0, 300).map(lambda s: round(s, 3))), max_size=12)
every = st.sampled_from(["7s", "60s", "1s500ms", "5m"])
policies = st.sampled_from(list(Missed))
windows = st.sampled_from(["0s", "30s", "10m", "24h"])


@given(every, policies, windows, looks)
def test_i9_every_instant_ends_once(
    every: str, missed: Missed, within: str, looks: list[tuple[float, float]]
) -> None:
    """With a clock that jumps ahead and back, and runs of any length."""
    history = History(spec(every, missed=missed, within=within))
    now = ANCHOR
    for jump, run_s in looks:
        now += timedelta(seconds=jump)
        history.look(now, run_s / 1_000)
    ended = [*history.runs, *history.passed]
    assert len(set(ended)) == len(ended), "none twice"
    step = timedelta(seconds=Duration.parse(every).seconds)
    assert sorted(ended) == [ANCHOR + n * step for n in range(1, len(ended) + 1)], "none left out"
    assert history.runs == sorted(history.runs)


@given(every, policies, windows, looks)
def test_i9_counted_from_the_end_no_instant_comes_twice_or_too_soon(
    every: str, missed: Missed, within: str, looks: list[tuple[float, float]]
) -> None:
    job = spec(every, missed=missed, within=within, counts_from=From.END)
    history = History(job)
    step = timedelta(seconds=Duration.parse(every).seconds)
    now = ANCHOR
    for jump, run_s in looks:
        now += timedelta(seconds=jump)
        ended_before, runs_before = history.last_ended, len(history.runs)
        history.look(now, run_s)
        if ended_before is not None and len(history.runs) > runs_before:
            assert history.runs[runs_before] >= ended_before + step
    ended = [*history.runs, *history.passed]
    assert len(set(ended)) == len(ended)
    assert history.runs == sorted(history.runs)


@given(policies, windows, st.integers(1, 5_000), st.floats(0, 59.9))
def test_one_look_after_a_gap(missed: Missed, within: str, count: int, late_s: float) -> None:
    """The instants passed over are the newest before the run, without a hole."""
    job = spec(missed=missed, within=within)
    now = at(60 * count + late_s)
    due = what_is_due(job, at(60), now)
    latest = at(60 * count)
    window = now - timedelta(seconds=job.missed_within.seconds)
    end = due.instant if due.instant is not None else latest + timedelta(seconds=60)
    assert due.passed_over == tuple(
        end - timedelta(seconds=60 * n)
        for n in range(min(TOLD_AT_MOST, (end - at(60)) // timedelta(seconds=60)), 0, -1)
    )
    told = len(due.passed_over)
    first_told = due.passed_over[0] if told else end
    assert due.older == (
        None
        if told < TOLD_AT_MOST or first_told == at(60)
        else (at(60), first_told - timedelta(seconds=60))
    ), "the rest in one"
    match missed:
        case Missed.SKIP:
            assert due.instant == (latest if count == 1 and latest >= window else None)
        case Missed.LATEST:
            assert due.instant == (latest if latest >= window else None)
        case Missed.ALL:
            kept = [at(60 * n) for n in range(max(1, count - ALL_AT_MOST + 1), count + 1)]
            assert due.instant == next((one for one in kept if one >= window), None)
