"""Bandwidth: no more goes out than was said, whoever sends, and the timetable says when."""

import os
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from syncengine.model import Often, RateTime, RunOptions
from syncengine.throttle import Throttle, rate_of
from tests.engine.trees import FAST, Pair, grow


class Waiting(threading.Event):
    """An event whose waits take no time but the clock's."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now += timeout
        return self.is_set()


def test_the_rate_is_kept_over_any_time() -> None:
    event = Waiting()
    throttle = Throttle(clock=lambda: event.now)
    throttle.limit(lambda: 1_000_000)
    sent = 0
    for number in range(500):
        throttle.take(size := 10_000 + number * 37, event)
        assert sent <= 1_000_000 * (event.now + 0.11), "what is on its way was earned before"
        sent += size
    assert sent >= 1_000_000 * event.now * 0.99
    event.now += 1_000
    before, sent = event.now, 0
    while event.now < before + 1:
        throttle.take(10_000, event)
        sent += 10_000
    assert sent < 1_150_000, "an idle time is no credit"


def test_a_change_of_the_rate_counts_for_those_who_wait() -> None:
    event = Waiting()
    throttle = Throttle(clock=lambda: event.now)
    throttle.limit(lambda: 1_000 if event.now < 5 else None)
    throttle.take(1_000_000, event)
    throttle.take(1, event)
    assert 5 <= event.now < 6


def test_nobody_waits_after_the_end() -> None:
    event = Waiting()
    throttle = Throttle(clock=lambda: event.now)
    throttle.limit(lambda: 1)
    throttle.take(1_000_000, event)
    event.set()
    throttle.take(1, event)
    assert event.now < 1


def test_two_pushes_share_one_rate() -> None:
    throttle = Throttle()
    throttle.limit(lambda: 4_000_000)
    stopped = threading.Event()

    def send() -> None:
        for _ in range(20):
            throttle.take(50_000, stopped)

    threads = [threading.Thread(target=send) for _ in range(2)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began >= (2_000_000 - 50_000) / 4_000_000 - 0.11


def test_a_push_takes_as_long_as_it_must(pair: Pair) -> None:
    pair.options = replace(FAST, bandwidth=3_000_000, compression=Often.OFF)
    grow(pair.source, {"large": os.urandom(2_000_000)})
    grow(pair.source, {f"small/{n}": os.urandom(10_000) for n in range(100)})
    began = time.monotonic()
    result = pair.run()
    took = time.monotonic() - began
    pair.check_equal()
    assert took >= 0.9 * (result.counts.bytes_sent - 3_000_000 / 8) / 3_000_000 - 0.1


WORK = RateTime((0, 1, 2, 3, 4), 8 * 60, 18 * 60, "Europe/Paris", 5)
NIGHT = RateTime((4,), 22 * 60, 30 * 60, "Europe/Paris", 7)


@pytest.mark.parametrize(
    ("instant", "expected"),
    [
        (datetime(2026, 6, 1, 5, 59, tzinfo=UTC), 9),  # Monday 7:59 in Paris
        (datetime(2026, 6, 1, 6, 0, tzinfo=UTC), 5),
        (datetime(2026, 6, 1, 15, 59, tzinfo=UTC), 5),
        (datetime(2026, 6, 1, 16, 0, tzinfo=UTC), 9),
        (datetime(2026, 6, 6, 10, 0, tzinfo=UTC), 9),  # Saturday
        (datetime(2026, 6, 5, 20, 0, tzinfo=UTC), 7),  # Friday 22:00
        (datetime(2026, 6, 6, 3, 59, tzinfo=UTC), 7),  # it ends on Saturday at 6:00
        (datetime(2026, 6, 6, 4, 0, tzinfo=UTC), 9),
        (datetime(2026, 6, 5, 3, 0, tzinfo=UTC), 9),  # Friday at 5:00 belongs to Thursday
    ],
)
def test_the_timetable_says_when(instant: datetime, expected: int) -> None:
    options = RunOptions(bandwidth=9, bandwidth_times=(WORK, NIGHT))
    assert rate_of(options, lambda: instant)() == expected
