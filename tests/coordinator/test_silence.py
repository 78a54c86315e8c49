"""When a silent coordinator has hung, and when it is the machine; how little the guardian needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.guardian import BEAT_S, HUNG_S, Silence


def is_hung_after(silence: Silence, moment_s: float = BEAT_S, *, computed: float = 0.0) -> bool:
    """Let a moment pass in which the child waits for something, or computes some share of it."""
    return silence.pass_by(moment_s, computed_s=computed * moment_s, is_ready=computed > 0.0)


def test_before_the_first_beat_and_after_leaving_nothing_is_a_hang() -> None:
    silence = Silence()
    assert not any(is_hung_after(silence) for _ in range(1000))
    silence.beat()
    silence.disarm()
    assert not any(is_hung_after(silence) for _ in range(1000))


@pytest.mark.parametrize(
    ("computed", "least_s", "most_s"),
    [(0.0, HUNG_S, HUNG_S + 0.2), (1.0, 3.0, 4.5), (0.25, 12.0, 18.0)],
)
def test_what_wants_no_processor_has_hung_soon_what_computes_later(
    computed: float, least_s: float, most_s: float
) -> None:
    silence = Silence()
    silence.beat()
    moments = 1
    while not is_hung_after(silence, computed=computed):
        moments += 1
    assert least_s <= moments * BEAT_S + 0.001
    assert moments * BEAT_S <= most_s


def test_who_never_gets_a_turn_has_not_hung() -> None:
    silence = Silence()
    silence.beat()
    assert not any(silence.pass_by(BEAT_S, computed_s=0.0, is_ready=True) for _ in range(1000))


def test_a_loop_that_another_thread_keeps_from_turning_computes() -> None:
    silence = Silence()
    silence.beat()
    for _ in range(20):
        assert not silence.pass_by(BEAT_S, computed_s=BEAT_S, is_ready=False)


def test_a_machine_that_slept_blames_nobody() -> None:
    silence = Silence()
    silence.beat()
    for _ in range(3):
        assert not is_hung_after(silence, 100_000.0)
    silence.beat()
    assert silence.counted_s == 0.0


def test_it_imports_almost_nothing() -> None:
    """Each of these would cost more than the guardian's own code."""
    heavy = ("asyncio", "dataclasses", "grpc", "inspect", "pathlib", "ssl", "structlog", "typing")
    code = f"import sys, cli.main; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=Path(__file__).parents[2],
        env={},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert said.stdout == "[]\n"
