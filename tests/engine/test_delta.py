"""Deltas: what is at the target already does not travel again, and what results is the source's."""

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncengine import chunks as chunking
from syncengine.chunk_index import ChunkIndex
from syncengine.model import Compare, Often, What
from tests.engine.trees import FAST, T0, Pair, grow, temporaries

MIB = 1024 * 1024


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def indexed(pair: Pair) -> Iterator[Pair]:
    """A pair whose two sides remember chunks."""
    pair.options = FAST
    pair.source_index, pair.target_index = ChunkIndex(None), ChunkIndex(None)
    yield pair
    pair.source_index.close()
    pair.target_index.close()


def edit(pair: Pair, name: str, content: bytes, when: int) -> int:
    """Give a file of the source other content, mirror it, and return what went over the wire."""
    grow(pair.source, {name: content}, when)
    result = pair.run()
    assert result.is_complete
    assert result.problems == []
    assert result.retry == []
    pair.check_equal()
    return result.counts.bytes_sent


# Chunks


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    size=st.integers(0, 3 * MIB),
    bits=st.sampled_from([14, 15]),
    room=st.sampled_from([200_000, 1 * MIB, 8 * MIB]),
    alphabet=st.sampled_from([1, 2, 256]),
)
def test_cuts_depend_on_the_content_alone(
    tmp_path: Path, size: int, bits: int, room: int, alphabet: int
) -> None:
    content = bytes(b % alphabet for b in noise(size))
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file, pytest.MonkeyPatch.context() as patch:
        expected = chunking.cut_whole(file.fileno(), size, bits)
        patch.setattr(chunking, "_BUFFER_BYTES", room)
        got = chunking.cut_whole(file.fileno(), size, bits)
    assert (got.lengths, got.ids) == (expected.lengths, expected.ids)
    assert got.size == size
    least, _, most = chunking.limits_of(bits)
    assert all(least <= length <= most for length in got.lengths[:-1])
    assert chunking.Chunks.unpacked(bits, got.packed()).digest() == got.digest()


def test_the_size_of_chunks_follows_that_of_the_file() -> None:
    for size in (0, 1, 1000, 1 << 28, 1 << 32, 1 << 36, 1 << 44):
        bits = chunking.bits_for(size)
        assert chunking.LEAST_BITS <= bits <= chunking.MOST_BITS
    assert (4 << 30) / (1 << chunking.bits_for(4 << 30)) * 20 < 900_000


# Deltas


def test_a_change_in_the_middle_costs_about_its_own_size(indexed: Pair) -> None:
    content = noise(20 * MIB)
    first = edit(indexed, "f", content, T0)
    assert first > len(content)
    changed = content[: 9 * MIB] + b"x" * 100 + content[9 * MIB + 100 :]
    assert edit(indexed, "f", changed, T0 + 1) < 150_000


def test_an_insertion_and_a_deletion_cost_about_their_own_size(indexed: Pair) -> None:
    content = noise(20 * MIB)
    edit(indexed, "f", content, T0)
    longer = content[: 5 * MIB] + noise(300_001, 2) + content[5 * MIB :]
    assert edit(indexed, "f", longer, T0 + 1) < 300_001 + 150_000
    shorter = longer[: 7 * MIB] + longer[8 * MIB + 17 :]
    assert edit(indexed, "f", shorter, T0 + 2) < 150_000


def test_it_works_without_any_memory_of_chunks(pair: Pair) -> None:
    pair.options = FAST
    content = noise(4 * MIB)
    edit(pair, "f", content, T0)
    assert edit(pair, "f", content[:MIB] + b"!" + content[MIB:], T0 + 1) < 150_000


@pytest.mark.parametrize("mode", [Often.OFF, Often.AUTO, Often.ON])
def test_the_option_says_whether(indexed: Pair, mode: Often) -> None:
    indexed.options = replace(FAST, delta=mode)
    content = noise(3 * MIB)
    edit(indexed, "f", content, T0)
    sent = edit(indexed, "f", content + b"!", T0 + 1)
    assert (sent > len(content)) is (mode is Often.OFF)


def test_a_copy_is_made_at_the_target(indexed: Pair) -> None:
    content = noise(5 * MIB)
    edit(indexed, "f", content, T0)
    assert edit(indexed, "new/copy", content, T0 + 1) < 100_000


