"""Sparse files stay sparse, whichever way they travel; their holes are zeros to every digest."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from syncengine import frames as wire
from syncengine.errors import MalformedFrame
from syncengine.holes import HOLE_BYTES
from syncengine.model import Often
from tests.engine.test_hostile_sender import Attack, seen
from tests.engine.trees import T0, Pair, grow

MIB = 1024 * 1024


def make(path: Path, size: int, data: dict[int, bytes]) -> None:
    with path.open("wb") as file:
        for offset, content in data.items():
            file.seek(offset)
            file.write(content)
        file.truncate(size)
    os.utime(path, ns=(T0, T0))


def used(path: Path) -> int:
    return path.stat().st_blocks * 512


LAYOUTS: dict[str, tuple[int, dict[int, bytes]]] = {
    "hole at both ends": (40 * MIB, {10 * MIB: b"x" * MIB}),
    "no data": (9 * MIB, {}),
    "data at both ends": (30 * MIB, {0: b"a" * 5000, 30 * MIB - 10: b"z" * 10}),
    "odd places": (7 * MIB + 13, {4097 * 3: b"q" * 70_000, 5 * MIB + 1: b"r"}),
    "a hole longer than a record": (HOLE_BYTES + 5 * MIB, {HOLE_BYTES + 4 * MIB: b"end"}),
}


@pytest.mark.parametrize("delta", list(Often))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_holes_arrive_as_holes(pair: Pair, layout: str, delta: Often) -> None:
    pair.options = replace(pair.options, delta=delta)
    size, data = LAYOUTS[layout]
    make(pair.source / "s", size, data)
    result = pair.run()
    assert result.problems == []
    assert result.counts.bytes_copied == size
    assert result.counts.bytes_sent < 3 * MIB
    assert used(pair.target / "s") <= used(pair.source / "s") + 128 * 1024
    pair.check_equal()


@pytest.mark.parametrize("delta", [Often.OFF, Often.ON, Often.AUTO])
def test_a_new_version_of_a_sparse_file_is_sparse_too(pair: Pair, delta: Often) -> None:
    pair.options = replace(pair.options, delta=delta)
    content = os.urandom(3 * MIB)
    make(pair.source / "s", 60 * MIB, {10 * MIB: content})
    pair.run()
    make(pair.source / "s", 60 * MIB, {10 * MIB: content, 50 * MIB: b"more"})
    os.utime(pair.source / "s", ns=(T0, T0 + 1))
    assert pair.run().counts.files_copied == 1
    assert used(pair.target / "s") < 5 * MIB
    pair.check_equal()


def test_the_edge_of_a_hole_may_move_while_it_is_read(pair: Pair) -> None:
    make(pair.source / "s", 20 * MIB, {5 * MIB: b"x" * MIB})
    pair.run()

    def edit() -> None:
        make(pair.source / "s", 30 * MIB, {25 * MIB: b"y"})

    make(pair.source / "s", 20 * MIB, {6 * MIB: b"x" * MIB})
    os.utime(pair.source / "s", ns=(T0, T0 + 1))
    assert pair.run(before_push=edit).problems == []
    pair.run()
    pair.check_equal()


@pytest.mark.parametrize(
    "records",
    [
        (wire.Hole(5),),
        (wire.OpenFile(b"x", 0, 5), wire.Hole(6)),
        (wire.OpenFile(b"x", 0, 5), wire.Hole(0)),
        (wire.OpenFile(b"x", 0, 5), wire.Hole(-5)),
        (wire.OpenFile(b"x", 0, 1 << 50), wire.Hole(1 << 49)),
        (wire.OpenFile(b"x", 0, 5), wire.Hole(4), wire.CloseFile(0, 0, b"")),
        (wire.OpenFile(b"x", 0, 5), wire.Hole(5), wire.CloseFile(0, 0, blake3(b"abcde").digest())),
    ],
)
def test_i14_a14_lies_about_holes_end_the_push(
    tmp_path: Path, records: tuple[wire.Record, ...]
) -> None:
    grow(tmp_path / "root", {"a": b"x"})
    assert seen(tmp_path / "root/a")
    with Attack(tmp_path / "root") as attack, pytest.raises(MalformedFrame):
        attack.feed(wire.Begin(2), wire.Enter(b""), *records)
    assert sorted(os.listdir(tmp_path / "root")) == ["a"]
