"""The trash of a root: `.baton/trash/YYYY-MM-DD/PATH`, PATH as seen from the root.

What a run deletes or displaces is moved here by rename, and never over anything that lies here
already: later versions of one day are called `NAME~2`, `NAME~3`. So that these can be told from
names that end so by themselves, the first version of such a name gets its number too: `x~2~1`. Days
are UTC.
"""

import contextlib
import datetime as dt
import errno
import os
import re
from typing import Self

from syncengine.directories import OPEN_DIRECTORY, Directories
from syncengine.errors import RootReadOnly
from syncengine.kernel import RENAME_NOREPLACE, Unsupported, renameat2
from syncengine.names import MAX_NAME, join, parent_of
from syncengine.reserved import open_reserved
from syncengine.tree import Tree, remove_tree

TRASH_NAME = b"trash"

DAY = re.compile(rb"\d{4}-\d{2}-\d{2}")
_NUMBERED = re.compile(rb"(.+)~([1-9]\d{0,8})", re.DOTALL)
_DAY_S = 86_400
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY})


class Trash:
    """The trash of one day, opened when first needed; for one thread."""

    def __init__(self, tree: Tree, day: str) -> None:
        self._tree = tree
        self._day = os.fsencode(day)
        self._directories: Directories | None = None
        self._base = -1
        self._folders: dict[bytes, bytes] = {}
        """Directories of the tree -> where their trash is, when not at the same path."""
        self.touched: set[bytes] = set()
        """Folders here that changed since the last `sync`."""

    def keep(self, parent_fd: int, name: bytes, path: bytes) -> None:
        """Move `name` in `parent_fd` here, as what the covered tree had at `path`.

        Raises OSError; EXDEV when the tree goes over a mount point there.
        """
        from_root = join(self._tree.sub, path) if self._tree.sub else path
        for is_last in (False, False, True):
            try:
                return self._keep(parent_fd, name, from_root)
            except FileNotFoundError:
                # RACE: an operator empties the trash in this moment: its folders are made anew. It
                # may also be that what was to be kept is gone itself, which the next try shows.
                if is_last:
                    raise
                self.close()
        return None

    def _keep(self, parent_fd: int, name: bytes, from_root: bytes) -> None:
        folder = self._folder(parent_of(from_root))
        leaf = from_root[len(parent_of(from_root)) :].removeprefix(b"/")
        directories = self._open()
        number = 1
        while True:
            try:
                _move(parent_fd, name, directories.fd(folder), numbered(leaf, number))
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                number += 1
            else:
                self.touched.add(folder)
                return

    def _open(self) -> Directories:
        if self._directories is None:
            reserved = open_reserved(self._tree, create=True)
            assert reserved is not None
            try:
                self._base = _make_and_open(reserved, TRASH_NAME)
            finally:
                os.close(reserved)
            self._directories = Directories(self._base, limit=32)
        return self._directories

    def _folder(self, wanted: bytes) -> bytes:
        """Return where the trash of a directory lies, making what is missing."""
        directories = self._open()
        known = self._folders.get(wanted)
        if known is not None:
            return known
        at = b""
        for component in (self._day, *(wanted.split(b"/") if wanted else ())):
            at = self._component(directories, at, component)
        if len(self._folders) > 4_096:
            self._folders.clear()
        self._folders[wanted] = at
        return at

    def _component(self, directories: Directories, at: bytes, component: bytes) -> bytes:
        number = 1
        while True:
            name = numbered(component, number)
            candidate = join(at, name)
            try:
                directories.fd(candidate)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=directories.fd(at))
                    self.touched.add(at)
            except NotADirectoryError:
                # An earlier run deleted a file of this name.
                number += 1
            else:
                return candidate

    def sync(self) -> None:
        """Make what was moved here durable, from the top down; blocks on the disk."""
        for folder in sorted(self.touched):
            # What an operator removed meanwhile needs to last no longer.
            with contextlib.suppress(FileNotFoundError):
                os.fsync(self._open().fd(folder))
        self.touched.clear()

    def close(self) -> None:
        """Let go of all descriptors."""
        if self._directories is not None:
            self._directories.close()
            self._directories = None
            os.close(self._base)
            self._folders.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _move(from_fd: int, name: bytes, to_fd: int, leaf: bytes) -> None:
    try:
        renameat2(from_fd, name, to_fd, leaf, RENAME_NOREPLACE)
    except Unsupported:
        # One writer has this directory, and only he: a look before is enough.
        try:
            os.lstat(leaf, dir_fd=to_fd)
        except FileNotFoundError:
            os.rename(name, leaf, src_dir_fd=from_fd, dst_dir_fd=to_fd)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), leaf) from None


def numbered(name: bytes, number: int) -> bytes:
    """Return what the `number`th version of a name is called in the trash, 1 and up."""
    if number == 1 and not _NUMBERED.fullmatch(name):
        return name
    suffix = b"~%d" % number
    return name[: MAX_NAME - len(suffix)] + suffix


def read_numbered(stored: bytes) -> tuple[bytes, int]:
    """Return the name and the number that `numbered` made one of; of a long name the beginning."""
    found = _NUMBERED.fullmatch(stored)
    return (found[1], int(found[2])) if found else (stored, 1)


def _make_and_open(parent_fd: int, name: bytes) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.open(name, OPEN_DIRECTORY, dir_fd=parent_fd)
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent_fd)
    os.fsync(parent_fd)
    return os.open(name, OPEN_DIRECTORY, dir_fd=parent_fd)


def expire_trash(tree: Tree, trash_s: int, now: float) -> list[str]:
    """Remove the days that ended more than `trash_s` seconds before `now` (seconds of the epoch).

    Returns the days removed. Blocks on the disk. Raises RootReadOnly and OSError.
    """
    if tree.read_only:
        raise RootReadOnly("nothing leaves the trash of a root that is opened to be read")
    reserved = open_reserved(tree, create=False)
    if reserved is None:
        return []
    gone: list[str] = []
    try:
        try:
            fd = os.open(TRASH_NAME, OPEN_DIRECTORY, dir_fd=reserved)
        except FileNotFoundError:
            return []
        try:
            for name in sorted(map(os.fsencode, os.listdir(fd))):  # noqa: PTH208 - by descriptor
                if DAY.fullmatch(name) and _day_ends(name) + trash_s <= now:
                    remove_tree(fd, name)
                    gone.append(os.fsdecode(name))
        finally:
            os.close(fd)
    finally:
        os.close(reserved)
    return gone


def _day_ends(name: bytes) -> float:
    try:
        day = dt.datetime.strptime(name.decode(), "%Y-%m-%d").replace(tzinfo=dt.UTC)
    except ValueError:
        return float("inf")  # somebody's own directory
    return day.timestamp() + _DAY_S
