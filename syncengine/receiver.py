"""The target's half of a push: frames in, a tree that becomes equal to the source, replies out.

Nothing that arrives is believed: types were checked by `frames`, and here names, ranges, the order
of records, sizes and digests (`position`, `arrivals`). What is staged is held by `batch`, and staged
and published elsewhere.
"""

import re
from typing import TYPE_CHECKING

from blake3 import blake3

from syncengine import frames as wire
from syncengine.arrivals import Arrivals, check_numbers
from syncengine.batch import Batch
from syncengine.details import leads_out
from syncengine.errors import DeleteLimitExceeded, MalformedFrame, RootReadOnly
from syncengine.incoming import Incoming
from syncengine.model import SPECIAL_KINDS, Kind, RunOptions, Symlinks
from syncengine.names import check_path, join
from syncengine.operations import Drop, Link, Move, Settle, Temporaries, Touch
from syncengine.phases import Phase
from syncengine.position import Position
from syncengine.publish import OpenGate, Publisher, PublishGate
from syncengine.staging import Staging
from syncengine.trash import Trash
from syncengine.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OpenGate", "PublishGate", "Receiver"]

BATCH_FILES = 2_000
"""Entries staged before they are published together."""

BATCH_BYTES = 64 * 1024 * 1024

_STAMP = re.compile(r"(\d{4})(\d{2})(\d{2})-\d{6}")
_MAX_LINK = 4_095
_MAX_DEVICE = (1 << 64) - 1


