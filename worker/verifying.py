"""A verification: the content of all members of a job compared, and nothing changed.

Every member reads its own files and sends their digests; the worker that would carry out a run merges
the listings. The order's options ask for digests, so members list themselves as for any run.
"""

import asyncio
import contextlib
import functools
import itertools
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from syncengine.compare import Comparison, Difference
from syncengine.errors import EngineError
from syncengine.model import Entry, Hold, HoldReason, Problem, What
from wire.orders import Assignment, PlannedChange, RunEnded, RunPlanned, StartRun
from worker.member_tree import MemberTree
from worker.peer_listing import Listing, PeerFailed
from worker.run import MemberRun, Part, Surroundings
from worker.threads import in_own_thread

_BATCH = 500
_AHEAD = 8
"""Batches of our own entries that may wait to be compared: files are read meanwhile."""


@dataclass(slots=True)
class _Seen:
    """One member's listing."""

    part: Part
    entries: Iterator[Entry]
    listing: Listing | None = None
    """None for our own."""
    problems: list[Problem] = field(default_factory=list)


class VerifyRun(MemberRun):
    """A verification at the worker that would carry out a run."""

    def __init__(self, assignment: Assignment, order: StartRun, around: Surroundings) -> None:
        """Prepare; nothing happens before `execute`."""
        super().__init__(assignment, order, around)
        mine = next(m for m in assignment.members if m.worker == around.worker)
        self.parts = [self.part(m, is_own=m is mine) for m in assignment.members]
        self._own = next(part for part in self.parts if part.peer is None)
        self._stopped = threading.Event()

    @property
    def own_name(self) -> str:
        """The member that is read here."""
        return self._own.name

    def totals(self) -> tuple[int, int]:
        """Nothing is sent."""
        return 0, 0

    def close(self) -> None:
        """Let the reader of our own tree end."""
        self._stopped.set()

    async def carry_out(self) -> RunEnded:
        """Compare all members that can be reached; those that cannot fail it."""
        self.phase = "verify"
        one_way = self.assignment.options.rule.is_one_way
        trees = self.around.trees
        opening = trees.open_source if one_way else trees.open_target
        with await asyncio.to_thread(opening, self._own.member) as opened:
            holds = await self._compare(opened)
        return self.result(self.outcome(), holds)

    async def _compare(self, opened: MemberTree) -> tuple[Hold, ...]:
        async with contextlib.AsyncExitStack() as stack:
            asked = [
                self._read_own(opened) if part.peer is None else self._ask(stack, part)
                for part in self.parts
            ]
            seen = [one for one in await asyncio.gather(*asked) if one is not None]
            if self._own not in [one.part for one in seen]:
                return opened.holds
            loop = asyncio.get_running_loop()
            work = functools.partial(self._merge, seen, loop)
            # An error must not pass through the listings: each would take it for its own.
            error = await in_own_thread(work, stop=lambda: self._stop(seen))
            holds = [*opened.holds]
            for one in seen:
                if one.listing is not None:
                    one.part.counts.bytes_sent += one.listing.bytes_received
                    holds += one.listing.header.holds
                    end = one.listing.end
                    one.problems += end.problems if end is not None else ()
                one.part.problems[:] = one.problems
                one.part.is_equal = error is None
        if error is not None:
            raise error
        return tuple(dict.fromkeys(holds))

    async def _ask(self, stack: contextlib.AsyncExitStack, part: Part) -> _Seen | None:
        assert part.peer is not None
        asking = part.peer.listing()
        try:
            listing = await asking.__aenter__()
        except PeerFailed as error:
            part.failed(error)
            return None
        stack.push_async_exit(asking)
        if _is_missing(part, listing.header.holds):
            return None
        return _Seen(part, listing.entries(), listing)

    async def _read_own(self, opened: MemberTree) -> _Seen | None:
        if _is_missing(self._own, opened.holds):
            return None
        seen = _Seen(self._own, iter(()))
        if opened.tree is not None:
            one_way = self.assignment.options.rule.is_one_way
            scanning = opened.scan_source if one_way else opened.scan_target
            entries = scanning(self.options, seen.problems)
            seen.entries = read_beside(entries, self._stopped)
        return seen

    def _merge(self, seen: list[_Seen], loop: asyncio.AbstractEventLoop) -> Exception | None:
        """Compare, and tell what differs. For a thread of its own: it blocks."""
        comparison = Comparison([one.entries for one in seen], self.options)
        names = [one.part.name for one in seen]
        try:
            found = iter(comparison)
            while batch := tuple(itertools.islice(found, _BATCH)):
                self.scanned = comparison.files
                changes = tuple(_told(one, names) for one in batch)
                planned = RunPlanned(self.assignment.job, self.order.run, changes)
                loop.call_soon_threadsafe(self.around.report, planned)
                if self._stopped.is_set():
                    break
        except PeerFailed as failed:
            return EngineError(str(failed))
        except (EngineError, OSError) as error:
            return error
        finally:
            self.scanned = comparison.files
            for one in seen:
                close = getattr(one.entries, "close", None)
                if close is not None:
                    close()
        return None

    def _stop(self, seen: list[_Seen]) -> None:
        self._stopped.set()
        for one in seen:
            if one.listing is not None:
                one.listing.stop()


def _is_missing(part: Part, holds: tuple[Hold, ...]) -> bool:
    """Say whether a member has no tree to compare, and note that."""
    missing = next((hold for hold in holds if hold.reason is HoldReason.ROOT_MISSING), None)
    if missing is not None:
        part.why_away = Problem(b"", part.name, What.UNREACHABLE, missing.detail)
    return missing is not None


def read_beside(entries: Iterator[Entry], stopped: threading.Event) -> Iterator[Entry]:
    """Yield what an iterator does, made in a thread of its own; closing it ends that thread."""
    made: queue.Queue[list[Entry] | Exception | None] = queue.Queue(_AHEAD)
    ended = threading.Event()

    def put(item: list[Entry] | Exception | None) -> bool:
        while not (ended.is_set() or stopped.is_set()):
            with contextlib.suppress(queue.Full):
                made.put(item, timeout=0.1)
                return True
        return False

    def make() -> None:
        try:
            while batch := list(itertools.islice(entries, _BATCH)):
                if not put(batch):
                    return
            put(None)
        except Exception as error:  # noqa: BLE001 - raised again where the entries are used
            put(error)

    thread = threading.Thread(target=make, name="verify", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = made.get(timeout=0.1)
            except queue.Empty:
                if stopped.is_set():
                    return
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield from item
    finally:
        ended.set()
        thread.join()
        close = getattr(entries, "close", None)
        if close is not None:
            close()


def _told(one: Difference, names: list[str]) -> PlannedChange:
    kind = one.kind.name.lower()
    return PlannedChange(one.path, names[one.member], one.what, kind, one.size)
