"""The large files of a push, as the source sees them: asked about, offered in chunks, or streamed.

Nobody waits for an answer: other files go on meanwhile (`talk` holds what is open). What a file's
content is when it is read, `streams` and `offering` say; whether it counts, the fingerprint does.
"""

import os
from collections.abc import Iterator

from syncengine import frames as wire
from syncengine.changes import WriteFile
from syncengine.chunks import bits_for
from syncengine.errors import MalformedFrame
from syncengine.holes import is_sparse
from syncengine.incoming import head_of
from syncengine.model import Often, RunOptions
from syncengine.names import join
from syncengine.offering import Known, Offering, SourceChanged
from syncengine.outcome import Outcome
from syncengine.outgoing import Outgoing
from syncengine.scan import fingerprint
from syncengine.source_files import ChangedKind, SourceFiles, check_regular
from syncengine.streams import Streams
from syncengine.talk import Asked, Talk
from syncengine.tree import Tree

_ASKED_BYTES = 1024 * 1024
"""Of files from this size on the receiver is asked what it has of them."""

_OFFERED_BYTES = 256 * 1024
"""The same for files that replace an older version."""

_MOST_ASKED = 64
_MOST_OFFERED = 8
_MOST_WINDOWS = 512


class LargeFiles:
    """Sends the large files of one plan; for one thread, blocks on the disk. Raises PushAborted."""

    def __init__(
        self,
        tree: Tree,
        options: RunOptions,
        *,
        files: SourceFiles,
        talk: Talk,
        outgoing: Outgoing,
        outcome: Outcome,
    ) -> None:
        self._tree = tree
        self._options = options
        self._files = files
        self._talk = talk
        self._out = outgoing
        self._outcome = outcome
        self._streams = Streams(outgoing, outcome, tree.reads)

    def send(self, change: WriteFile) -> Iterator[bytes]:
        """Send a file in parts, or ask first what the receiver has of it."""
        path = change.origin or change.path
        fd = self._files.open(path)
        if fd < 0:
            return
        try:
            before = os.fstat(fd)
            check_regular(before)
            size = before.st_size
            is_delta = change.seen and self._options.delta is not Often.OFF
            if size < (_OFFERED_BYTES if is_delta else _ASKED_BYTES):
                yield from self._stream(change, fd, before)
            else:
                self._ask(change, before, head_of(fd, size))
        except ChangedKind:
            self._files.no_file(path)
        except OSError as error:
            self._files.cannot_read(path, error)
        finally:
            os.close(fd)
        if self._talk.waits_for > _MOST_ASKED:
            yield from self.settle(_MOST_ASKED // 2)

    def settle(self, most: int = 0) -> Iterator[bytes]:
        """Go on with what was asked about until no more than `most` of it waits for answers."""
        while self._talk.waits_for > most and not self._outcome.is_full:
            answered = self._talk.next_answer()
            if answered is not None:
                yield from self._answered(*answered)
            elif self._out.has_records:
                yield self._out.take()  # else the receiver waits as well
            else:
                self._wait()

    def serve(self) -> Iterator[bytes]:
        """Go on with what was answered meanwhile, without waiting for anything."""
        while (answered := self._talk.next_answer()) is not None:
            yield from self._answered(*answered)

    def _wait(self) -> None:
        self._outcome.check()
        self._talk.wait()

    def _stream(
        self, change: WriteFile, fd: int, before: os.stat_result, number: int = 0, have: int = 0
    ) -> Iterator[bytes]:
        """Send a file in parts; when it changed on the way, say so and put it off."""
        meta = self._files.meta(change, fd, before)
        out = self._out
        out.attributes(meta.attributes)
        name = out.name(change.path)
        out.keep(change.keep)
        out.add(wire.OpenFile(name, change.seen, before.st_size, number, have), len(name))
        try:
            path = change.origin or change.path
            digest = yield from self._streams.content(path, fd, before, have)
            after = os.fstat(fd)
            if digest and fingerprint(after) == fingerprint(before):
                out.add(wire.CloseFile(meta.mode, meta.mtime_ns, digest))
            else:
                out.add(wire.DropFile())
                self._files.put_off_changed(change, after)
        except OSError:
            out.add(wire.DropFile())
            raise

    # What was asked about

    def _ask(self, change: WriteFile, status: os.stat_result, head: bytes) -> None:
        size = status.st_size
        offers = wire.Offers.NEVER
        if self._options.delta is Often.ON:
            offers = wire.Offers.ALWAYS
        elif self._options.delta is not Often.OFF and self._talk.offers_pay:
            offers = wire.Offers.WHERE_IT_PAYS
        mark = fingerprint(status)
        number = self._talk.asks(change, mark)
        name = self._out.name(change.path)
        bits, sparse = bits_for(size), is_sparse(status)
        record = wire.Ask(number, name, change.seen, size, mark, bits, head, offers, sparse)
        self._out.add(record, len(name))

    def _answered(self, asked: Asked, answer: wire.Answer | wire.Missing) -> Iterator[bytes]:
        change = asked.change
        try:
            if isinstance(answer, wire.Missing):
                yield from self._give(asked, answer)
            elif answer.have == wire.NOTHING:
                self._talk.ends(asked)
            else:
                yield from self._begin(asked, answer)
        except (SourceChanged, ChangedKind):
            self._forget(asked)
            self._files.put_off(change)
        except OSError as error:
            self._forget(asked)
            self._files.cannot_read(change.origin or change.path, error)

    def _forget(self, asked: Asked) -> None:
        self._talk.ends(asked)
        self._out.add(wire.Forget(asked.number))

    def _begin(self, asked: Asked, answer: wire.Answer) -> Iterator[bytes]:
        """Send a file as the receiver answered: from where it has it, or its chunks."""
        change, number, have = asked.change, asked.number, answer.have
        path = change.origin or change.path
        fd = self._files.open(path)
        if fd < 0:
            self._forget(asked)
            return
        try:
            before = os.fstat(fd)
            if fingerprint(before) != asked.mark:
                raise SourceChanged
            if have == wire.OFFER:
                yield from self._make_room()
            else:
                self._talk.ends(asked)
                if have > before.st_size:
                    raise MalformedFrame("more is kept of a file than there is")
                yield from self._stream(change, fd, before, number, have)
                return
            asked.offering = Offering(
                number,
                fd,
                bits_for(before.st_size),
                known=Known(self._tree.chunks, join(self._tree.sub, path)),
                reads=self._tree.reads,
            )
            fd = -1
        finally:
            if fd >= 0:
                os.close(fd)
        yield from self._offer(asked, asked.offering)

    # What is offered in chunks

    def _offer(self, asked: Asked, offering: Offering) -> Iterator[bytes]:
        """Offer the chunks of a file, and give what is missing of it meanwhile."""
        for record in offering.offers():
            self._out.add(record, len(record.lengths) + len(record.ids))
            yield self._out.take()
            # Neither side waits while the other works; nor does what is on its way grow for ever.
            while (missing := self._talk.next_missing(asked)) is not None:
                yield from self._give(*missing)
            while offering.unanswered > _MOST_WINDOWS:
                missing = self._talk.next_missing(asked)
                if missing is not None:
                    yield from self._give(*missing)
                elif self._talk.is_given_up(asked):
                    return
                else:
                    self._wait()
            if self._talk.is_given_up(asked) or self._outcome.is_full:
                return
        yield from self._end_offer(asked)

    def _make_room(self) -> Iterator[bytes]:
        """Deal with other files on offer until another one can be: each holds files open."""
        while self._talk.offered >= _MOST_OFFERED and not self._outcome.is_full:
            missing = self._talk.next_missing()
            if missing is not None:
                yield from self._give(*missing)
            elif self._out.has_records:
                yield self._out.take()
            else:
                self._wait()

    def _give(self, asked: Asked, missing: wire.Missing) -> Iterator[bytes]:
        out, offering = self._out, asked.offering
        if offering is None:
            raise MalformedFrame("an answer to no offer")
        for piece in offering.pieces(missing.bitmap):
            if out.held + len(piece.content) > out.frame_bytes and out.has_records:
                yield out.take()
            self._talk.given_bytes += len(piece.content)
            out.add(piece, len(piece.content))
        yield from self._end_offer(asked)

    def _end_offer(self, asked: Asked) -> Iterator[bytes]:
        offering = asked.offering
        if offering is None or not offering.is_done:
            return
        change, out = asked.change, self._out
        digest = offering.digest()
        meta = self._files.meta(change, offering.fd, offering.status)
        self._talk.ends(asked)
        out.attributes(meta.attributes)
        if change.keep:
            out.name(change.path)  # a name to be kept under lies in the directory entered last
            out.keep(change.keep)
        out.add(wire.Whole(asked.number, meta.mode, meta.mtime_ns, digest))
        if out.is_full:
            yield out.take()
