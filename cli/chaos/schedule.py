"""Which faults come, in which order and with which pauses: a seed says it all beforehand."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from cli.chaos.fault import Fault

_PAUSE_S = (0.1, 1.0)
_LOOKAHEAD = 12
_PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault to come."""

    fault: Fault
    target: str
    pause_s: float
    """From its beginning to that of the next, at least."""
    lasts_s: float

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of members that it takes one of."""
        return frozenset(name[0] for name in self.fault.touches(self.target))


def strikes(seed: int, faults: Sequence[Fault]) -> Iterator[Strike]:
    """Yield strikes without end."""
    dice = random.Random(seed)  # noqa: S311 - replayable is the point
    weights = [fault.weight for fault in faults]
    while True:
        (fault,) = dice.choices(faults, weights)
        target = dice.choice(fault.targets)
        yield Strike(fault, target, dice.uniform(*_PAUSE_S), dice.uniform(*fault.lasts_s))


class Queue:
    """Strikes in their order, as far as it can be kept: one that must wait lets some others pass."""

    def __init__(self, coming: Iterable[Strike]) -> None:
        """Take strikes as they are needed."""
        self._coming = iter(coming)
        self._waiting: list[Strike] = []
        self._head_since: float | None = None

    def next(self, busy: Iterable[str], now: float) -> Strike | None:
        """Return the next that hits no kind of member that is hit already; None: wait, or the end."""
        self._waiting += islice(self._coming, _LOOKAHEAD - len(self._waiting))
        kinds = {name[0] for name in busy}
        free = [strike for strike in self._waiting if not strike.kinds & kinds]
        if not free:
            return None
        head = self._waiting[0]
        if free[0] is head:
            self._head_since = None
        else:
            self._head_since = now if self._head_since is None else self._head_since
            if now - self._head_since > _PATIENCE_S:
                return None
        self._waiting.remove(free[0])
        return free[0]
