"""When etcd counts as slow: by what most writes of late took, not by a single one."""

import pytest

from coordinator.write_times import WriteTimes


def times_of(*took_s: float) -> WriteTimes:
    times = WriteTimes()
    for number, one in enumerate(took_s):
        times.note(float(number), one)
    return times


@pytest.mark.parametrize(
    ("took_s", "said"),
    [
        ((), ""),
        ((3.0,) * 4, ""),
        ((0.01,) * 9, ""),
        ((0.3,) * 5, "takes 300 ms for a write"),
        ((0.01, 0.01, 9.0, 0.01, 9.0), ""),
        ((9.0,) * 9 + (0.01,) * 5, ""),
        ((0.01,) * 9 + (0.5,) * 5, "takes 500 ms for a write"),
    ],
)
def test_most_of_the_last_writes_decide(took_s: tuple[float, ...], said: str) -> None:
    slow = times_of(*took_s).slow(20.0)
    assert said in slow
    assert bool(said) == ("a disk of its own" in slow)


def test_what_was_long_ago_says_nothing_of_now() -> None:
    times = times_of(*(0.5,) * 9)
    assert times.slow(60.0)
    assert not times.slow(65.0)
