"""Publish: the one place where staged things become visible, and in which order.

A batch is made durable first (one syncfs, or an fsync for each of a few files). Then, slice by
slice under the gate, each target is looked at again and what is staged takes its place by a rename:
of something new without replacing, over something old by exchange, after which what was displaced
is looked at. Then the directories are made durable. Only what went through all of this is reported.
`durability: fast` leaves out the flushes.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from syncengine.directories import Directories, Held
from syncengine.failpoints import Step, reach
from syncengine.frames import Failed, Published, Reply
from syncengine.kernel import syncfs
from syncengine.model import Durability, Kind, MirrorOptions, What
from syncengine.names import join
from syncengine.operations import (
    Drop,
    Operation,
    Place,
    Reveal,
    Settle,
    Temporaries,
    Touch,
    path_of,
)
from syncengine.places import OPEN_ANY, exchange, is_same, look, opened, put_new, set_mode
from syncengine.scan import fingerprint
from syncengine.trash import Trash
from syncengine.tree import Tree, remove_tree

SLICE = 64
"""Operations under one passage of the gate, at most."""

_FEW = 8
"""Up to so many operations are flushed one by one; beyond, one syncfs is cheaper."""

_GONE = (FileNotFoundError, NotADirectoryError)
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class PublishGate(Protocol):
    """Who is asked before anything becomes visible or is removed."""

    def publishing(self) -> AbstractContextManager[None]:
        """Enter for one slice of at most SLICE operations.

        Entering blocks while the job is parked, and raises Fenced when this push may never publish
        again.
        """


class OpenGate:
    """A gate that lets everything through: for tests, and where nobody else can give orders."""

    def publishing(self) -> AbstractContextManager[None]:
        """Enter at once."""
        return contextlib.nullcontext()


class _TargetChanged(Exception):
    """The target is not what the plan saw."""


@dataclass(slots=True)
class _Outcome:
    files: int = 0
    size: int = 0
    updated: int = 0
    deleted: int = 0
    failed: list[Failed] = field(default_factory=list)
    touched: set[bytes] = field(default_factory=set)
    """Directories in which names changed."""
    has_touches: bool = False


class Publisher:
    """Makes batches visible in one tree; for one thread."""

    def __init__(
        self,
        tree: Tree,
        directories: Directories,
        options: MirrorOptions,
        *,
        gate: PublishGate,
        trash: Trash,
        temporaries: Temporaries,
        enter: Callable[[bytes], Held],
    ) -> None:
        self._tree = tree
        self._directories = directories
        self._options = options
        self._gate = gate
        self._trash = trash
        self._temporaries = temporaries
        self._enter = enter
        self._strict = options.durability is Durability.STRICT
        self.has_failed = False
        """Whether anything could not be written so far: then nothing is deleted any more."""
        self.full_at: bytes | None = None
        """The path at which the space ran out."""
        self._one_by_one = True

    def commit(self, operations: Sequence[Operation]) -> list[Reply]:
        """Publish a batch and say what became of each part of it; blocks on disk and gate.

        Raises Fenced, after discarding everything that was not published. Errors of the system end
        as Failed replies, with ENOSPC and EDQUOT as NO_SPACE.
        """
        outcome = _Outcome()
        self._one_by_one = len(operations) <= _FEW
        try:
            self._make_durable(operations)
        except OSError as error:
            for operation in operations:
                self._fail(outcome, operation, error)
                self.discard(operation)
            return list(outcome.failed)
        done = 0
        try:
            while done < len(operations):
                part = operations[done : done + SLICE]
                with self._gate.publishing():
                    for operation in part:
                        self._carry_out(operation, outcome)
                        done += 1
        finally:
            for operation in operations[done:]:
                self.discard(operation)
        try:
            self._make_names_durable(outcome)
        except OSError as error:
            # Visible, but nobody can promise that it stays: not acknowledged.
            self.has_failed = True
            failed = Failed(b"", What.NOT_WRITTEN, f"cannot flush: {error.strerror}")
            return [*outcome.failed, failed]
        reach(Step.BEFORE_ACK)
        published = Published(outcome.files, outcome.size, outcome.updated, outcome.deleted)
        return [published, *outcome.failed]

    def _make_durable(self, operations: Sequence[Operation]) -> None:
        if any(isinstance(o, Drop) for o in operations):
            reach(Step.BEFORE_DELETE_BATCH)
        staged = [o for o in operations if isinstance(o, Place | Reveal)]
        if not staged or not self._strict:
            return
        reach(Step.BEFORE_FSYNC)
        if len(staged) <= _FEW and all(isinstance(o, Place) for o in staged):
            for place in staged:
                self._flush_file(place)
        else:
            self._flush_all()
        reach(Step.AFTER_FSYNC)

    def _flush_file(self, place: Place | Reveal) -> None:
        assert isinstance(place, Place)
        if place.kind is not Kind.FILE:
            return  # a symlink is durable with its directory
        parent = self._directories.fd(place.parent)
        try:
            fd = os.open(place.temporary, OPEN_ANY, dir_fd=parent)
        except PermissionError:
            # The source's mode forbids even its owner to read it.
            syncfs(parent)
            return
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _flush_all(self) -> None:
        # Of all file systems written to: the top's, the trash's, and those mounted below the top.
        syncfs(self._tree.top_fd)
        if self._tree.root_id[0] != self._tree.device:
            syncfs(self._tree.root_fd)
        for fd in self._directories.devices.values():
            syncfs(fd)

    def _carry_out(self, operation: Operation, outcome: _Outcome) -> None:
        try:
            match operation:
                case Place():
                    self._place(operation, outcome)
                case Reveal():
                    self._reveal(operation, outcome)
                case Touch():
                    self._touch(operation, outcome)
                case Drop():
                    self._drop(operation, outcome)
                case Settle():
                    self._settle(operation, outcome)
        except (_TargetChanged, FileExistsError, *_GONE) as changed:
            # Somebody put, took or swapped something here since the plan, or just now.
            path = path_of(operation)
            outcome.failed.append(Failed(path, What.TARGET_CHANGED, str(changed)))
            self.discard(operation)
        except OSError as error:
            self._fail(outcome, operation, error)
            self.discard(operation)

    def _fail(self, outcome: _Outcome, operation: Operation, error: OSError) -> None:
        self.has_failed = True
        path = path_of(operation)
        if error.errno in NO_SPACE:
            self.full_at = path
        else:
            detail = error.strerror or str(error)
            outcome.failed.append(Failed(path, What.NOT_WRITTEN, detail))

    def _place(self, place: Place, outcome: _Outcome) -> None:
        fd = self._directories.fd(place.parent)
        reach(Step.BEFORE_RENAME)
        if place.seen == 0:
            put_new(fd, place.temporary, place.name)
        else:
            self._replace(fd, place)
        reach(Step.AFTER_RENAME)
        outcome.touched.add(place.parent)
        if place.kind is Kind.FILE:
            outcome.files += 1
            outcome.size += place.size

    def _replace(self, fd: int, place: Place) -> None:
        before = look(fd, place.name)
        if before is None or fingerprint(before) != place.seen:
            raise _TargetChanged("it is not what the plan saw")
        exchange(fd, place.temporary, place.name)
        # From here on the older version lies under the temporary name: not ours to discard.
        place.is_exchanged = True
        reach(Step.BEFORE_DISPLACED)
        displaced = look(fd, place.temporary)
        if displaced is None:
            return
        if self._options.safety.keep_replaced or not is_same(before, displaced):
            # INVARIANT I7: an edit that fell between the look and the exchange is kept.
            # RACE: a writer that still has the displaced file open can go on writing to it unseen.
            self._trash.keep(fd, place.temporary, join(place.parent, place.name))
        else:
            os.unlink(place.temporary, dir_fd=fd)

    def _reveal(self, reveal: Reveal, outcome: _Outcome) -> None:
        fd = self._directories.fd(reveal.parent)
        reach(Step.BEFORE_RENAME)
        put_new(fd, reveal.temporary, reveal.name)
        reach(Step.AFTER_RENAME)
        self._directories.aliases.pop(join(reveal.parent, reveal.name), None)
        self._directories.reveal(reveal)
        outcome.touched.add(reveal.parent)
        outcome.files += reveal.files
        outcome.size += reveal.bytes

    def _touch(self, touch: Touch, outcome: _Outcome) -> None:
        parent = self._directories.fd(touch.parent)
        reach(Step.BEFORE_METADATA)
        before = look(parent, touch.name)
        if before is None or fingerprint(before) != touch.seen:
            raise _TargetChanged("it is not what the plan saw")
        times = (before.st_atime_ns, touch.mtime_ns)
        if touch.kind is Kind.SYMLINK:
            os.utime(touch.name, ns=times, dir_fd=parent, follow_symlinks=False)
        else:
            self._touch_file(parent, touch, times)
        outcome.updated += 1
        outcome.has_touches = True

    def _touch_file(self, parent: int, touch: Touch, times: tuple[int, int]) -> None:
        with opened(parent, touch.name) as (fd, is_real):
            if fingerprint(os.fstat(fd)) != touch.seen:
                raise _TargetChanged("it is not what the plan saw")
            set_mode(fd, touch.mode, is_real=is_real)
            if is_real:
                os.utime(fd, ns=times)
                if self._strict and self._one_by_one:
                    os.fsync(fd)
            else:
                os.utime(touch.name, ns=times, dir_fd=parent, follow_symlinks=False)

    def _drop(self, drop: Drop, outcome: _Outcome) -> None:
        try:
            fd = self._enter(drop.parent).fd
        except _GONE:
            return  # gone by itself
        before = look(fd, drop.name)
        if before is None:
            return
        if fingerprint(before) != drop.seen:
            raise _TargetChanged("it is not what the plan saw, and so is not deleted")
        if drop.kind is Kind.DIRECTORY:
            path = join(drop.parent, drop.name)
            try:
                os.rmdir(drop.name, dir_fd=fd)
            except OSError as error:
                if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise _TargetChanged("it is not empty") from error
                raise
            self._directories.forget(path)
        else:
            self._drop_file(fd, drop, before)
        outcome.touched.add(drop.parent)
        outcome.deleted += 1

    def _drop_file(self, fd: int, drop: Drop, before: os.stat_result) -> None:
        path = join(drop.parent, drop.name)
        reach(Step.BEFORE_TRASH)
        if self._options.safety.trash_s is not None:
            self._trash.keep(fd, drop.name, path)
        else:
            # INVARIANT I6: unlink cannot say what it removed, so the entry gets out of sight
            # first, and is looked at there.
            aside = self._temporaries.displacing(drop.name)
            put_new(fd, drop.name, aside)
            moved = look(fd, aside)
            if moved is not None and is_same(before, moved):
                os.unlink(aside, dir_fd=fd)
            elif moved is not None:
                self._trash.keep(fd, aside, path)
        reach(Step.AFTER_TRASH)

    def _settle(self, settle: Settle, outcome: _Outcome) -> None:
        try:
            held = self._directories.get(settle.path)
        except _GONE:
            if settle.seen == 0:
                return  # it was not made; that has been told
            raise _TargetChanged("the directory is gone") from None
        reach(Step.BEFORE_DIRECTORIES)
        status = os.fstat(held.fd)
        if settle.seen not in {0, fingerprint(status)}:
            raise _TargetChanged("it is another directory")
        if stat.S_IMODE(status.st_mode) != settle.mode:
            os.fchmod(held.fd, settle.mode)
        if self._options.keep_times:
            os.utime(held.fd, ns=(status.st_atime_ns, settle.mtime_ns))
        if self._strict and self._one_by_one:
            os.fsync(held.fd)  # by its mode now, it may not be opened again
        outcome.has_touches = True
        outcome.updated += settle.differs

    def _make_names_durable(self, outcome: _Outcome) -> None:
        touched = outcome.touched
        if not self._strict:
            self._trash.touched.clear()
            return
        if not touched and not self._trash.touched and not outcome.has_touches:
            return
        reach(Step.BEFORE_DIRSYNC)
        if self._one_by_one and len(touched) + len(self._trash.touched) <= _FEW:
            for path in touched:
                with contextlib.suppress(*_GONE):
                    os.fsync(self._directories.fd(path))
            self._trash.sync()
        else:
            self._flush_all()
            self._trash.touched.clear()
        reach(Step.AFTER_DIRSYNC)

    def discard(self, operation: Operation) -> None:
        """Remove what was staged for an operation that will not be carried out.

        What cannot be removed is left to the next scan, which cleans up.
        """
        if not isinstance(operation, Place | Reveal):
            return
        if isinstance(operation, Place) and operation.is_exchanged:
            return
        if isinstance(operation, Reveal):
            path = path_of(operation)
            self._directories.forget(path)
            self._directories.aliases.pop(path, None)
        with contextlib.suppress(OSError):
            fd = self._directories.fd(operation.parent)
            remove_tree(fd, operation.temporary)
