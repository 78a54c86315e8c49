"""One scan of a source for the plans of several targets, each of which reads it at its own pace.

Whoever is in front scans on, for all; what was scanned stays as frames, in memory while there are few
and then in an unlinked file, so that a slow target holds up nobody and nobody looks at a file twice.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import IO

from syncengine.listing import decode_items, encode_entries
from syncengine.model import Problem
from syncengine.stretches import Item

_MEMORY_BYTES = 8 * 1024 * 1024


class SharedScan:
    """What a scan gives, to be read any number of times at once; safe between threads."""

    def __init__(
        self,
        scan: Callable[[list[Problem]], Iterator[Item]],
        *,
        folder: str | None = None,
        memory_bytes: int = _MEMORY_BYTES,
    ) -> None:
        """Scan when the first one reads; `folder` is where the file is made."""
        self.problems: list[Problem] = []
        """What the scan noted: all of it for whoever has read to the end."""
        self._folder = folder
        self._room = memory_bytes
        # Guarded by _lock, which is held while a frame is made: others want that very frame.
        self._lock = threading.Lock()
        self._made = encode_entries(self._scanned(scan))
        self._frames: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._spans: list[tuple[int, int]] = []
        self._is_whole = False
        self._error: Exception | None = None

    def items(self) -> Iterator[Item]:
        """Yield everything from the beginning; raises what the scan raises, and OSError.

        Blocks on the disk.
        """
        return decode_items(self._all_frames(), is_trusted=True)

    def close(self) -> None:
        """Let go of it, once nobody reads any more."""
        with self._lock:
            self._made.close()  # type: ignore[attr-defined]  # a generator
            self._frames.clear()
            self._spans.clear()
            if self._file is not None:
                self._file.close()
                self._file = None

    def _scanned(self, scan: Callable[[list[Problem]], Iterator[Item]]) -> Iterator[Item]:
        yield from scan(self.problems)

    def _all_frames(self) -> Iterator[bytes]:
        number = 0
        while (frame := self._frame(number)) is not None:
            yield frame
            number += 1

    def _frame(self, number: int) -> bytes | None:
        """Return a frame; None behind the last one."""
        with self._lock:
            kept = len(self._frames)
            if number < kept:
                return self._frames[number]
            if number < kept + len(self._spans):
                assert self._file is not None
                offset, length = self._spans[number - kept]
                return os.pread(self._file.fileno(), length, offset)
            if self._error is not None:
                raise self._error
            return None if self._is_whole else self._next()

    def _next(self) -> bytes | None:
        """Scan on, and keep what comes of it."""
        try:
            frame = next(self._made, None)
            if frame is None:
                self._is_whole = True
            elif self._room >= len(frame):
                self._room -= len(frame)
                self._frames.append(frame)
            else:
                self._room = 0  # what follows goes to the file too, in order
                self._write(frame)
        except Exception as error:
            self._error = error
            raise
        return frame

    def _write(self, frame: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115
        offset = sum(self._spans[-1]) if self._spans else 0
        rest = memoryview(frame)
        while rest:
            rest = rest[os.pwrite(self._file.fileno(), rest, offset + len(frame) - len(rest)) :]
        self._spans.append((offset, len(frame)))
