"""Tests that promise times are alone, others are not; what shares a file shares a process."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import scope_of
from tests.turns import Turns

_SOON_S = 10.0


@pytest.fixture
def pair() -> Iterator[tuple[Turns, Turns]]:
    """The turns of two processes of one run."""
    run = uuid.uuid4().hex
    with ExitStack() as stack:
        both = Turns(run), Turns(run)
        for one in both:
            stack.callback(one.forget)
            stack.callback(one.close)
        yield both


def _take(turns: Turns, *, alone: bool) -> tuple[threading.Thread, threading.Event]:
    """Take one turn and end it at once, in a thread; the event tells when it had its turn."""
    had = threading.Event()

    def run() -> None:
        with turns.turn(alone=alone, keep=False):
            had.set()

    thread = threading.Thread(target=run)
    thread.start()
    return thread, had


@pytest.mark.parametrize("alone", [False, True])
def test_nobody_has_a_turn_beside_who_is_alone(pair: tuple[Turns, Turns], *, alone: bool) -> None:
    one, other = pair
    with one.turn(alone=True, keep=True):
        thread, had = _take(other, alone=alone)
    with one.turn(alone=True, keep=False):
        assert not had.wait(0.1), "the turn was kept"
    assert had.wait(_SOON_S)
    thread.join()


def test_who_is_alone_waits_for_the_others_and_they_do_not_wait_for_each_other(
    pair: tuple[Turns, Turns],
) -> None:
    one, other = pair
    with one.turn(alone=False, keep=False):
        thread, had = _take(other, alone=False)
        assert had.wait(_SOON_S)
        thread.join()
        thread, had = _take(other, alone=True)
        assert not had.wait(0.1)
    assert had.wait(_SOON_S)
    thread.join()


def test_what_shares_a_file_or_watches_shares_a_process() -> None:
    assert scope_of("tests/a/test_b.py::test_c[x::y]") == "tests/a/test_b.py"
    assert scope_of("tests/a/test_b.py::TestC::test_d") == "tests/a/test_b.py"
    assert scope_of("tests/worker/watching/test_b.py::test_c") == "watching"
