"""Everything that happened, in order: the same for the same seed, and the story of one that failed."""

import asyncio
from collections.abc import Callable

from blake3 import blake3


class Trace:
    """Lines of time, who and what."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.is_closed = False
        self.news = asyncio.Event()
        """Set whenever something is noted."""
        self._lines: list[tuple[float, str, object]] = []

    def add(self, who: str, what: object) -> None:
        """Note something; `what` is made text only when somebody reads."""
        if not self.is_closed:
            self._lines.append((self._now(), who, what))
            self.news.set()

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self, last: int | None = None) -> list[str]:
        """Return the last so many lines, or all."""
        chosen = self._lines if last is None else self._lines[-last:]
        return [f"{at - 1000:10.6f} {who:9} {what}" for at, who, what in chosen]

    def digest(self) -> str:
        """Return what tells two histories apart."""
        return blake3("\n".join(self.lines()).encode()).hexdigest(length=16)
