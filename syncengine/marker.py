"""The marker of a root, `.baton/root.json`: that this is still the root a worker knows.

An unmounted disk, a restored backup, another tree under the same path: all of them look like a
million deletes to a planner. The marker tells them from the real thing. What a worker remembers of
a root is a `KnownRoot`; keeping it is the worker's business.
"""

import contextlib
import fcntl
import os
import stat
import uuid
from dataclasses import dataclass

import msgspec

from syncengine.errors import MarkerError
from syncengine.failpoints import Step, reach
from syncengine.model import TEMPORARY_PREFIX, Hold, HoldReason
from syncengine.reserved import open_reserved
from syncengine.tree import Tree

MARKER_NAME = b"root.json"

_TEMPORARY = TEMPORARY_PREFIX + b"root.json"
_MAX_BYTES = 4_096
_FS_IOC_GETFSUUID = 0x80111500
"""_IOR(0x15, 0, struct fsuuid2 {u8 len; u8 uuid[16]}), Linux 6.9."""


@dataclass(frozen=True, slots=True)
class KnownRoot:
    """What a worker remembers of a root between runs."""

    root_id: str
    """Empty for a root without a marker, because nothing may be written there."""
    generation: int
    file_system: str
    inode: int


@dataclass(frozen=True, slots=True)
class MarkerState:
    """What was found at a root, and what speaks against going on."""

    root_id: str
    """Empty when there is no (readable) marker."""
    generation: int
    file_system: str
    inode: int
    holds: tuple[Hold, ...]


class _Marker(msgspec.Struct, forbid_unknown_fields=False):
    root_id: str
    generation: int
    file_system: str


def check_marker(tree: Tree, known: KnownRoot | None, *, member: str = "") -> MarkerState:
    """Compare a root with what is known of it, writing nothing.

    Raises MarkerError when `.baton` is not usable (EIO, EACCES, not a directory).
    """
    try:
        marker, damage = _read(tree)
        now = file_system_id(tree.root_fd)
        inode = os.fstat(tree.root_fd).st_ino
    except OSError as error:
        raise MarkerError(f"cannot read the marker: {error.strerror}") from error
    doubts = _marker_doubts(marker, damage, known, now)
    if known is not None and not doubts:
        doubts = _place_doubts(known, now, None if marker else inode, read_only=tree.read_only)
    return MarkerState(
        marker.root_id if marker else "",
        marker.generation if marker else 0,
        now,
        inode,
        tuple(Hold(reason, member, detail) for reason, detail in doubts),
    )


_Doubts = list[tuple[HoldReason, str]]


def _marker_doubts(
    marker: _Marker | None, damage: str, known: KnownRoot | None, now: str
) -> _Doubts:
    """Return what the marker itself, or its absence, tells."""
    if damage:
        return [(HoldReason.MARKER_MISSING, damage)]
    if marker is None:
        if known is not None and known.root_id:
            return [(HoldReason.MARKER_MISSING, "the marker that was here is missing")]
        return []
    doubts: _Doubts = []
    if not is_same_file_system(marker.file_system, now):
        detail = "the marker was made on another file system"
        doubts.append((HoldReason.FILE_SYSTEM_CHANGED, detail))
    if known is not None and known.root_id:
        if marker.root_id != known.root_id:
            detail = f"the marker is that of another root, {marker.root_id[:64]}"
            doubts.append((HoldReason.MARKER_FOREIGN, detail))
        elif marker.generation < known.generation:
            detail = f"the marker is of run {marker.generation}, before {known.generation}"
            doubts.append((HoldReason.MARKER_SET_BACK, detail))
    return doubts


def _place_doubts(known: KnownRoot, now: str, inode: int | None, *, read_only: bool) -> _Doubts:
    """Return what the place tells; `inode` is given where there is no marker to know a root by."""
    if not is_same_file_system(known.file_system, now):
        detail = "the root lies on another file system than before"
        return [(HoldReason.FILE_SYSTEM_CHANGED, detail)]
    if read_only and inode is not None and known.inode != inode:
        detail = "another directory lies where the root was"
        return [(HoldReason.FILE_SYSTEM_CHANGED, detail)]
    return []


