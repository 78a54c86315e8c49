"""Stage: complete new content beside its place, where no reader looks for it.

In a visible directory a file gets a temporary name. A new directory gets one as a whole, and what
it holds is written under its final names: one rename will show it all.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from syncengine.attribute_giver import Given, Giver
from syncengine.directories import Directories, Held
from syncengine.failpoints import Step, reach
from syncengine.frames import Special
from syncengine.kernel import begin_writing, current_umask
from syncengine.model import Durability, Kind, RunOptions
from syncengine.names import join
from syncengine.operations import Place, Reveal, Temporaries
from syncengine.partials import Partial, Partials
from syncengine.tree import Tree

if TYPE_CHECKING:
    from syncengine.chunks import Chunks

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_SETUID_SETGID = stat.S_ISUID | stat.S_ISGID
_FORMS = {
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
}
_DEFAULT_ACL = "system.posix_acl_default"
_WRITE_BACK_BYTES = 8 * 1024 * 1024


class PartFile:
    """A file that arrives in parts."""

    __slots__ = (
        "chunks",
        "fd",
        "head",
        "hidden_in",
        "inode",
        "keep",
        "mask",
        "name",
        "parent",
        "partial",
        "ranges",
        "seen",
        "temporary",
        "unwritten",
    )

    def __init__(self, parent: bytes, name: bytes, temporary: bytes, fd: int) -> None:
        self.parent = parent
        self.name = name
        self.temporary = temporary
        self.fd = fd
        self.seen = 0
        self.mask = 0
        self.keep = b""
        self.hidden_in: Reveal | None = None
        self.partial: Partial | None = None
        """What it is until it is whole; it lies elsewhere then, and `temporary` is not known yet."""
        self.head = b""
        self.chunks: Chunks | None = None
        self.ranges: list[tuple[int, int]] | None = None
        """What it holds of a file that is to be changed in place; None for a whole new one."""
        self.inode = 0
        """Of that file."""
        self.unwritten = 0
        """How many bytes came since the kernel was last asked to begin with writing them out."""


class Staging:
    """Writes staged entries in one tree; for one thread. Every method raises OSError."""

    def __init__(
        self, tree: Tree, directories: Directories, options: RunOptions, temporaries: Temporaries
    ) -> None:
        self._tree = tree
        self._directories = directories
        self._options = options
        self._strict = options.durability is Durability.STRICT
        self._temporaries = temporaries
        self._umask = current_umask()
        self._uid = os.geteuid()
        self._gid = os.getegid()
        self._is_root = self._uid == 0
        self.giver = Giver(options)
        self.given: Given | None = None
        """The attributes that the next entries are to get."""

    def give(self, packed: bytes) -> None:
        """Give these attributes to the entries that follow; raises MalformedFrame."""
        self.given = self.giver.resolve(packed)

    def enter(self, path: bytes) -> Held:
        """Return the directory at `path`, ready to have entries made in it and removed from it.

        Its owner is given the right to write where the source's mode leaves him none; the plan sets
        the mode of every directory that it changes anything in, afterwards.
        """
        held = self._directories.get(path)
        if held.mask is None:
            held.mask = self._umask | _SETUID_SETGID
            with contextlib.suppress(OSError):
                os.getxattr(held.fd, _DEFAULT_ACL)
                held.mask = 0o7777  # a default ACL takes part in every creation
            status = os.fstat(held.fd)
            held.gid = status.st_gid if status.st_mode & stat.S_ISGID else self._gid
            if not self._is_root and status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
                with contextlib.suppress(PermissionError):
                    os.fchmod(held.fd, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
            self._directories.note_device(held, status.st_dev, self._tree.device)
        return held

    def allowed(self, mode: int) -> int:
        """Return a file's mode without what the job does not keep."""
        return mode if self._options.keep_setuid else mode & ~_SETUID_SETGID

    def small_file(
        self, held: Held, parent: bytes, name: bytes, meta: tuple[int, int, int], data: memoryview
    ) -> Place | None:
        """Write a whole file with `meta` = (seen, mode, mtime in ns).

        Returns its Place, or None when it lies in a directory that is still hidden.
        """
        seen, mode, mtime_ns = meta
        hidden_in = held.hidden_in
        if hidden_in is not None:
            if seen:
                raise FileNotFoundError("the directory is new, so nothing was here")
            temporary = name
        elif seen:
            temporary = self._temporaries.displacing(name)
        else:
            temporary = self._temporaries.staged()
        mode = self.allowed(mode)
        size = len(data)
        reach(Step.BEFORE_STAGE)
        # The final mode from the start: nobody may read more of the staged file than of the
        # published one, and a call is saved for every file.
        given = self.given
        is_bare = given is None or given is held.bare_for or self._is_bare(held, given)
        fd = os.open(temporary, _CREATE, mode if is_bare else mode & 0o700, dir_fd=held.fd)
        try:
            try:
                if size:
                    _write(fd, data)
                if is_bare:
                    self._finish(fd, mode, mtime_ns, held.mask)
                else:
                    self._give(fd, join(parent, name))
                    self._finish(fd, mode, mtime_ns, None)
            finally:
                os.close(fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=held.fd)
            raise
        reach(Step.AFTER_STAGE)
        if hidden_in is None:
            return Place(parent, name, temporary, seen, Kind.FILE, size)
        assert isinstance(hidden_in, Reveal)
        hidden_in.files += 1
        hidden_in.bytes += size
        return None

    def _is_bare(self, held: Held, given: Given) -> bool:
        """Say whether new entries of a directory have these attributes by themselves."""
        if held.mask == 0o7777 or not self.giver.needs_nothing(given, self._uid, held.gid):
            return False
        held.bare_for = given
        return True

    def _give(self, fd: int, path: bytes) -> None:
        """Give a new file, open to be written, its attributes; its mode comes afterwards."""
        given = self.given
        if given is not None:
            self.giver.owner(fd, given, path)
            self.giver.rest(fd, given, path, is_new=True)

    def _finish(self, fd: int, mode: int, mtime_ns: int, mask: int | None) -> None:
        if mask is None or mode & mask:
            os.fchmod(fd, mode)
        if self._options.keep_times:
            os.utime(fd, ns=(mtime_ns, mtime_ns))

    def open_part(self, held: Held, parent: bytes, name: bytes, seen: int) -> PartFile:
        """Begin a file that arrives in parts; the caller ends it with `close_part` or drops it."""
        hidden_in = held.hidden_in
        if hidden_in is not None:
            if seen:
                raise FileNotFoundError("the directory is new, so nothing was here")
            temporary = name
        elif seen:
            temporary = self._temporaries.displacing(name)
        else:
            temporary = self._temporaries.staged()
        fd = os.open(temporary, _CREATE, 0o600, dir_fd=held.fd)
        part = PartFile(parent, name, temporary, fd)
        part.seen = seen
        if hidden_in is not None:
            assert isinstance(hidden_in, Reveal)
            part.hidden_in = hidden_in
        return part

    def adopt(self, part: PartFile, partials: Partials) -> None:
        """Bring what is whole, and lay elsewhere, to its directory under a temporary name."""
        partial = part.partial
        assert partial is not None
        held = self.enter(part.parent)
        hidden_in = held.hidden_in
        if hidden_in is not None:
            if part.seen:
                raise FileNotFoundError("the directory is new, so nothing was here")
            assert isinstance(hidden_in, Reveal)
            temporary = part.name
        elif part.seen and part.ranges is None:
            temporary = self._temporaries.displacing(part.name)
        else:
            temporary = self._temporaries.staged()
        reach(Step.BEFORE_ADOPT)
        partials.put(partial, held, temporary)
        part.fd, part.temporary, part.hidden_in = partial.fd, temporary, hidden_in
        partial.fd = -1
        partial.close()
        reach(Step.AFTER_ADOPT)

    def write_part(self, part: PartFile, data: memoryview) -> None:
        """Write the next bytes."""
        _write(part.fd, data)
        part.unwritten += len(data)
        if self._strict and part.unwritten >= _WRITE_BACK_BYTES:
            # Else the disk rests until all has arrived, and then everybody waits for the disk.
            end = os.lseek(part.fd, 0, os.SEEK_CUR)
            begin_writing(part.fd, end - part.unwritten, part.unwritten)
            part.unwritten = 0

    def skip_part(self, part: PartFile, length: int) -> None:
        """Leave a hole for the next bytes."""
        os.ftruncate(part.fd, os.lseek(part.fd, length, os.SEEK_CUR))

    def close_part(self, part: PartFile, mode: int, mtime_ns: int) -> Place | None:
        """End a file whose content has been found right."""
        self._give(part.fd, join(part.parent, part.name))
        self._finish(part.fd, self.allowed(mode), mtime_ns, None)
        size = os.fstat(part.fd).st_size
        fd, part.fd = part.fd, -1
        os.close(fd)
        if part.hidden_in is not None:
            part.hidden_in.files += 1
            part.hidden_in.bytes += size
            return None
        place = Place(part.parent, part.name, part.temporary, part.seen, Kind.FILE, size, part.keep)
        place.ranges, place.given = part.ranges, self.given
        return place

    def drop_part(self, part: PartFile) -> None:
        """Forget a file that arrived in parts; what cannot be removed is left to the next scan."""
        with contextlib.suppress(OSError):
            if part.fd >= 0:
                os.close(part.fd)
                part.fd = -1
            os.unlink(part.temporary, dir_fd=self._directories.fd(part.parent))

    def symlink(
        self, held: Held, parent: bytes, name: bytes, meta: tuple[int, int], link: bytes
    ) -> Place | None:
        """Make a symlink with `meta` = (seen, mtime in ns)."""
        seen, mtime_ns = meta
        hidden = held.hidden_in is not None
        if hidden:
            temporary = name
        elif seen:
            temporary = self._temporaries.displacing(name)
        else:
            temporary = self._temporaries.staged()
        os.symlink(link, temporary, dir_fd=held.fd)
        if self._options.keep_times:
            times = (mtime_ns, mtime_ns)
            os.utime(temporary, ns=times, dir_fd=held.fd, follow_symlinks=False)
        given = self.given
        if given is not None and given is not held.bare_for and not self._is_bare(held, given):
            with self._own_entry(held.fd, temporary, stat.S_IFLNK) as handle:
                self.giver.owner(handle, given, join(parent, name))
        return None if hidden else Place(parent, name, temporary, seen, Kind.SYMLINK, 0)

    def special(self, held: Held, parent: bytes, record: Special) -> Place | None:
        """Make a FIFO, a socket or a device node."""
        name, seen, kind = record.name, record.seen, record.kind
        hidden = held.hidden_in is not None
        if hidden:
            temporary = name
        elif seen:
            temporary = self._temporaries.displacing(name)
        else:
            temporary = self._temporaries.staged()
        form = _FORMS[kind]
        device = record.device if kind in {Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE} else 0
        os.mknod(temporary, form | 0o600, device, dir_fd=held.fd)
        with self._own_entry(held.fd, temporary, form) as handle:
            itself = b"/proc/self/fd/%d" % handle
            if self.given is not None:
                path = join(parent, name)
                self.giver.owner(handle, self.given, path)
                self.giver.rest(itself, self.given, path, is_new=True)
            # No path, but the entry itself: a device may not even be opened.
            os.chmod(itself, self.allowed(record.mode))  # noqa: PTH101
            if self._options.keep_times:
                os.utime(itself, ns=(record.mtime_ns, record.mtime_ns))
        return None if hidden else Place(parent, name, temporary, seen, kind, 0)

    @contextlib.contextmanager
    def _own_entry(self, fd: int, name: bytes, form: int) -> Iterator[int]:
        """Hold what was just made, without opening it; on an error it is removed."""
        try:
            handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                status = os.fstat(handle)
                if (
                    stat.S_IFMT(status.st_mode) != form
                    or status.st_uid != self._uid
                    or status.st_nlink != 1
                ):
                    raise FileExistsError(errno.EEXIST, "somebody put something else here", name)
                yield handle
            finally:
                os.close(handle)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=fd)
            raise

    def directory(self, held: Held, parent: bytes, name: bytes, mode: int) -> Reveal | None:
        """Make a directory; hidden, unless it lies in one that is."""
        # Its owner must be able to fill it; the exact mode comes when nothing more changes in it.
        mode = mode & 0o777 | stat.S_IRWXU
        if held.hidden_in is not None:
            assert isinstance(held.hidden_in, Reveal)
            os.mkdir(name, mode, dir_fd=held.fd)
            held.hidden_in.directories += 1
            return None
        temporary = self._temporaries.staged()
        os.mkdir(temporary, mode, dir_fd=held.fd)
        reveal = Reveal(parent, name, temporary)
        self._directories.aliases[join(parent, name)] = (temporary, reveal)
        return reveal


def _write(fd: int, data: memoryview) -> None:
    """Write all of it: a disk that fills up gives a short write before the error that says so."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])
