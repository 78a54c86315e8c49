"""Why a file system, or the system, refuses something: in words that say what can be done.

Looked into only once something has failed. A name that a file system takes for another one is told
at the end of a push, since what has that other name may still be removed in it.
"""

import contextlib
import errno
import fcntl
import os
import stat
import unicodedata

from syncengine.frames import Failed
from syncengine.model import Kind, What
from syncengine.names import is_reserved, join

_FS_IOC_GETFLAGS = 0x80086601
_IMMUTABLE, _APPEND_ONLY = 0x10, 0x20
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_NO_SUCH_KIND = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
_BAD_NAME = frozenset({errno.EILSEQ, errno.EINVAL})


def explain(
    error: OSError, fd: int, name: bytes, kind: Kind | None, *, is_new: bool
) -> tuple[What, str]:
    """Return what is wrong with the entry `name` of a directory, and what can be done about it.

    `kind` is what was to be made or changed; `is_new` when nothing was there.
    """
    code = error.errno
    why = error.strerror or str(error)
    if code == errno.ENAMETOOLONG:
        return What.NAME_REFUSED, "the name is too long for the file system here"
    if code in _BAD_NAME and is_new:
        return What.NAME_REFUSED, f"the file system here refuses the name: {why}"
    if code == errno.EFBIG:
        return What.NOT_SUPPORTED, "the file is larger than the file system here can hold"
    if code == errno.EPERM:
        pinned = _pinned(fd, name)
        if pinned:
            return What.IMMUTABLE, pinned
    if is_new and code in _NO_SUCH_KIND:
        if kind is Kind.SYMLINK:
            return What.NOT_SUPPORTED, "the file system here keeps no symlinks"
        if kind in {Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE} and code == errno.EPERM:
            return What.NOT_SUPPORTED, "only a privileged worker may make device nodes"
        if kind in {Kind.FIFO, Kind.SOCKET}:
            return What.NOT_SUPPORTED, "the file system here keeps no FIFOs and sockets"
    return What.NOT_WRITTEN, why


def _pinned(fd: int, name: bytes) -> str:
    """Say what keeps an entry from being changed, by a flag of its own or of its directory."""
    own = _flags(fd, name)
    if own & _IMMUTABLE:
        return "it is immutable here: `chattr -i` lets it be changed"
    if own & _APPEND_ONLY:
        return "it is append-only here: `chattr -a` lets it be changed"
    around = _flags_of(fd)
    if around & _IMMUTABLE:
        return "its directory is immutable here: `chattr -i` lets it be changed"
    if around & _APPEND_ONLY:
        return "its directory is append-only here: `chattr -a` lets it be changed"
    return ""


def _flags(fd: int, name: bytes) -> int:
    with contextlib.suppress(OSError):
        form = stat.S_IFMT(os.lstat(name, dir_fd=fd).st_mode)
        if form in {stat.S_IFREG, stat.S_IFDIR}:
            handle = os.open(name, _LOOK, dir_fd=fd)
            try:
                return _flags_of(handle)
            finally:
                os.close(handle)
    return 0


def _flags_of(handle: int) -> int:
    answer = bytearray(8)
    try:
        fcntl.ioctl(handle, _FS_IOC_GETFLAGS, answer)
    except OSError:
        return 0
    return int.from_bytes(answer[:4], "little")


def partner(fd: int, name: bytes) -> bytes | None:
    """Return the entry that a file system takes for `name`, None when that is there itself.

    Reads the directory; raises OSError.
    """
    inode = os.lstat(name, dir_fd=fd).st_ino
    alike: bytes | None = None
    with os.scandir(fd) as entries:
        for entry in entries:
            other = os.fsencode(entry.name)
            if other == name:
                return None
            if not is_reserved(other) and (
                entry.inode() == inode or _folded(other) == _folded(name)
            ):
                alike = other
    return alike


def _folded(name: bytes) -> str:
    return unicodedata.normalize("NFC", os.fsdecode(name)).casefold()


class Clashes:
    """Names that the file system takes for those of other entries."""

    def __init__(self) -> None:
        self._by_partner: dict[bytes, list[bytes]] = {}

    def note(self, fd: int, parent: bytes, name: bytes) -> bool:
        """Find out whether something is in the way only because names are folded, and note it."""
        try:
            other = partner(fd, name)
        except OSError:
            return False
        if other is None:
            return False
        self._by_partner.setdefault(join(parent, other), []).append(join(parent, name))
        return True

    def freed(self, path: bytes) -> list[bytes]:
        """Return what can be made now that `path` is gone."""
        return self._by_partner.pop(path, []) if self._by_partner else []

    def told(self) -> list[Failed]:
        """Return what is left, to be told at the end."""
        left, self._by_partner = self._by_partner, {}
        return [
            Failed(path, What.NAME_CLASH, f"the file system here takes its name for {other!r}")
            for other, paths in (
                (os.fsdecode(of).rpartition("/")[2], paths) for of, paths in left.items()
            )
            for path in paths
        ]
