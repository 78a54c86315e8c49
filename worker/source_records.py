"""What the source of a mirror remembers of its entries, to recognize them when they are renamed.

Records of inodes, written from what the plans of each run changed. They are hints and nothing more: what
is shown at another path because of them is compared there like everything else, so a wrong or a missing
one costs time, never content.
"""

import os
from collections.abc import Iterable, Iterator

from syncengine.agreed import Graft
from syncengine.changes import (
    Change,
    MakeDirectory,
    MakeLink,
    MakeSpecial,
    MakeSymlink,
    Remove,
    Rename,
    SetMetadata,
    WriteFile,
)
from syncengine.directories import Directories
from syncengine.model import Entry
from syncengine.phases import Phase, Plan
from syncengine.renames import Moves
from worker.agreed_store import AgreedStore
from worker.agreements import look

MAX_LOOKED_UP = 100_000
"""So many new paths of one plan are looked up; beyond, content is cheaper than looking."""

MANY = 10_000
"""Of a plan of more changes, small files are recorded with their directories only: should one be
renamed alone, sending it anew costs less than knowing each of them."""

_SMALL_BYTES = 128 * 1024


def find_moves(directories: Directories, store: AgreedStore, plan: Plan) -> list[Graft]:
    """Return what a plan makes anew and the source had elsewhere before; blocks on the disk.

    Only where the plan also deletes something: what was renamed is gone from its old path.
    """
    if not len(plan.extras) and not len(plan.in_way):
        return []
    moves = Moves()
    below = b"/"
    looked_up = 0
    for change in plan.changes:
        path = change.path
        if path.startswith(below) or not _is_new(change):
            continue
        looked_up += 1
        if looked_up > MAX_LOOKED_UP:
            break
        try:
            now = look(directories, path)
        except OSError:
            continue
        if now is None:
            continue
        came_from = store.renamed_from(now)
        if came_from and came_from != path and _is_gone(directories, now, came_from):
            moves.note(path, now, came_from)
            # What moved with its directory shows when the target is listed so.
            below = path + b"/"
    return moves.found


def _is_new(change: Change) -> bool:
    if isinstance(change, MakeDirectory):
        return True
    return isinstance(change, WriteFile | MakeSymlink | MakeSpecial) and not change.seen


def _is_gone(directories: Directories, entry: Entry, path: bytes) -> bool:
    parent, _, name = path.rpartition(b"/")
    try:
        return os.lstat(name, dir_fd=directories.fd(parent)).st_ino != entry.inode
    except OSError:
        return True


def remembered_names(
    directories: Directories, store: AgreedStore, inodes: Iterable[int]
) -> Iterator[tuple[int, bytes]]:
    """Yield the known names of these inodes that are so now; blocks on the disk."""
    for inode in inodes:
        for path in store.names_of(inode):
            try:
                now = look(directories, path)
            except OSError:
                continue
            if now is not None and now.inode == inode and now.links > 1:
                yield inode, path


def names_beside(
    directories: Directories, store: AgreedStore, gone: Iterable[bytes]
) -> Iterator[bytes]:
    """Yield what is still there of the files of which a name is gone; blocks on the disk.

    Somebody may have changed them through that name before it went.
    """
    for path in gone:
        inode = store.inode_at(path)
        if not inode:
            continue
        for other in store.names_of(inode):
            try:
                now = look(directories, other)
            except OSError:
                continue
            if now is not None and now.inode == inode and other != path:
                yield other


def is_worth_remembering(plan: Plan) -> bool:
    """Say whether a plan for a part of the tree changed what is not cheaper sent anew."""
    return len(plan.renames) > 0 or any(
        isinstance(change, MakeDirectory)
        or (isinstance(change, WriteFile) and change.size >= _SMALL_BYTES)
        for change in plan.phase(Phase.MAKE)
    )


def remember(directories: Directories, store: AgreedStore, plan: Plan, number: int) -> None:
    """Record what a plan changed, as it is at the source now; blocks on the disk."""
    for rename in plan.phase(Phase.RENAME):
        if isinstance(rename, Rename):
            store.move(rename.path, rename.to)
    store.write(_changed(directories, plan, number))


def remember_names(
    directories: Directories, store: AgreedStore, paths: Iterable[bytes], number: int
) -> None:
    """Record the names of files that have several, so that all are found by one of them."""

    def unknown() -> Iterator[tuple[bytes, Entry | None, int]]:
        for path in paths:
            try:
                now = look(directories, path)
            except OSError:
                continue
            if now is not None and now.links > 1 and path not in store.names_of(now.inode):
                yield path, now, number

    store.write(unknown())


def _changed(
    directories: Directories, plan: Plan, number: int
) -> Iterator[tuple[bytes, Entry | None, int]]:
    least = _SMALL_BYTES if len(plan) > MANY else 0
    for phase in (Phase.MAKE_WAY, Phase.MAKE, Phase.DELETE):
        for change in plan.phase(phase):
            if isinstance(change, WriteFile) and change.size < least:
                continue
            if isinstance(change, Remove):
                yield change.path, None, 0
            elif isinstance(
                change,
                MakeDirectory | WriteFile | MakeSymlink | MakeSpecial | SetMetadata | MakeLink,
            ):
                try:
                    now = look(directories, change.path)
                except OSError:
                    continue
                yield change.path, now, number if now is not None else 0
