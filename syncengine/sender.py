"""The source's half of a push: a plan and a tree in, frames out.

Reads each file once, hashes it on the way, and vouches for nothing that changed while it was read.
What was published is not judged here: the receiver says so.
"""

import os
from collections.abc import Generator, Iterator

from blake3 import blake3

from syncengine import frames as wire
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
from syncengine.compression import Packer
from syncengine.large_files import LargeFiles
from syncengine.model import What
from syncengine.outcome import Outcome, SendResult
from syncengine.outgoing import FRAME_BYTES, SMALL_BYTES, Outgoing
from syncengine.phases import Phase, Plan
from syncengine.scan import fingerprint
from syncengine.source_files import ChangedKind, Meta, SourceFiles, is_as_planned
from syncengine.talk import Talk
from syncengine.throttle import rate_of
from syncengine.tree import Tree

__all__ = ["SendResult", "Sender"]

_RETRY_PAUSE_S = 0.05


class Sender:
    """Sends the changes of one plan to one target.

    `frames` runs in a thread of its own and blocks on the disk; `on_reply` and `abort` are called
    from any other. `member` names the source in problems, `target_member` the target. What vanished
    since it was scanned is no problem, unless `names_gone`: whoever asks for it is told, to plan anew.
    """

    def __init__(
        self,
        tree: Tree,
        plan: Plan,
        *,
        member: str,
        target_member: str = "",
        tries: int = 3,
        frame_bytes: int = FRAME_BYTES,
        names_gone: bool = False,
    ) -> None:
        self._plan = plan
        self._tries = tries
        self._reads = tree.reads
        self._throttle = tree.throttle
        self._throttle.limit(rate_of(plan.options))
        self._talk = Talk()
        self._outcome = Outcome(
            self._talk,
            member=member,
            target_member=target_member,
            planned_bytes=plan.summary.bytes,
        )
        # Of the thread that runs frames():
        self._out = Outgoing(self._throttle.portion(frame_bytes))
        self._packer = Packer(plan.options.compression)
        self._files = SourceFiles(tree, plan, self._outcome, names_gone=names_gone)
        self._large = LargeFiles(
            tree,
            plan.options,
            files=self._files,
            talk=self._talk,
            outgoing=self._out,
            outcome=self._outcome,
        )
        self._way = b""
        self._way_is_free = True
        """Whether what makes way for `_way` is to be removed."""

    def frames(self) -> Generator[bytes, None, None]:
        """Yield the frames of the push; blocks on the disk.

        Raises PushAborted after `abort`. Close the generator when it is not read to its end.
        """
        self._reads.join()
        try:
            for made in self._all_frames():
                frame = self._packer.pack(made)
                self._outcome.sends(len(frame))
                # A limit is a slow link to the packer: so it is a reason to compress.
                self._throttle.take(len(frame), self._outcome.aborted)
                yield frame
                self._packer.taken()
                self._outcome.check()
        finally:
            self._reads.leave()
            self._talk.close()
            self._files.close()

    def on_reply(self, frame: bytes) -> None:
        """Take a reply of the receiver; from any thread. Raises MalformedFrame."""
        self._outcome.hears(frame)

    def abort(self) -> None:
        """End the push from outside: `frames` raises PushAborted at its next step."""
        self._outcome.abort()

    def result(self) -> SendResult:
        """Return what became of the push, once its replies have been taken."""
        return self._outcome.result()

    def _all_frames(self) -> Iterator[bytes]:
        for phase in Phase:
            if self._outcome.is_full:
                break
            changes = self._plan.phase(phase)
            first = next(changes, None)
            if first is None:
                continue
            if phase is Phase.DELETE and self._files.unreadable:
                # INVARIANT I8: what could not be read may be what a delete would take the last
                # copy of.
                detail = "deletes left out: not everything was readable"
                self._outcome.problem(b"", What.SKIPPED, detail)
                continue
            self._out.add(wire.Begin(phase))
            yield from self._changes(first, changes)
            if phase is Phase.MAKE:
                yield from self._large.settle()
                yield from self._try_again()
        self._out.add(wire.Finish())
        yield self._out.take()

    def _changes(self, first: Change, rest: Iterator[Change]) -> Iterator[bytes]:
        yield from self._change(first)
        for change in rest:
            if type(change) is WriteFile and change.size <= SMALL_BYTES:
                self._small(change)
            else:
                yield from self._change(change)
            if self._talk.is_answered:
                yield from self._large.serve()
            if self._out.is_full:
                yield self._out.take()
                if self._outcome.is_full:
                    return

    def _change(self, change: Change) -> Iterator[bytes]:
        """Add the records of one change; only a large file gives frames by itself."""
        out = self._out
        match change:
            case WriteFile():
                if change.size <= SMALL_BYTES:
                    self._small(change)
                else:
                    yield from self._large.send(change)
            case MakeDirectory(path, mode):
                out.add(wire.NewDirectory(out.name(path), mode), len(path))
            case MakeLink():
                if self._talk.is_about(change.to):
                    yield from self._large.settle()  # the file must be there before its other name
                self._link(change)
            case Rename(path, to, kind, seen):
                out.add(wire.Move(path, to, kind, seen), len(path) + len(to))
            case Remove(path, kind, seen, makes_way):
                if makes_way != self._way:
                    self._way = makes_way
                    self._way_is_free = not makes_way or self._files.takes_the_place(makes_way)
                if self._way_is_free:
                    name = out.name(path)
                    out.add(wire.Delete(name, seen, kind), len(name))
            case _:
                self._without_content(change)

    def _without_content(
        self, change: MakeSymlink | MakeSpecial | SetMetadata | SetDirectory
    ) -> None:
        """Add the record of what is made or changed from the plan alone."""
        out = self._out
        out.attributes(change.attributes)
        match change:
            case SetDirectory(path, mode, mtime_ns, seen, differs):
                record = wire.DirectoryMetadata(path, seen, mode, mtime_ns, differs)
                out.add(record, len(path))
            case MakeSymlink(path, link, mtime_ns, seen, _, keep):
                name = out.name(path)
                out.keep(keep)
                out.add(wire.Symlink(name, seen, link, mtime_ns), len(name) + len(link))
            case SetMetadata(path, kind, mode, mtime_ns, seen):
                name = out.name(path)
                out.add(wire.Metadata(name, seen, kind, mode, mtime_ns), len(name))
            case MakeSpecial(path, kind, mode, mtime_ns, device, seen):
                name = out.name(path)
                out.add(wire.Special(name, seen, kind, mode, mtime_ns, device), len(name))

    def _link(self, change: MakeLink) -> None:
        """Add a link, unless the file is still to come, or will not."""
        files = self._files
        if change.to in files.late:
            files.put_off(change)
            return
        if change.to in files.unreadable:
            files.unreadable.add(change.path)
            detail = "its other name could not be read"
            self._outcome.problem(change.path, What.UNREADABLE, detail)
            return
        name = self._out.name(change.path)
        self._out.add(wire.Link(name, change.seen, change.to), len(name) + len(change.to))

    def _small(self, change: WriteFile) -> None:
        """Add a small file, or put it off when it is no longer what the plan saw."""
        path = change.origin or change.path
        files, reads = self._files, self._reads
        try:
            if reads.is_shared:
                content = reads.small(path, lambda: files.content(path, change.size))
            else:
                content = files.content(path, change.size)
            if content is None:
                return
            data, status = content.data, content.status
            if len(data) != change.size or not is_as_planned(change, status):
                files.put_off_changed(change, status)
                return
        except ChangedKind:
            files.no_file(path)
            return
        except OSError as error:
            files.cannot_read(path, error)
            return
        # One look after reading is enough: it is still what the scan saw before.
        meta = Meta(change.mode, change.mtime_ns, change.attributes)
        self._add_small(change, meta, data, content.digest)

    def _small_now(self, change: WriteFile) -> None:
        """Add a small file as it is now, or put it off when it changes meanwhile."""
        path = change.origin or change.path
        files = self._files
        fd = files.open(path)
        if fd < 0:
            return
        try:
            before = os.fstat(fd)
            size = before.st_size
            data = os.read(fd, min(size, SMALL_BYTES)) if size else b""
            meta = files.meta(change, fd, before)
            after = os.fstat(fd)
            if fingerprint(after) != fingerprint(before) or len(data) != size:
                files.put_off_changed(change, after)
                return
        except ChangedKind:
            files.no_file(path)
            return
        except OSError as error:
            files.cannot_read(path, error)
            return
        finally:
            os.close(fd)
        self._add_small(change, meta, data, blake3(data).digest())

    def _add_small(self, change: WriteFile, meta: Meta, data: bytes, digest: bytes) -> None:
        out = self._out
        out.attributes(meta.attributes)
        name = out.name(change.path)
        out.keep(change.keep)
        record = wire.SmallFile(
            name, change.seen, meta.mode, meta.mtime_ns, digest, memoryview(data)
        )
        out.add(record, len(name) + len(data))

    def _try_again(self) -> Iterator[bytes]:
        """Send what was put off, a few times; what still changes then is named."""
        for attempt in range(1, self._tries + 1):
            again = self._files.take_late()
            if not len(again) or self._outcome.is_full:
                return
            if attempt == self._tries:
                for change in again:
                    detail = f"it kept changing in {self._tries} tries"
                    self._outcome.problem(change.path, What.UNSTABLE, detail)
                again.close()
                return
            self._outcome.aborted.wait(_RETRY_PAUSE_S)
            self._files.late.clear()
            for change in again:
                if isinstance(change, WriteFile):
                    yield from self._fresh(change)
                else:
                    yield from self._change(change)
                if self._out.is_full:
                    yield self._out.take()
            yield from self._large.settle()
            again.close()

    def _fresh(self, change: WriteFile) -> Iterator[bytes]:
        """Send a file as it is now, whatever the scan saw."""
        if self._files.size(change.origin or change.path) <= SMALL_BYTES:
            self._small_now(change)
        else:
            yield from self._large.send(change)
