"""The source's half of a push: a plan and a tree in, frames out.

Reads each file once, hashes it on the way, and vouches for nothing that changed while it was read.
What was published is not judged here: the receiver says so.
"""

import os
import stat
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import msgspec
from blake3 import blake3

from syncengine import frames as wire
from syncengine.changes import (
    Change,
    MakeDirectory,
    MakeSymlink,
    Remove,
    SetDirectory,
    SetMetadata,
    WriteFile,
)
from syncengine.errors import MalformedFrame, PushAborted
from syncengine.model import Counts, Problem, What
from syncengine.names import MAX_PATH, check_path
from syncengine.phases import Phase, Plan
from syncengine.scan import OPEN_FILE, fingerprint
from syncengine.spool import Spool
from syncengine.tree import Tree

SMALL_BYTES = 128 * 1024
"""Files up to this size travel whole, many to a frame."""

_RECORD_BYTES = 90
"""What a record comes to beside its names and content, about."""

_LEAST_DATA = 512
"""A frame with less room than this is sent rather than filled up."""

_MAX_FRAME_BYTES = wire.MAX_FRAME_BYTES - SMALL_BYTES - 2 * MAX_PATH
"""Beyond this a frame with one more small file could be too large for the receiver."""

_SETUID_SETGID = stat.S_ISUID | stat.S_ISGID
_GONE = (FileNotFoundError, NotADirectoryError)
_RETRY_PAUSE_S = 0.05
_MAX_RETRY_PATHS = 100_000
_MAX_PROBLEMS = 10_000


@dataclass(slots=True)
class SendResult:
    """What became of a push, as the target told it."""

    counts: Counts = field(default_factory=Counts)
    problems: list[Problem] = field(default_factory=list)
    is_complete: bool = False
    """Everything was sent and the target has dealt with all of it (problems notwithstanding)."""
    retry: list[bytes] = field(default_factory=list)
    """Paths whose target changed since it was scanned: plan them anew."""


class _ChangedKind(Exception):
    """What was a file is something else now."""


