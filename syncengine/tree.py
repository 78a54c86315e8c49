"""A granted root, opened once and held; everything else goes relative to its descriptors.

The root's own path is the operator's word and is trusted; what lies below it is not.
"""

import contextlib
import errno
import os
import stat
from types import TracebackType
from typing import TYPE_CHECKING, Self

from syncengine.directories import OPEN_DIRECTORY, Directories
from syncengine.errors import NotADirectory, PathMissing, RootMissing, RootUntrusted
from syncengine.names import check_path, is_reserved
from syncengine.shared_reads import SharedReads
from syncengine.throttle import Throttle
from syncengine.wall import Wall, machine_wall

if TYPE_CHECKING:
    from syncengine.chunk_index import RootChunks

_NEW_DIRECTORY_MODE = 0o755


class Tree:
    """The part of a root that a job covers: `root_fd` is the root, `top_fd` the path below it."""

    def __init__(self, root: bytes, sub: bytes, fds: tuple[int, int], *, read_only: bool) -> None:
        self.root = root
        self.sub = sub
        self.root_fd, self.top_fd = fds
        self.read_only = read_only
        at_root = os.fstat(self.root_fd)
        self.root_id = (at_root.st_dev, at_root.st_ino)
        """Device and inode of the root: what this tree was pinned to."""
        self.device = os.fstat(self.top_fd).st_dev
        self.wall: Wall = machine_wall
        self.chunks: RootChunks | None = None
        """What this worker remembers of the chunks of the root's files, if it does."""
        self.reads = SharedReads()
        """What these pushes read once for all."""
        self.throttle = Throttle()
        """What all pushes draw from that read this tree for a job."""

    @classmethod
    def open(
        cls, root: bytes, sub: bytes = b"", *, create_sub: bool = False, read_only: bool = False
    ) -> Self:
        """Open `root` and walk `sub` below it, never through a symlink.

        With `create_sub`, missing components of `sub` are made, durably. Raises RootMissing,
        PathMissing, NotADirectory, RootUntrusted, MalformedFrame for a forbidden `sub`, and OSError
        for what else the system says (EACCES, EIO).
        """
        check_path(sub)
        root_fd = _open_root(root)
        top_fd = -1
        try:
            top_fd = os.dup(root_fd)
            for name in sub.split(b"/") if sub else ():
                below = _open_component(top_fd, name, create=create_sub and not read_only)
                os.close(top_fd)
                top_fd = below
            return cls(root, sub, (root_fd, top_fd), read_only=read_only)
        except BaseException:
            os.close(root_fd)
            if top_fd >= 0:
                os.close(top_fd)
            raise

    def directories(self) -> Directories:
        """Return a new set of held directories below the top; close it before the tree."""
        return Directories(self.top_fd)

    def free_bytes(self) -> int:
        """Return how many bytes an unprivileged user may still write."""
        state = os.fstatvfs(self.top_fd)
        return state.f_bavail * state.f_frsize

    def is_empty(self) -> bool:
        """Say whether nothing lies at the top, beside what is Baton's own; raises OSError."""
        # Opened anew: a duplicate would share its place in the list with the scans of this tree.
        fd = os.open(b".", OPEN_DIRECTORY, dir_fd=self.top_fd)
        try:
            with os.scandir(fd) as entries:
                return all(is_reserved(os.fsencode(entry.name)) for entry in entries)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close both descriptors; harmless when closed already."""
        for fd in (self.top_fd, self.root_fd):
            if fd >= 0:
                os.close(fd)
        self.top_fd = self.root_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open_root(root: bytes) -> int:
    shown = os.fsdecode(root)
    if not os.path.isabs(root):  # noqa: PTH117 - bytes
        raise NotADirectory(f"the root {shown} is no absolute path")
    try:
        try:
            return os.open(root, OPEN_DIRECTORY)
        except NotADirectoryError:
            link = os.lstat(root)
            if not stat.S_ISLNK(link.st_mode):
                raise
            # The operator may have named a link of his own; one that a stranger made in a
            # directory that he can write is an attack.
            if link.st_uid not in {0, os.geteuid()}:
                raise RootUntrusted(
                    f"the root {shown} is a symlink owned by user {link.st_uid}"
                ) from None
            return os.open(root, OPEN_DIRECTORY & ~os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise RootMissing(f"the root {shown} does not exist") from error
    except NotADirectoryError as error:
        raise NotADirectory(f"the root {shown} is not a directory") from error


def _open_component(parent: int, name: bytes, *, create: bool) -> int:
    shown = os.fsdecode(name)
    try:
        try:
            return os.open(name, OPEN_DIRECTORY, dir_fd=parent)
        except FileNotFoundError:
            if not create:
                raise
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, _NEW_DIRECTORY_MODE, dir_fd=parent)
            os.fsync(parent)
            return os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    except FileNotFoundError as error:
        raise PathMissing(f"{shown} does not exist below the root") from error
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            raise NotADirectory(f"{shown} below the root is not a directory") from error
        raise


def remove_tree(parent_fd: int, name: bytes) -> None:
    """Remove `name` and everything below it, never following a symlink; missing is fine.

    Iterative, and holds two descriptors at any depth: it always goes down to a directory without
    directories, empties it, and starts again. Raises OSError.
    """
    while True:
        try:
            os.unlink(name, dir_fd=parent_fd)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError) as error:
            # POSIX lets unlink of a directory fail with EPERM.
            if not stat.S_ISDIR(os.lstat(name, dir_fd=parent_fd).st_mode):
                raise error from None
        else:
            return
        try:
            os.rmdir(name, dir_fd=parent_fd)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        else:
            return
        _empty_deepest(parent_fd, name)


def _empty_deepest(parent_fd: int, name: bytes) -> None:
    """Go down from `name` along first subdirectories, emptying files on the way."""
    fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent_fd)
    try:
        while True:
            below: str | None = None
            if not os.fstat(fd).st_mode & stat.S_IWUSR:
                os.fchmod(fd, 0o700)
            with os.scandir(fd) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.name, dir_fd=fd)
                        continue
                    try:
                        os.rmdir(entry.name, dir_fd=fd)
                    except OSError as error:
                        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                            raise
                        below = entry.name
            if below is None:
                return
            deeper = os.open(below, OPEN_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = deeper
    finally:
        os.close(fd)
