"""Publish: the one place where staged things become visible, and in which order.

A batch is made durable first (`flush`). Then, slice by
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

from syncengine.attribute_giver import Giver
from syncengine.changes import TO_TRASH
from syncengine.directories import Barred, Directories, Held
from syncengine.errors import TargetChanged
from syncengine.failpoints import Step, reach
from syncengine.flush import Flusher
from syncengine.frames import Failed, Published, Reply
from syncengine.inplace import PATCHED, Ranges, patch
from syncengine.model import PRETENDED, Durability, Kind, RunOptions, What
from syncengine.moves import Mover, OwnMarks
from syncengine.names import join
from syncengine.operations import (
    Drop,
    Link,
    Move,
    Operation,
    Place,
    Reveal,
    Settle,
    Temporaries,
    Touch,
    path_of,
)
from syncengine.places import OPEN_ANY, exchange, is_same, look, opened, put_new, set_mode
from syncengine.refusals import Clashes, explain
from syncengine.scan import fingerprint
from syncengine.trash import Trash
from syncengine.tree import Tree, remove_tree

SLICE = 64
"""Operations under one passage of the gate, at most."""

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


@dataclass(slots=True)
class _Outcome:
    files: int = 0
    size: int = 0
    updated: int = 0
    deleted: int = 0
    renamed: int = 0
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
        options: RunOptions,
        *,
        gate: PublishGate,
        trash: Trash,
        temporaries: Temporaries,
        enter: Callable[[bytes], Held],
        giver: Giver,
    ) -> None:
        self._tree = tree
        self._directories = directories
        self._options = options
        self._gate = gate
        self._trash = trash
        self._temporaries = temporaries
        self._enter = enter
        self._giver = giver
        self._marks = OwnMarks()
        self._mover = Mover(directories, self._marks, temporaries, enter)
        self._strict = options.durability is Durability.STRICT
        self.clashes = Clashes()
        self.has_failed = False
        """Whether anything could not be written so far: then nothing is deleted any more."""
        self.full_at: bytes | None = None
        """The path at which the space ran out."""
        self._flusher = Flusher(tree, directories)

    def commit(self, operations: Sequence[Operation]) -> list[Reply]:
        """Publish a batch and say what became of each part of it; blocks on disk and gate.

        Raises Fenced, after discarding everything that was not published. Errors of the system end
        as Failed replies, with ENOSPC and EDQUOT as NO_SPACE.
        """
        outcome = _Outcome()
        self._flusher.begin(operations)
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
        published = Published(
            outcome.files, outcome.size, outcome.updated, outcome.deleted, outcome.renamed
        )
        return [published, *outcome.failed]

    def _make_durable(self, operations: Sequence[Operation]) -> None:
        if any(isinstance(o, Drop) for o in operations):
            reach(Step.BEFORE_DELETE_BATCH)
        staged = [o for o in operations if isinstance(o, Place | Reveal)]
        if not staged or not self._strict:
            return
        reach(Step.BEFORE_FSYNC)
        self._flusher.contents(staged)
        reach(Step.AFTER_FSYNC)

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
                case Move():
                    self._move(operation, outcome)
                case Link():
                    self._link(operation, outcome)
                case Settle():
                    self._settle(operation, outcome)
        except Barred:
            self.discard(operation)
        except (TargetChanged, FileExistsError, *_GONE) as changed:
            # Somebody put, took or swapped something here since the plan, or just now.
            path = path_of(operation)
            parent, _, name = path.rpartition(b"/")
            if not (isinstance(changed, FileExistsError) and self.is_clash(parent, name)):
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
            kind = getattr(operation, "kind", None)
            is_new = not isinstance(operation, Reveal | Settle) and not operation.seen
            outcome.failed.append(self.refused(path, error, kind, is_new=is_new))

    def refused(self, path: bytes, error: OSError, kind: Kind | None, *, is_new: bool) -> Failed:
        """Return the reply that says why a path was refused."""
        parent, _, name = path.rpartition(b"/")
        try:
            fd = self._directories.fd(parent)
        except OSError:
            return Failed(path, What.NOT_WRITTEN, error.strerror or str(error))
        return Failed(path, *explain(error, fd, name or b".", kind, is_new=is_new))

    def is_clash(self, parent: bytes, name: bytes) -> bool:
        """Say whether what is in the way has another name; then it is noted, and told at the end."""
        try:
            return self.clashes.note(self._directories.fd(parent), parent, name)
        except OSError:
            return False

    def _place(self, place: Place, outcome: _Outcome) -> None:
        self._put(place, outcome)
        if place.kind is Kind.FILE:
            outcome.files += 1
            outcome.size += place.size

    def _put(self, place: Place, outcome: _Outcome) -> None:
        fd = self._directories.fd(place.parent)
        reach(Step.BEFORE_RENAME)
        if place.seen == 0:
            put_new(fd, place.temporary, place.name)
        else:
            self._replace(fd, place)
        reach(Step.AFTER_RENAME)
        outcome.touched.add(place.parent)

    def _replace(self, fd: int, place: Place) -> None:
        before = look(fd, place.name)
        if before is None or not self._marks.is_seen(before, place.seen):
            raise TargetChanged("it is not what the plan saw")
        if place.ranges is not None:
            self._patch(fd, place, place.ranges)
            return
        if before.st_nlink == 1:
            self._exchange(fd, place, before)
            return
        with self._marks.following(fd, place.name, before):
            self._exchange(fd, place, before)

    def _patch(self, fd: int, place: Place, ranges: Ranges) -> None:
        """Change a file in place, by what is staged of it."""
        mode = stat.S_IMODE(os.lstat(place.temporary, dir_fd=fd).st_mode)
        try:
            new = os.open(place.temporary, OPEN_ANY, dir_fd=fd)
        except PermissionError:
            # The source's mode forbids even its owner to read it.
            os.chmod(place.temporary, 0o600, dir_fd=fd)
            new = os.open(place.temporary, OPEN_ANY, dir_fd=fd)
        old = -1
        try:
            old = os.open(place.name, PATCHED, dir_fd=fd)
            status = os.fstat(old)
            if not self._marks.is_seen(status, place.seen) or status.st_nlink != 1:
                raise TargetChanged("it is not what the plan saw")
            path = path_of(place)
            patch(self._tree, path, (new, old), ranges)
            # CRASH: with the new content and the old mode, which the next run sets.
            if place.given is not None:
                self._giver.owner(old, place.given, path)
                self._giver.rest(old, place.given, path, is_new=False)
            os.fchmod(old, mode)
            if self._strict:
                os.fsync(old)
        finally:
            os.close(new)
            if old >= 0:
                os.close(old)
        os.unlink(place.temporary, dir_fd=fd)

    def _exchange(self, fd: int, place: Place, before: os.stat_result) -> None:
        is_named = place.keep not in {b"", TO_TRASH}
        if is_named and look(fd, place.keep) is not None:
            raise TargetChanged("the name for the version that loses is taken")
        exchange(fd, place.temporary, place.name)
        # From here on the older version lies under the temporary name: not ours to discard.
        place.is_exchanged = True
        reach(Step.BEFORE_DISPLACED)
        displaced = look(fd, place.temporary)
        if displaced is None:
            return
        if is_named:
            # INVARIANT I7: whatever was here by now is kept, under the conflict's name.
            try:
                put_new(fd, place.temporary, place.keep)
            except FileExistsError:
                # RACE: somebody took that name since the look.
                self._trash.keep(fd, place.temporary, join(place.parent, place.keep))
        elif place.keep or self._options.safety.keep_replaced or not is_same(before, displaced):
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
        if before is None or not self._marks.is_seen(before, touch.seen):
            raise TargetChanged("it is not what the plan saw")
        times = (before.st_atime_ns, touch.mtime_ns)
        if touch.kind is Kind.SYMLINK:
            if touch.given is not None:
                self._touch_link(parent, touch)
            os.utime(touch.name, ns=times, dir_fd=parent, follow_symlinks=False)
        else:
            with self._marks.following(parent, touch.name, before):
                if not self._touch_file(parent, touch, times, before):
                    return
        outcome.updated += 1
        outcome.has_touches = True

    def _touch_link(self, parent: int, touch: Touch) -> None:
        assert touch.given is not None
        with opened(parent, touch.name, is_file=False) as (handle, _):
            if not self._marks.is_seen(os.fstat(handle), touch.seen):
                raise TargetChanged("it is not what the plan saw")
            self._giver.owner(handle, touch.given, path_of(touch))

    def _touch_file(
        self, parent: int, touch: Touch, times: tuple[int, int], before: os.stat_result
    ) -> bool:
        """Set what differs; say whether that was anything that can be kept here."""
        is_file = touch.kind is Kind.FILE
        with opened(parent, touch.name, is_file=is_file) as (fd, is_real):
            if not self._marks.is_seen(os.fstat(fd), touch.seen):
                raise TargetChanged("it is not what the plan saw")
            changed = False
            if touch.given is not None:
                place = fd if is_real else b"/proc/self/fd/%d" % fd
                changed = self._giver.owner(fd, touch.given, path_of(touch))
                changed |= self._giver.rest(place, touch.given, path_of(touch), is_new=False)
            is_as_before = (touch.mode, times[1]) == (
                stat.S_IMODE(before.st_mode),
                before.st_mtime_ns,
            )
            if not changed and is_as_before:
                return False
            set_mode(fd, touch.mode, is_real=is_real)
            if is_real:
                os.utime(fd, ns=times)
                if self._strict and self._flusher.one_by_one:
                    os.fsync(fd)
            else:
                os.utime(b"/proc/self/fd/%d" % fd, ns=times)
        return True

    def _drop(self, drop: Drop, outcome: _Outcome) -> None:
        try:
            fd = self._enter(drop.parent).fd
        except _GONE:
            return  # gone by itself
        before = look(fd, drop.name)
        if before is None:
            return
        if not self._marks.is_seen(before, drop.seen):
            raise TargetChanged("it is not what the plan saw, and so is not deleted")
        if drop.kind is Kind.DIRECTORY:
            path = join(drop.parent, drop.name)
            try:
                os.rmdir(drop.name, dir_fd=fd)
            except OSError as error:
                if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise TargetChanged("it is not empty") from error
                raise
            self._directories.forget(path)
        else:
            with self._marks.following(fd, drop.name, before):
                self._drop_file(fd, drop, before)
        outcome.touched.add(drop.parent)
        outcome.deleted += 1
        for freed in self.clashes.freed(join(drop.parent, drop.name)):
            detail = "what had its name, to the file system here, is gone now"
            outcome.failed.append(Failed(freed, What.TARGET_CHANGED, detail))

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

    def _move(self, move: Move, outcome: _Outcome) -> None:
        reach(Step.BEFORE_RENAME)
        outcome.touched |= self._mover.move(move)
        reach(Step.AFTER_RENAME)
        outcome.renamed += 1

    def _link(self, link: Link, outcome: _Outcome) -> None:
        temporary = self._mover.link(link)
        place = Place(link.parent, link.name, temporary, link.seen, Kind.FILE, 0)
        try:
            self._put(place, outcome)
        except BaseException:
            self.discard(place)
            raise
        outcome.updated += 1

    def _settle(self, settle: Settle, outcome: _Outcome) -> None:
        try:
            held = self._directories.get(settle.path)
        except _GONE:
            if settle.seen in {0, PRETENDED}:
                return  # it was not made; that has been told
            raise TargetChanged("the directory is gone") from None
        reach(Step.BEFORE_DIRECTORIES)
        status = os.fstat(held.fd)
        if settle.seen not in {0, PRETENDED, fingerprint(status)}:
            raise TargetChanged("it is another directory")
        mode = stat.S_IMODE(status.st_mode)
        differs = (mode, status.st_mtime_ns) != (settle.mode, settle.mtime_ns)
        if settle.given is not None:
            owned = self._giver.owner(held.fd, settle.given, settle.path)
            if self._giver.rest(held.fd, settle.given, settle.path, is_new=False) or owned:
                mode = -1  # an ACL is a part of the mode, and a change of owner may be
                differs = True
        if mode != settle.mode:
            os.fchmod(held.fd, settle.mode)
        if self._options.keep_times:
            os.utime(held.fd, ns=(status.st_atime_ns, settle.mtime_ns))
        if self._strict and self._flusher.one_by_one:
            os.fsync(held.fd)  # by its mode now, it may not be opened again
        outcome.has_touches = True
        outcome.updated += differs and settle.differs and settle.seen != PRETENDED

    def _make_names_durable(self, outcome: _Outcome) -> None:
        touched = outcome.touched
        if not self._strict:
            self._trash.touched.clear()
            return
        if not touched and not self._trash.touched and not outcome.has_touches:
            return
        reach(Step.BEFORE_DIRSYNC)
        self._flusher.names(touched, self._trash)
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
            self._directories.bar(path_of(operation))
        with contextlib.suppress(OSError):
            fd = self._directories.fd(operation.parent)
            remove_tree(fd, operation.temporary)
