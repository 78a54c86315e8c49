"""Where else the files of a tree lie that have several names: found by walking, when nobody knows.

A change through one name is a change of all of them, and whoever watches directories hears of one. The
walk asks directories alone, which tell the inodes of what they hold: about a microsecond an entry.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping

from syncengine.names import is_reserved, join
from syncengine.tree import Tree


def find_names(tree: Tree, wanted: Mapping[int, int]) -> Iterator[bytes]:
    """Yield the paths of these inodes: of each as many names as are wanted, at most; blocks on the disk.

    Ends as soon as all are found. What cannot be read is passed over. A path may have become another
    file by the time that it is used: look at it.
    """
    left = {inode: count for inode, count in wanted.items() if count > 0}
    with contextlib.closing(tree.directories()) as directories:
        waiting = [b""]
        while waiting and left:
            at = waiting.pop()
            try:
                # Opened anew: a duplicate would share its place in the list with others.
                fd = os.open(
                    b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directories.fd(at)
                )
            except OSError:
                continue
            try:
                with contextlib.suppress(OSError), os.scandir(fd) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            name = os.fsencode(entry.name)
                            if not is_reserved(name):
                                waiting.append(join(at, name))
                        elif entry.inode() in left:
                            inode = entry.inode()
                            left[inode] -= 1
                            if not left[inode]:
                                del left[inode]
                            yield join(at, os.fsencode(entry.name))
            finally:
                os.close(fd)
