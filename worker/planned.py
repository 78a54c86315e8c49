"""A plan's changes as a preview shows them."""

import itertools
from collections.abc import Iterable, Iterator

from syncengine.changes import (
    Change,
    MakeDirectory,
    MakeLink,
    MakeSpecial,
    MakeSymlink,
    Remove,
    Rename,
    SetDirectory,
    SetMetadata,
    WriteFile,
)
from wire.orders import PlannedChange

_BATCH = 500


def planned_changes(
    plans: Iterable[tuple[str, Iterable[Change]]],
) -> Iterator[tuple[PlannedChange, ...]]:
    """Yield what the plans, each of a member, would change, in batches; blocks on their spools."""
    for member, plan in plans:
        shown = (_planned(change, member) for change in plan)
        changes = (change for change in shown if change is not None)
        while batch := tuple(itertools.islice(changes, _BATCH)):
            yield batch


def _planned(change: Change, member: str) -> PlannedChange | None:
    """Return a change as a preview shows it; None for what merely follows from another."""
    match change:
        case MakeDirectory(path=path):
            return PlannedChange(path, member, "create", "directory", 0)
        case WriteFile(path=path, size=size, seen=seen):
            return PlannedChange(path, member, "update" if seen else "create", "file", size)
        case MakeSymlink(path=path, seen=seen):
            return PlannedChange(path, member, "update" if seen else "create", "symlink", 0)
        case SetMetadata(path=path, kind=kind):
            return PlannedChange(path, member, "metadata", kind.name.lower(), 0)
        case SetDirectory(path=path, differs=differs, seen=seen):
            if not (differs and seen):
                return None
            return PlannedChange(path, member, "metadata", "directory", 0)
        case Remove(path=path, kind=kind):
            return PlannedChange(path, member, "delete", kind.name.lower(), 0)
        case Rename(path=path, to=to, kind=kind):
            return PlannedChange(to, member, "rename", kind.name.lower(), 0, path)
        case MakeLink(path=path, seen=seen):
            return PlannedChange(path, member, "update" if seen else "create", "file", 0)
        case MakeSpecial(path=path, kind=kind, seen=seen):
            action = "update" if seen else "create"
            return PlannedChange(path, member, action, kind.name.lower(), 0)
