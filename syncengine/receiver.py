"""The target's half of a push: frames in, a tree that becomes equal to the source, replies out.

Nothing that arrives is believed: types were checked by `frames`, and here names, ranges, the order
of records, sizes and digests. Staging and publishing are done elsewhere; this holds the batch.
"""

import os
import re
from typing import TYPE_CHECKING

from blake3 import blake3

from syncengine import frames as wire
from syncengine.directories import Held
from syncengine.errors import DeleteLimitExceeded, MalformedFrame, RootReadOnly
from syncengine.model import Kind, MirrorOptions, What
from syncengine.names import check_name, check_path, join
from syncengine.operations import Drop, Operation, Settle, Temporaries, Touch
from syncengine.phases import Phase
from syncengine.publish import NO_SPACE, OpenGate, Publisher, PublishGate
from syncengine.staging import PartFile, Staging
from syncengine.trash import Trash
from syncengine.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OpenGate", "PublishGate", "Receiver"]

BATCH_FILES = 2_000
"""Entries staged before they are published together."""

BATCH_BYTES = 64 * 1024 * 1024

_STAMP = re.compile(r"(\d{4})(\d{2})(\d{2})-\d{6}")
_MAX_INT64 = (1 << 63) - 1
_MAX_LINK = 4_095
_GONE = (FileNotFoundError, NotADirectoryError)


