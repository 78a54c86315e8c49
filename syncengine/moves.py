"""Renames and hard links: entries that get another path, or a further one, without any content.

The single steps are of `places`; whether they may be done at this moment is asked by `publish`.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from syncengine.directories import Directories, Held
from syncengine.entries import fingerprint
from syncengine.errors import TargetChanged
from syncengine.failpoints import Step, reach
from syncengine.model import Kind
from syncengine.names import parent_of
from syncengine.operations import Link, Move, Temporaries
from syncengine.places import is_same, look, move_new

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
_MISSING_MODE = 0o755
_PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


_moved = 0


def directories_moved() -> int:
    """Return a number that is another when this process has given a directory another path.

    Who walks a tree meanwhile may have missed what was in it.
    """
    return _moved


@contextlib.contextmanager
def _counted(*, is_directory: bool) -> Iterator[None]:
    """Let whoever walks while a directory moves know of it, whether he began or ends meanwhile."""
    global _moved  # noqa: PLW0603 - of all pushes of this process, whatever tree they change
    _moved += is_directory
    try:
        yield
    finally:
        _moved += is_directory


class OwnMarks:
    """What this push itself did to fingerprints that its plan knows.

    A rename, and every change to one of several names of a file, sets the ctime of the inode; what
    the plan has still to do to it, or to its other names, would look like somebody else's change.
    """

    def __init__(self) -> None:
        self._marks: dict[tuple[int, int], tuple[set[int], int]] = {}

    def note(self, before: os.stat_result, after: os.stat_result) -> None:
        """Remember that a change of ours made `after` of `before`."""
        key = (after.st_dev, after.st_ino)
        older = self._marks.get(key, (set(), 0))[0]
        older.add(fingerprint(before))
        self._marks[key] = (older, fingerprint(after))

    def is_seen(self, status: os.stat_result, seen: int) -> bool:
        """Say whether this is what the plan saw, but for our own changes."""
        now = fingerprint(status)
        if now == seen:
            return True
        known = self._marks.get((status.st_dev, status.st_ino))
        return known is not None and now == known[1] and seen in known[0]

    @contextlib.contextmanager
    def following(self, fd: int, name: bytes, before: os.stat_result) -> Iterator[None]:
        """Note what happens to the other names of a file that has several."""
        if before.st_nlink < 2 or not stat.S_ISREG(before.st_mode):
            yield
            return
        handle = os.open(name, _PATH_ONLY, dir_fd=fd)
        try:
            yield
            now = os.fstat(handle)
            if now.st_ino == before.st_ino:
                self.note(before, now)
        finally:
            os.close(handle)


class Mover:
    """Carries out renames, and makes hard links, in one tree; for one thread."""

    def __init__(
        self,
        directories: Directories,
        marks: OwnMarks,
        temporaries: Temporaries,
        enter: Callable[[bytes], Held],
    ) -> None:
        self._directories = directories
        self._marks = marks
        self._temporaries = temporaries
        self._enter = enter

    def move(self, move: Move) -> set[bytes]:
        """Give an entry its new path; returns the directories whose names changed.

        Raises TargetChanged, FileExistsError when something is there, and OSError.
        """
        parent, name = parent_of(move.path), move.path.rpartition(b"/")[2]
        to_parent, to_name = parent_of(move.to), move.to.rpartition(b"/")[2]
        made = self._make_missing(to_parent)
        to_fd = os.dup(self._enter(to_parent).fd)
        try:
            fd = self._enter(parent).fd
            before = look(fd, name)
            if before is None or not self._marks.is_seen(before, move.seen):
                raise TargetChanged("what is to be renamed is not what the plan saw")
            is_directory = move.kind is Kind.DIRECTORY
            with _times_kept(fd, to_fd), _counted(is_directory=is_directory):
                _rename(fd, name, to_fd, to_name, is_directory=is_directory)
            after = look(to_fd, to_name)
            if after is None or not _is_it(before, after):
                # RACE: somebody put something else here after the look. It goes back.
                with contextlib.suppress(OSError):
                    move_new(to_fd, to_name, fd, name)
                raise TargetChanged("what is to be renamed was just replaced")
            if not stat.S_ISDIR(after.st_mode):
                self._marks.note(before, after)
        finally:
            os.close(to_fd)
        self._directories.forget(move.path)
        self._directories.forget(move.to)
        return made | {parent, to_parent}

    def _make_missing(self, path: bytes) -> set[bytes]:
        """Make what is missing of a directory's path; returns the directories that got something."""
        missing: list[bytes] = []
        at = path
        while at:
            try:
                self._directories.fd(at)
            except FileNotFoundError:
                missing.append(at)
                at = parent_of(at)
            else:
                break
        for one in reversed(missing):
            held = self._enter(parent_of(one))
            with contextlib.suppress(FileExistsError):
                os.mkdir(one.rpartition(b"/")[2], _MISSING_MODE, dir_fd=held.fd)
        return {parent_of(one) for one in missing}

    def link(self, link: Link) -> bytes:
        """Make a further name of a file, under a temporary name that is returned.

        Raises TargetChanged when the file is not there, or is none, and OSError.
        """
        to_parent, to_name = parent_of(link.to), link.to.rpartition(b"/")[2]
        to_fd = os.dup(self._directories.fd(to_parent))
        try:
            before = look(to_fd, to_name)
            if before is None or not stat.S_ISREG(before.st_mode):
                raise TargetChanged(f"{os.fsdecode(link.to)}, its other name, is no file here")
            fd = self._enter(link.parent).fd
            if link.seen:
                temporary = self._temporaries.displacing(link.name)
            else:
                temporary = self._temporaries.staged()
            try:
                os.link(to_name, temporary, src_dir_fd=to_fd, dst_dir_fd=fd, follow_symlinks=False)
            except OSError as error:
                if error.errno in _NO_LINKS:
                    # The next listing will say so too, and the file be sent for every name.
                    raise TargetChanged("the file system here has no hard links") from error
                raise
            after = look(fd, temporary)
            if after is None or (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino):
                # RACE: the other name became something else, a symlink maybe, after the look.
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=fd)
                raise TargetChanged(f"{os.fsdecode(link.to)}, its other name, was just replaced")
            self._marks.note(before, after)
            try:
                reach(Step.AFTER_LINK)
            except OSError:
                os.unlink(temporary, dir_fd=fd)
                raise
        finally:
            os.close(to_fd)
        return temporary


def _is_it(before: os.stat_result, after: os.stat_result) -> bool:
    if stat.S_ISDIR(before.st_mode):
        return (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino)
    return is_same(before, after)


@contextlib.contextmanager
def _times_kept(*directories: int) -> Iterator[None]:
    """Leave directories the times that the plan knows: it sets those that are to be others."""
    before = [(fd, os.fstat(fd)) for fd in directories]
    yield
    for fd, status in before:
        with contextlib.suppress(OSError):
            os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))


def _rename(fd: int, name: bytes, to_fd: int, to_name: bytes, *, is_directory: bool) -> None:
    try:
        move_new(fd, name, to_fd, to_name)
    except PermissionError as error:
        if not is_directory or error.errno != errno.EACCES:
            raise
        # A directory that its owner may not write cannot get another parent.
        handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _PATH_ONLY, dir_fd=fd)
        itself = b"/proc/self/fd/%d" % handle
        try:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            os.chmod(itself, mode | stat.S_IRWXU)  # noqa: PTH101 - no path, but the open directory
            try:
                move_new(fd, name, to_fd, to_name)
            finally:
                os.chmod(itself, mode)  # noqa: PTH101 - the same
        finally:
            os.close(handle)
