"""From what the system says of a name to the entry that a listing has for it."""

import os
import stat
from collections.abc import Callable

from syncengine.abilities import Abilities
from syncengine.details import Details, leads_out
from syncengine.model import PRETENDED, Entry, Kind, What

Note = Callable[[bytes, What, str], None]
"""Takes a path, what is wrong with it, and the detail."""

_SETUID_SETGID = stat.S_ISUID | stat.S_ISGID
_EVERYTHING = Abilities()
_NO_ONE = (1 << 32) - 2
_MASK = (1 << 64) - 1
_FILE, _DIRECTORY, _SYMLINK = Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK
_SPECIAL_KINDS = {
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
}
_KINDS = {
    stat.S_IFREG: _FILE,
    stat.S_IFDIR: _DIRECTORY,
    stat.S_IFLNK: _SYMLINK,
    **_SPECIAL_KINDS,
}


def kind_of(mode: int) -> Kind:
    """Return what an entry of this st_mode is."""
    return _KINDS[stat.S_IFMT(mode)]


def fingerprint(status: os.stat_result) -> int:
    """Return the 64 bits that tell one version of an entry from another; never 0.

    Directories by identity alone (their times change with every child), the rest also by size,
    mtime and ctime. For comparisons by the machine that made it: a tuple of integers hashes alike
    in every process of one Python.
    """
    form = stat.S_IFMT(status.st_mode)
    if form == stat.S_IFDIR:
        return hash((status.st_dev, status.st_ino, form)) & _MASK or 1
    return (
        hash(
            (
                status.st_dev,
                status.st_ino,
                form,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
            )
        )
        & _MASK
        or 1
    )


class EntryMaker:
    """Makes the entries of one scan. Regular files are the scan's own business, for speed."""

    def __init__(
        self,
        details: Details,
        note: Note,
        *,
        keep_setuid: bool,
        abilities: Abilities = _EVERYTHING,
    ) -> None:
        self.details = details
        self.reader = details.reader(abilities)
        self._has_links = abilities.hard_links or not details.is_applied_to
        self.note = note
        self._keep_setuid = keep_setuid
        self.marks: list[int] = []
        """The ctimes of the directories made since somebody cleared it: fingerprints of
        directories, being their identity, do not show a change of their attributes."""

    def enter(self, fd: int, part: bytes = b"") -> None:
        """Turn to the entries of a directory, or to the `part` of them that begins with a name."""
        self.marks.clear()
        if self.reader is not None:
            self.reader.enter(fd, os.fstat(fd), part)

    def top(self, fd: int) -> Entry:
        """Make the entry of the top, without `links` where there can be no hard links.

        Raises OSError.
        """
        status = os.fstat(fd)
        packed = b"" if self.reader is None else self.reader.of(fd, status, _DIRECTORY)
        top = self.directory(b"", status)._replace(attributes=packed)
        return top if self._has_links else top._replace(links=0)

    def directory(self, path: bytes, status: os.stat_result) -> Entry:
        """Make the entry of a directory."""
        self.marks.append(status.st_ctime_ns)
        mode = stat.S_IMODE(status.st_mode)
        return self.detailed(
            Entry(path, _DIRECTORY, mode, status.st_mtime_ns, 0, b"", fingerprint(status)), status
        )

    def pretended(self, path: bytes) -> Entry:
        """Make the entry of a directory that is not there yet: nothing of it is as it should be."""
        packed = b"" if self.reader is None else self.reader.plain(_DIRECTORY, _NO_ONE, _NO_ONE)
        return Entry(path, _DIRECTORY, 0, 0, 0, b"", PRETENDED, attributes=packed)

    def detailed(self, entry: Entry, status: os.stat_result) -> Entry:
        """Add what only some jobs ask for; of the attributes, the owner."""
        details = self.details
        if self.reader is not None:
            packed = self.reader.plain(entry.kind, status.st_uid, status.st_gid)
            entry = entry._replace(attributes=packed)
        if details.inodes:
            entry = entry._replace(inode=status.st_ino, ctime_ns=status.st_ctime_ns)
        if details.hardlinks and status.st_nlink > 1 and entry.kind is _FILE:
            entry = entry._replace(inode=status.st_ino, links=status.st_nlink)
        return entry

    def other(self, path: bytes, name: bytes, fd: int, status: os.stat_result) -> Entry | None:
        """Make the entry of what is no regular file; None when it vanished."""
        if stat.S_ISDIR(status.st_mode):
            return self.directory(path, status)
        if not stat.S_ISLNK(status.st_mode):
            return self._special(path, status)
        try:
            link = os.readlink(name, dir_fd=fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.note(path, What.UNREADABLE, f"cannot read the link: {error.strerror}")
            return None
        seen, mtime_ns = fingerprint(status), status.st_mtime_ns
        if self.details.only_inside and leads_out(path, link):
            self.note(path, What.SKIPPED, "the symlink may lead out of the tree: left alone")
            return Entry(path, Kind.EXCLUDED, 0, mtime_ns, 0, b"", seen)
        return self.detailed(Entry(path, _SYMLINK, 0, mtime_ns, 0, link, seen), status)

    def _special(self, path: bytes, status: os.stat_result) -> Entry:
        mode, seen = stat.S_IMODE(status.st_mode), fingerprint(status)
        if not self.details.devices:
            return Entry(path, Kind.SPECIAL, mode, status.st_mtime_ns, 0, b"", seen)
        kind = _SPECIAL_KINDS[stat.S_IFMT(status.st_mode)]
        device = status.st_rdev if kind in {Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE} else 0
        entry = Entry(path, kind, mode, status.st_mtime_ns, 0, b"", seen, device=device)
        return self.detailed(entry, status)

    def without_setuid(self, path: bytes, mode: int) -> int:
        """Return a file's mode without the bits that the job does not keep, and say so."""
        self.note(path, What.SKIPPED, "setuid and setgid bits are left out")
        return mode & ~_SETUID_SETGID

    def whatever(self, path: bytes, name: bytes, fd: int, status: os.stat_result) -> Entry | None:
        """Make the entry of what `status` tells; None when it vanished."""
        if not stat.S_ISREG(status.st_mode):
            return self.other(path, name, fd, status)
        mode = stat.S_IMODE(status.st_mode)
        if mode & _SETUID_SETGID and not self._keep_setuid:
            mode = self.without_setuid(path, mode)
        size, seen = status.st_size, fingerprint(status)
        entry = Entry(path, _FILE, mode, status.st_mtime_ns, size, b"", seen)
        return self.detailed(entry, status)

    def one(self, path: bytes, name: bytes, fd: int) -> Entry | None:
        """Make the entry of one name by itself; None when it vanished. Raises OSError."""
        status = os.lstat(name, dir_fd=fd)
        reader = self.reader
        if reader is not None:
            reader.enter(fd, os.fstat(fd))
        found = self.whatever(path, name, fd, status)
        if found is not None and reader is not None:
            found = found._replace(attributes=reader.of_name(fd, name, found))
        return found
