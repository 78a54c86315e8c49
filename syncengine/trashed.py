"""What lies in the trash of a root: told, brought back, and removed at an operator's word.

Runs may go on meanwhile: a run moves things in by rename, and here they are moved out by rename,
never over anything. All of it goes through held descriptors below the root's. Blocks on the disk.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from syncengine.directories import OPEN_DIRECTORY, Directories
from syncengine.entries import kind_of
from syncengine.errors import RootReadOnly, TreeError
from syncengine.kernel import RENAME_NOREPLACE, Unsupported, renameat2
from syncengine.model import Kind
from syncengine.names import check_path, join
from syncengine.reserved import open_reserved
from syncengine.trash import DAY, TRASH_NAME, expire_trash, numbered, read_numbered
from syncengine.tree import Tree

_NEW_DIRECTORY_MODE = 0o755
_FAR = 1e18
"""Seconds of the epoch: after every day there is."""
_GONE = (FileNotFoundError, NotADirectoryError)


class NotInTrash(TreeError):
    """The trash holds no version of the path."""


class SomethingThere(TreeError):
    """Where something was to be brought back, there is something else."""


class Trashed(NamedTuple):
    """One thing in the trash; a directory only when it holds nothing."""

    date: str
    """YYYY-MM-DD, UTC."""
    path: bytes
    """As seen from the root, where it was."""
    kind: Kind
    size: int
    mtime_ns: int


@dataclass(slots=True)
class Restored:
    """What a restore did."""

    paths: list[bytes] = field(default_factory=list)
    """What was brought back, as seen from the root; of a directory, what it holds."""
    date: str = ""
    """The day that the latest of it is from."""
    in_the_way: list[bytes] = field(default_factory=list)
    """What was left in the trash, since something is there."""


class _Found(NamedTuple):
    """A version in the trash; they compare by age."""

    date: bytes
    ctime_ns: int
    number: int
    stored: bytes
    """Its path below the trash."""
    is_directory: bool


def list_trash(tree: Tree, *, date: str = "", below: bytes = b"") -> Iterator[Trashed]:
    """Yield what lies in the trash, latest day first, each day in the order of its names.

    `date` for one day only; `below` for one path and what is below it. What is moved or removed
    meanwhile may be left out. Raises OSError.
    """
    check_path(below)
    with _opened(tree) as directories:
        if directories is None:
            return
        for day in _days(directories, date):
            yield from _walk(directories, day, os.fsdecode(day), below)


def restore(tree: Tree, path: bytes, *, date: str = "", to: bytes | None = None) -> Restored:
    """Bring back the latest version of `path`, or that of `date`, to where it was, or to `to`.

    Of a directory everything that it held, each in its latest version. Directories on the way are
    made. Nothing is put over anything: of a directory, what is in the way is told; a single path
    raises SomethingThere. Raises NotInTrash, RootReadOnly, MalformedFrame for a forbidden path and
    OSError (EXDEV: the place is on another file system than the trash).
    """
    check_path(path)
    check_path(to or b"")
    wanted = path if to is None else to
    if not path or not wanted:
        raise NotInTrash("name a path below the root")
    if tree.read_only:
        raise RootReadOnly("nothing can be brought back into a root that is exported read-only")
    result = Restored()
    with _opened(tree) as trash, contextlib.closing(Directories(tree.root_fd)) as places:
        versions = [] if trash is None else _versions(trash, path, _days(trash, date))
        if not versions:
            shown = os.fsdecode(path)
            raise NotInTrash(
                f"no version of {shown} is in the trash" + (f" of {date}" if date else "")
            )
        assert trash is not None
        mover = _Mover(trash, places, result)
        if max(versions).is_directory:
            mover.directory(path, wanted, _days(trash, date))
        else:
            mover.latest(max(versions), wanted)
            if result.in_the_way:
                raise SomethingThere(
                    f"{os.fsdecode(wanted)} is there already: move it away, or name another "
                    "place with --to"
                )
        mover.sync()
    return result


def purge(tree: Tree, *, older_than_s: int | None, now: float) -> list[str]:
    """Remove the days that ended more than `older_than_s` before `now`; all of them when None.

    Returns the days removed. RACE: what a run moves into a day while that is removed goes with it.
    Raises RootReadOnly and OSError.
    """
    if older_than_s is None:
        return expire_trash(tree, 0, _FAR)
    return expire_trash(tree, older_than_s, now)


@contextlib.contextmanager
def _opened(tree: Tree) -> Iterator[Directories | None]:
    reserved = open_reserved(tree, create=False)
    if reserved is None:
        yield None
        return
    try:
        fd = os.open(TRASH_NAME, OPEN_DIRECTORY, dir_fd=reserved)
    except FileNotFoundError:
        yield None
        return
    finally:
        os.close(reserved)
    try:
        with contextlib.closing(Directories(fd)) as directories:
            yield directories
    finally:
        os.close(fd)


def _days(directories: Directories, date: str) -> list[bytes]:
    """Return the days there are, the latest first."""
    names = _names(directories, b"")
    return [n for n in reversed(names) if DAY.fullmatch(n) and date in {"", os.fsdecode(n)}]


def _names(directories: Directories, folder: bytes) -> list[bytes]:
    try:
        return sorted(map(os.fsencode, os.listdir(directories.fd(folder))))  # noqa: PTH208 - by descriptor
    except _GONE:
        return []


def _walk(directories: Directories, day: bytes, date: str, below: bytes) -> Iterator[Trashed]:
    at = [(day, b"")]
    while at:
        stored, path = at.pop()
        status = _look(directories, stored)
        if status is None or not _is_on_the_way(path, below):
            continue
        names = _names(directories, stored) if stat.S_ISDIR(status.st_mode) else []
        if names:
            children = [(join(stored, name), join(path, read_numbered(name)[0])) for name in names]
            at += reversed(children)
        elif path and (not below or (path + b"/").startswith(below + b"/")):
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            yield Trashed(date, path, kind_of(status.st_mode), size, status.st_mtime_ns)


def _is_on_the_way(path: bytes, below: bytes) -> bool:
    return (
        not (below and path)
        or (path + b"/").startswith(below + b"/")
        or (below + b"/").startswith(path + b"/")
    )


def _look(directories: Directories, stored: bytes) -> os.stat_result | None:
    parent, _, name = stored.rpartition(b"/")
    try:
        return os.lstat(name, dir_fd=directories.fd(parent))
    except _GONE:
        return None


def _versions(directories: Directories, path: bytes, days: Iterable[bytes]) -> list[_Found]:
    """Return every version of a path: each directory on the way may have several names."""
    found: list[_Found] = []
    *parents, leaf = path.split(b"/")
    for day in days:
        folders = [day]
        for component in parents:
            folders = [
                join(folder, name)
                for folder in folders
                for name, _ in _named(directories, folder, component)
            ]
        for folder in folders:
            for name, number in _named(directories, folder, leaf):
                stored = join(folder, name)
                status = _look(directories, stored)
                if status is not None:
                    is_directory = stat.S_ISDIR(status.st_mode)
                    found.append(_Found(day, status.st_ctime_ns, number, stored, is_directory))
    return found


def _named(directories: Directories, folder: bytes, name: bytes) -> list[tuple[bytes, int]]:
    """Return what the versions of a name are called in a folder of the trash."""
    numbers = ((stored, read_numbered(stored)[1]) for stored in _names(directories, folder))
    return [(stored, number) for stored, number in numbers if numbered(name, number) == stored]


class _Mover:
    """Moves versions out of the trash, and remembers what is to be made durable."""

    def __init__(self, trash: Directories, places: Directories, result: Restored) -> None:
        self._trash = trash
        self._places = places
        self._result = result
        self._touched: set[bytes] = set()

    def directory(self, path: bytes, to: bytes, days: list[bytes]) -> None:
        """Bring back everything below a path, each in its latest version."""
        at = [(path, to)]
        while at:
            path, to = at.pop()
            folders = [v for v in _versions(self._trash, path, days) if v.is_directory]
            children: dict[bytes, None] = {}
            for folder in folders:
                for stored in _names(self._trash, folder.stored):
                    children[read_numbered(stored)[0]] = None
            if not children and not self._make(to):
                self._result.in_the_way.append(to)
            for name in children:
                versions = _versions(self._trash, join(path, name), days)
                if not versions:
                    continue
                if max(versions).is_directory:
                    at.append((join(path, name), join(to, name)))
                else:
                    self.latest(max(versions), join(to, name))

    def latest(self, version: _Found, to: bytes) -> None:
        """Move one version to a place where nothing is; what is there is noted."""
        parent, _, name = to.rpartition(b"/")
        stored_in, _, stored = version.stored.rpartition(b"/")
        if not self._make(parent):
            self._result.in_the_way.append(to)
            return
        try:
            _move_new(self._trash.fd(stored_in), stored, self._places.fd(parent), name)
        except FileExistsError:
            self._result.in_the_way.append(to)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise OSError(
                errno.EXDEV,
                f"{os.fsdecode(to)} is on another file system than the trash: copy it from "
                f".baton/trash/{os.fsdecode(version.stored)}",
            ) from error
        self._touched.add(parent)
        self._prune(stored_in)
        self._result.paths.append(to)
        self._result.date = max(self._result.date, os.fsdecode(version.date))

    def _prune(self, folder: bytes) -> None:
        """Remove folders of the trash that hold nothing any more; a run may be using one."""
        while folder:
            parent, _, name = folder.rpartition(b"/")
            self._trash.forget(folder)
            try:
                os.rmdir(name, dir_fd=self._trash.fd(parent))
            except OSError:
                return
            folder = parent

    def _make(self, path: bytes) -> bool:
        """Make a directory and those on the way; False when something else is there."""
        if not path:
            return True
        try:
            self._places.fd(path)
        except NotADirectoryError:
            return False
        except FileNotFoundError:
            parent, _, name = path.rpartition(b"/")
            if not self._make(parent):
                return False
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, _NEW_DIRECTORY_MODE, dir_fd=self._places.fd(parent))
                self._touched.add(parent)
            return self._make(path)
        return True

    def sync(self) -> None:
        """Make what was moved durable: first where it is now."""
        for path in self._touched:
            os.fsync(self._places.fd(path))


def _move_new(from_fd: int, name: bytes, to_fd: int, leaf: bytes) -> None:
    try:
        renameat2(from_fd, name, to_fd, leaf, RENAME_NOREPLACE)
    except Unsupported:
        # Where the file system has no such rename: by a second name, which replaces nothing either.
        os.link(name, leaf, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)
        os.unlink(name, dir_fd=from_fd)
