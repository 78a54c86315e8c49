"""What the file system of a target can hold that nothing but a try shows: hard links, other owners,
modes.

Tried in `.baton`, where nobody looks, and so only once that is there; remembered for those who may
only read. What a file system cannot hold is not compared, else it would be tried again in every run.
"""

import contextlib
import errno
import os
import stat
from dataclasses import dataclass

from syncengine.attributes import NOBODY
from syncengine.kernel import can_give_away
from syncengine.model import TEMPORARY_PREFIX
from syncengine.reserved import open_reserved
from syncengine.tree import Tree

_REFUSED = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EACCES})
_PROBE = TEMPORARY_PREFIX + b"probe"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What entries of a tree can have."""

    hard_links: bool = True
    owners: bool = True
    modes: bool = True
    """Permission bits, each by itself."""


_known: dict[int, Abilities] = {}
"""By device."""


def probe(tree: Tree, *, may_write: bool, anew: bool = True) -> Abilities:
    """Find out what the tree's file system can hold; blocks on the disk.

    Unless `anew`, what was found before will do.
    """
    if not anew and tree.device in _known:
        return _known[tree.device]
    if may_write and not tree.read_only:
        with contextlib.suppress(OSError):
            reserved = open_reserved(tree, create=False)
            if reserved is not None:
                try:
                    _known[os.fstat(reserved).st_dev] = _try(reserved)
                finally:
                    os.close(reserved)
    return _known.get(tree.device, Abilities())


def _try(fd: int) -> Abilities:
    name = _PROBE + b"~%d~" % os.getpid() + os.urandom(6).hex().encode()
    other = name + b"~link"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(name, flags, 0o600, dir_fd=fd)
    try:
        return Abilities(_links(fd, name, other), _owners(handle), _modes(handle))
    finally:
        os.close(handle)
        for one in (name, other):
            with contextlib.suppress(OSError):
                os.unlink(one, dir_fd=fd)


def _links(fd: int, name: bytes, other: bytes) -> bool:
    try:
        os.link(name, other, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    except OSError as error:
        return error.errno not in _REFUSED
    return True


def _modes(handle: int) -> bool:
    try:
        os.fchmod(handle, 0o751)
    except OSError as error:
        return error.errno not in _REFUSED
    return stat.S_IMODE(os.fstat(handle).st_mode) == 0o751


def _owners(handle: int) -> bool:
    if not can_give_away():
        return False
    try:
        os.fchown(handle, NOBODY, NOBODY)
    except OSError as error:
        return error.errno not in _REFUSED
    return os.fstat(handle).st_uid == NOBODY