def advance_marker(
    tree: Tree, state: MarkerState, known: KnownRoot | None, *, accept: bool = False
) -> KnownRoot:
    """Write the marker of the next run, durably, and return what is to be remembered.

    With `accept` (an operator approved what `state.holds` says) the root is taken as a new one,
    with a new id. A root opened to be read gets no marker. Raises MarkerError; also when there are
    holds and `accept` is not given.

    CRASH: when this returned but was not remembered, the marker is ahead of what is known, which is
    no reason to hold.
    """
    if state.holds and not accept:
        raise MarkerError(f"the root is held: {state.holds[0].detail}")
    if tree.read_only:
        return KnownRoot(state.root_id, state.generation, state.file_system, state.inode)
    is_new = not state.root_id or bool(state.holds)
    root_id = uuid.uuid4().hex if is_new else state.root_id
    generation = max(state.generation, known.generation if known is not None else 0) + 1
    try:
        _write(tree, _Marker(root_id, generation, state.file_system))
    except OSError as error:
        raise MarkerError(f"cannot write the marker: {error.strerror}") from error
    return KnownRoot(root_id, generation, state.file_system, state.inode)


def _read(tree: Tree) -> tuple[_Marker | None, str]:
    """Return the marker, or None and, when it is there but of no use, what is wrong with it."""
    reserved = open_reserved(tree, create=False)
    if reserved is None:
        return None, ""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(MARKER_NAME, flags, dir_fd=reserved)
        except FileNotFoundError:
            return None, ""
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None, "the marker is no regular file"
            data = os.read(fd, _MAX_BYTES)
        finally:
            os.close(fd)
    finally:
        os.close(reserved)
    try:
        return msgspec.json.decode(data, type=_Marker), ""
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None, "the marker is damaged"


def _write(tree: Tree, marker: _Marker) -> None:
    reserved = open_reserved(tree, create=True)
    assert reserved is not None
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_TEMPORARY, dir_fd=reserved)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(_TEMPORARY, flags, 0o600, dir_fd=reserved)
        try:
            os.write(fd, msgspec.json.encode(marker) + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        reach(Step.BEFORE_MARKER)
        os.rename(_TEMPORARY, MARKER_NAME, src_dir_fd=reserved, dst_dir_fd=reserved)
        os.fsync(reserved)
        reach(Step.AFTER_MARKER)
    finally:
        os.close(reserved)


def file_system_id(fd: int) -> str:
    """Return names of the file system that `fd` lies on, the lasting ones first; raises OSError.

    st_dev alone will not do: it is the number of a device, and devices are numbered anew at every
    boot, or at every mount where the file system has no device (btrfs, NFS, overlay). The UUID
    lasts but needs Linux 6.9 and the file system's help; statvfs' f_fsid comes from the UUID on
    ext4 and btrfs, and from the device's number on others. So all three are noted, and compared in
    this order.
    """
    names: list[str] = []
    answer = bytearray(17)
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _FS_IOC_GETFSUUID, answer)
        length = answer[0]
        if 0 < length <= 16 and any(answer[1 : 1 + length]):
            names.append(f"uuid={bytes(answer[1 : 1 + length]).hex()}")
    fsid = os.fstatvfs(fd).f_fsid
    if fsid:
        names.append(f"fsid={fsid:x}")
    names.append(f"dev={os.fstat(fd).st_dev:x}")
    return ";".join(names)


def is_same_file_system(before: str, now: str) -> bool:
    """Compare two answers of `file_system_id` by the most lasting name that both have."""
    old = dict(part.partition("=")[::2] for part in before.split(";"))
    new = dict(part.partition("=")[::2] for part in now.split(";"))
    for name in ("uuid", "fsid", "dev"):
        if name in old and name in new:
            return old[name] == new[name]
    return False