def test_a_part_of_another_file_is_found_by_its_chunks(indexed: Pair) -> None:
    indexed.options = replace(FAST, delta=Often.ON)
    content = noise(8 * MIB)
    edit(indexed, "f", content, T0)
    assert edit(indexed, "g", noise(MIB, 7) + content[2 * MIB :], T0 + 1) < 1_400_000


def test_what_repeats_within_a_file_is_sent_once(indexed: Pair) -> None:
    indexed.options = replace(FAST, delta=Often.ON, compression=Often.OFF)
    part = noise(MIB)
    assert edit(indexed, "f", part * 8, T0) < 2 * MIB
    assert edit(indexed, "zeros", bytes(32 * MIB), T0 + 1) < 200_000


def test_many_files_and_many_directories_at_once(indexed: Pair) -> None:
    contents = {f"d{n % 7}/f{n}": noise(300_000 + 9_000 * n, n) for n in range(80)}
    grow(indexed.source, dict(contents), T0)
    assert indexed.run().is_complete
    for name, content in contents.items():
        grow(indexed.source, {name: b"begin" + content}, T0 + 1)
    grow(indexed.source, {f"small/{n}": b"s" * n for n in range(500)}, T0 + 1)
    result = indexed.run()
    indexed.check_equal()
    assert result.counts.bytes_sent < sum(map(len, contents.values())) // 4
    assert result.counts.files_copied == 580


def test_two_jobs_of_one_root_do_not_see_each_others_files(tmp_path: Path) -> None:
    """A8: whoever knows the digest of a file elsewhere below the root does not get its content."""
    content = noise(4 * MIB)
    index = ChunkIndex(None)
    root = tmp_path / "target"
    grow(root, {"a": None, "b": None})
    sent = []
    for sub in ("a", "b"):
        source = tmp_path / f"source-{sub}"
        grow(source, {"f": content}, T0)
        pair = Pair(source, root, replace(FAST, delta=Often.ON), target_index=index)
        pair.sub = sub.encode()
        sent.append(pair.run().counts.bytes_sent)
    assert (root / "b" / "f").read_bytes() == content
    assert min(sent) > len(content)
    index.close()


def test_the_index_answers_for_one_root_and_below_one_directory(tmp_path: Path) -> None:
    index = ChunkIndex(None)
    path = tmp_path / "f"
    path.write_bytes(noise(2 * MIB))
    with path.open("rb") as file:
        known = chunking.cut_whole(file.fileno(), 2 * MIB, 14)
    index.remember("r", b"a/f", path.stat(), head=b"h", chunks=known)
    ids = [known.id(number)[:16] for number in range(len(known))]
    for root, below, expected in (
        ("r", b"", [b"a/f"]),
        ("r", b"a", [b"a/f"]),
        ("r", b"a/f", []),
        ("r", b"b", []),
        ("other", b"", []),
    ):
        assert index.alike(root, below, 2 * MIB, b"h") == expected
        assert index.holders(root, below, ids) == expected
    assert index.alike("r", b"", 2 * MIB, b"another beginning") == []
    index.forget("r", b"a/f")
    assert index.holders("r", b"", ids) == []
    index.close()


# What goes wrong


def test_a_target_that_changes_meanwhile_is_planned_anew(indexed: Pair) -> None:
    content = noise(20 * MIB)
    edit(indexed, "f", content, T0)
    grow(indexed.source, {"f": content[: 3 * MIB] + b"new" + content[3 * MIB :]}, T0 + 1)
    target = indexed.target / "f"

    def tamper(number: int) -> None:
        if number == 1:
            with target.open("r+b") as file:
                file.seek(10 * MIB)
                file.write(b"tampered")

    result = indexed.run(between=tamper)
    assert result.retry == [b"f"]
    assert target.read_bytes()[10 * MIB :].startswith(b"tampered")
    assert temporaries(indexed.target) == []
    assert indexed.run().is_complete
    indexed.check_equal()


def test_a_source_that_changes_meanwhile_is_sent_as_it_is_then(indexed: Pair) -> None:
    content = noise(20 * MIB)
    edit(indexed, "f", content, T0)
    newer = content[: 3 * MIB] + b"new" + content[3 * MIB :]
    grow(indexed.source, {"f": newer}, T0 + 1)

    def tamper(number: int) -> None:
        if number == 1:
            with (indexed.source / "f").open("ab") as file:
                file.write(b"and newer")

    result = indexed.run(between=tamper)
    assert result.problems == []
    assert (indexed.target / "f").read_bytes() == newer + b"and newer"
    indexed.check_equal()


