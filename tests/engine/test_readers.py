"""I1: whoever reads at a target while it is updated sees one version or another, never a mix."""

import threading
from pathlib import Path

from tests.engine.trees import FAST, T0, Pair, Spec, grow

NAMES = ("d/small", "d/large")


def version(number: int) -> Spec:
    return {
        "d/small": b"%04d" % number * 2_000,
        "d/large": b"%04d" % number * 100_000,
        f"new{number}/one": b"%04d" % number * 2_000,
        f"new{number}/two": b"%04d" % number * 100_000,
    }


def test_i1_a_reader_never_sees_a_mix(pair: Pair) -> None:
    pair.options = FAST
    grow(pair.source, version(0))
    pair.run()
    stop = threading.Event()
    mixed: list[str] = []
    seen: set[bytes] = set()
    missing: list[str] = []

    def look(path: Path, length: int) -> None:
        content = path.read_bytes()
        if len(content) != length or len({content[n : n + 4] for n in range(0, length, 4)}) != 1:
            mixed.append(f"{path.name}: {len(content)} bytes")
        seen.add(content[:4])

    def read() -> None:
        while not stop.is_set():
            for name, length in zip(NAMES, (8_000, 400_000), strict=True):
                try:
                    look(pair.target / name, length)
                except FileNotFoundError:
                    missing.append(name)
            for path in pair.target.glob("new*"):
                # A directory is shown with all that came with it.
                look(path / "one", 8_000)
                look(path / "two", 400_000)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 25):
            grow(pair.source, version(number), T0 + number)
            assert pair.run(frame_bytes=100_000).problems == []
    finally:
        stop.set()
        reader.join()
    assert mixed == []
    assert missing == [], "a path that is updated is never without a version"
    assert len(seen) > 2, "the reader saw nothing happen"


def test_i1_who_has_a_file_open_reads_on_in_the_version_that_he_opened(pair: Pair) -> None:
    """Nothing is written, or cut, where it lies, for however short a moment."""
    pair.options = FAST
    grow(pair.source, version(0))
    pair.run()
    with (pair.target / NAMES[0]).open("rb") as small, (pair.target / NAMES[1]).open("rb") as large:
        grow(pair.source, version(1), T0 + 1)
        assert pair.run().problems == []
        assert small.read() == b"0000" * 2_000
        assert large.read() == b"0000" * 100_000
    assert (pair.target / NAMES[0]).read_bytes() == b"0001" * 2_000
