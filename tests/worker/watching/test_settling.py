"""When a path is told: after its burst, or in the midst of one that does not end."""

from worker.watching import settling
from worker.watching.settling import Settled, Settling


def test_a_path_settles_after_its_last_event() -> None:
    calm = Settling(0.05)
    calm.touch(b"a", 1.00, 100.0, is_end=False)
    calm.touch(b"a", 1.04, 100.4, is_end=False)
    calm.touch(b"b", 1.04, 100.4, is_end=False)
    assert calm.due(1.05) == []
    assert b"a" in calm
    assert calm.due(1.091) == [Settled(b"a", 100.0, False), Settled(b"b", 100.4, False)]
    assert calm.next_due() is None
    assert len(calm) == 0


def test_an_end_settles_sooner_and_a_new_write_later_again() -> None:
    calm = Settling(0.05)
    calm.touch(b"a", 1.0, 100.0, is_end=False)
    calm.touch(b"a", 1.001, 100.0, is_end=True)
    assert calm.next_due() == 1.001 + 0.01
    calm.touch(b"a", 1.005, 100.0, is_end=False)
    assert calm.due(1.02) == []
    assert calm.due(1.056) == [Settled(b"a", 100.0, False)]


def test_metadata_ends_nothing_that_is_being_written() -> None:
    calm = Settling(0.05)
    calm.touch(b"open", 1.0, 100.0, is_end=False)
    calm.touch(b"open", 1.0, 100.0, is_end=None)
    calm.touch(b"alone", 1.0, 100.0, is_end=None)
    assert calm.due(1.011) == [Settled(b"alone", 100.0, False)]
    assert calm.due(1.051) == [Settled(b"open", 100.0, False)]


def test_what_never_rests_is_told_at_growing_distances() -> None:
    calm = Settling(0.05)
    told = []
    for step in range(40_000):
        now = step / 100
        calm.touch(b"log", now, now, is_end=False)
        told += [now for _ in calm.due(now)]
    waits = [later - before for before, later in zip([0.0, *told], told, strict=False)]
    assert [round(wait) for wait in waits[:4]] == [10, 20, 40, 80]
    assert max(waits) <= settling.MOST_CAP_S + 1


def test_a_rest_brings_the_first_cap_back() -> None:
    calm = Settling(0.05)
    for step in range(1_500):
        calm.touch(b"log", step / 100, 0.0, is_end=False)
        calm.due(step / 100)
    assert calm.due(16.0), "it rests"
    for step in range(2_000, 3_100):
        calm.touch(b"log", step / 100, 0.0, is_end=False)
        if calm.due(step / 100):
            break
    assert step / 100 == 30.0


def test_deep_stays_deep_and_flush_takes_all() -> None:
    calm = Settling(0.05)
    calm.touch(b"d", 1.0, 9.0, is_end=True, is_deep=True)
    calm.touch(b"d", 1.0, 9.5, is_end=True)
    calm.touch(b"e", 1.0, 9.0, is_end=False)
    assert calm.flush() == [Settled(b"d", 9.0, True), Settled(b"e", 9.0, False)]
    assert calm.due(99.0) == []
