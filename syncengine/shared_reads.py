"""One reading for several targets: what one push has read of a tree, the others need not read again.

The pushes of a run go through the same files in the same order, each in a thread of its own. Whoever
comes first to a file reads and digests it; what was read stays for a while for those behind. Nobody
waits for a slower one: what it comes too late for, it reads by itself.
"""

import os
import threading
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

from blake3 import blake3

from syncengine.chunks import Window, cut
from syncengine.data_frames import read_frame

SMALL_BYTES = 32 * 1024 * 1024
"""So much content of small files stays for those behind."""

STREAM_BYTES = 32 * 1024 * 1024
"""So much of a large one."""

_REMEMBERED = 100_000
_ENTRY_BYTES = 500


class Content(NamedTuple):
    """A small file as it was read."""

    data: bytes
    digest: bytes
    status: os.stat_result
    """Looked at after reading."""


class FileShorter(Exception):
    """A file has become shorter while it was read."""


class _Entry:
    __slots__ = ("content", "ready", "uses")

    def __init__(self) -> None:
        self.content: Content | None = None
        self.ready = threading.Event()
        self.uses = 0


class SharedReads:
    """What the pushes that read one tree have in common. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._small: dict[bytes, _Entry] = {}
        self._small_bytes = 0
        self._gone: set[bytes] = set()
        """What somebody comes too late for: it is not kept again for nobody."""
        self._streams: _Uses[_Stream] = _Uses()
        self._cuts: _Uses[_Cut] = _Uses()

    def join(self) -> None:
        """Note one more push."""
        with self._lock:
            self._readers += 1

    def leave(self) -> None:
        """Note that a push has ended; the last one leaves nothing behind."""
        with self._lock:
            self._readers -= 1
            if self._readers <= 1:
                self._small.clear()
                self._gone.clear()
                self._small_bytes = 0

    @property
    def is_shared(self) -> bool:
        """Whether there is more than one push."""
        return self._readers > 1

    def small(self, path: bytes, read: Callable[[], Content | None]) -> Content | None:
        """Return a small file, read by this or by another push; None when it cannot be read."""
        with self._lock:
            entry = self._small.get(path)
            if entry is None:
                mine = _Entry()
                if path not in self._gone:
                    self._small[path] = mine
            else:
                entry.uses += 1
                if entry.uses >= self._readers - 1 and entry.content is not None:
                    self._drop(path, entry)
        if entry is not None:
            entry.ready.wait()
            return entry.content if entry.content is not None else read()
        try:
            mine.content = read()
        finally:
            mine.ready.set()
            self._keep(path, mine)
        return mine.content

    def _keep(self, path: bytes, entry: _Entry) -> None:
        with self._lock:
            if self._small.get(path) is not entry:
                return
            if entry.content is None:
                del self._small[path]
                return
            self._small_bytes += len(entry.content.data) + _ENTRY_BYTES
            while self._small_bytes > SMALL_BYTES:
                oldest = next(iter(self._small))
                if self._small[oldest].content is None:
                    break  # somebody is reading it
                self._drop(oldest, self._small[oldest])

    def _drop(self, path: bytes, entry: _Entry) -> None:
        del self._small[path]
        assert entry.content is not None
        self._small_bytes -= len(entry.content.data) + _ENTRY_BYTES
        if len(self._gone) >= _REMEMBERED:
            self._gone.clear()
        self._gone.add(path)

    def stream(self, path: bytes, mark: int, fd: int, size: int, part: int) -> "_Stream":
        """Return a version of a large file, to be read in parts; `end` it when it is done with."""
        key = (path, mark, part)
        return self._streams.begin(key, lambda: _Stream(os.dup(fd), size, part))

    def windows(self, path: bytes, mark: int, fd: int, size: int, bits: int) -> Iterator[Window]:
        """Cut a version of a file, as `cut` does, once for all pushes that do so now."""
        key = (path, mark, bits)
        shared = self._cuts.begin(key, lambda: _Cut(os.dup(fd), size, bits))
        try:
            number = 0
            while (window := shared.window(number)) is not None:
                yield window
                number += 1
        finally:
            self._cuts.end(key, shared)

    def end(self, path: bytes, mark: int, stream: "_Stream") -> None:
        """Let go of what `stream` returned."""
        self._streams.end((path, mark, stream.part_bytes), stream)


class _Stream:
    """A large file that several pushes read, the first of them for all."""

    def __init__(self, fd: int, size: int, part_bytes: int) -> None:
        self.part_bytes = part_bytes
        self._fd = fd
        self._parts, self._tail_bytes = divmod(size, part_bytes)
        # Guarded by _lock, which is held while a part is read: others want that very part.
        self._lock = threading.Lock()
        self._next = 0
        self._frames: dict[int, bytes] = {}
        self._hasher = blake3()
        self._tail: bytes | None = None

    def frame(self, number: int) -> bytes | None:
        """Return a part as a frame of one Data record; None when it is gone again.

        Raises FileShorter and OSError.
        """
        with self._lock:
            if number < self._next:
                return self._frames.get(number)
            assert number == self._next
            frame, content = read_frame(self._fd, self.part_bytes, number * self.part_bytes)
            if len(content) < self.part_bytes:
                raise FileShorter
            self._hasher.update(content)
            self._frames[number] = frame
            if len(self._frames) * self.part_bytes > STREAM_BYTES:
                del self._frames[next(iter(self._frames))]
            self._next += 1
            return frame

    def tail(self) -> bytes:
        """Return what follows the last whole part; raises FileShorter and OSError."""
        with self._lock:
            if self._tail is None:
                assert self._next == self._parts
                tail = os.pread(self._fd, self._tail_bytes, self._parts * self.part_bytes)
                if len(tail) < self._tail_bytes:
                    raise FileShorter
                self._tail = tail
                self._hasher.update(tail)
            return self._tail

    def digest(self) -> bytes:
        """Return the digest of all of it, after `tail`."""
        return self._hasher.digest()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class _Cut:
    """The windows of a file that several pushes offer."""

    def __init__(self, fd: int, size: int, bits: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._windows: list[Window] = []
        self._rest = cut(fd, size, bits)

    def window(self, number: int) -> Window | None:
        """Return a window; None behind the last one."""
        with self._lock:
            if number == len(self._windows):
                window = next(self._rest, None)
                if window is None:
                    return None
                self._windows.append(window)
            return self._windows[number]

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


_Used = TypeVar("_Used", "_Stream", "_Cut")


class _Uses(Generic[_Used]):
    """Things that are there as long as somebody uses them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._there: dict[tuple[bytes, int, int], tuple[_Used, int]] = {}

    def begin(self, key: tuple[bytes, int, int], make: Callable[[], _Used]) -> _Used:
        with self._lock:
            thing, uses = self._there.get(key) or (make(), 0)
            self._there[key] = (thing, uses + 1)
            return thing

    def end(self, key: tuple[bytes, int, int], thing: _Used) -> None:
        with self._lock:
            _, uses = self._there[key]
            if uses > 1:
                self._there[key] = (thing, uses - 1)
            else:
                del self._there[key]
                thing.close()
