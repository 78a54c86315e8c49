"""When a silent coordinator has hung, and when it is the machine; how little the guardian needs."""

import subprocess
import sys
from pathlib import Path

from coordinator.guardian import BEAT_S, HUNG_S, Silence


def test_before_the_first_beat_and_after_leaving_nothing_is_a_hang() -> None:
    silence = Silence()
    assert not any(silence.pass_by(BEAT_S, is_busy=False) for _ in range(1000))
    silence.beat()
    silence.disarm()
    assert not any(silence.pass_by(BEAT_S, is_busy=False) for _ in range(1000))


def test_a_process_that_wants_no_processor_has_hung_soon_and_one_that_computes_later() -> None:
    for is_busy, least_s, most_s in ((False, HUNG_S, HUNG_S + 0.2), (True, 3.0, 4.5)):
        silence = Silence()
        silence.beat()
        moments = 1
        while not silence.pass_by(BEAT_S, is_busy=is_busy):
            moments += 1
        assert least_s <= moments * BEAT_S + 0.001, is_busy
        assert moments * BEAT_S <= most_s, is_busy


def test_a_machine_that_slept_blames_nobody() -> None:
    silence = Silence()
    silence.beat()
    for _ in range(3):
        assert not silence.pass_by(100_000.0, is_busy=False)
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
