"""The files that a push reads: opened below the top, with what goes with them as it is now.

Remembers what could not be read, and what was put off because it changed meanwhile.
"""

import os
import stat
from typing import NamedTuple

from blake3 import blake3

from syncengine.attribute_reader import AttributeReader
from syncengine.changes import MakeLink, WriteFile
from syncengine.model import Kind, What
from syncengine.outcome import Outcome
from syncengine.outgoing import SMALL_BYTES
from syncengine.phases import Plan
from syncengine.scan import OPEN_FILE, fingerprint
from syncengine.shared_reads import Content
from syncengine.spool import Spool
from syncengine.tree import Tree

_SETUID_SETGID = stat.S_ISUID | stat.S_ISGID
_GONE = (FileNotFoundError, NotADirectoryError)


class Meta(NamedTuple):
    """What a file gets beside its content."""

    mode: int
    mtime_ns: int
    attributes: bytes


class ChangedKind(Exception):
    """What was a file is something else now."""


class SourceFiles:
    """Reads the files of one plan; for one thread, every method blocks on the disk."""

    def __init__(self, tree: Tree, plan: Plan, outcome: Outcome, *, names_gone: bool) -> None:
        self._options = plan.options
        self._outcome = outcome
        self._names_gone = names_gone
        self._directories = tree.directories()
        self._reader: AttributeReader | None = None
        self.unreadable: set[bytes] = set()
        self.late: set[bytes] = set()
        """Files that were put off: what is linked to them waits too."""
        self._deferred = Spool()

    def open(self, path: bytes) -> int:
        """Open a file to read it, or return -1 when it vanished or cannot be read, which is noted."""
        parent, _, name = path.rpartition(b"/")
        try:
            return os.open(name, OPEN_FILE, dir_fd=self._directories.fd(parent))
        except _GONE:
            if self._names_gone:
                self._outcome.problem(path, What.TARGET_CHANGED, "it is gone")
        except OSError as error:
            self.cannot_read(path, error)
        return -1

    def cannot_read(self, path: bytes, error: OSError) -> None:
        """Note a file that cannot be read, once."""
        if path not in self.unreadable:
            self.unreadable.add(path)
            self._outcome.problem(path, What.UNREADABLE, error.strerror or str(error))

    def no_file(self, path: bytes) -> None:
        """Note a file that is something else now."""
        self._outcome.problem(path, What.UNSTABLE, "it is no regular file any more")

    def size(self, path: bytes) -> int:
        """Return the size of what is there now, 0 where that is nothing."""
        parent, _, name = path.rpartition(b"/")
        try:
            return os.lstat(name, dir_fd=self._directories.fd(parent)).st_size
        except OSError:
            return 0  # opening it tells what is wrong

    def takes_the_place(self, path: bytes) -> bool:
        """Say whether what is to replace something at the target can be had, before that goes."""
        parent, _, name = path.rpartition(b"/")
        try:
            fd = self._directories.fd(parent)
            if stat.S_ISREG(os.lstat(name, dir_fd=fd).st_mode):
                os.close(os.open(name, OPEN_FILE, dir_fd=fd))
        except _GONE:
            return False
        except OSError as error:
            self.cannot_read(path, error)
            return False
        return True

    def content(self, path: bytes, size: int) -> Content | None:
        """Read a small file whole; None when that cannot be done. Raises OSError."""
        fd = self.open(path)
        if fd < 0:
            return None
        try:
            data = os.read(fd, min(size, SMALL_BYTES)) if size else b""
            return Content(data, blake3(data).digest(), os.fstat(fd))
        finally:
            os.close(fd)

    def meta(self, change: WriteFile, fd: int, status: os.stat_result) -> Meta:
        """Return what goes with the content: as planned, or as it is now where that changed."""
        if is_as_planned(change, status):
            return Meta(change.mode, change.mtime_ns, change.attributes)
        attributes = self._attributes_now(fd, status)
        return Meta(self._mode(change, status), status.st_mtime_ns, attributes)

    def _attributes_now(self, fd: int, status: os.stat_result) -> bytes:
        """Return the attributes of a file that is no longer the one that the scan saw."""
        reader, options = self._reader, self._options
        if not (options.keep_owner or options.keep_xattrs or options.keep_acls):
            return b""
        if reader is None:
            reader = self._reader = AttributeReader(
                owner=options.keep_owner, xattrs=options.keep_xattrs, acls=options.keep_acls
            )
        return reader.of(fd, status, Kind.FILE)

    def _mode(self, change: WriteFile, status: os.stat_result) -> int:
        if not self._options.keep_mode:
            return change.mode
        mode = stat.S_IMODE(status.st_mode)
        return mode if self._options.keep_setuid else mode & ~_SETUID_SETGID

    def put_off(self, change: WriteFile | MakeLink) -> None:
        """Leave a change for later."""
        self._deferred.append(change)
        self.late.add(change.path)

    def put_off_changed(self, change: WriteFile, status: os.stat_result) -> None:
        """Leave a file that changed for later; raises ChangedKind if it is no file any more."""
        check_regular(status)
        self.put_off(change)

    def take_late(self) -> Spool:
        """Return what was put off, and begin anew; the caller closes it."""
        late, self._deferred = self._deferred, Spool()
        late.seal()
        return late

    def close(self) -> None:
        """Let go of the directories."""
        self._directories.close()


def check_regular(status: os.stat_result) -> None:
    """Raise ChangedKind for what is no regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise ChangedKind


def is_as_planned(change: WriteFile, status: os.stat_result) -> bool:
    """Say whether a file is what the scan saw, or the one that this run itself made here."""
    return fingerprint(status) == change.source_seen or (
        change.source_seen == 0
        and stat.S_ISREG(status.st_mode)
        and status.st_size == change.size
        and status.st_mtime_ns == change.mtime_ns
    )
