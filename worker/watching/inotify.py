"""inotify(7), by ctypes: watches on directories that are held open, and the kernel's own words.

Why not watchdog's observer, nor its inner layer: `docs/design.md`, "Watching".
"""

import ctypes
import errno
import os
import struct
from typing import NamedTuple

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_UNMOUNT = 0x2000
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ISDIR = 0x40000000
_IN_ONLYDIR = 0x1000000
_IN_EXCL_UNLINK = 0x4000000

_DIRECTORY = (
    IN_MODIFY
    | IN_ATTRIB
    | IN_CLOSE_WRITE
    | IN_MOVED_FROM
    | IN_MOVED_TO
    | IN_CREATE
    | IN_DELETE
    | _IN_ONLYDIR
    | _IN_EXCL_UNLINK
)
_ROOT = _DIRECTORY | IN_DELETE_SELF | IN_MOVE_SELF

_HEADER = struct.Struct("iIII")
_READ_BYTES = 1 << 18
MOST_HELD = 64 << 20
"""Bytes of events that are held in memory while something else is done: some 1,500,000 of them."""

_libc = ctypes.CDLL(None, use_errno=True)
_add_watch = _libc.inotify_add_watch
_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_add_watch.restype = ctypes.c_int


class Event(NamedTuple):
    """One event as the kernel told it; `wd` is -1 for an overflow."""

    wd: int
    mask: int
    cookie: int
    name: bytes


class Inotify:
    """One inotify instance. Its queue is as long as max_queued_events said when it was made.

    For one thread. Nothing blocks: poll `fd` first.
    """

    def __init__(self) -> None:
        """Make the instance; raise OSError, EMFILE when the user has too many of them."""
        self.fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._raw: list[bytes] = []
        self._held_bytes = 0
        self._is_overfull = False

    def watch(self, directory: int, *, is_root: bool = False) -> int:
        """Watch an open directory, wherever its name leads by now; return the watch's number.

        The same directory has the same number. Raises OSError: ENOSPC at the limit of watches.
        """
        wd = _add_watch(self.fd, b"/proc/self/fd/%d" % directory, _ROOT if is_root else _DIRECTORY)
        if wd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(wd)

    def unwatch(self, wd: int) -> None:
        """Watch it no more; harmless when the kernel forgot it already."""
        _libc.inotify_rm_watch(self.fd, wd)

    def drain(self) -> None:
        """Take what the kernel holds into memory, where there is more room than in its queue.

        Beyond MOST_HELD the rest is dropped, and `events` says so like the kernel.
        """
        while True:
            try:
                data = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                raise
            if self._held_bytes < MOST_HELD:
                self._raw.append(data)
                self._held_bytes += len(data)
            else:
                self._is_overfull = True

    def events(self) -> list[Event]:
        """Return everything that was told since the last call, in order."""
        self.drain()
        raw, self._raw, self._held_bytes = self._raw, [], 0
        found: list[Event] = []
        unpack, size = _HEADER.unpack_from, _HEADER.size
        for data in raw:
            at, end = 0, len(data)
            while at < end:
                wd, mask, cookie, length = unpack(data, at)
                at += size
                name = data[at : at + length].rstrip(b"\0") if length else b""
                at += length
                found.append(Event(wd, mask, cookie, name))
        if self._is_overfull:
            self._is_overfull = False
            found.append(Event(-1, IN_Q_OVERFLOW, 0, b""))
        return found

    def close(self) -> None:
        """Close the instance with all its watches; harmless when it is closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
