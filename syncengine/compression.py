"""Compression of whole frames with zstd: when it pays, and unpacking what a peer claims.

A compressed frame is a byte that begins no MessagePack, the size of what is inside, and one zstd
frame. Whether it pays is a question of speeds: a link that is faster than the compressor is never
made slower by it. Nothing here reads a clock that was not given.
"""

import struct
import time
from collections.abc import Callable, Iterable, Iterator

import zstandard

from syncengine.errors import MalformedFrame
from syncengine.model import Often

_MARK = 0xC1
"""The one byte that MessagePack never uses."""
_HEADER = struct.Struct(">BI")
_LEAST_BYTES = 512
_MAX_WINDOW_BYTES = 8 * 1024 * 1024

_QUICK_LEVEL = 1
_LEVEL = 3
"""Of `compression: on`, where size counts more than time."""

_SAMPLE_BYTES = 4096
_SAMPLES = 3
_WORTH = 0.9
"""The share of the time, or of the size, that must be left for the trouble to be worth it."""
_WEIGHT = 0.3
"""How much the newest measurement counts."""
_FIRST_GUESS_S = 1 / 700e6
"""Seconds to compress a byte, before it was measured."""


class Packer:
    """Compresses the frames of one push where that pays; for one thread.

    `auto` compares the time that a frame takes to be made, to be compressed and to be taken by the
    other side: `taken` tells the last of these.
    """

    def __init__(self, mode: Often, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._mode = mode
        self._clock = clock
        level = _LEVEL if mode is Often.ON else _QUICK_LEVEL
        self._zstd = zstandard.ZstdCompressor(level=level, write_checksum=False)
        self._compress_s = _FIRST_GUESS_S
        self._make_s = 0.0
        self._link_s = 0.0
        """Seconds that the other side takes for a byte on the wire; 0 when it never made us wait."""
        self._began = clock()
        self._packed_at = self._began
        self._compressing_s = 0.0
        self._raw_bytes = 0
        self._wire_bytes = 0

    def pack(self, frame: bytes) -> bytes:
        """Return what is to be sent for a frame: the frame itself, or a smaller one."""
        now = self._clock()
        self._raw_bytes = len(frame)
        self._compressing_s = 0.0
        if self._raw_bytes:
            made_s = (now - self._began) / self._raw_bytes
            self._make_s += _WEIGHT * (made_s - self._make_s) if self._make_s else made_s
        packed = self._compressed(frame) if self._raw_bytes >= _LEAST_BYTES else frame
        self._wire_bytes = len(packed)
        self._packed_at = self._clock()
        return packed

    def taken(self) -> None:
        """Note that the other side has taken the frame, or has put it behind others."""
        now = self._clock()
        waited_s, whole_s = now - self._packed_at, now - self._began
        if self._wire_bytes:
            link_s = whole_s / self._wire_bytes
            if waited_s > 0.1 * whole_s:
                self._link_s += _WEIGHT * (link_s - self._link_s) if self._link_s else link_s
            else:
                # It was faster than we are; how much faster, nobody knows.
                self._link_s = min(self._link_s, link_s)
        self._began = now

    def _compressed(self, frame: bytes) -> bytes:
        if self._mode is Often.OFF or (self._mode is not Often.ON and not self._pays(frame)):
            return frame
        before = self._clock()
        packed = _packed(self._zstd, frame)
        spent_s = (self._clock() - before) / len(frame)
        self._compress_s += _WEIGHT * (spent_s - self._compress_s)
        return packed

    def _pays(self, frame: bytes) -> bool:
        limit_s = _WORTH * max(self._make_s, self._link_s)
        if self._make_s + self._compress_s >= limit_s:
            return False  # not even if nothing were left of it
        ratio = self._sampled_ratio(frame)
        return ratio < _WORTH and ratio * self._link_s < limit_s

    def _sampled_ratio(self, frame: bytes) -> float:
        """Return about how much of the frame would be left, from a few pieces of it."""
        if len(frame) <= _SAMPLES * _SAMPLE_BYTES:
            sample = frame
        else:
            step = (len(frame) - _SAMPLE_BYTES) // (_SAMPLES - 1)
            pieces = (frame[i * step : i * step + _SAMPLE_BYTES] for i in range(_SAMPLES))
            sample = b"".join(pieces)
        return len(self._zstd.compress(sample)) / len(sample)


def packed_listing(frames: Iterable[bytes], mode: Often) -> Iterator[bytes]:
    """Compress the frames of a listing, unless the job says `off`.

    Without asking how fast the link is: a quarter is left of names, times and sizes, and to compress
    them takes no longer than to encrypt and copy the rest. No frame may begin with 0xC1; those of
    MessagePack do not.
    """
    zstd = zstandard.ZstdCompressor(level=_QUICK_LEVEL, write_checksum=False)
    for frame in frames:
        yield frame if mode is Often.OFF or len(frame) < _LEAST_BYTES else _packed(zstd, frame)


def _packed(zstd: zstandard.ZstdCompressor, frame: bytes) -> bytes:
    """Return the frame compressed, or as it is where that leaves too much of it."""
    inner = zstd.compress(frame)
    if len(inner) + _HEADER.size > _WORTH * len(frame):
        return frame
    return _HEADER.pack(_MARK, len(frame)) + inner


def is_packed(frame: bytes | memoryview) -> bool:
    """Say whether a frame claims to be compressed."""
    return len(frame) > 0 and frame[0] == _MARK


def unpack(frame: bytes | memoryview, *, limit: int) -> bytes:
    """Return what a compressed frame holds; raises MalformedFrame.

    At most `limit` bytes are ever allocated for it, whatever it claims (A13).
    """
    try:
        _, size = _HEADER.unpack_from(frame)
        inner = memoryview(frame)[_HEADER.size :]
        # The library allocates what the inner header says, so that is looked at first.
        says = zstandard.get_frame_parameters(inner)
        if size > limit or says.content_size != size or says.window_size > _MAX_WINDOW_BYTES:
            raise MalformedFrame(f"a compressed frame of {size} bytes")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        return decompressor.decompress(inner, max_output_size=size, allow_extra_data=False)
    except (zstandard.ZstdError, struct.error) as error:
        raise MalformedFrame(f"no compressed frame: {error}") from error
