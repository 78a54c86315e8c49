"""The directories that are watched: which watch stands where, as far as events have told.

Bookkeeping only; what an event means is `RootWatch`'s business. A directory's path is made from its
ancestors' names, so a rename moves one node and all below it. For one thread.
"""

import os
from collections.abc import Iterator

from syncengine.directories import OPEN_DIRECTORY
from syncengine.names import join
from worker.watching.index import TOP
from worker.watching.inotify import Inotify


class Node:
    """One directory."""

    __slots__ = ("children", "name", "number", "parent", "wd")

    def __init__(self, parent: "Node | None", name: bytes, number: int) -> None:
        self.parent = parent
        self.name = name
        self.number = number
        """Its number in the index."""
        self.wd = -1
        """Its watch; -1 while it has none."""
        self.children: dict[bytes, Node] | None = None

    @property
    def path(self) -> bytes:
        """Where it is, as seen from the root."""
        names: list[bytes] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            names.append(node.name)
            node = node.parent
        return b"/".join(reversed(names))


class WatchedTree:
    """The nodes below one open root, and their watches. Close it to let go of both."""

    def __init__(self, root_fd: int) -> None:
        """Take over the descriptor; raises OSError when there can be no inotify instance."""
        self.root_fd = root_fd
        self.inotify = Inotify()
        self.root = Node(None, b"", TOP)
        self.by_wd: dict[int, Node] = {}

    def __len__(self) -> int:
        """How many directories are watched."""
        return len(self.by_wd)

    def enter(self, parent: Node, name: bytes, number: int) -> Node:
        """Return the node of a directory, made where there is none."""
        if parent.children is None:
            parent.children = {}
        node = parent.children.get(name)
        if node is None:
            node = parent.children[name] = Node(parent, name, number)
        return node

    def find(self, path: bytes) -> Node | None:
        """Return the node at a path."""
        node: Node | None = self.root
        for name in path.split(b"/") if path else ():
            if node is None or node.children is None:
                return None
            node = node.children.get(name)
        return node

    def open(self, node: Node) -> int:
        """Open a directory by the names that lead to it, never through a symlink; raises OSError."""
        return self.open_path(node.path)

    def open_path(self, path: bytes) -> int:
        """Open the directory at a path; raises OSError."""
        if not path:
            return os.open(b".", OPEN_DIRECTORY, dir_fd=self.root_fd)
        at = self.root_fd
        try:
            for name in path.split(b"/"):
                below = os.open(name, OPEN_DIRECTORY, dir_fd=at)
                if at != self.root_fd:
                    os.close(at)
                at = below
        except OSError:
            if at != self.root_fd:
                os.close(at)
            raise
        return at

    def watch(self, node: Node, fd: int) -> None:
        """Watch what lies at a node; raises OSError.

        What was known under the same watch is the same directory, and elsewhere until its rename is
        told: it has none there any more.
        """
        wd = self.inotify.watch(fd, is_root=node is self.root)
        if node.wd >= 0 and node.wd != wd:
            self._unwatch(node)
        before = self.by_wd.get(wd)
        if before is not None and before is not node:
            before.wd = -1
        node.wd = wd
        self.by_wd[wd] = node

    def _unwatch(self, node: Node) -> None:
        if node.wd >= 0:
            self.inotify.unwatch(node.wd)
            self.by_wd.pop(node.wd, None)
            node.wd = -1

    def ignored(self, wd: int) -> None:
        """Note that the kernel dropped a watch."""
        node = self.by_wd.pop(wd, None)
        if node is not None:
            node.wd = -1

    def below(self, node: Node) -> Iterator[Node]:
        """Yield a node and all below it."""
        nodes = [node]
        while nodes:
            node = nodes.pop()
            yield node
            if node.children:
                nodes += node.children.values()

    def drop(self, node: Node) -> None:
        """Forget a node and all below it, with their watches."""
        if node.parent is not None and node.parent.children is not None:
            here = node.parent.children.get(node.name)
            if here is node:
                del node.parent.children[node.name]
        for one in self.below(node):
            self._unwatch(one)

    def take_out(self, parent: Node, name: bytes) -> Node | None:
        """Take a node from its place, still watched, until it is given another or dropped."""
        return parent.children.pop(name, None) if parent.children else None

    def move(self, node: Node, parent: Node, name: bytes) -> None:
        """Give a node that was taken out another place; what was there is forgotten."""
        there = (parent.children or {}).get(name)
        if there is not None and there is not node:
            self.drop(there)
        node.parent, node.name = parent, name
        if parent.children is None:
            parent.children = {}
        parent.children[name] = node

    def close(self) -> None:
        """Let go of the root and of all watches."""
        self.inotify.close()
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1
        self.by_wd.clear()


def path_in(node: Node, name: bytes) -> bytes:
    """Return the path of an entry of a directory."""
    return join(node.path, name)
