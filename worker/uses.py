"""Who uses a member of a job at this worker now: one run at a time, and a newer use ends an older one.

A use is a call of another worker, or the run that this worker carries out itself. What the last listing
of a member said is kept here too: only the caller that listed a member, for the same run, may go on to
change it, so that a run that was given to another worker meanwhile cannot.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from syncengine.model import Hold
from wire.orders import PeerGrant
from worker.errors import PeerRefused
from worker.fence import Gate

_SUPERSEDE_S = 30.0
"""How long an older use may take to end its slice."""

Key = tuple[str, str]
"""A job, and a member of it at this worker."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What the last listing of a member said, and to whom."""

    run: str
    caller: str
    holds: tuple[Hold, ...]


@dataclass(slots=True, eq=False)
class Use:
    """One use of a member; for `Uses`."""

    run: str
    gate: Gate | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[Any] | None" = None
    is_superseded: bool = False


class Uses:
    """All uses of members at one worker. Belongs to the event loop."""

    def __init__(self) -> None:
        """Begin with none."""
        self._uses: dict[Key, Use] = {}
        self._listed: dict[Key, Listed] = {}

    def current(self, key: Key) -> Use | None:
        """Return who uses a member now."""
        return self._uses.get(key)

    async def begin(self, key: Key, use: Use) -> None:
        """Make this the one use of a member, by the task that calls; an older one is ended first."""
        await self.end_older(key)
        use.task = asyncio.current_task()
        self._uses[key] = use

    def end(self, key: Key, use: Use) -> None:
        """Free the member."""
        use.ended.set()
        if self._uses.get(key) is use:
            del self._uses[key]

    async def end_older(self, key: Key) -> None:
        """End whoever uses a member, at its next safe point."""
        while (older := self._uses.get(key)) is not None:
            if older.gate is not None:
                await asyncio.to_thread(older.gate.close)
            if older.task is not None:
                older.is_superseded = True
                older.task.cancel()
            async with asyncio.timeout(_SUPERSEDE_S):
                await older.ended.wait()

    async def close(self) -> None:
        """End every use."""
        for key in list(self._uses):
            await self.end_older(key)

    def note_listed(self, key: Key, listed: Listed) -> None:
        """Remember what a listing said."""
        self._listed[key] = listed

    def listed(self, grant: PeerGrant, caller: str) -> Listed:
        """Return what the caller was told of a member in this run; raises PeerRefused."""
        listed = self._listed.get((grant.job, grant.member))
        if listed is None or (listed.run, listed.caller) != (grant.run, caller):
            raise PeerRefused(
                f"run {grant.run} would change {grant.member} without having listed it last"
            )
        return listed
