"""The files that arrive in parts: streams, and chunks of those that the sender asked about.

A stream is one at a time and is not interrupted; chunks of several files come mixed. Sizes and
digests are judged here, before anything is staged; what of a file lies here already, `incoming` knows.
"""

import contextlib
import os
from collections.abc import Iterator

from blake3 import blake3

from syncengine import frames as wire
from syncengine.assembly import AssemblyFailed
from syncengine.batch import Batch
from syncengine.errors import MalformedFrame
from syncengine.holes import HOLE_BYTES, digest_zeros
from syncengine.incoming import Incoming
from syncengine.names import join
from syncengine.phases import Phase
from syncengine.position import Position
from syncengine.staging import PartFile, Staging

MAX_INT64 = (1 << 63) - 1


class Arrivals:
    """Takes the records of files in parts; for one thread, blocks on the disk.

    Raises MalformedFrame for what the peer did; what goes wrong with one file becomes a reply.
    """

    def __init__(
        self, staging: Staging, incoming: Incoming, batch: Batch, position: Position
    ) -> None:
        self._staging = staging
        self._incoming = incoming
        self._batch = batch
        self._position = position
        self._part: PartFile | None = None
        """The file that is open; None within a file (`position.in_file`) when that one failed."""
        self._left = 0
        self._had = 0
        self._hasher = blake3()

    def drop(self) -> None:
        """Let go of an unfinished file; what may be gone on with later is kept."""
        part, self._part = self._part, None
        if part is not None and part.partial is not None and not part.temporary:
            self._incoming.partials.keep(part.partial)
        elif part is not None:
            self._staging.drop_part(part)

    # Streams

    def _enter_file(self, *, within: bool) -> None:
        self._position.in_file = self._batch.waits = within

    def open_file(self, record: wire.OpenFile) -> None:
        """Begin a file, or go on with one that an earlier push began."""
        self._position.expect(Phase.MAKE)
        parent = self._position.parent(record.name)
        check_numbers(record.seen, 0, 0)
        if not 0 <= record.have <= record.size <= MAX_INT64:
            raise MalformedFrame("an impossible size")
        keep = self._position.kept(record.seen)
        self._had = record.have
        self._left = record.size - record.have
        self._hasher = blake3()
        if not self._batch.is_full:
            try:
                held = self._batch.directory(parent)
                if record.number:
                    self._part, self._hasher = self._incoming.open_part(held, parent, record)
                else:
                    self._part = self._staging.open_part(held, parent, record.name, record.seen)
                self._part.keep = keep
            except OSError as error:
                self._batch.failed(parent, record.name, error)
        self._enter_file(within=True)

    def data(self, record: wire.Data) -> None:
        """Take content of the open file."""
        if not self._position.in_file:
            raise MalformedFrame("content of no file")
        content = record.content
        self._left -= len(content)
        if self._left < 0:
            raise MalformedFrame("more content than was declared")
        part = self._part
        if part is None:
            return
        self._hasher.update(content)
        try:
            self._staging.write_part(part, content)
        except OSError as error:
            self._stream_failed(part, error)

    def hole(self, record: wire.Hole) -> None:
        """Take a hole of the open file."""
        if not self._position.in_file:
            raise MalformedFrame("a hole in no file")
        length = record.length
        if not 0 < length <= HOLE_BYTES:
            raise MalformedFrame("an impossible hole")
        self._left -= length
        if self._left < 0:
            raise MalformedFrame("more content than was declared")
        part = self._part
        if part is None:
            return
        digest_zeros(self._hasher, length)
        try:
            self._staging.skip_part(part, length)
        except OSError as error:
            self._stream_failed(part, error)

    def close_file(self, record: wire.CloseFile) -> None:
        """Stage the open file, if it is whole and has the digest that it should."""
        if not self._position.in_file:
            raise MalformedFrame("the end of no file")
        check_numbers(0, record.mode, record.mtime_ns)
        if self._left:
            raise MalformedFrame("less content than was declared")
        part = self._part
        if part is not None:
            if self._hasher.digest() == record.digest:
                self._leave_file()
                self._stage(part, record.mode, record.mtime_ns)
                return
            if not self._had:
                raise MalformedFrame(f"content and digest of {part.name!r} differ")
            # What was kept is not what it should have been: it must be sent whole.
            self._remove(part)
            detail = "what was kept of it did not fit"
            self._batch.changed(join(part.parent, part.name), detail)
        self._leave_file()

    def drop_file(self, _record: wire.DropFile) -> None:
        """Remove the open file: it changed while it was read."""
        if not self._position.in_file:
            raise MalformedFrame("the end of no file")
        if self._part is not None:
            self._remove(self._part)
        self._leave_file()

    def _leave_file(self) -> None:
        self._part = None
        self._enter_file(within=False)

    def _stream_failed(self, part: PartFile, error: OSError) -> None:
        self._part = None
        # Nothing unfinished is left, so the batch may be published; what still comes is let pass.
        self._batch.waits = False
        self._failed(part, error)
        self._batch.waits = True

    def _failed(self, part: PartFile, error: OSError) -> None:
        self._remove(part)
        self._batch.failed(part.parent, part.name, error)

    def _remove(self, part: PartFile) -> None:
        if part.partial is not None and not part.temporary:
            self._incoming.partials.drop(part.partial)
        else:
            self._staging.drop_part(part)

    def _stage(self, part: PartFile, mode: int, mtime_ns: int) -> None:
        """Stage a file whose content is whole and right."""
        try:
            status = os.fstat(part.fd)
            if part.partial is not None:
                self._staging.adopt(part, self._incoming.partials)
                status = os.fstat(part.fd)
            place = self._staging.close_part(part, mode, mtime_ns)
        except OSError as error:
            self._failed(part, error)
        else:
            if part.partial is not None:
                self._incoming.done(part, part.inode or status.st_ino)
            self._batch.add(place, status.st_size)

    # Chunks

    def ask(self, record: wire.Ask) -> None:
        """Answer what is here of a file."""
        self._position.expect(Phase.MAKE)
        parent = self._position.parent(record.name)
        check_numbers(record.seen, 0, 0)
        have = wire.NOTHING
        if not self._batch.is_full:
            try:
                have = self._incoming.ask(parent, self._batch.directory(parent), record)
            except OSError as error:
                self._batch.failed(parent, record.name, error)
        self._batch.reply(wire.Answer(record.number, have))

    def offer(self, record: wire.Offer) -> None:
        """Answer which of these chunks are not here."""
        self._position.expect(Phase.MAKE)
        with self._one_of_many(record.number):
            missing = self._incoming.offer(record)
            if missing is not None:
                self._batch.reply(wire.Missing(record.number, missing))

    def piece(self, record: wire.Piece) -> None:
        """Take a chunk that was missing."""
        self._position.expect(Phase.MAKE)
        with self._one_of_many(record.number):
            self._incoming.piece(record)

    def whole(self, record: wire.Whole) -> None:
        """Stage a file that was put together from chunks."""
        position = self._position
        position.expect(Phase.MAKE)
        check_numbers(0, record.mode, record.mtime_ns)
        with self._one_of_many(record.number):
            part = self._incoming.whole(record, is_kept=bool(position.keep))
            if part is None:
                position.keep = b""
            else:
                if position.keep and position.at != part.parent:
                    raise MalformedFrame("to be kept in another directory")
                part.keep = position.kept(part.seen)
                self._stage(part, record.mode, record.mtime_ns)

    def forget(self, record: wire.Forget) -> None:
        """Let go of a file that was asked about."""
        self._position.expect(Phase.MAKE)
        self._incoming.end(record.number)

    @contextlib.contextmanager
    def _one_of_many(self, number: int) -> Iterator[None]:
        """End the one file that something goes wrong with; the rest goes on unless the disk is full."""
        try:
            yield
        except AssemblyFailed as failed:
            parent, name = self._incoming.where(number)
            self._incoming.end(number, distrust=True)
            self._batch.changed(join(parent, name), str(failed))
            self._batch.reply(wire.Answer(number, wire.NOTHING))
        except OSError as error:
            parent, name = self._incoming.where(number)
            self._incoming.end(number)
            self._batch.failed(parent, name, error)
            self._batch.reply(wire.Answer(number, wire.NOTHING))


def check_numbers(seen: int, mode: int, mtime_ns: int) -> None:
    """Refuse numbers that no file can have."""
    if (
        not 0 <= seen < 1 << 64
        or not 0 <= mode <= 0o7777
        or not -MAX_INT64 <= mtime_ns <= MAX_INT64
    ):
        raise MalformedFrame("impossible numbers")