class Receiver:
    """Carries out one push in one tree. `feed` and `finish` block on disk and gate; one thread.

    `run_stamp` is the UTC time of the run, YYYYMMDD-HHMMSS; `delete_limit` is how many deletes this
    side has agreed to, None for any number. End it with `finish` or `abort`.
    """

    def __init__(
        self,
        tree: Tree,
        options: RunOptions,
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
        self._member = member
        self._deletes_left = delete_limit
        self._keeps_devices = options.keep_devices
        self._only_inside = options.symlinks is Symlinks.INSIDE
        self._directories = tree.directories()
        temporaries = Temporaries()
        self._staging = Staging(tree, self._directories, options, temporaries)
        self._trash = Trash(tree, "-".join(stamp.groups()))
        publisher = Publisher(
            tree,
            self._directories,
            options,
            gate=gate,
            trash=self._trash,
            temporaries=temporaries,
            enter=self._staging.enter,
            giver=self._staging.giver,
        )
        self._incoming = Incoming(tree, self._directories, options)
        self._incoming.partials.expire()
        self._decoder = wire.FrameDecoder()
        self._position = Position()
        self._batch = Batch(tree, self._staging, publisher, self._incoming)
        self._arrivals = Arrivals(self._staging, self._incoming, self._batch, self._position)
        self._closed = False
        self._actions: dict[type, Callable[..., None]] = {
            wire.Enter: self._enter,
            wire.Begin: self._begin,
            wire.NewDirectory: self._new_directory,
            wire.SmallFile: self._small_file,
            wire.OpenFile: self._arrivals.open_file,
            wire.Data: self._arrivals.data,
            wire.Hole: self._arrivals.hole,
            wire.CloseFile: self._arrivals.close_file,
            wire.DropFile: self._arrivals.drop_file,
            wire.Symlink: self._symlink,
            wire.Metadata: self._metadata,
            wire.Delete: self._delete,
            wire.DirectoryMetadata: self._directory_metadata,
            wire.Finish: self._finish,
            wire.Attributes: self._attributes,
            wire.Keep: self._note_keep,
            wire.Move: self._move,
            wire.Link: self._link,
            wire.Special: self._special,
            wire.Ask: self._arrivals.ask,
            wire.Offer: self._arrivals.offer,
            wire.Piece: self._arrivals.piece,
            wire.Whole: self._arrivals.whole,
            wire.Forget: self._arrivals.forget,
        }

    def feed(self, frame: bytes) -> list[bytes]:
        """Carry out one frame and return the replies to send back; blocks on disk and gate.

        Raises MalformedFrame and DeleteLimitExceeded for what the peer did, and Fenced; everything
        staged is discarded then, and the receiver is closed.
        """
        if self._closed:
            raise MalformedFrame("a frame after the end of the push")
        try:
            actions, batch = self._actions, self._batch
            for record in self._decoder.decode(frame):
                actions[type(record)](record)
                if batch.files >= BATCH_FILES or batch.bytes >= BATCH_BYTES:
                    batch.commit()
        except BaseException:
            self.abort()
            raise
        return self._take_replies()

    def finish(self) -> list[bytes]:
        """End the push after its last frame; without a Finish record this is an abort."""
        if not self._position.is_finished:
            self.abort()
            return []
        self._close()
        return self._take_replies()

    def abort(self) -> None:
        """Discard everything that is staged and let go of everything; harmless when closed."""
        if self._closed:
            return
        self._arrivals.drop()
        self._batch.discard()
        self._close()

    def _close(self) -> None:
        self._closed = True
        self._batch.held = None
        self._incoming.close()
        self._trash.close()
        self._directories.close()

    def _take_replies(self) -> list[bytes]:
        replies = self._batch.take_replies()
        return wire.encode_replies(replies) if replies else []

    # The state of the stream

    def _begin(self, record: wire.Begin) -> None:
        self._position.check_begin(record.phase)
        self._batch.commit()
        self._position.begin(record.phase)

    def _enter(self, record: wire.Enter) -> None:
        self._position.enter(record.path)
        self._batch.held = None

    def _finish(self, _record: wire.Finish) -> None:
        self._position.check_end()
        self._batch.end()
        self._position.is_finished = True

    def _attributes(self, record: wire.Attributes) -> None:
        if self._position.in_file:
            raise MalformedFrame("attributes within a file")
        self._staging.give(record.packed)

    def _note_keep(self, record: wire.Keep) -> None:
        self._position.note_keep(record.keep)

    # Making

    def _new_directory(self, record: wire.NewDirectory) -> None:
        self._position.expect(Phase.MAKE)
        parent = self._position.parent(record.name)
        check_numbers(0, record.mode, 0)
        if self._batch.is_full:
            return
        try:
            held = self._batch.directory(parent)
            self._batch.add(self._staging.directory(held, parent, record.name, record.mode))
        except OSError as error:
            self._directories.bar(join(parent, record.name))
            self._batch.failed(parent, record.name, error)

    def _small_file(self, record: wire.SmallFile) -> None:
        self._position.expect(Phase.MAKE)
        name, content = record.name, record.content
        parent = self._position.parent(name)
        meta = (record.seen, record.mode, record.mtime_ns)
        check_numbers(*meta)
        keep = self._position.kept(record.seen)
        if blake3(content).digest() != record.digest:
            raise MalformedFrame(f"content and digest of {join(parent, name)!r} differ")
        if self._batch.is_full:
            return
        try:
            held = self._batch.held or self._batch.directory(parent)
            place = self._staging.small_file(held, parent, name, meta, content)
        except OSError as error:
            self._batch.failed(parent, name, error)
        else:
            if keep and place is not None:
                place.keep = keep
            self._batch.add(place, len(content))

    def _symlink(self, record: wire.Symlink) -> None:
        self._position.expect(Phase.MAKE)
        parent = self._position.parent(record.name)
        meta = (record.seen, record.mtime_ns)
        check_numbers(record.seen, 0, record.mtime_ns)
        link = record.link
        if not 0 < len(link) <= _MAX_LINK or b"\0" in link:
            raise MalformedFrame(f"an impossible link at {record.name!r}")
        if self._only_inside and leads_out(join(parent, record.name), link):
            raise MalformedFrame(f"a symlink out of the tree: {record.name!r}")
        keep = self._position.kept(record.seen)
        if self._batch.is_full:
            return
        try:
            held = self._batch.directory(parent)
            place = self._staging.symlink(held, parent, record.name, meta, link)
        except OSError as error:
            self._batch.failed(parent, record.name, error, Kind.SYMLINK)
        else:
            if place is not None:
                place.keep = keep
            self._batch.add(place)

    def _special(self, record: wire.Special) -> None:
        self._position.expect(Phase.MAKE)
        parent = self._position.parent(record.name)
        check_numbers(record.seen, record.mode, record.mtime_ns)
        if record.kind not in SPECIAL_KINDS or not 0 <= record.device <= _MAX_DEVICE:
            raise MalformedFrame(f"no special file: {record.name!r}")
        if not self._keeps_devices:
            raise MalformedFrame("special files do not belong to this job")
        keep = self._position.kept(record.seen)
        if self._batch.is_full:
            return
        try:
            held = self._batch.directory(parent)
            place = self._staging.special(held, parent, record)
        except OSError as error:
            self._batch.failed(parent, record.name, error, record.kind)
        else:
            if place is not None:
                place.keep = keep
            self._batch.add(place)

    def _link(self, record: wire.Link) -> None:
        self._position.expect(Phase.MAKE)
        parent = self._position.parent(record.name)
        check_numbers(record.seen, 0, 0)
        check_path(record.to)
        if record.to in {b"", join(parent, record.name)}:
            raise MalformedFrame(f"a link to itself, or to the top: {record.name!r}")
        if not self._batch.is_full:
            self._batch.add(Link(parent, record.name, record.seen, record.to))

    def _move(self, record: wire.Move) -> None:
        self._position.expect(Phase.RENAME)
        path, to = record.path, record.to
        check_path(path)
        check_path(to)
        if (
            not path
            or not to
            or (path + b"/").startswith(to + b"/")
            or (to + b"/").startswith(path + b"/")
            or not 0 < record.seen < 1 << 64
            or self._is_left_alone(record.kind)
        ):
            raise MalformedFrame(f"no rename: {path[:300]!r} to {to[:300]!r}")
        if not self._batch.is_full:
            self._batch.add(Move(path, to, record.seen, record.kind))

    def _is_left_alone(self, kind: Kind) -> bool:
        """Say whether entries of this kind are nothing that this job touches."""
        return kind in {Kind.SPECIAL, Kind.EXCLUDED} or (
            kind in SPECIAL_KINDS and not self._keeps_devices
        )

    # Changing and removing what is there

    def _metadata(self, record: wire.Metadata) -> None:
        self._position.expect(Phase.MAKE)
        parent = self._position.parent(record.name)
        check_numbers(record.seen, record.mode, record.mtime_ns)
        if record.kind is Kind.DIRECTORY or self._is_left_alone(record.kind) or not record.seen:
            raise MalformedFrame("metadata of what has none")
        if not self._batch.is_full:
            mode = self._staging.allowed(record.mode)
            given = self._staging.given
            self._batch.add(
                Touch(parent, record.name, record.seen, record.kind, mode, record.mtime_ns, given)
            )

    def _delete(self, record: wire.Delete) -> None:
        if self._position.phase != Phase.MAKE_WAY:
            self._position.expect(Phase.DELETE)
        parent = self._position.parent(record.name)
        check_numbers(record.seen, 0, 0)
        if self._is_left_alone(record.kind) or not record.seen:
            raise MalformedFrame("a delete of what is never deleted")
        if self._deletes_left is not None:
            self._deletes_left -= 1
            if self._deletes_left < 0:
                raise DeleteLimitExceeded(f"more deletes at {self._member} than were agreed")
        if self._batch.deletes_nothing:
            self._batch.leave_out()
            return
        self._batch.add(Drop(parent, record.name, record.seen, record.kind))

    def _directory_metadata(self, record: wire.DirectoryMetadata) -> None:
        self._position.expect(Phase.DIRECTORIES)
        check_path(record.path)
        check_numbers(record.seen, record.mode, record.mtime_ns)
        if not self._batch.is_full:
            self._batch.add(
                Settle(
                    record.path,
                    record.seen,
                    record.mode,
                    record.mtime_ns,
                    record.differs,
                    self._staging.given,
                )
            )