def test_a_wrong_memory_is_found_out_and_forgotten(indexed: Pair) -> None:
    """The index is believed for the very version it names; the digest of the list judges it."""
    content = noise(4 * MIB)
    edit(indexed, "f", content, T0)
    edit(indexed, "f", content + b"1", T0 + 1)
    assert indexed.target_index is not None
    status = (indexed.target / "f").stat()
    bits = chunking.bits_for(4 * MIB + 1)
    known = indexed.target_index.chunks("t", b"f", status, bits)
    assert known is not None
    known.ids[20] ^= 1  # behind what travels: found as before, but another chunk
    indexed.target_index.remember("t", b"f", status, chunks=known)
    grow(indexed.source, {"f": content + b"12"}, T0 + 2)
    result = indexed.run()
    assert result.retry == [b"f"]
    assert (indexed.target / "f").read_bytes() == content + b"1"
    assert indexed.run().is_complete
    indexed.check_equal()


def test_checksum_jobs_believe_no_memory(indexed: Pair) -> None:
    indexed.options = replace(FAST, compare=Compare.CHECKSUM)
    indexed.digests = True
    content = noise(4 * MIB)
    edit(indexed, "f", content, T0)
    edit(indexed, "f", content + b"1", T0 + 1)
    assert indexed.target_index is not None
    status = (indexed.target / "f").stat()
    known = indexed.target_index.chunks("t", b"f", status, chunking.bits_for(4 * MIB + 1))
    assert known is not None
    known.ids[20] ^= 1
    indexed.target_index.remember("t", b"f", status, chunks=known)
    assert edit(indexed, "f", content + b"12", T0 + 2) < 150_000


def test_a_vanished_source_is_no_error(indexed: Pair) -> None:
    content = noise(2 * MIB)
    edit(indexed, "f", content, T0)
    grow(indexed.source, {"f": content + b"more"}, T0 + 1)

    def vanish(number: int) -> None:
        if number == 0:
            (indexed.source / "f").unlink()

    result = indexed.run(between=vanish)
    assert result.is_complete
    assert [p.what for p in result.problems if p.what is not What.SKIPPED] == []


def test_a_damaged_index_costs_time_and_nothing_else(tmp_path: Path, indexed: Pair) -> None:
    path = tmp_path / "index.db"
    path.write_bytes(noise(100_000))
    indexed.target_index = index = ChunkIndex(path)
    content = noise(2 * MIB)
    edit(indexed, "f", content, T0)
    edit(indexed, "f", content + b"1", T0 + 1)
    index.close()
    index = indexed.target_index = ChunkIndex(path)
    status = (indexed.target / "f").stat()
    assert index.chunks("t", b"f", status, chunking.bits_for(2 * MIB + 1)) is not None
    index.close()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), compression=st.sampled_from([Often.OFF, Often.ON]))
def test_random_edits_arrive(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, compression: Often
) -> None:
    folder = tmp_path_factory.mktemp("edits")
    content = noise(data.draw(st.integers(300_000, 2 * MIB)))
    pair = Pair(folder / "s", folder / "t", replace(FAST, compression=compression))
    pair.source_index, pair.target_index = ChunkIndex(None), ChunkIndex(None)
    grow(folder / "t", {})
    edit(pair, "f", content, T0)
    for turn in range(2):
        new, changes = b"", data.draw(st.integers(0, 3))
        for _ in range(changes):
            at = data.draw(st.integers(0, len(content)))
            gone = data.draw(st.integers(0, 200_000))
            put = noise(data.draw(st.integers(0, 200_000)), data.draw(st.integers(0, 5)))
            content = content[:at] + put + content[at + gone :]
            new += put
        if len(content) > 256 * 1024:
            sent = edit(pair, "f", content, T0 + 1 + turn)
            # Two chunks at the rim of every change, and the list.
            assert sent < len(new) + (changes + 1) * 2 * 65_536 + len(content) // 100 + 20_000
    pair.source_index.close()
    pair.target_index.close()


def test_memory_does_not_grow_with_the_file(indexed: Pair) -> None:
    import tracemalloc

    content = noise(96 * MIB)
    edit(indexed, "f", content, T0)
    with (indexed.source / "f").open("r+b") as file:
        file.seek(50 * MIB)
        file.write(b"changed")
    os.utime(indexed.source / "f", ns=(T0 + 1, T0 + 1))
    del content
    tracemalloc.start()
    assert indexed.run().is_complete
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * MIB
