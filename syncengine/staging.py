"""Stage: complete new content beside its place, where no reader looks for it.

In a visible directory a file gets a temporary name. A new directory gets one as a whole, and what
it holds is written under its final names: one rename will show it all.
"""

import contextlib
import os
import stat

from syncengine.directories import Directories, Held
from syncengine.failpoints import Step, reach
from syncengine.kernel import current_umask
from syncengine.model import Kind, MirrorOptions
from syncengine.names import join
from syncengine.operations import Place, Reveal, Temporaries
from syncengine.tree import Tree

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_SETUID_SETGID = stat.S_ISUID | stat.S_ISGID
_DEFAULT_ACL = "system.posix_acl_default"


class PartFile:
    """A file that arrives in parts."""

    __slots__ = ("fd", "hidden_in", "mask", "name", "parent", "seen", "temporary")

    def __init__(self, parent: bytes, name: bytes, temporary: bytes, fd: int) -> None:
        self.parent = parent
        self.name = name
        self.temporary = temporary
        self.fd = fd
        self.seen = 0
        self.mask = 0
        self.hidden_in: Reveal | None = None


class Staging:
    """Writes staged entries in one tree; for one thread. Every method raises OSError."""

    def __init__(
        self, tree: Tree, directories: Directories, options: MirrorOptions, temporaries: Temporaries
    ) -> None:
        self._tree = tree
        self._directories = directories
        self._options = options
        self._temporaries = temporaries
        self._umask = current_umask()
        self._is_root = os.geteuid() == 0

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
        fd = os.open(temporary, _CREATE, mode, dir_fd=held.fd)
        try:
            try:
                if size:
                    _write(fd, data)
                self._finish(fd, mode, mtime_ns, held.mask)
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

    def write_part(self, part: PartFile, data: memoryview) -> None:
        """Write the next bytes."""
        _write(part.fd, data)

    def close_part(self, part: PartFile, mode: int, mtime_ns: int) -> Place | None:
        """End a file whose content has been found right."""
        self._finish(part.fd, self.allowed(mode), mtime_ns, None)
        size = os.fstat(part.fd).st_size
        fd, part.fd = part.fd, -1
        os.close(fd)
        if part.hidden_in is not None:
            part.hidden_in.files += 1
            part.hidden_in.bytes += size
            return None
        return Place(part.parent, part.name, part.temporary, part.seen, Kind.FILE, size)

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
        return None if hidden else Place(parent, name, temporary, seen, Kind.SYMLINK, 0)

    def directory(self, held: Held, parent: bytes, name: bytes, mode: int) -> Reveal | None:
        """Make a directory; hidden, unless it lies in one that is."""
        # Its owner must be able to fill it; the exact mode comes when nothing more changes in it.
        mode = mode & 0o777 | stat.S_IRWXU
        if held.hidden_in is not None:
            os.mkdir(name, mode, dir_fd=held.fd)
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
