"""The batch of a push: what is staged until it is published together, and what became of it.

Turns what went wrong with one entry into a reply, and a full disk into the end of writing.
"""

from syncengine import frames as wire
from syncengine.directories import Barred, Held
from syncengine.incoming import Incoming
from syncengine.model import Kind, What
from syncengine.names import join
from syncengine.operations import Operation
from syncengine.publish import NO_SPACE, Publisher
from syncengine.staging import Staging
from syncengine.tree import Tree


class Batch:
    """Gathers operations and publishes them; for one thread, blocks on the disk and the gate."""

    def __init__(
        self, tree: Tree, staging: Staging, publisher: Publisher, incoming: Incoming
    ) -> None:
        self._tree = tree
        self._staging = staging
        self._publisher = publisher
        self._incoming = incoming
        self._operations: list[Operation] = []
        self.files = 0
        self.bytes = 0
        self.held: Held | None = None
        """The directory that entries were staged in last, as long as it is good."""
        self.waits = False
        """Whether a file in parts, unfinished, may lie in a directory of this batch."""
        self.is_full = False
        """Whether the disk is full: nothing more is written."""
        self._left_out = 0
        self._replies: list[wire.Reply] = []

    def directory(self, parent: bytes) -> Held:
        """Return the directory at `parent`, ready to have entries staged in it; raises OSError."""
        held = self.held
        if held is None:
            held = self.held = self._staging.enter(parent)
        return held

    def add(self, operation: Operation | None, size: int = 0) -> None:
        """Add what was staged; nothing for an entry that lies in a directory of the batch."""
        if operation is not None:
            self._operations.append(operation)
        self.files += 1
        self.bytes += size

    def reply(self, reply: wire.Reply) -> None:
        """Add a reply for the sender."""
        self._replies.append(reply)

    def take_replies(self) -> list[wire.Reply]:
        """Return the replies since the last call."""
        notes = self._staging.giver.notes
        if notes:
            self._replies += notes
            notes.clear()
        replies, self._replies = self._replies, []
        return replies

    @property
    def deletes_nothing(self) -> bool:
        """Whether deletes are left out: what could not be written may be the new place of one."""
        return self._publisher.has_failed or self.is_full

    def leave_out(self) -> None:
        """Count a delete that is left out."""
        self._left_out += 1

    def commit(self) -> None:
        """Publish the batch, and note what became of it; Fenced comes out of the gate."""
        if self.waits:
            return
        operations, self._operations = self._operations, []
        self.files = self.bytes = 0
        self.held = None
        if not operations:
            return
        self._replies += self._publisher.commit(operations)
        self._incoming.published()
        self._note_full()

    def end(self) -> None:
        """Publish the last batch, and tell what is known only then."""
        self.commit()
        self._replies += self._publisher.clashes.told()
        if self._left_out:
            detail = f"{self._left_out} deletes left out: not everything could be written"
            self.reply(wire.Failed(b"", What.SKIPPED, detail))
        self.reply(wire.Finished())

    def discard(self) -> None:
        """Remove everything that is staged."""
        operations, self._operations = self._operations, []
        for operation in operations:
            self._publisher.discard(operation)
        self.held = None

    def _note_full(self) -> None:
        full_at, self._publisher.full_at = self._publisher.full_at, None
        if full_at is not None and not self.is_full:
            self.is_full = True
            self.reply(wire.Full(full_at, self._tree.free_bytes()))

    def failed(self, parent: bytes, name: bytes, error: OSError, kind: Kind = Kind.FILE) -> None:
        """Note that one entry could not be staged; the rest goes on unless the disk is full."""
        path = join(parent, name)
        if error.errno in NO_SPACE:
            self._publisher.has_failed = True
            self._publisher.full_at = path
            self._incoming.partials.clear()
            self.commit()
            self._note_full()
        elif isinstance(error, Barred) or (
            isinstance(error, FileExistsError) and self._publisher.is_clash(parent, name)
        ):
            pass  # told already, or at the end
        elif isinstance(error, FileExistsError | FileNotFoundError | NotADirectoryError):
            # The directory is not what the plan saw, or somebody got in between.
            self.changed(path, error.strerror or str(error))
        else:
            self._publisher.has_failed = True
            self.reply(self._publisher.refused(path, error, kind, is_new=True))

    def changed(self, path: bytes, detail: str) -> None:
        """Note what is to be planned anew."""
        self.reply(wire.Failed(path, What.TARGET_CHANGED, detail))
