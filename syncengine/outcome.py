"""What became of a push: its replies, its problems, and whether it is to go on.

Shared between the thread that makes the frames and those that bring replies or an end.
"""

import threading
from dataclasses import dataclass, field

from syncengine import frames as wire
from syncengine.errors import MalformedFrame, PushAborted
from syncengine.model import Counts, Problem, What
from syncengine.names import check_path
from syncengine.talk import Talk

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


class Outcome:
    """Gathers the result of one push; every method is for any thread."""

    def __init__(self, talk: Talk, *, member: str, target_member: str, planned_bytes: int) -> None:
        self._talk = talk
        self._member = member
        self._target_member = target_member
        self._planned_bytes = planned_bytes
        self._aborted = threading.Event()
        # Guarded by _lock:
        self._lock = threading.Lock()
        self._result = SendResult()
        self._full: wire.Full | None = None
        self._full_told = False
        self._replies = wire.ReplyDecoder()

    @property
    def is_full(self) -> bool:
        """Whether the target has no space left: nothing more is of use to it."""
        return self._full is not None

    @property
    def aborted(self) -> threading.Event:
        """Set when the push was ended from outside."""
        return self._aborted

    def check(self) -> None:
        """Raise PushAborted when the push was ended from outside."""
        if self._aborted.is_set():
            raise PushAborted("the push was ended")

    def abort(self) -> None:
        """End the push from outside."""
        self._aborted.set()
        self._talk.wakes()

    def sends(self, size: int) -> None:
        """Count bytes that go on the wire."""
        with self._lock:
            self._result.counts.bytes_sent += size

    def problem(self, path: bytes, what: What, detail: str) -> None:
        """Note a problem at the source."""
        with self._lock:
            self._add_problem(Problem(path, self._member, what, detail))

    def _add_problem(self, problem: Problem) -> None:
        """Note a problem; beyond a number, only that there are more. Under _lock."""
        problems = self._result.problems
        if len(problems) < _MAX_PROBLEMS:
            problems.append(problem)
        elif len(problems) == _MAX_PROBLEMS:
            problems.append(Problem(b"", self._member, problem.what, "and more problems"))

    def hears(self, frame: bytes) -> None:
        """Take replies of the receiver. Raises MalformedFrame."""
        for reply in self._replies.decode(frame):
            with self._lock:
                self._note(reply)

    def _note(self, reply: wire.Reply) -> None:
        result = self._result
        match reply:
            case wire.Published(files, size, updated, deleted, renamed):
                result.counts.files_copied += files
                result.counts.bytes_copied += size
                result.counts.files_updated += updated
                result.counts.files_deleted += deleted
                result.counts.files_renamed += renamed
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
            case wire.Answer() | wire.Missing():
                self._talk.hears(reply)
            case wire.Full():
                self._full = reply
                self._talk.wakes()
            case wire.Finished():
                result.is_complete = self._full is None

    def result(self) -> SendResult:
        """Return what became of the push, once its replies have been taken."""
        with self._lock:
            result = self._result
            full = self._full
            if full is not None and not self._full_told:
                self._full_told = True
                missing = max(0, self._planned_bytes - result.counts.bytes_copied)
                detail = f"{missing} bytes still to be written, {full.free_bytes} free"
                problem = Problem(full.path, self._target_member, What.NO_SPACE, detail)
                result.problems.append(problem)
            return result
