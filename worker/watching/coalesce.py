"""Paths that stand for others: pure functions on bytes."""

from collections.abc import Iterable, Mapping

from syncengine.names import order_key, parent_of


def is_below(path: bytes, top: bytes) -> bool:
    """Say whether `path` is `top` or lies below it."""
    return not top or path == top or path.startswith(top + b"/")


def relative_to(top: bytes, path: bytes) -> bytes | None:
    """Return `path` as seen from `top`; None when it is neither that nor below it."""
    if not top:
        return path
    if path == top:
        return b""
    return path[len(top) + 1 :] if path.startswith(top + b"/") else None


def coalesced(paths: Mapping[bytes, float], most: int) -> dict[bytes, float]:
    """Return the directories that are to stand for the paths in them, so that at most `most` are left.

    With the smallest of the numbers of what each stands for (since when it is pending). The fullest
    directories come first; where that is not enough, the deepest, up to the top b"".
    """
    chosen: dict[bytes, float] = {}
    left = dict(paths)
    groups = _by_parent(left)
    for parent in sorted(groups, key=lambda one: -len(groups[one])):
        if len(left) <= most or len(groups[parent]) < _FULL:
            break
        _replace(left, chosen, parent, groups[parent])
    while len(left) > most and set(left) != {b""}:
        deepest = max(path.count(b"/") for path in left if path)
        groups = _by_parent(path for path in left if path and path.count(b"/") == deepest)
        for parent in sorted(groups, key=lambda one: -len(groups[one])):
            if len(left) <= most:
                break
            _replace(left, chosen, parent, groups[parent])
    return _without_those_below(chosen)


_FULL = 16
"""A directory with so many changes may be looked at as a whole before one that lies deeper."""


def _by_parent(paths: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    groups: dict[bytes, list[bytes]] = {}
    for path in paths:
        if path:
            groups.setdefault(parent_of(path), []).append(path)
    return groups


def _replace(
    left: dict[bytes, float], chosen: dict[bytes, float], parent: bytes, inside: list[bytes]
) -> None:
    since = min([left.pop(path) for path in inside if path in left], default=None)
    if since is not None:
        left[parent] = chosen[parent] = min(since, left.get(parent, since))


def _without_those_below(chosen: dict[bytes, float]) -> dict[bytes, float]:
    kept: dict[bytes, float] = {}
    above: bytes | None = None
    for path in sorted(chosen, key=order_key):
        if above is not None and is_below(path, above):
            kept[above] = min(kept[above], chosen[path])
        else:
            above = path
            kept[path] = chosen[path]
    return kept
