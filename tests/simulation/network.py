"""Who can reach whom, one way at a time, and what becomes of what is said meanwhile."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.loop import Process, SimulatedLoop

_TICK_S = 1e-7
_SHORTEST_S, _LONGEST_S = 0.0002, 0.004
_NOTICED_S = (0.8, 4.0)
"""How long a connection is silent before one of its ends gives it up."""


@dataclass(slots=True)
class Pipe:
    """One direction of a connection: in order, and held back while nothing passes."""

    network: "Network"
    way: tuple[str, str]
    reader: Process
    receive: Callable[[Any], None]
    is_closed: bool = False
    held: list[Any] = field(default_factory=list)
    _arrival: float = 0.0

    def send(self, message: Any) -> None:
        if self.is_closed:
            return
        if self.way in self.network.cuts:
            self.held.append(message)
        else:
            self._arrival = max(self.network.arrival(), self._arrival + _TICK_S)
            self.reader.call_at(self._arrival, self._arrive, message)

    def flow(self) -> None:
        """Send what was held back, if something passes again."""
        held, self.held = self.held, []
        for message in held:
            self.send(message)

    def _arrive(self, message: Any) -> None:
        if not self.is_closed:
            self.receive(message)


@dataclass(slots=True)
class Line:
    """A connection between two processes; each end learns by itself that it is over."""

    network: "Network"
    ends: tuple[Process, Process]
    pipes: tuple[Pipe, Pipe]
    """To the second process, and to the first."""
    on_break: tuple[Callable[[str], None], Callable[[str], None]]
    _is_over: list[bool] = field(default_factory=lambda: [False, False])

    @property
    def is_over(self) -> bool:
        return all(self._is_over)

    @property
    def is_silent(self) -> bool:
        cuts = self.network.cuts
        is_cut = any(pipe.way in cuts for pipe in self.pipes)
        return is_cut or any(end.is_paused for end in self.ends)

    def hang_up(self, end: int) -> None:
        """One end is done; the other hears of it, sooner or later."""
        self._over(end)
        other = 1 - end
        if not self._is_over[other]:
            loop = self.network.loop
            delay_s = loop.random.uniform(*_NOTICED_S) if self.is_silent else 0.002
            self.ends[other].call_at(loop.time() + delay_s, self._break, other, "hung up")

    def doubt(self) -> None:
        """Nothing passes just now: each end gives the line up if that lasts."""
        loop = self.network.loop
        for end in (0, 1):
            after_s = loop.random.uniform(*_NOTICED_S)
            loop.outside.call_at(loop.time() + after_s, self._notice, end)

    def _notice(self, end: int) -> None:
        if self.is_silent and not self._is_over[end]:
            self.ends[end].call_at(self.network.loop.time(), self._break, end, "silent")

    def _break(self, end: int, why: str) -> None:
        if not self._is_over[end]:
            self.hang_up(end)
            self.on_break[end](why)

    def _over(self, end: int) -> None:
        self._is_over[end] = True
        self.pipes[1 - end].is_closed = True  # this end reads no more
        if all(self._is_over):
            self.network.forget(self)


class Network:
    """All connections, and what is cut."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.cuts: set[tuple[str, str]] = set()
        self.slowness_s = 0.0
        """What is added to some delays."""
        self._lines: list[Line] = []
        self._waiting: list[tuple[tuple[str, str], Callable[[], None]]] = []

    def arrival(self) -> float:
        """Return when something that is sent now arrives."""
        random = self.loop.random
        delay_s = random.uniform(_SHORTEST_S, _LONGEST_S)
        if self.slowness_s and random.random() < 0.1:
            delay_s += random.uniform(0, self.slowness_s)
        return self.loop.time() + delay_s

    def pass_on(self, way: tuple[str, str], reader: Process, receive: Callable[[], None]) -> None:
        """Have something happen at the other end: when it passes, much later, or never."""
        if way not in self.cuts:
            reader.call_at(self.arrival(), receive)
        elif self.loop.random.random() < 0.5:
            self._waiting.append((way, lambda: reader.call_at(self.arrival(), receive)))

    def add(self, line: Line) -> None:
        self._lines.append(line)

    def forget(self, line: Line) -> None:
        if line in self._lines:
            self._lines.remove(line)

    def lines_of(self, process: Process) -> list[Line]:
        return [line for line in self._lines if process in line.ends]

    def cut(self, *ways: tuple[str, str]) -> None:
        """Let nothing pass there."""
        self.cuts.update(ways)
        for line in self._lines:
            if line.is_silent:
                line.doubt()

    def heal(self, *ways: tuple[str, str]) -> None:
        """Let everything pass there again, what was held back first."""
        self.cuts.difference_update(ways)
        for line in list(self._lines):
            for pipe in line.pipes:
                pipe.flow()
        waiting, self._waiting = self._waiting, []
        for way, send in waiting:
            if way in self.cuts:
                self._waiting.append((way, send))
            else:
                send()

    def held(self) -> list[Any]:
        """Return what is held back on all lines."""
        return [one for line in self._lines for pipe in line.pipes for one in pipe.held]

    def paused(self, process: Process) -> None:
        """A process stands still: the others wonder."""
        for line in self.lines_of(process):
            line.doubt()

    def died(self, process: Process) -> None:
        """The kernel of a dead process hangs up for it."""
        for line in self.lines_of(process):
            line.hang_up(line.ends.index(process))