class Receiver:
    """Carries out one push in one tree. `feed` and `finish` block on disk and gate; one thread.

    `run_stamp` is the UTC time of the run, YYYYMMDD-HHMMSS; `delete_limit` is how many deletes this
    side has agreed to, None for any number. End it with `finish` or `abort`.
    """

    def __init__(
        self,
        tree: Tree,
        options: MirrorOptions,
        *,
        member: str,
        gate: PublishGate,
        run_stamp: str,
        delete_limit: int | None = None,
    ) -> None:
        if tree.read_only:
            raise RootReadOnly("a tree that is opened to be read receives nothing")
        stamp = _STAMP.fullmatch(run_stamp)
        if stamp is None:
            raise ValueError(f"{run_stamp!r} is not of the form YYYYMMDD-HHMMSS")
        self._tree = tree
        self._member = member
        self._deletes_left = delete_limit
        self._directories = tree.directories()
        temporaries = Temporaries()
        self._staging = Staging(tree, self._directories, options, temporaries)
        self._trash = Trash(tree, "-".join(stamp.groups()))
        self._publisher = Publisher(
            tree,
            self._directories,
            options,
            gate=gate,
            trash=self._trash,
            temporaries=temporaries,
            enter=self._staging.enter,
        )
        self._decoder = wire.FrameDecoder()
        self._phase = 0
        self._at: bytes | None = None
        self._held: Held | None = None
        self._batch: list[Operation] = []
        self._batch_files = 0
        self._batch_bytes = 0
        self._replies: list[wire.Reply] = []
        self._part: PartFile | None = None
        self._part_left = 0
        self._part_open = False
        """Whether the peer is within a file in parts; `_part` is None when that one failed."""
        self._hasher = blake3()
        self._is_full = False
        self._left_out = 0
        self._finished = False
        self._closed = False
        self._actions: dict[type, Callable[..., None]] = {
            wire.Enter: self._enter,
            wire.Begin: self._begin,
            wire.NewDirectory: self._new_directory,
            wire.SmallFile: self._small_file,
            wire.OpenFile: self._open_file,
            wire.Data: self._data,
            wire.CloseFile: self._close_file,
            wire.DropFile: self._drop_file,
            wire.Symlink: self._symlink,
            wire.Metadata: self._metadata,
            wire.Delete: self._delete,
            wire.DirectoryMetadata: self._directory_metadata,
            wire.Finish: self._finish,
        }

    def feed(self, frame: bytes) -> list[bytes]:
        """Carry out one frame and return the replies to send back; blocks on disk and gate.

        Raises MalformedFrame and DeleteLimitExceeded for what the peer did, and Fenced; everything
        staged is discarded then, and the receiver is closed.
        """
        if self._closed:
            raise MalformedFrame("a frame after the end of the push")
        try:
            actions = self._actions
            for record in self._decoder.decode(frame):
                actions[type(record)](record)
                if self._batch_files >= BATCH_FILES or self._batch_bytes >= BATCH_BYTES:
                    self._commit()
        except BaseException:
            self.abort()
            raise
        return self._take_replies()

    def finish(self) -> list[bytes]:
        """End the push after its last frame; without a Finish record this is an abort."""
        if not self._finished:
            self.abort()
            return []
        self._close()
        return self._take_replies()

    def abort(self) -> None:
        """Discard everything that is staged and let go of everything; harmless when closed."""
        if self._closed:
            return
        if self._part is not None:
            self._staging.drop_part(self._part)
            self._part = None
        for operation in self._batch:
            self._publisher.discard(operation)
        self._batch = []
        self._close()

    def _close(self) -> None:
        self._closed = True
        self._held = None
        self._trash.close()
        self._directories.close()

    def _take_replies(self) -> list[bytes]:
        if not self._replies:
            return []
        replies, self._replies = self._replies, []
        return wire.encode_replies(replies)

    # The state of the stream

    def _expect(self, phase: Phase) -> None:
        if self._phase != phase or self._finished or self._part_open:
            raise MalformedFrame(f"a record that does not belong in phase {self._phase}")

    def _begin(self, record: wire.Begin) -> None:
        if not self._phase < record.phase <= Phase.DIRECTORIES or self._part_open:
            raise MalformedFrame(f"phase {record.phase} after phase {self._phase}")
        self._commit()
        self._phase = record.phase

    def _enter(self, record: wire.Enter) -> None:
        if self._part_open:
            raise MalformedFrame("another directory within a file")
        check_path(record.path)
        self._at = record.path
        self._held = None

    def _finish(self, _record: wire.Finish) -> None:
        if self._finished or self._part_open:
            raise MalformedFrame("an end that is none")
        self._commit()
        if self._left_out:
            detail = f"{self._left_out} deletes left out: not everything could be written"
            self._replies.append(wire.Failed(b"", What.SKIPPED, detail))
        self._replies.append(wire.Finished())
        self._finished = True

    def _parent(self, name: bytes) -> bytes:
        if self._at is None:
            raise MalformedFrame("an entry in no directory")
        check_name(name)
        return self._at

    def _directory(self, parent: bytes) -> Held:
        held = self._held
        if held is None:
            held = self._held = self._staging.enter(parent)
        return held

    def _add(self, operation: Operation | None, size: int = 0) -> None:
        if operation is not None:
            self._batch.append(operation)
        self._batch_files += 1
        self._batch_bytes += size

    def _commit(self) -> None:
        """Publish the batch, and note what became of it."""
        if self._part_open:
            return  # a file in parts may lie, unfinished, in a directory of this batch
        batch, self._batch = self._batch, []
        self._batch_files = self._batch_bytes = 0
        self._held = None
        if not batch:
            return
        self._replies += self._publisher.commit(batch)
        self._note_full()

    def _note_full(self) -> None:
        full_at, self._publisher.full_at = self._publisher.full_at, None
        if full_at is not None and not self._is_full:
            self._is_full = True
            self._replies.append(wire.Full(full_at, self._tree.free_bytes()))

    def _failed(self, parent: bytes, name: bytes, error: OSError) -> None:
        """Note that one entry could not be staged; the rest goes on unless the disk is full."""
        path = join(parent, name)
        if error.errno in NO_SPACE:
            self._publisher.has_failed = True
            self._publisher.full_at = path
            self._commit()
            self._note_full()
        elif isinstance(error, FileExistsError | FileNotFoundError | NotADirectoryError):
            # The directory is not what the plan saw, or somebody got in between.
            detail = error.strerror or str(error)
            self._replies.append(wire.Failed(path, What.TARGET_CHANGED, detail))
        else:
            self._publisher.has_failed = True
            detail = error.strerror or str(error)
            self._replies.append(wire.Failed(path, What.NOT_WRITTEN, detail))

    # Making

    def _new_directory(self, record: wire.NewDirectory) -> None:
        self._expect(Phase.MAKE)
        parent = self._parent(record.name)
        _check_numbers(0, record.mode, 0)
        if self._is_full:
            return
        try:
            held = self._directory(parent)
            self._add(self._staging.directory(held, parent, record.name, record.mode))
        except OSError as error:
            self._failed(parent, record.name, error)

    def _small_file(self, record: wire.SmallFile) -> None:
        if self._phase != Phase.MAKE or self._part_open or self._finished:
            self._expect(Phase.MAKE)
        name, content = record.name, record.content
        parent = self._parent(name)
        meta = (record.seen, record.mode, record.mtime_ns)
        _check_numbers(*meta)
        if blake3(content).digest() != record.digest:
            raise MalformedFrame(f"content and digest of {join(parent, name)!r} differ")
        if self._is_full:
            return
        try:
            held = self._held or self._directory(parent)
            place = self._staging.small_file(held, parent, name, meta, content)
        except OSError as error:
            self._failed(parent, name, error)
        else:
            self._add(place, len(content))

    def _open_file(self, record: wire.OpenFile) -> None:
        self._expect(Phase.MAKE)
        parent = self._parent(record.name)
        _check_numbers(record.seen, 0, 0)
        if not 0 <= record.size <= _MAX_INT64:
            raise MalformedFrame("an impossible size")
        self._part_open = True
        self._part_left = record.size
        self._hasher = blake3()
        if self._is_full:
            return
        try:
            held = self._directory(parent)
            self._part = self._staging.open_part(held, parent, record.name, record.seen)
        except OSError as error:
            self._part_open = False
            self._failed(parent, record.name, error)
            self._part_open = True

    def _data(self, record: wire.Data) -> None:
        if not self._part_open:
            raise MalformedFrame("content of no file")
        content = record.content
        self._part_left -= len(content)
        if self._part_left < 0:
            raise MalformedFrame("more content than was declared")
        part = self._part
        if part is None:
            return
        self._hasher.update(content)
        try:
            self._staging.write_part(part, content)
        except OSError as error:
            self._part_failed(part, error)

    def _part_failed(self, part: PartFile, error: OSError) -> None:
        self._part = None
        self._staging.drop_part(part)
        self._part_open = False  # nothing unfinished is left: the batch may be published
        self._failed(part.parent, part.name, error)
        self._part_open = True

    def _close_file(self, record: wire.CloseFile) -> None:
        if not self._part_open:
            raise MalformedFrame("the end of no file")
        _check_numbers(0, record.mode, record.mtime_ns)
        if self._part_left:
            raise MalformedFrame("less content than was declared")
        part = self._part
        if part is not None:
            if self._hasher.digest() != record.digest:
                raise MalformedFrame(f"content and digest of {part.name!r} differ")
            try:
                size = os.fstat(part.fd).st_size
                place = self._staging.close_part(part, record.mode, record.mtime_ns)
            except OSError as error:
                self._part_failed(part, error)
            else:
                self._add(place, size)
        self._part, self._part_open = None, False

    def _drop_file(self, _record: wire.DropFile) -> None:
        if not self._part_open:
            raise MalformedFrame("the end of no file")
        if self._part is not None:
            self._staging.drop_part(self._part)
        self._part, self._part_open = None, False

    def _symlink(self, record: wire.Symlink) -> None:
        self._expect(Phase.MAKE)
        parent = self._parent(record.name)
        meta = (record.seen, record.mtime_ns)
        _check_numbers(record.seen, 0, record.mtime_ns)
        link = record.link
        if not 0 < len(link) <= _MAX_LINK or b"\0" in link:
            raise MalformedFrame(f"an impossible link at {record.name!r}")
        if self._is_full:
            return
        try:
            held = self._directory(parent)
            self._add(self._staging.symlink(held, parent, record.name, meta, link))
        except OSError as error:
            self._failed(parent, record.name, error)

    # Changing and removing what is there

    def _metadata(self, record: wire.Metadata) -> None:
        self._expect(Phase.MAKE)
        parent = self._parent(record.name)
        _check_numbers(record.seen, record.mode, record.mtime_ns)
        if record.kind not in {Kind.FILE, Kind.SYMLINK} or not record.seen:
            raise MalformedFrame("metadata of what has none")
        if not self._is_full:
            mode = self._staging.allowed(record.mode)
            touch = Touch(parent, record.name, record.seen, record.kind, mode, record.mtime_ns)
            self._add(touch)

    def _delete(self, record: wire.Delete) -> None:
        if self._phase != Phase.MAKE_WAY:
            self._expect(Phase.DELETE)
        parent = self._parent(record.name)
        _check_numbers(record.seen, 0, 0)
        if record.kind is Kind.SPECIAL or not record.seen:
            raise MalformedFrame("a delete of what is never deleted")
        if self._deletes_left is not None:
            self._deletes_left -= 1
            if self._deletes_left < 0:
                raise DeleteLimitExceeded(f"more deletes at {self._member} than were agreed")
        if self._publisher.has_failed or self._is_full:
            # What could not be written may be the new place of what would be deleted here.
            self._left_out += 1
            return
        self._add(Drop(parent, record.name, record.seen, record.kind))

    def _directory_metadata(self, record: wire.DirectoryMetadata) -> None:
        self._expect(Phase.DIRECTORIES)
        check_path(record.path)
        _check_numbers(record.seen, record.mode, record.mtime_ns)
        if not self._is_full:
            self._add(
                Settle(record.path, record.seen, record.mode, record.mtime_ns, record.differs)
            )


def _check_numbers(seen: int, mode: int, mtime_ns: int) -> None:
    if (
        not 0 <= seen < 1 << 64
        or not 0 <= mode <= 0o7777
        or not -_MAX_INT64 <= mtime_ns <= _MAX_INT64
    ):
        raise MalformedFrame("impossible numbers")
