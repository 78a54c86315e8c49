"""Which trees may hold temporaries of a worker that died, and their removal beside what goes on.

A tree is noted, durably, before the first temporary in it, and forgotten when the worker stops in order:
so what is noted at a start was written to by a worker that was killed, and is walked once, in the
background. No run needs to wait for that, or to list anything.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from syncengine.errors import EngineError
from syncengine.leavings import walk_leavings
from wire.clock import Clock
from wire.orders import Member
from worker.errors import StartRefused
from worker.fence import Fence
from worker.journal import Journal, Written
from worker.threads import in_own_thread

if TYPE_CHECKING:
    from worker.member_tree import MemberTree

log = structlog.get_logger()

_AGAIN_S = 0.5
_LAST_AGAIN_S = 60.0
_WALKS = 12
"""How often a tree is walked in which directories move all the time, or that is away."""


class Leavings:
    """The noted trees of one worker. Safe to use from several threads."""

    def __init__(self, journal: Journal) -> None:
        """Take what was noted by the life before."""
        self._journal = journal
        self._lock = threading.Lock()
        self._left = set(journal.written())
        self._noted: set[Written] = set()
        """Of this life."""

    def note(self, job: str, member: Member) -> None:
        """Note that a job writes to a member, before it does; blocks on the disk once a life."""
        place = Written(job, member.root, member.path)
        with self._lock:
            if place not in self._noted:
                self._journal.note_written(place)
                self._noted.add(place)

    def end(self) -> None:
        """Forget what this life wrote to: all of its pushes have cleaned up. Blocks on the disk."""
        with self._lock:
            try:
                self._journal.forget_written(self._noted - self._left)
            except sqlite3.Error as error:  # a walk more, at the next start
                log.warning("leavings_not_forgotten", why=str(error))

    async def clean(
        self,
        opened: Callable[[Member], "MemberTree"],
        fence: Callable[[str], Fence],
        clock: Clock,
    ) -> None:
        """Remove what the life before left; returns when nothing is left, or to be done about it."""
        one_by_one = asyncio.Lock()
        async with asyncio.TaskGroup() as tasks:
            for place in sorted(self._left):
                cleaning = self._clean(place, opened, fence(place.job), clock, one_by_one)
                tasks.create_task(cleaning)

    async def _clean(
        self,
        place: Written,
        opened: Callable[[Member], "MemberTree"],
        fence: Fence,
        clock: Clock,
        turn: asyncio.Lock,
    ) -> None:
        member = Member("", place.root, place.path, "")
        stopped = threading.Event()

        def walk() -> bool:
            with opened(member) as tree:
                if tree.tree is None or tree.holds:
                    return False  # it is away, or another one
                return walk_leavings(tree.tree, fence.quiet, stopped.is_set)

        again_s = _AGAIN_S
        for _ in range(_WALKS):
            try:
                async with turn:
                    is_clean = await in_own_thread(walk, stop=stopped.set)
                if is_clean:
                    await asyncio.to_thread(self._forget, place)
                    log.info("leavings_removed", job=place.job, member=str(member))
                    return
                why = "not all of it could be seen"
            except (EngineError, StartRefused, OSError, sqlite3.Error) as error:
                why = str(error)
            except KeyError:
                return  # not exported any more; should it be again, the next start looks
            await clock.sleep(again_s)
            again_s = min(2 * again_s, _LAST_AGAIN_S)
        log.warning("leavings_left", job=place.job, member=str(member), why=why)

    def _forget(self, place: Written) -> None:
        with self._lock:
            self._left.discard(place)
            if place not in self._noted:
                self._journal.forget_written([place])
