"""Compressed frames: they come back whole, they never cost more than they save, and no bomb goes off."""

import os
import resource
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from syncengine.compression import Packer, is_packed, packed_listing, unpack
from syncengine.errors import MalformedFrame
from syncengine.frames import MAX_FRAME_BYTES, FrameDecoder
from syncengine.listing import decode_entries, encode_entries
from syncengine.model import Entry, Kind, Often
from tests.engine.trees import FAST, Pair, grow

LIMIT = 1 << 20
TEXT = b"never twice the same line, but always the same words\n" * 4_000


class Hands:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def push(hands: Hands, frame: bytes, *, make_s: float, link: float, times: int = 20) -> list[bytes]:
    """Send a frame over and over, over a link of so many bytes per second."""
    packer = Packer(Often.AUTO, clock=hands)
    sent = []
    for _ in range(times):
        hands.now += make_s
        packed = packer.pack(frame)
        hands.now += max(0.0, len(packed) / link - make_s)
        packer.taken()
        sent.append(packed)
    return sent


@given(st.binary(max_size=20_000), st.sampled_from([Often.ON, Often.OFF, Often.AUTO]))
def test_a_frame_comes_back_as_it_was(content: bytes, mode: Often) -> None:
    frame = b"\x91" + content * 3
    packed = Packer(mode).pack(frame)
    assert len(packed) <= len(frame)
    assert (unpack(packed, limit=LIMIT) if is_packed(packed) else packed) == frame


def test_a_slow_link_gets_compressed_frames_and_a_fast_one_does_not() -> None:
    frame = b"\x91" + TEXT
    slow = push(Hands(), frame, make_s=0.0003, link=10e6)
    assert sum(map(is_packed, slow)) >= len(slow) - 2
    fast = push(Hands(), frame, make_s=0.0003, link=5e9)
    assert not any(map(is_packed, fast))


def test_what_does_not_shrink_is_sent_as_it_is_even_on_a_slow_link() -> None:
    frame = b"\x91" + os.urandom(len(TEXT))
    assert push(Hands(), frame, make_s=0.0003, link=10e6) == [frame] * 20
    assert Packer(Often.ON).pack(frame) == frame


def test_off_is_off_and_on_is_on() -> None:
    frame = b"\x91" + TEXT
    assert Packer(Often.OFF).pack(frame) == frame
    assert len(Packer(Often.ON).pack(frame)) < len(frame) // 100


def _packed(size: int, inner: bytes) -> bytes:
    return struct.pack(">BI", 0xC1, size) + inner


def _bomb() -> bytes:
    inner = zstandard.ZstdCompressor(level=3).compress(bytes(256 << 20))
    return _packed(1 << 20, inner)


def _unsized() -> bytes:
    compressor = zstandard.ZstdCompressor(level=3, write_content_size=False)
    return _packed(1 << 20, compressor.compress(bytes(256 << 20)))


def _wide() -> bytes:
    """One frame whose header asks for a window of 128 MiB."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return _packed(5, stream.compress(b"small") + stream.flush())


@pytest.mark.parametrize(
    "make",
    [
        _bomb,
        _unsized,
        _wide,
        lambda: _packed(MAX_FRAME_BYTES + 1, zstandard.compress(bytes(MAX_FRAME_BYTES + 1))),
        lambda: _packed(4, zstandard.compress(b"five5")),
        lambda: _packed(6, zstandard.compress(b"five5")),
        lambda: _packed(5, zstandard.compress(b"five5") + b"more"),
        lambda: _packed(5, zstandard.compress(b"five5")[:-2]),
        lambda: _packed(5, b"\x00" * 40),
        lambda: b"\xc1",
        lambda: b"\xc1\x00\x00",
    ],
)
def test_a13_no_bomb_goes_off(make: Callable[[], bytes]) -> None:
    bomb = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MalformedFrame):
        FrameDecoder().decode(bomb)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024, f"{grown} KiB more"


@pytest.mark.parametrize("mode", [Often.ON, Often.OFF, Often.AUTO])
def test_a_tree_arrives_whatever_the_mode(pair: Pair, mode: Often) -> None:
    pair.options = replace(FAST, compression=mode)
    grow(pair.source, {"text": TEXT * 10, "noise": os.urandom(600_000), "small": b"s" * 900})
    size = sum(path.stat().st_size for path in pair.source.iterdir())
    result = pair.run()
    pair.check_equal()
    assert result.counts.bytes_copied == size
    if mode is Often.ON:
        assert result.counts.bytes_sent < 650_000
    elif mode is Often.OFF:
        assert result.counts.bytes_sent > size


def test_a_listing_shrinks_and_comes_back() -> None:
    top = Entry(b"", Kind.DIRECTORY, 0o755, 0, 0, seen=1)
    files = [Entry(b"file-%06d" % n, Kind.FILE, 0o644, 5, n, seen=n + 1) for n in range(20_000)]
    frames = list(encode_entries([top, *files]))
    for mode, shrinks in ((Often.AUTO, True), (Often.ON, True), (Often.OFF, False)):
        sent = list(packed_listing(frames, mode))
        assert all(map(is_packed, sent)) == shrinks
        assert (sum(map(len, sent)) < sum(map(len, frames)) / 3) == shrinks
        back = [unpack(one, limit=LIMIT) if is_packed(one) else one for one in sent]
        assert list(decode_entries(back)) == [top, *files]
