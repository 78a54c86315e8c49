"""What the system says of many names of one directory, as columns: the innermost loop of a scan.

Of every file `os.lstat` makes two dozen objects, which takes as long as asking the kernel does. So
statx(2) writes one status after the other into memory of ours, and whole columns are copied from there.
"""

import ctypes
import os
import sys
from array import array
from collections.abc import Sequence
from itertools import repeat
from typing import Final

_FEW_NAMES, _MANY_NAMES = 32, 1_024
"""How many names there is room for at first, and then: most directories are small."""

_FLAGS = 0x100 | 0x800
"""AT_SYMLINK_NOFOLLOW and AT_NO_AUTOMOUNT: as lstat."""
_BASIC = 0x7FF
"""STATX_BASIC_STATS: all that lstat tells."""
_STATUS_BYTES = 256
# Where a struct statx has its fields, counted in numbers of 16, 32 and 64 bits. It is the same on all
# machines but for the order of bytes.
_MODE_16 = 14
_MASK_32, _LINKS_32, _UID_32, _GID_32, _MAJOR_32, _MINOR_32 = 0, 4, 5, 6, 34, 35
_INODE_64, _SIZE_64, _CTIME_64, _MTIME_64, _DEVICE_64 = 4, 5, 12, 14, 17
_BILLION = 10**9

# A handle of its own, without argument types and errno: both cost more than the call itself, and
# whoever hears of a failure asks again by other means. Bytes and ints are passed as they are.
_statx = getattr(ctypes.CDLL(None), "statx", None) if sys.byteorder == "little" else None


class Statuses:
    """The statuses of some names of one directory: in each column one number for each name."""

    __slots__ = ("ctimes", "devices", "gids", "inodes", "links", "modes", "mtimes", "sizes", "uids")

    def __init__(
        self,
        modes: "array[int]",
        owners: tuple["array[int]", "array[int]"],
        links: "array[int]",
        devices: Sequence[int],
        inodes: "array[int]",
        sizes: "array[int]",
        times: tuple["array[int]", "array[int]"],
    ) -> None:
        """Take the columns; `times` are mtimes and ctimes in nanoseconds."""
        self.modes: Final = modes
        """With the form, as st_mode (`H`)."""
        self.uids, self.gids = owners
        self.links: Final = links
        self.devices: Final = devices
        self.inodes: Final = inodes
        self.sizes: Final = sizes
        self.mtimes, self.ctimes = times

    @classmethod
    def of(cls, found: Sequence[os.stat_result]) -> "Statuses":
        """Make the columns of what lstat found; OverflowError for a time beyond 64 bits."""
        return cls(
            array("H", [one.st_mode for one in found]),
            (array("I", [one.st_uid for one in found]), array("I", [one.st_gid for one in found])),
            array("Q", [one.st_nlink for one in found]),
            [one.st_dev for one in found],
            array("Q", [one.st_ino for one in found]),
            array("q", [one.st_size for one in found]),
            (
                array("q", [one.st_mtime_ns for one in found]),
                array("q", [one.st_ctime_ns for one in found]),
            ),
        )


class StatusReader:
    """Asks for statuses, in one thread at a time."""

    def __init__(self) -> None:
        self._make_room(_FEW_NAMES)

    def _make_room(self, names: int) -> None:
        memory = bytearray(names * _STATUS_BYTES)
        buffer = (ctypes.c_char * len(memory)).from_buffer(memory)
        self._slots = [ctypes.byref(buffer, n * _STATUS_BYTES) for n in range(names)]
        whole = memoryview(memory)
        self._views = {code: whole.cast(code) for code in ("H", "I", "Q")}

    def read(self, fd: int, names: Sequence[bytes]) -> Statuses | None:
        """Return the statuses of names in the directory `fd`, in memory for the most of them so far.

        None when lstat has to be asked, name by name: something vanished or cannot be looked at, is
        on another file system than the rest, or has a time before 1970 or after 2106. Blocks.
        """
        count = len(names)
        if count > len(self._slots):
            self._make_room(max(count, _MANY_NAMES))
        if _statx is None or any(
            map(_statx, repeat(fd), names, repeat(_FLAGS), repeat(_BASIC), self._slots)
        ):
            return None
        masks, devices = self._column("I", _MASK_32, count), self._column("Q", _DEVICE_64, count)
        if not (_are_equal(masks) and masks[0] & _BASIC == _BASIC and _are_equal(devices)):
            return None
        nothing = bytes(4 * count)
        for time in (_MTIME_64, _CTIME_64):
            # The upper half of the seconds, and what lies behind the nanoseconds.
            for upper in (2 * time + 1, 2 * time + 3):
                if self._column("I", upper, count).tobytes() != nothing:
                    return None
        device = os.makedev(self._views["I"][_MAJOR_32], self._views["I"][_MINOR_32])
        return Statuses(
            self._column("H", _MODE_16, count),
            (self._column("I", _UID_32, count), self._column("I", _GID_32, count)),
            self._column("I", _LINKS_32, count),
            [device] * count,
            self._column("Q", _INODE_64, count),
            array("q", self._column("Q", _SIZE_64, count).tobytes()),
            (self._times(_MTIME_64, count), self._times(_CTIME_64, count)),
        )

    def _column(self, code: str, field: int, count: int) -> "array[int]":
        view = self._views[code]
        step = _STATUS_BYTES // view.itemsize
        return array(code, view[field : count * step : step].tobytes())

    def _times(self, field: int, count: int) -> "array[int]":
        """Return times in nanoseconds: all at once, as the digits of one large number."""
        seconds = int.from_bytes(self._column("Q", field, count).tobytes(), "little")
        rest = int.from_bytes(self._column("Q", field + 1, count).tobytes(), "little")
        return array("q", (seconds * _BILLION + rest).to_bytes(8 * count, "little"))


def _are_equal(column: "array[int]") -> bool:
    """Say whether all numbers of a column are the same."""
    return column == column[:1] * len(column)
