"""Frames that are filled in place: what is read is what every other frame would have said."""

import os
from pathlib import Path

import msgspec
import pytest

from syncengine import frames as wire
from syncengine.data_frames import LEAST_BYTES, read_frame
from tests.engine.trees import Pair, grow

PART = 128 * 1024
"""A frame whose content a sender reads at once, the header included."""


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def test_a_frame_read_in_place_is_the_frame_of_a_data_record(tmp_path: Path) -> None:
    content = os.urandom(3 * LEAST_BYTES)
    (tmp_path / "file").write_bytes(content)
    fd = _opened(tmp_path / "file")
    try:
        for size, at in ((LEAST_BYTES, 0), (LEAST_BYTES + 1, LEAST_BYTES)):
            frame, view = read_frame(fd, size)
            wanted = content[at : at + size]
            assert frame == msgspec.msgpack.encode([wire.Data(memoryview(wanted))])
            assert view == wanted
            assert wire.FrameDecoder().decode(frame) == [wire.Data(memoryview(wanted))]
    finally:
        os.close(fd)


def test_a_file_that_ends_early_gives_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * (LEAST_BYTES + 5))
    fd = _opened(tmp_path / "file")
    try:
        assert read_frame(fd, LEAST_BYTES + 6)[1] == b"x" * (LEAST_BYTES + 5)
        assert not read_frame(fd, LEAST_BYTES)[1]
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [PART - 9, PART - 8, PART - 7, 2 * PART - 16, 5 * PART + 1])
def test_files_about_as_long_as_their_parts_arrive(pair: Pair, size: int) -> None:
    grow(pair.source, {"a": os.urandom(200), "file": os.urandom(size), "z": os.urandom(140_000)})
    result = pair.run(frame_bytes=PART)
    assert result.problems == []
    assert result.counts.files_copied == 3
    pair.check_equal()


def test_a_file_cut_off_between_its_parts_is_sent_again(pair: Pair) -> None:
    path = pair.source / "file"
    path.write_bytes(os.urandom(6 * PART))
    cuts = iter([3 * PART + 77])

    def between(number: int) -> None:
        if number == 2:
            os.truncate(path, next(cuts))

    result = pair.run(between=between, frame_bytes=PART)
    assert result.problems == []
    assert next(cuts, None) is None
    pair.check_equal()
