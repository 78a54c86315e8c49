"""What a member may record of what it is told to agree to: only what its tree bears out (I3)."""

import os
import stat
from collections.abc import Iterable, Iterator

from syncengine.agreed import Agreement
from syncengine.attribute_reader import AttributeReader
from syncengine.directories import Directories
from syncengine.model import Entry, Kind, RunOptions
from syncengine.scan import OPEN_FILE, fingerprint

_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
}
_COARSEST_NS = 2 * 10**9
"""Of FAT, whose times are even seconds."""
_GONE = (FileNotFoundError, NotADirectoryError)


def borne_out(
    directories: Directories,
    agreements: Iterable[Agreement],
    options: RunOptions,
    *,
    holds_modes: bool = True,
    reader: AttributeReader | None = None,
) -> Iterator[tuple[bytes, Entry | None, int]]:
    """Yield, for those agreements that hold in the tree, what to record; blocks on the disk.

    What is recorded is the member's own entry. A path that cannot be looked at is left as it was.
    `reader` reads the attributes of those agreements that are `as_is`.
    Where the file system `holds_modes`, one that differs by now is somebody's change, and is not
    agreed to: the next run is to see it.
    """
    for agreement in agreements:
        if not agreement.number:
            yield agreement.path, None, 0
            continue
        try:
            mine = look(directories, agreement.path)
        except OSError:
            continue
        wanted = agreement.entry
        if wanted is None or mine is None:
            if wanted is mine:
                yield agreement.path, None, agreement.number
        elif _is_as(mine, wanted, options):
            attributes = wanted.attributes
            if agreement.as_is and reader is not None:
                try:
                    attributes = _attributes(directories, mine, reader)
                except OSError:
                    continue
            kept = mine._replace(digest=wanted.digest, attributes=attributes)
            if holds_modes and mine.kind is not Kind.SYMLINK and options.keep_mode:
                kept = kept._replace(mode=wanted.mode & 0o777 | mine.mode & 0o7000)
            if mine.kind is Kind.DIRECTORY and not _is_coarser(mine, wanted):
                # Somebody changed what it holds since: at the next run, that is to be seen.
                kept = kept._replace(mtime_ns=wanted.mtime_ns)
            yield agreement.path, kept, agreement.number


def _attributes(directories: Directories, entry: Entry, reader: AttributeReader) -> bytes:
    """Read what an entry has; RACE: a change since it was published is taken for agreed."""
    parent, _, name = entry.path.rpartition(b"/")
    at = directories.fd(parent)
    if entry.kind is Kind.FILE:
        fd = os.open(name, OPEN_FILE, dir_fd=at)
    elif entry.kind is Kind.DIRECTORY:
        fd = os.dup(directories.fd(entry.path))
    else:
        status = os.lstat(name, dir_fd=at)
        reader.enter(at, os.fstat(at))
        return reader.plain(entry.kind, status.st_uid, status.st_gid)
    try:
        return reader.of(fd, os.fstat(fd), entry.kind)
    finally:
        os.close(fd)


def look(directories: Directories, path: bytes) -> Entry | None:
    """Return what is at a path; None when nothing is. Raises OSError."""
    parent, _, name = path.rpartition(b"/")
    try:
        fd = directories.fd(parent)
        status = os.lstat(name, dir_fd=fd) if name else os.fstat(fd)
        link = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(status.st_mode) else b""
    except _GONE:
        return None
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    is_file = kind is Kind.FILE
    is_device = kind in {Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE}
    return Entry(
        path,
        kind,
        0 if kind is Kind.SYMLINK else stat.S_IMODE(status.st_mode),
        status.st_mtime_ns,
        status.st_size if is_file else 0,
        link,
        fingerprint(status),
        inode=status.st_ino,
        links=status.st_nlink if is_file else 1,
        device=status.st_rdev if is_device else 0,
        ctime_ns=status.st_ctime_ns,
    )


def _is_as(mine: Entry, wanted: Entry, options: RunOptions) -> bool:
    """Say whether a member has what is agreed to; a directory's time follows what it holds."""
    return (
        mine.kind is wanted.kind
        and mine.size == wanted.size
        and mine.link == wanted.link
        and mine.device == wanted.device
        and (
            not options.keep_times
            or mine.kind is Kind.DIRECTORY
            or mine.mtime_ns == wanted.mtime_ns
        )
    )


def _is_coarser(mine: Entry, wanted: Entry) -> bool:
    """Say whether a directory's time is what the file system could keep of the one that was set."""
    return mine.mtime_ns % 1_000 == 0 and abs(mine.mtime_ns - wanted.mtime_ns) < _COARSEST_NS
