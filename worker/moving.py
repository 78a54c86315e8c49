"""What a `move` takes away at its source: only what every target is seen to have, durably.

The targets list themselves anew, having flushed, with the digests of the files that the source still
has; what is the same goes. What is open for writing stays until a later run. The directories keep their
times, so that taking files away is no change that the next run would carry to the targets.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator

from syncengine.changes import Remove, SetDirectory
from syncengine.in_use import is_open_for_writing
from syncengine.model import Compare, Entry, Kind, Problem, RunOptions, What
from syncengine.names import parent_of
from syncengine.phases import Plan
from syncengine.plan_copy import plan_removals
from worker.member_tree import MemberTree
from worker.peer_listing import Listing

_NEVER_TAKEN = frozenset({Kind.DIRECTORY, Kind.SPECIAL, Kind.EXCLUDED})


def files_of(source: MemberTree, options: RunOptions) -> Iterator[bytes]:
    """Yield the paths of the files that the source has; blocks on the disk."""
    by_time = dataclasses.replace(options, compare=Compare.MTIME)
    return (e.path for e in source.scan_source(by_time, []) if e.kind is Kind.FILE)


def by_content(options: RunOptions) -> RunOptions:
    """Return the options with which files are compared by their digests."""
    return dataclasses.replace(options, compare=Compare.CHECKSUM)


def plan_everything_away(
    source: MemberTree, options: RunOptions, stays: Collection[bytes]
) -> Iterator[Remove]:
    """Yield what goes when every target has everything, as a preview shows it; blocks on the disk.

    `stays` are the paths that something is wrong with, and of directories all below them.
    """
    left = b"/"
    for entry in source.scan_source(dataclasses.replace(options, compare=Compare.MTIME), []):
        if entry.path in stays:
            left = entry.path + b"/"
        elif not entry.path.startswith(left) and entry.kind not in _NEVER_TAKEN:
            yield Remove(entry.path, entry.kind, entry.seen)


def plan_taking_away(
    source: MemberTree, listings: Iterable[Listing], options: RunOptions, problems: list[Problem]
) -> tuple[Plan, int]:
    """Compare the source with the targets' listings; blocks on disk and wire.

    Return its removals, and how many files a target has otherwise. Raises PeerFailed when a listing
    breaks off, EngineError when it is malformed.
    """
    directories: dict[bytes, Entry] = {}
    files = itertools.count()
    entries = _noting(source.scan_source(by_content(options), []), directories, files)
    theirs = [listing.entries() for listing in listings]
    with plan_removals(entries, theirs, options) as found:
        for listing in theirs:
            # To its end, which comes when the target has flushed.
            for _ in listing:
                pass
        removed = sum(isinstance(one, Remove) and one.kind is Kind.FILE for one in found)
        differing = next(files) - removed
        return _what_nobody_writes(source, found, directories, problems), differing


def _noting(
    entries: Iterator[Entry], directories: dict[bytes, Entry], files: Iterator[int]
) -> Iterator[Entry]:
    for entry in entries:
        if entry.kind is Kind.FILE:
            next(files)
        if entry.kind is Kind.DIRECTORY:
            directories[entry.path] = entry
        yield entry


def _what_nobody_writes(
    source: MemberTree, found: Plan, directories: dict[bytes, Entry], problems: list[Problem]
) -> Plan:
    plan = Plan(found.options)
    changed: dict[bytes, Entry] = {}
    with contextlib.closing(source.opened.directories()) as held:
        for change in found:
            assert isinstance(change, Remove)
            parent, _, name = change.path.rpartition(b"/")
            try:
                is_used = change.kind is Kind.FILE and is_open_for_writing(
                    name, dir_fd=held.fd(parent)
                )
            except OSError:
                continue  # gone, or not to be had: it stays
            if is_used:
                detail = "open for writing: it stays until a later run"
                problems.append(Problem(change.path, str(source.member), What.SKIPPED, detail))
                continue
            plan.extras.append(change)
            above = parent_of(change.path)
            changed[above] = directories[above]
    for entry in reversed(changed.values()):
        keeps = SetDirectory(entry.path, entry.mode, entry.mtime_ns, entry.seen, differs=False)
        plan.directories.append(keeps)
    plan.seal(is_complete=True)
    return plan
