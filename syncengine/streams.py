"""The content of large files as a stream of records and frames, digested on the way.

Knows one open file at a time, with or without holes, alone or read for several pushes at once.
"""

import os
from collections.abc import Generator

from blake3 import blake3

from syncengine import frames as wire
from syncengine.data_frames import read_frame
from syncengine.holes import HOLE_BYTES, digest_zeros, is_sparse, next_data
from syncengine.outcome import Outcome
from syncengine.outgoing import Outgoing
from syncengine.scan import fingerprint
from syncengine.shared_reads import FileShorter, SharedReads

_KEPT_STEP = 1024 * 1024
_LEAST_SHARED = 512


class Streams:
    """Reads files into frames; for one thread, blocks on the disk. Raises OSError, PushAborted."""

    def __init__(self, outgoing: Outgoing, outcome: Outcome, reads: SharedReads) -> None:
        self._out = outgoing
        self._outcome = outcome
        self._reads = reads

    def content(
        self, path: bytes, fd: int, status: os.stat_result, have: int
    ) -> Generator[bytes, None, bytes]:
        """Send a file from `have` on; returns the digest of all of it, or nothing if it is shorter."""
        sparse = is_sparse(status)
        if not have and not sparse and self._reads.is_shared:
            return (yield from self._shared(path, fd, status))
        hasher = blake3()
        left = status.st_size - self._digest_kept(fd, have, hasher)
        parts = self._sparse if sparse else self._plain
        left = yield from parts(fd, left, hasher)
        return hasher.digest() if not left else b""

    def _digest_kept(self, fd: int, have: int, hasher: blake3) -> int:
        """Digest the beginning that the receiver has, and read on behind it."""
        left = have
        while left > 0:
            self._outcome.check()
            data = os.read(fd, min(left, _KEPT_STEP))
            if not data:
                break
            hasher.update(data)
            left -= len(data)
        return have

    def _plain(self, fd: int, left: int, hasher: blake3) -> Generator[bytes, None, int]:
        """Send up to `left` bytes as Data records; returns how many the file lacked of them."""
        out = self._out
        if left >= out.part_bytes and out.has_records:
            yield out.take()
        while left >= out.part_bytes:
            frame, content = read_frame(fd, out.part_bytes)
            if len(content) < out.part_bytes or self._outcome.is_full:
                return left
            hasher.update(content)
            left -= len(content)
            yield frame
        while left > 0:
            if not out.room:
                yield out.take()
            data = os.read(fd, min(left, out.room))
            if not data:
                break
            hasher.update(data)
            left -= len(data)
            out.add(wire.Data(memoryview(data)), len(data))
            if out.is_full:
                yield out.take()
                if self._outcome.is_full:
                    break
        return left

    def _sparse(self, fd: int, left: int, hasher: blake3) -> Generator[bytes, None, int]:
        """Do the same for a file with holes, which go without their content."""
        out = self._out
        offset = os.lseek(fd, 0, os.SEEK_CUR)
        end = offset + left
        while offset < end and not self._outcome.is_full:
            self._outcome.check()
            begins, ends = next_data(fd, offset, end)
            if begins > offset:
                begins = min(begins, offset + HOLE_BYTES)
                digest_zeros(hasher, begins - offset)
                out.add(wire.Hole(begins - offset))
                offset = begins
                if out.is_full:
                    yield out.take()
                continue
            os.lseek(fd, offset, os.SEEK_SET)
            lacking = yield from self._plain(fd, ends - offset, hasher)
            offset = ends - lacking
            if lacking:
                break
        return end - offset

    def _shared(
        self, path: bytes, fd: int, status: os.stat_result
    ) -> Generator[bytes, None, bytes]:
        """Send a file that other pushes read too; returns its digest, or nothing if it is shorter."""
        out = self._out
        size, part = status.st_size, out.part_bytes
        mark = fingerprint(status)
        stream = self._reads.stream(path, mark, fd, size, part)
        try:
            if out.has_records:
                yield out.take()
            for number in range(size // part):
                frame = stream.frame(number)
                if frame is None:
                    # Too late: the others are far ahead, and have digested it.
                    frame, content = read_frame(fd, part, number * part)
                    if len(content) < part:
                        return b""
                if self._outcome.is_full:
                    return b""
                yield frame
            tail = memoryview(stream.tail())
            while tail:
                room = max(out.room, _LEAST_SHARED)
                out.add(wire.Data(tail[:room]), room)
                tail = tail[room:]
                if out.is_full:
                    yield out.take()
            return stream.digest()
        except FileShorter:
            return b""
        finally:
            self._reads.end(path, mark, stream)
