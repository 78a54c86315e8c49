"""How a batch is made durable: by one syncfs for all of it, or file by file and directory by directory.

One by one is cheaper for a few operations, and the only way on a file system where syncfs says yes
and does nothing. Which operations there are, and when what is flushed, is `publish`'s business.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence

from syncengine.directories import OPEN_DIRECTORY, Directories
from syncengine.kernel import syncfs, syncfs_reaches_disk
from syncengine.model import Kind
from syncengine.names import join
from syncengine.operations import Operation, Place, Reveal
from syncengine.places import OPEN_ANY
from syncengine.trash import Trash
from syncengine.tree import Tree

_FEW = 8
"""Up to so many files and directories are flushed one by one; beyond, one syncfs is cheaper."""

_GONE = (FileNotFoundError, NotADirectoryError)


class Flusher:
    """Flushes batches in one tree; for one thread. Every method blocks and raises OSError."""

    def __init__(self, tree: Tree, directories: Directories) -> None:
        self._tree = tree
        self._directories = directories
        self._sweeping: dict[int, bool] = {}
        """Devices -> whether syncfs can be believed there."""
        self.one_by_one = True
        """Whether what changes attributes must flush them itself, in this batch."""

    def begin(self, operations: Sequence[Operation]) -> None:
        """Decide how the next batch is flushed."""
        self.one_by_one = len(operations) <= _FEW or not self._can_sweep()

    def _file_systems(self) -> dict[int, int]:
        """Return all that is written to: the top's, the trash's, those mounted below the top."""
        found = {self._tree.device: self._tree.top_fd, self._tree.root_id[0]: self._tree.root_fd}
        return found | self._directories.devices

    def _can_sweep(self) -> bool:
        for device, fd in self._file_systems().items():
            if device not in self._sweeping:
                self._sweeping[device] = syncfs_reaches_disk(fd)
        return all(self._sweeping.values())

    def _sweep(self) -> None:
        for fd in self._file_systems().values():
            syncfs(fd)

    def contents(self, staged: Sequence[Operation]) -> None:
        """Make what is staged durable, under the names that it has now."""
        if self.one_by_one and (_flushes(staged) <= _FEW or not self._can_sweep()):
            for operation in staged:
                if isinstance(operation, Reveal):
                    self._directory(operation)
                elif isinstance(operation, Place):
                    self._file(operation)
        else:
            self._sweep()

    def _file(self, place: Place) -> None:
        if place.kind is Kind.FILE:  # a symlink is durable with its directory
            _flush_file(self._directories.fd(place.parent), place.temporary)

    def _directory(self, reveal: Reveal) -> None:
        """Flush a hidden directory and all that was staged in it."""
        top = os.open(reveal.temporary, OPEN_DIRECTORY, dir_fd=self._directories.fd(reveal.parent))
        below = Directories(top, limit=32)
        try:
            left = [b""]
            while left:
                path = left.pop()
                fd = below.fd(path)
                with os.scandir(fd) as entries:
                    found = [(os.fsencode(e.name), e.stat(follow_symlinks=False)) for e in entries]
                for name, status in found:
                    if stat.S_ISDIR(status.st_mode):
                        left.append(join(path, name))
                    elif stat.S_ISREG(status.st_mode):
                        _flush_file(fd, name)
                os.fsync(fd)
        finally:
            below.close()
            os.close(top)

    def names(self, touched: Iterable[bytes], trash: Trash) -> None:
        """Make the names in the directories `touched`, and what went to the trash, durable."""
        paths = list(touched)
        few = len(paths) + len(trash.touched) <= _FEW
        if self.one_by_one and (few or not self._can_sweep()):
            # That something is in the trash is on the disk before that it is gone elsewhere.
            trash.sync()
            for path in paths:
                with contextlib.suppress(*_GONE):
                    os.fsync(self._directories.fd(path))
        else:
            self._sweep()
            trash.touched.clear()


class FlushedPaths:
    """Makes files durable that lie in a tree already, with the way to them; for one thread.

    `finish` blocks on the disk, and `add` where the file system must be asked file by file. Both
    raise OSError.
    """

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        self._is_sound = syncfs_reaches_disk(directories.fd(b""))
        self._parents: set[bytes] = set()

    def add(self, path: bytes) -> None:
        """See to it that the file at a path is durable once `finish` returned."""
        if self._is_sound:
            return
        parent, _, name = path.rpartition(b"/")
        _flush_file(self._directories.fd(parent), name)
        while parent not in self._parents:
            self._parents.add(parent)
            parent = parent.rpartition(b"/")[0]

    def finish(self) -> None:
        """Make everything that was added durable."""
        if self._is_sound:
            syncfs(self._directories.fd(b""))
            return
        for path in sorted(self._parents):
            os.fsync(self._directories.fd(path))


def _flushes(staged: Iterable[Operation]) -> int:
    """Return how much there is to flush, with all that lies in hidden directories."""
    return sum(one.files + one.directories + 1 for one in staged if isinstance(one, Reveal)) + sum(
        isinstance(one, Place) for one in staged
    )


def _flush_file(parent: int, name: bytes) -> None:
    try:
        fd = os.open(name, OPEN_ANY, dir_fd=parent)
    except PermissionError:
        _flush_unreadable(parent, name)
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _flush_unreadable(parent: int, name: bytes) -> None:
    """Flush a staged file whose mode forbids even its owner to open it."""
    if syncfs_reaches_disk(parent):
        syncfs(parent)
        return
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        itself = b"/proc/self/fd/%d" % handle
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        # It lies under a temporary name still, and only its owner gains by this.
        os.chmod(itself, 0o600)  # noqa: PTH101 - no path, but the open file itself
        try:
            fd = os.open(itself, OPEN_ANY & ~os.O_NOFOLLOW)
        finally:
            os.chmod(itself, mode)  # noqa: PTH101 - the same
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    finally:
        os.close(handle)
