"""The Linux calls that Python's os module lacks, by ctypes; each takes descriptors and bytes.

Nothing here decides anything. Where a file system lacks a call, `Unsupported` says so and the
caller has a slower way.
"""

import ctypes
import errno
import os
import sys
import threading

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


_fchownat = _libc.fchownat
_fchownat.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
    ctypes.c_uint,
    ctypes.c_int,
)
_fchownat.restype = ctypes.c_int


def chown_handle(handle: int, uid: int, gid: int) -> None:
    """Give away what is open, an O_PATH handle of a symlink or a device too; -1 leaves a number.

    Raises OSError.
    """
    if _fchownat(handle, b"", uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, _AT_EMPTY_PATH) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def syncfs(fd: int) -> None:
    """Write everything dirty on the file system of `fd` to the disk; blocks until it is there."""
    if _syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_sync_file_range.restype = ctypes.c_int
_SYNC_FILE_RANGE_WRITE = 2


def begin_writing(fd: int, offset: int, length: int) -> None:
    """Have the kernel begin to write what is dirty in a range, so that a later flush finds less to do.

    Makes nothing durable, and reports nothing: that flush does. Blocks while the disk's queue is full.
    """
    _sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)


_fstatfs = _libc.fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)
_fstatfs.restype = ctypes.c_int

_SWEEPING = frozenset(
    {
        0xEF53,  # ext2 to ext4
        0x58465342,  # XFS
        0x9123683E,  # btrfs
        0xF2F52010,  # F2FS
        0xCA451A4E,  # bcachefs
        0x2FC12FC1,  # ZFS
        0x3153464A,  # JFS
        0x3434,  # NILFS
        0x00C36400,  # Ceph
        0x6969,  # NFS: writing its inodes back ends with a commit, and names are kept by the server
        0x794C7630,  # overlay, which asks the file system above
        0x01021994,  # tmpfs, which forgets all of it anyway
        0x858458F6,  # ramfs, likewise
    }
)


def file_system_type(fd: int) -> int:
    """Return the magic number of the file system of `fd` (statfs(2)); 0 when it cannot be told."""
    answer = ctypes.create_string_buffer(256)
    if _fstatfs(fd, answer) != 0:
        return 0
    kind = int.from_bytes(answer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)
    return kind & 0xFFFFFFFF


def syncfs_reaches_disk(fd: int) -> bool:
    """Say whether the file system of `fd` is known to carry syncfs(2) out.

    Others return success without having flushed anything: a FUSE server is never even asked (Linux
    tells only virtiofs). There, every file and directory has to be flushed by itself.
    """
    return file_system_type(fd) in _SWEEPING


_CLONE_FS = 0x200
_CAP_CHOWN = 0
_unshare = _libc.unshare
_unshare.argtypes = (ctypes.c_int,)
_unshare.restype = ctypes.c_int
_of_this_thread = threading.local()


def own_working_directory() -> bool:
    """Give this thread a working directory of its own, so that names can be relative to it.

    Some calls of Python take neither a descriptor nor a directory's descriptor and a name. False
    for the main thread, whose directory is the process's, and where a container forbids it.
    """
    is_own: bool | None = getattr(_of_this_thread, "has_directory", None)
    if is_own is None:
        is_main = threading.current_thread() is threading.main_thread()
        is_own = not is_main and _unshare(_CLONE_FS) == 0
        _of_this_thread.has_directory = is_own
    return is_own


def can_give_away() -> bool:
    """Say whether this process may give files to other users."""
    with open("/proc/thread-self/status", "rb") as status:  # noqa: PTH123 - the kernel's own file
        for line in status:
            if line.startswith(b"CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_CHOWN & 1)
    return os.geteuid() == 0


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * 128),
    )


_name_to_handle_at = _libc.name_to_handle_at
_name_to_handle_at.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_FileHandle),
    ctypes.POINTER(ctypes.c_int),
    ctypes.c_int,
)
_name_to_handle_at.restype = ctypes.c_int


def file_handle(fd: int) -> bytes:
    """Return what no other file of the same file system has, or will have: the kernel's handle.

    Unlike the number of an inode, which the next new file may get. Raises Unsupported, and OSError.
    """
    handle = _FileHandle(handle_bytes=128)
    mount = ctypes.c_int()
    if _name_to_handle_at(fd, b"", ctypes.byref(handle), ctypes.byref(mount), _AT_EMPTY_PATH) != 0:
        code = ctypes.get_errno()
        if code in _LACKING or code == errno.EPERM:
            raise Unsupported(code, os.strerror(code))
        raise OSError(code, os.strerror(code))
    kind: int = handle.handle_type
    return kind.to_bytes(4, "big", signed=True) + bytes(handle.f_handle)[: handle.handle_bytes]


def current_umask() -> int:
    """Return the umask without changing it (os.umask would, for every thread)."""
    with open("/proc/self/status", "rb") as status:  # noqa: PTH123 - the kernel's own file
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o777  # unknown: every mode is then set explicitly
