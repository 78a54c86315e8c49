"""Cron instants across daylight saving, against a minute-by-minute reference."""

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.cron import Cron

ZONES = st.sampled_from(["UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe"])
CHANGES = st.sampled_from(
    [
        datetime(2026, 3, 8, 7, tzinfo=UTC),  # New York, spring
        datetime(2026, 3, 29, 1, tzinfo=UTC),  # Paris, spring
        datetime(2026, 4, 4, 15, tzinfo=UTC),  # Lord Howe, autumn, half an hour
        datetime(2026, 10, 3, 15, 30, tzinfo=UTC),  # Lord Howe, spring
        datetime(2026, 10, 25, 1, tzinfo=UTC),  # Paris, autumn
        datetime(2026, 11, 1, 6, tzinfo=UTC),  # New York, autumn
        datetime(2026, 6, 1, tzinfo=UTC),
    ]
)
FIXED = st.builds(lambda minute, hour: (minute, hour), st.integers(0, 59), st.integers(0, 23))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


@given(FIXED, ZONES, CHANGES, st.integers(-1_500, 1_500))
def test_a_time_of_day_comes_once_on_every_day(
    when: tuple[int, int], zone: str, change: datetime, minutes: int
) -> None:
    cron = Cron(f"{when[0]} {when[1]} * * *", zone)
    at = change + timedelta(minutes=minutes, days=-2)
    days = []
    for _ in range(5):
        following = cron.after(at)
        assert following is not None
        assert following > at
        local = following.astimezone(ZoneInfo(zone))
        days.append(local.date())
        wanted = local.replace(hour=when[1], minute=when[0], fold=0)
        exists = wanted.astimezone(UTC).astimezone(ZoneInfo(zone)).replace(
            tzinfo=None
        ) == wanted.replace(tzinfo=None)
        if exists:
            assert following == wanted.astimezone(UTC), "the first of two"
        else:
            before = (following - timedelta(seconds=1)).astimezone(ZoneInfo(zone))
            assert before.utcoffset() != local.utcoffset(), "the moment of the change"
        at = following
    assert [b - a for a, b in itertools.pairwise(days)] == [timedelta(days=1)] * 4


@given(
    st.sampled_from(["*/15 * * * *", "0 * * * *", "30 2 * * *", "0,30 1-3 * * *", "5 4 1 * 1"]),
    ZONES, CHANGES, st.integers(0, 3_000), st.integers(0, 6_000), st.integers(1, 60),
)  # fmt: skip
def test_the_newest_are_those_that_come_one_after_another(
    fields: str, zone: str, change: datetime, back: int, span: int, count: int
) -> None:
    cron = Cron(fields, zone)
    first = change - timedelta(minutes=back)
    upto = first + timedelta(minutes=span)
    every, at = [], first - timedelta(seconds=1)
    while (following := cron.after(at)) is not None and following <= upto:
        every.append(following)
        at = following
    assert cron.newest(first, upto, count) == every[-count:]
    assert len(set(every)) == len(every)


def test_wildcards_go_by_real_time_on_the_day_of_the_change() -> None:
    cron = Cron("*/30 * * * *", "Europe/Paris")
    found = cron.newest(utc("2026-10-25T00:00+00:00"), utc("2026-10-25T03:00+00:00"), 99)
    assert found == [utc("2026-10-25T00:00+00:00") + n * timedelta(minutes=30) for n in range(7)]


@pytest.mark.parametrize(
    ("fields", "zone", "said"),
    [
        ("0 2 * *", "UTC", "has 4 fields: use five"),
        ("0 0 2 * * *", "UTC", "has 6 fields: use five"),
        ("61 2 * * *", "UTC", "Bad minute"),
        ("0 0 30 2 *", "UTC", "never fires"),
        ("0 0 31 4,6,9,11 *", "UTC", "never fires"),
        ("0 2 * * *", "Europe/Pariss", "is no time zone: use an IANA name like Europe/Paris"),
        ("0 2 * * *", "../etc/passwd", "is no time zone"),
        ("0 2 * * *", "", "is no time zone"),
    ],
)
def test_what_cannot_be_is_refused(fields: str, zone: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Cron(fields, zone)


def test_rare_days_and_nicknames() -> None:
    assert Cron("0 0 29 2 *", "UTC").after(utc("2026-01-01T00:00Z")) == utc("2028-02-29T00:00Z")
    assert Cron("@daily", "UTC").after(utc("2026-01-01T00:00Z")) == utc("2026-01-02T00:00Z")
