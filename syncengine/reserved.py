"""The directory `.baton` at a root: opened or made, without the root's own time changing."""

import contextlib
import os

from syncengine.directories import OPEN_DIRECTORY
from syncengine.errors import RootReadOnly
from syncengine.model import RESERVED_NAME
from syncengine.tree import Tree


def open_reserved(tree: Tree, *, create: bool) -> int | None:
    """Return a new descriptor of `.baton`, or None when it is not there and not to be made.

    The caller closes it. Raises RootReadOnly when it would have to be made in a tree that is opened
    to be read, and OSError (ENOTDIR when somebody put something else there).
    """
    with contextlib.suppress(FileNotFoundError):
        return os.open(RESERVED_NAME, OPEN_DIRECTORY, dir_fd=tree.root_fd)
    if not create:
        return None
    if tree.read_only:
        raise RootReadOnly("there is no .baton at a root that is opened to be read")
    before = os.fstat(tree.root_fd)
    with contextlib.suppress(FileExistsError):
        os.mkdir(RESERVED_NAME, 0o700, dir_fd=tree.root_fd)
    fd = os.open(RESERVED_NAME, OPEN_DIRECTORY, dir_fd=tree.root_fd)
    try:
        # RACE: a change by somebody else within these microseconds loses its directory time; its
        # own entry still shows it to every scan.
        os.utime(tree.root_fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.fsync(tree.root_fd)
    except BaseException:
        os.close(fd)
        raise
    return fd
