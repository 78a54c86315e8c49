"""What a name and a path may be, and the one order that all listings share.

Paths are bytes relative to the top of a tree, components joined by `/`. Everything that comes from
a peer passes `check_name` or `check_path` before any system call sees it.
"""

from syncengine.errors import MalformedFrame
from syncengine.model import RESERVED_NAME, TEMPORARY_PREFIX

MAX_NAME = 255
"""Bytes of one component: NAME_MAX of Linux."""

MAX_PATH = 65_535
"""Bytes of a path. No system call ever sees a whole path, so PATH_MAX does not bind; this bounds
what a peer can make us remember."""

_NEVER = frozenset({b"", b".", b"..", RESERVED_NAME})


def is_reserved(name: bytes) -> bool:
    """Say whether a name is Baton's own, at any depth."""
    return name == RESERVED_NAME or name.startswith(TEMPORARY_PREFIX)


def check_name(name: bytes) -> None:
    """Raise MalformedFrame unless `name` is one component that a peer may ask for."""
    if (
        name in _NEVER
        or b"/" in name
        or b"\0" in name
        or len(name) > MAX_NAME
        or name.startswith(TEMPORARY_PREFIX)
    ):
        raise MalformedFrame(f"forbidden name {name[:300]!r}")


def check_path(path: bytes) -> None:
    """Raise MalformedFrame unless `path` is empty (the top) or made of allowed components."""
    if not path:
        return
    if len(path) > MAX_PATH:
        raise MalformedFrame(f"a path of {len(path)} bytes")
    for name in path.split(b"/"):
        check_name(name)


def order_key(path: bytes) -> bytes:
    """Return a key that sorts paths depth-first, children by name bytes.

    NUL is less than every byte of a name, so this is the order of the tuples of components.
    """
    return path.replace(b"/", b"\0")


def parent_of(path: bytes) -> bytes:
    """Return the path of the directory that holds `path`; the top's children have b""."""
    return path.rpartition(b"/")[0]


def join(parent: bytes, name: bytes) -> bytes:
    """Join a directory's path and a name."""
    return parent + b"/" + name if parent else name
