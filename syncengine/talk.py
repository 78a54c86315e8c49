"""What a sender asked its receiver, and what that answered: questions are not waited for.

Answers come in from another thread. Those of one file come in the order of what they answer.
"""

import threading
from collections import deque
from dataclasses import dataclass

from syncengine import frames as wire
from syncengine.changes import WriteFile
from syncengine.errors import MalformedFrame
from syncengine.offering import Offering

_WAIT_S = 0.2
_ENOUGH_BYTES = 256 * 1024 * 1024
"""After so much was offered it is known whether offers pay."""
_WORTH = 0.8


@dataclass(slots=True, eq=False)
class Asked:
    """One file that the receiver was asked about."""

    number: int
    change: WriteFile
    mark: int
    """The fingerprint of the version in question."""
    offering: Offering | None = None


class Talk:
    """The questions of one push. `hears` and `wakes` are for any thread, the rest for the sender's."""

    def __init__(self) -> None:
        self.given_bytes = 0
        """How much of what was offered turned out to be missing."""
        self._offered_bytes = 0
        self._last = 0
        self._asked: dict[int, Asked] = {}
        self._ended: set[int] = set()
        # Guarded by _heard:
        self._heard = threading.Condition()
        self._answers: deque[wire.Answer | wire.Missing] = deque()

    def asks(self, change: WriteFile, mark: int) -> int:
        """Note a question and return its number."""
        self._last += 1
        self._asked[self._last] = Asked(self._last, change, mark)
        return self._last

    @property
    def waits_for(self) -> int:
        """How many files are not dealt with yet."""
        return len(self._asked)

    def is_about(self, path: bytes) -> bool:
        """Whether a file is not dealt with yet."""
        return any(asked.change.path == path for asked in self._asked.values())

    @property
    def offers_pay(self) -> bool:
        """Whether offering chunks has saved anything so far, as far as is known."""
        offered = self._offered_bytes
        return offered < _ENOUGH_BYTES or self.given_bytes < _WORTH * offered

    @property
    def is_answered(self) -> bool:
        """Whether an answer may be waiting."""
        return bool(self._answers)

    def hears(self, answer: wire.Answer | wire.Missing) -> None:
        """Take an answer; one to a sender that asks nothing, and only listens, is let pass."""
        if not self._last:
            return
        with self._heard:
            self._answers.append(answer)
            self._heard.notify()

    def wakes(self) -> None:
        """End a wait."""
        with self._heard:
            self._heard.notify()

    def wait(self) -> None:
        """Wait for an answer, or a short time."""
        with self._heard:
            if not self._answers:
                self._heard.wait(_WAIT_S)

    def next_answer(self) -> tuple[Asked, wire.Answer | wire.Missing] | None:
        """Return the next answer and what it is about; raises MalformedFrame for one to nothing."""
        while True:
            with self._heard:
                if not self._answers:
                    return None
                answer = self._answers.popleft()
            asked = self._of(answer)
            if asked is not None:
                return asked, answer

    def next_missing(self, asked: Asked | None = None) -> tuple[Asked, wire.Missing] | None:
        """Return the next answer to offers, of one file or of any."""
        with self._heard:
            for answer in self._answers:
                if isinstance(answer, wire.Missing) and (
                    asked is None or answer.number == asked.number
                ):
                    self._answers.remove(answer)
                    break
            else:
                return None
        found = self._of(answer)
        return None if found is None else (found, answer)

    @property
    def offered(self) -> int:
        """How many files are on offer."""
        return sum(asked.offering is not None for asked in self._asked.values())

    def is_given_up(self, asked: Asked) -> bool:
        """Whether the receiver does not want a file any more; then it is dealt with."""
        with self._heard:
            for answer in self._answers:
                if isinstance(answer, wire.Answer) and answer.number == asked.number:
                    break
            else:
                return False
        self.ends(asked)
        return True

    def _of(self, answer: wire.Answer | wire.Missing) -> Asked | None:
        asked = self._asked.get(answer.number)
        if asked is None and answer.number not in self._ended:
            raise MalformedFrame("an answer that nobody asked for")
        return asked

    def ends(self, asked: Asked) -> None:
        """Note that a file is dealt with, one way or another."""
        if self._asked.pop(asked.number, None) is None:
            return
        self._ended.add(asked.number)
        if asked.offering is not None:
            self._offered_bytes += asked.offering.status.st_size
            asked.offering.close()
            asked.offering = None

    def close(self) -> None:
        """Close the files that are on offer."""
        for asked in list(self._asked.values()):
            self.ends(asked)
