"""What a killed push leaves under temporary names: found by a walk, and removed.

Whoever lists a target removes it on the way. Where nobody lists, because runs go by a journal, a walk
finds it that asks directories for their names alone: about a second for a million. Which temporary may
hold what, its name tells: what a place had before an exchange goes to the trash, since that version may
be one that no plan saw; all else is new content that the next push brings again.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable

from syncengine.directories import OPEN_DIRECTORY, Directories
from syncengine.model import TEMPORARY_PREFIX
from syncengine.moves import directories_moved
from syncengine.names import is_reserved, join
from syncengine.operations import displaced_name, is_of_this_process
from syncengine.places import look
from syncengine.trash import Trash
from syncengine.tree import Tree, remove_tree

_removing = threading.Lock()


def remove_leavings(tree: Tree, fd: int, path: bytes, names: Iterable[bytes]) -> None:
    """Remove temporaries from the open directory at `path`, which keeps its times; blocks on the disk.

    What cannot be removed stays, for whoever looks next.
    """
    # RACE: a listing and the walk may come to one directory at once. One of them would take for its time
    # what the other's removal just made of it, and set that.
    with _removing:
        before = os.fstat(fd)
        day = time.strftime("%Y-%m-%d", time.gmtime())
        with Trash(tree, day) as trash:
            for name in names:
                # CRASH: between an exchange and a look at what it displaced. That version may be one
                # that no plan saw, so it is kept.
                older = displaced_name(name)
                with contextlib.suppress(OSError):
                    if older is None:
                        remove_tree(fd, name)
                    else:
                        trash.keep(fd, name, join(path, older))
        # Cleaning is no change of the tree: the directory keeps its time.
        with contextlib.suppress(OSError):
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))


def walk_leavings(
    tree: Tree,
    quiet: Callable[[], contextlib.AbstractContextManager[None]],
    is_stopped: Callable[[], bool],
) -> bool:
    """Remove what processes before this one left in a tree, beside pushes that go on.

    Within `quiet` nothing is published: a directory's times are only then ours to set back. Return
    whether all of the tree was seen: False when it was stopped, something could not be removed, or
    directories moved meanwhile. Blocks on the disk.
    """
    moved = directories_moved()
    is_clean = True
    waiting = [b""]
    with contextlib.closing(tree.directories()) as directories:
        while waiting:
            if is_stopped():
                return False
            at = waiting.pop()
            try:
                names = _leavings_of(directories, at, waiting)
                if names:
                    is_clean = _remove(tree, directories.fd(at), at, names, quiet) and is_clean
            except OSError:
                is_clean = False  # it moved, went, or cannot be read
    return is_clean and moved == directories_moved()


def _leavings_of(directories: Directories, at: bytes, waiting: list[bytes]) -> list[bytes]:
    """Return the leavings in a directory, and add the directories in it to those that wait."""
    found = []
    # Opened anew: a duplicate would share its place in the list with others.
    fd = os.open(b".", OPEN_DIRECTORY, dir_fd=directories.fd(at))
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                is_ours = entry.name.startswith(".baton")  # few are: the others need no bytes
                if is_ours and is_reserved(name := os.fsencode(entry.name)):
                    if name.startswith(TEMPORARY_PREFIX) and not is_of_this_process(name):
                        found.append(name)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(join(at, os.fsencode(entry.name)))
    finally:
        os.close(fd)
    return found


def _remove(
    tree: Tree,
    fd: int,
    at: bytes,
    names: list[bytes],
    quiet: Callable[[], contextlib.AbstractContextManager[None]],
) -> bool:
    """Remove leavings from a directory; say whether none is left."""
    # A directory that was never shown may hold very much, and nobody must be kept waiting for it.
    for name in names:
        if displaced_name(name) is None:
            with contextlib.suppress(OSError):
                _empty(fd, name)
    with quiet():
        remove_leavings(tree, fd, at, names)
    return all(look(fd, name) is None for name in names)


def _empty(parent_fd: int, name: bytes) -> None:
    fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent_fd)
    try:
        for below in os.listdir(fd):  # noqa: PTH208 - by descriptor
            remove_tree(fd, os.fsencode(below))
    finally:
        os.close(fd)