class Sender:
    """Sends the changes of one plan to one target.

    `frames` runs in a thread of its own and blocks on the disk; `on_reply` and `abort` are called
    from any other. `member` names the source in problems, `target_member` the target.
    """

    def __init__(
        self,
        tree: Tree,
        plan: Plan,
        *,
        member: str,
        target_member: str = "",
        tries: int = 3,
        frame_bytes: int = 1024 * 1024,
    ) -> None:
        self._plan = plan
        self._options = plan.options
        self._member = member
        self._target_member = target_member
        self._tries = tries
        self._frame_bytes = min(max(frame_bytes, 2 * _LEAST_DATA), _MAX_FRAME_BYTES)
        # Of the thread that runs frames():
        self._directories = tree.directories()
        self._encode = msgspec.msgpack.Encoder().encode
        self._records: list[wire.Record] = []
        self._held = 0
        self._at: bytes | None = None
        self._deferred = Spool()
        self._unreadable: set[bytes] = set()
        self._way = b""
        self._way_is_free = True
        """Whether what makes way for `_way` is to be removed."""
        # Guarded by _lock:
        self._lock = threading.Lock()
        self._result = SendResult()
        self._full: wire.Full | None = None
        self._full_told = False
        self._replies = wire.ReplyDecoder()
        self._aborted = threading.Event()

    def frames(self) -> Generator[bytes, None, None]:
        """Yield the frames of the push; blocks on the disk.

        Raises PushAborted after `abort`. Close the generator when it is not read to its end.
        """
        try:
            for frame in self._all_frames():
                with self._lock:
                    self._result.counts.bytes_sent += len(frame)
                yield frame
                if self._aborted.is_set():
                    raise PushAborted("the push was ended")
        finally:
            self._directories.close()

    def _all_frames(self) -> Iterator[bytes]:
        for phase in Phase:
            if self._full is not None:
                break
            changes = self._plan.phase(phase)
            first = next(changes, None)
            if first is None:
                continue
            if phase is Phase.DELETE and self._unreadable:
                # INVARIANT I8: what could not be read may be what a delete would take the last
                # copy of.
                self._problem(b"", What.SKIPPED, "deletes left out: not everything was readable")
                continue
            self._add(wire.Begin(phase), 0)
            yield from self._changes(first, changes)
            if phase is Phase.MAKE:
                yield from self._try_again()
        self._add(wire.Finish(), 0)
        yield self._take()

    def _changes(self, first: Change, rest: Iterator[Change]) -> Iterator[bytes]:
        yield from self._change(first)
        for change in rest:
            if type(change) is WriteFile and change.size <= SMALL_BYTES:
                self._small(change)
            else:
                yield from self._change(change)
            if self._held >= self._frame_bytes:
                yield self._take()
                if self._full is not None:
                    return

    def _add(self, record: wire.Record, size: int) -> None:
        self._records.append(record)
        self._held += size + _RECORD_BYTES

    def _take(self) -> bytes:
        frame = self._encode(self._records)
        self._records.clear()
        self._held = 0
        return frame

    def _problem(self, path: bytes, what: What, detail: str) -> None:
        with self._lock:
            self._add_problem(Problem(path, self._member, what, detail))

    def _add_problem(self, problem: Problem) -> None:
        """Note a problem; beyond a number, only that there are more. Under _lock."""
        problems = self._result.problems
        if len(problems) < _MAX_PROBLEMS:
            problems.append(problem)
        elif len(problems) == _MAX_PROBLEMS:
            problems.append(Problem(b"", self._member, problem.what, "and more problems"))

    def _name(self, path: bytes) -> bytes:
        """Return the last component, having told the receiver the directory if it is another."""
        parent, _, name = path.rpartition(b"/")
        if parent != self._at:
            self._add(wire.Enter(parent), len(parent))
            self._at = parent
        return name

    def _change(self, change: Change) -> Iterator[bytes]:
        """Add the records of one change; only a large file gives frames by itself."""
        match change:
            case WriteFile():
                if change.size <= SMALL_BYTES:
                    self._small(change)
                else:
                    yield from self._large(change)
            case MakeDirectory(path, mode):
                self._add(wire.NewDirectory(self._name(path), mode), len(path))
            case MakeSymlink(path, link, mtime_ns, seen):
                name = self._name(path)
                self._add(wire.Symlink(name, seen, link, mtime_ns), len(name) + len(link))
            case SetMetadata(path, kind, mode, mtime_ns, seen):
                name = self._name(path)
                self._add(wire.Metadata(name, seen, kind, mode, mtime_ns), len(name))
            case SetDirectory(path, mode, mtime_ns, seen, differs):
                record = wire.DirectoryMetadata(path, seen, mode, mtime_ns, differs)
                self._add(record, len(path))
            case Remove(path, kind, seen, makes_way):
                if makes_way != self._way:
                    self._way = makes_way
                    self._way_is_free = not makes_way or self._takes_the_place(makes_way)
                if self._way_is_free:
                    name = self._name(path)
                    self._add(wire.Delete(name, seen, kind), len(name))

    def _takes_the_place(self, path: bytes) -> bool:
        """Say whether what is to replace something at the target can be had, before that goes."""
        parent, _, name = path.rpartition(b"/")
        try:
            fd = self._directories.fd(parent)
            if stat.S_ISREG(os.lstat(name, dir_fd=fd).st_mode):
                os.close(os.open(name, OPEN_FILE, dir_fd=fd))
        except _GONE:
            return False
        except OSError as error:
            self._cannot_read(path, error)
            return False
        return True

    def _cannot_read(self, path: bytes, error: OSError) -> None:
        if path not in self._unreadable:
            self._unreadable.add(path)
            self._problem(path, What.UNREADABLE, error.strerror or str(error))

    def _open(self, path: bytes, name: bytes) -> int:
        """Open a file to read it, or return -1 when it vanished or cannot be read."""
        try:
            return os.open(name, OPEN_FILE, dir_fd=self._directories.fd(path[: -len(name) - 1]))
        except _GONE:
            pass
        except OSError as error:
            self._cannot_read(path, error)
        return -1

    def _small(self, change: WriteFile, *, fresh: bool = False) -> None:
        """Read a small file whole and add it, or put it off."""
        path = change.path
        name = path.rpartition(b"/")[2]
        fd = self._open(path, name)
        if fd < 0:
            return
        try:
            status = os.fstat(fd) if fresh else None
            size = change.size if status is None else status.st_size
            data = os.read(fd, min(size, SMALL_BYTES)) if size else b""
            after = os.fstat(fd)
            mark = fingerprint(after)
            if mark == change.source_seen and len(data) == change.size:
                # One look after reading is enough: it is still what the scan saw before.
                mode, mtime_ns = change.mode, change.mtime_ns
            elif status is not None and mark == fingerprint(status) and len(data) == size:
                mode, mtime_ns = self._mode(change, after), after.st_mtime_ns
            else:
                self._put_off(change, after)
                return
        except _ChangedKind:
            self._problem(path, What.UNSTABLE, "it is no regular file any more")
            return
        except OSError as error:
            self._cannot_read(path, error)
            return
        finally:
            os.close(fd)
        record = wire.SmallFile(
            self._name(path), change.seen, mode, mtime_ns, blake3(data).digest(), memoryview(data)
        )
        self._add(record, len(name) + len(data))

    def _put_off(self, change: WriteFile, status: os.stat_result) -> None:
        _check_regular(status)
        self._deferred.append(change)

    def _mode(self, change: WriteFile, status: os.stat_result) -> int:
        if not self._options.keep_mode:
            return change.mode
        mode = stat.S_IMODE(status.st_mode)
        return mode if self._options.keep_setuid else mode & ~_SETUID_SETGID

    def _large(self, change: WriteFile) -> Iterator[bytes]:
        """Send a file in parts; when it changed on the way, say so and put it off."""
        path = change.path
        name = path.rpartition(b"/")[2]
        fd = self._open(path, name)
        if fd < 0:
            return
        is_open = False
        try:
            before = os.fstat(fd)
            _check_regular(before)
            left = before.st_size
            record = wire.OpenFile(self._name(path), change.seen, left)
            self._add(record, len(name))
            is_open = True
            hasher = blake3()
            left = yield from self._parts(fd, left, hasher)
            after = os.fstat(fd)
            if left == 0 and fingerprint(after) == fingerprint(before):
                mode = self._mode(change, after)
                close = wire.CloseFile(mode, after.st_mtime_ns, hasher.digest())
                self._add(close, 0)
            else:
                self._add(wire.DropFile(), 0)
                self._put_off(change, after)
        except _ChangedKind:
            self._problem(path, What.UNSTABLE, "it is no regular file any more")
        except OSError as error:
            if is_open:
                self._add(wire.DropFile(), 0)
            self._cannot_read(path, error)
        finally:
            os.close(fd)

    def _parts(self, fd: int, left: int, hasher: blake3) -> Generator[bytes, None, int]:
        """Send up to `left` bytes as Data records; returns how many the file lacked of them."""
        while left > 0:
            if self._frame_bytes - self._held < _LEAST_DATA:
                yield self._take()
            data = os.read(fd, min(left, self._frame_bytes - self._held))
            if not data:
                break
            hasher.update(data)
            left -= len(data)
            self._add(wire.Data(memoryview(data)), len(data))
            if self._held >= self._frame_bytes:
                yield self._take()
                if self._full is not None:
                    break
        return left

    def _try_again(self) -> Iterator[bytes]:
        """Send what was put off, a few times; what still changes then is named."""
        for attempt in range(1, self._tries + 1):
            again, self._deferred = self._deferred, Spool()
            again.seal()
            if not len(again) or self._full is not None:
                return
            if attempt == self._tries:
                for change in again:
                    detail = f"it kept changing in {self._tries} tries"
                    self._problem(change.path, What.UNSTABLE, detail)
                again.close()
                return
            self._aborted.wait(_RETRY_PAUSE_S)
            for change in again:
                assert isinstance(change, WriteFile)
                yield from self._fresh(change)
                if self._held >= self._frame_bytes:
                    yield self._take()
            again.close()

    def _fresh(self, change: WriteFile) -> Iterator[bytes]:
        """Send a file as it is now, whatever the scan saw."""
        parent, _, name = change.path.rpartition(b"/")
        try:
            size = os.lstat(name, dir_fd=self._directories.fd(parent)).st_size
        except OSError:
            size = 0  # opening it tells what is wrong
        if size <= SMALL_BYTES:
            self._small(change, fresh=True)
        else:
            yield from self._large(change)

    def on_reply(self, frame: bytes) -> None:
        """Take a reply of the receiver; from any thread. Raises MalformedFrame."""
        for reply in self._replies.decode(frame):
            with self._lock:
                self._note(reply)

    def _note(self, reply: wire.Reply) -> None:
        result = self._result
        match reply:
            case wire.Published(files, size, updated, deleted):
                result.counts.files_copied += files
                result.counts.bytes_copied += size
                result.counts.files_updated += updated
                result.counts.files_deleted += deleted
            case wire.Failed(path, what, detail):
                check_path(path)
                try:
                    kind = What(what)
                except ValueError as error:
                    raise MalformedFrame(f"an unknown problem {what[:100]!r}") from error
                if kind is What.TARGET_CHANGED and len(result.retry) < _MAX_RETRY_PATHS:
                    result.retry.append(path)
                else:
                    self._add_problem(Problem(path, self._target_member, kind, detail[:1000]))
            case wire.Full():
                self._full = reply
            case wire.Finished():
                result.is_complete = self._full is None

    def abort(self) -> None:
        """End the push from outside: `frames` raises PushAborted at its next step."""
        self._aborted.set()

    def result(self) -> SendResult:
        """Return what became of the push, once its replies have been taken."""
        with self._lock:
            result = self._result
            full = self._full
            if full is not None and not self._full_told:
                self._full_told = True
                missing = max(0, self._plan.summary.bytes - result.counts.bytes_copied)
                detail = f"{missing} bytes still to be written, {full.free_bytes} free"
                problem = Problem(full.path, self._target_member, What.NO_SPACE, detail)
                result.problems.append(problem)
            return result


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _ChangedKind
