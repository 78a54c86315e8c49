"""The Linux calls that Python's os module lacks, by ctypes; each takes descriptors and bytes.

Nothing here decides anything. Where a file system lacks a call, `Unsupported` says so and the
caller has a slower way.
"""

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_AT_EMPTY_PATH = 0x1000
_LACKING = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


class Unsupported(OSError):
    """The kernel or the file system lacks the call."""


_renameat2 = _libc.renameat2
_renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
_renameat2.restype = ctypes.c_int

_syncfs = _libc.syncfs
_syncfs.argtypes = (ctypes.c_int,)
_syncfs.restype = ctypes.c_int


def renameat2(from_fd: int, source: bytes, to_fd: int, target: bytes, flags: int) -> None:
    """Rename, with flags of the system call.

    Raises Unsupported where NOREPLACE or EXCHANGE do not exist, and OSError.
    """
    if _renameat2(from_fd, source, to_fd, target, flags) != 0:
        code = ctypes.get_errno()
        if code in _LACKING:
            raise Unsupported(code, os.strerror(code), source)
        raise OSError(code, os.strerror(code), target)


def syncfs(fd: int) -> None:
    """Write everything dirty on the file system of `fd` to the disk; blocks until it is there."""
    if _syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def current_umask() -> int:
    """Return the umask without changing it (os.umask would, for every thread)."""
    with open("/proc/self/status", "rb") as status:  # noqa: PTH123 - the kernel's own file
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o777  # unknown: every mode is then set explicitly
