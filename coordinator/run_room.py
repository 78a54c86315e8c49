"""Room for runs at this coordinator: `wire.room` for those who await it.

A run takes room here first, then at its workers in the order of their names, and holds what it has
while it waits for more. As all do it in one order, some run always goes on: nobody waits in a circle.
A run that is found going on takes room without asking, so that a takeover stops nothing.
"""

import asyncio

from wire.room import Room


class RunRoom:
    """How many runs a coordinator carries on at once."""

    def __init__(self, node: str = "", limit: int | None = None) -> None:
        """Begin with all of it free."""
        self._node = node
        self._room = Room(limit)
        self._told: dict[str, asyncio.Event] = {}

    @property
    def why(self) -> str:
        """What a run waits for that has no room."""
        return waits_at(f"coordinator {self._node}", self._room.taken, self._room.limit or 0)

    @property
    def taken(self) -> int:
        """How many runs have room."""
        return self._room.taken

    @property
    def waiting(self) -> int:
        """How many runs wait for room."""
        return self._room.waiting

    def enter(self, job: str, priority: int, since: float, *, is_under_way: bool) -> None:
        """Ask for room, or take it for a run that goes on already; see `has`."""
        self._told.setdefault(job, asyncio.Event())
        if is_under_way:
            self._room.take(job)
        else:
            self._room.ask(job, priority, since)
            self._give_out()

    def has(self, job: str) -> bool:
        """Whether a job has room."""
        return self._room.has(job)

    async def wait(self, job: str, timeout_s: float) -> None:
        """Wait until a job that entered is given room or told to look, or for so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._told[job].wait()
        except TimeoutError:
            pass
        self._told[job].clear()

    def wake(self, job: str) -> None:
        """Have a job that waits look at how it stands."""
        told = self._told.get(job)
        if told is not None:
            told.set()

    def leave(self, job: str) -> None:
        """Give room back, or wait no more."""
        self._told.pop(job, None)
        self._room.give_back(job)
        self._give_out()

    def _give_out(self) -> None:
        for job in self._room.give_out():
            self.wake(job)


def waits_at(place: str, taken: int, limit: int) -> str:
    """Say for what a run waits."""
    return f"waits for room at {place}: {taken} of {limit} runs"
