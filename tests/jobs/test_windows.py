"""When a job may act: against asking the wall clock minute by minute."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.windows import OpenTime, Windows, read_days

DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
times = st.builds(lambda h, m: f"{h:02}:{m:02}", st.integers(0, 23), st.sampled_from([0, 15, 30]))
days = st.one_of(
    st.sampled_from(DAYS),
    st.builds(lambda a, b: f"{a}-{b}", st.sampled_from(DAYS), st.sampled_from(DAYS)),
    st.just("sat,sun"),
)
zones = st.sampled_from(["UTC", "Europe/Paris", "America/New_York", "Asia/Kolkata"])
spans = st.tuples(days, times, times, zones).filter(lambda one: one[1] != one[2])
instants = st.integers(0, 365 * 1_440).map(
    lambda minute: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def is_open_by_the_clock(window: OpenTime, at: datetime) -> bool:
    """Say so from the local time alone: true on all days but those when the clocks change."""
    local = at.astimezone(window.zone)
    minute = local.hour * 60 + local.minute
    today, yesterday = local.weekday(), (local.weekday() - 1) % 7
    return (today in window.days and window.opens <= minute < window.closes) or (
        yesterday in window.days and minute + 1_440 < window.closes
    )


def is_near_a_change(at: datetime, zone: ZoneInfo) -> bool:
    offsets = {(at + timedelta(hours=h)).astimezone(zone).utcoffset() for h in range(-49, 50)}
    return len(offsets) > 1


@given(st.lists(spans, min_size=1, max_size=3), instants)
def test_open_is_what_the_clock_says(
    given_spans: list[tuple[str, str, str, str]], at: datetime
) -> None:
    times = [OpenTime.of(*one) for one in given_spans]
    windows = Windows(times)
    if any(is_near_a_change(at, one.zone) for one in times):
        return
    assert windows.is_open(at) == any(is_open_by_the_clock(one, at) for one in times)


@given(st.lists(spans, min_size=1, max_size=3), instants)
def test_the_opening_is_the_next_and_its_end_is_an_end(
    given_spans: list[tuple[str, str, str, str]], at: datetime
) -> None:
    windows = Windows([OpenTime.of(*one) for one in given_spans])
    found = windows.opening(at)
    assert found is not None
    opens, closes = found
    assert opens < closes
    assert at < closes
    assert windows.is_open(at) == (opens <= at)
    second = timedelta(seconds=1)
    if opens > at:
        assert opens - at <= timedelta(days=8)
        for n in range(1, 8):
            assert not windows.is_open(at + (opens - at) * n / 8)
        assert not windows.is_open(opens - second)
    assert windows.is_open(opens)
    if closes - at < timedelta(days=8):
        assert windows.is_open(closes - second)
        assert not windows.is_open(closes)


def test_without_windows_it_is_always_open() -> None:
    assert Windows(()).opening(utc("2026-01-01T00:00Z")) is None
    assert Windows(()).is_open(utc("2026-01-01T00:00Z"))


def test_across_midnight_the_day_is_the_one_on_which_it_opens() -> None:
    night = Windows([OpenTime.of("fri", "20:00", "06:00", "Europe/Paris")])
    assert night.opening(utc("2026-01-05T12:00Z")) == (
        utc("2026-01-09T20:00+01:00"),
        utc("2026-01-10T06:00+01:00"),
    )
    assert night.is_open(utc("2026-01-10T05:59+01:00"))
    assert not night.is_open(utc("2026-01-11T05:59+01:00"))


def test_across_the_changes_of_the_clocks() -> None:
    night = Windows([OpenTime.of("mon-sun", "20:00", "06:00", "Europe/Paris")])
    spring = night.opening(utc("2026-03-28T23:00Z"))
    autumn = night.opening(utc("2026-10-24T23:00Z"))
    assert spring is not None
    assert autumn is not None
    assert spring[1] - spring[0] == timedelta(hours=9)
    assert autumn[1] - autumn[0] == timedelta(hours=11)
    gap = Windows([OpenTime.of("sun", "02:30", "04:00", "Europe/Paris")])
    assert gap.opening(utc("2026-03-29T00:00Z")) == (
        utc("2026-03-29T01:00Z"),  # 02:30 is not there: from 03:00 on
        utc("2026-03-29T02:00Z"),
    )
    swallowed = Windows([OpenTime.of("sun", "02:10", "02:50", "Europe/Paris")])
    assert swallowed.opening(utc("2026-03-29T00:00Z")) == (
        utc("2026-04-05T00:10Z"),
        utc("2026-04-05T00:50Z"),
    )
    twice = Windows([OpenTime.of("sun", "02:30", "04:00", "Europe/Paris")])
    assert twice.opening(utc("2026-10-25T00:00Z")) == (
        utc("2026-10-25T00:30Z"),
        utc("2026-10-25T03:00Z"),
    )


def test_windows_that_touch_are_one() -> None:
    both = Windows(
        [OpenTime.of("sat", "20:00", "24:00", "UTC"), OpenTime.of("sun", "00:00", "06:00", "UTC")]
    )
    assert both.opening(utc("2026-01-03T21:00Z")) == (
        utc("2026-01-03T20:00Z"),
        utc("2026-01-04T06:00Z"),
    )


def test_days_are_read() -> None:
    assert read_days("mon-fri") == {0, 1, 2, 3, 4}
    assert read_days("fri-mon") == {4, 5, 6, 0}
    assert read_days("sat, SUN") == {5, 6}


@pytest.mark.parametrize(
    ("window", "said"),
    [
        (("noday", "1:00", "2:00", "UTC"), "days: 'noday' is no day of the week"),
        (("", "1:00", "2:00", "UTC"), "days: '' is no day"),
        (("mon", "25:00", "2:00", "UTC"), "from: '25:00' is no time of day"),
        (("mon", "1:00", "24:01", "UTC"), "to: '24:01' is no time of day"),
        (("mon", "1:00", "1:00", "UTC"), "to: a window from 1:00 to 1:00 never opens"),
        (("mon", "24:00", "1:00", "UTC"), "from: a window cannot open at 24:00"),
        (("mon", "1:00", "2:00", "Mars/Base"), "timezone: 'Mars/Base' is no time zone"),
    ],
)
def test_windows_that_make_no_sense_are_refused(
    window: tuple[str, str, str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        OpenTime.of(*window)
