"""Keeps one target of a monitor as its source is: takes what changed from the journal, passes over it.

A target that is slow, away or held delays only itself: what is not there yet stays in its journal. Every
change leaves that only when it is at the target, verified and durable as the job says.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from syncengine.agreed import Graft
from syncengine.model import Counts, Hold, HoldReason, Problem
from syncengine.names import parent_of
from syncengine.scope import Scope
from syncengine.wall import Wall
from wire.clock import Clock
from worker.passes import PassResult
from worker.unwatched import Unwatched
from worker.watching.errors import JournalUnusable
from worker.watching.feed import Feed
from worker.watching.pending import PendingBatch

log = structlog.get_logger()

FIRST_AGAIN_S = 0.2
"""How soon what could not be done is tried again; each time twice as late."""
LAST_AGAIN_S = 30.0
HELD_AGAIN_S = 10.0
"""How soon a held plan is made anew, should something have changed."""
AUDIT_SETTLES_S = 3.0
"""How long after a comparison the journal may still tell of what happened before its end."""
KEPT_PROBLEMS = 10_000

_ROOT_HOLDS = frozenset(HoldReason) - {
    HoldReason.EMPTIED,
    HoldReason.MAX_DELETE,
    HoldReason.MAX_DELETE_FILES,
}
"""Holds that say that a root may be another one: once they are over, everything is compared."""


class Passes(Protocol):
    """Passes to one target: `OneWayPasses`."""

    async def pass_over(
        self, scope: Scope, *, hints: Sequence[Graft] = (), approved: bytes = b""
    ) -> PassResult:
        """Make the target as the source is within a scope."""

    async def compare(self, scope: Scope) -> PassResult:
        """Change nothing; `unequal` is what differs."""

    async def close(self) -> None:
        """Hang up."""


@dataclass(slots=True)
class Audit:
    """A comparison of everything beside changes that go on: what is found is judged later."""

    asked: int
    suspects: set[bytes] = field(default_factory=set)
    """What differed when it was compared."""
    told: list[Scope] = field(default_factory=list)
    """What the journal has told of since the comparison began."""
    compared_at: float = 0.0
    """When it ended, in seconds of the epoch."""
    judged_from: float = math.inf
    """When the journal has everything that happened before, on the monotonic clock."""

    def is_over(self, batch: PendingBatch | None, now: float) -> bool:
        """Whether all that the journal knows of the time of the comparison has been taken from it."""
        if now < self.judged_from:
            return False
        return batch is None or batch.oldest_change_at > self.compared_at + AUDIT_SETTLES_S

    def missed(self) -> set[bytes]:
        """Return what differed and the journal never told of, nor of anything below."""
        above = set()
        for scope in self.told:
            for at, _ in scope:
                path = at
                while path and path not in above:
                    above.add(path)
                    path = parent_of(path)
                above.add(path)
        return {
            path
            for path in self.suspects
            if path not in above and not any(scope.covers(path) for scope in self.told)
        }


@dataclass(slots=True)
class Follower:
    """Keeps one target up to date; `follow` until it is cancelled."""

    member: str
    passes: Passes
    feed: Feed | Unwatched
    audit_s: float
    clock: Clock
    wall: Wall
    """As the journal has it: it says when changes were made."""
    news: Callable[[], None]
    """Called when something of what is public here has changed."""
    counts: Counts = field(default_factory=Counts)
    why: str = ""
    """What keeps it from being up to date, empty when nothing does."""
    holds: tuple[Hold, ...] = ()
    digest: bytes = b""
    """Of the plan that is held."""
    approved: bytes = b""
    audits: int = 0
    audit_found: int = 0
    asked: int = 0
    """Up to which number somebody has asked for an audit."""
    answered: int = 0
    is_behind: bool = True
    """Whether something may be pending."""
    is_known: bool = False
    """Whether it is known how far behind: not before everything was compared once."""
    _problems: dict[bytes, tuple[Problem, ...]] = field(default_factory=dict)
    _failures: int = 0
    """How often in a row the target was away, or could not be compared."""
    _tries: dict[bytes, int] = field(default_factory=dict)
    """By path that fails: how often in a row."""
    _compares_all: bool = False
    """Whether the next pass is over everything, whatever the journal says."""
    _compared_at: float = 0.0
    _told: asyncio.Event = field(default_factory=asyncio.Event)
    _audit_now: "Audit | None" = None
    _held: PendingBatch | None = None
    """What is held: an approval is of this batch, not of what has changed since."""

    def __post_init__(self) -> None:
        """Count the time to the next audit from now."""
        self._compared_at = self.clock.now()

    @property
    def problems(self) -> list[Problem]:
        """What speaks against it now, by path."""
        return [problem for found in self._problems.values() for problem in found]

    def tell(self, *, approved: bytes, asked: int) -> None:
        """Take what somebody approved, or asks for."""
        self.approved = approved
        self.asked = max(self.asked, asked)
        self._told.set()

    async def follow(self) -> None:
        """Pass over what changes, for ever."""
        while True:
            try:
                await self._step()
            except JournalUnusable as error:
                self._show(str(error))
                await self._rest(self._again_s())

    async def _step(self) -> None:
        self._told.clear()
        if self._held is not None and self.approved == self.digest:
            await self._serve(self._held)  # exactly that, whatever has changed beside it
            return
        batch = await self.feed.pending()
        audit = self._audit_now
        self.is_behind = self.is_behind or batch is not None
        if audit is not None and audit.is_over(batch, self.clock.now()):
            await self._judge(audit)
        elif audit is None and self._audit_is_due():
            await self._audit()
        elif batch is not None:
            await self._serve(batch)
        else:
            await self._look_whether_behind()
            await self._idle()

    async def _look_whether_behind(self) -> None:
        """Nothing is to be done now: there is nothing, or it failed, or the watch is being set up."""
        is_behind = await self.feed.oldest_change_at() is not None
        was = self.is_behind, self.is_known
        self.is_behind, self.is_known = is_behind, self.is_known or not is_behind
        if (self.is_behind, self.is_known) != was:
            self.news()

    # Batches

    async def _serve(self, batch: PendingBatch) -> None:
        self.is_known = self.is_known or batch.everything is None
        is_whole = batch.everything is not None or self._compares_all
        scope = Scope.whole() if is_whole else Scope.of(batch.paths)
        renamed = [one for one in batch.renames if one.is_directory]  # a file's content is compared
        hints = [] if is_whole else apart(Graft(one.old, one.new) for one in renamed)
        if is_whole:
            log.info("compares_everything", member=self.member, why=batch.everything or "asked for")
        if self._audit_now is not None:
            self._audit_now.told.append(scope)
        asked = self.asked
        result = await self._pass_over(scope, hints)
        self._held = batch if self.digest else None
        if result is None:
            return
        failed = list(result.unequal)
        again_s = self._tried(scope, [path for path, _ in failed])
        await self.feed.done(batch, failed=failed, retry_after_s=again_s)
        if is_whole:
            self.is_known = True
            self._note_compared(asked)

    async def _pass_over(self, scope: Scope, hints: Sequence[Graft] = ()) -> PassResult | None:
        """Pass over a scope; return what came of it, None when nothing was done, after a rest."""
        result = await self.passes.pass_over(scope, hints=hints, approved=self.approved)
        self.counts.add(result.counts)
        self._note_problems(scope, result)
        if result.holds:
            await self._wait_held(result)
            return None
        self.holds, self.digest = (), b""
        if result.is_away:
            self._show(_first(result.problems) or f"{self.member} cannot be reached")
            await self._rest(self._again_s())
            return None
        self._failures = 0
        self._show("" if result.is_equal else _first(result.problems))
        return result

    def _note_compared(self, asked: int) -> None:
        self._compares_all = False
        self._compared_at = self.clock.now()
        self.answered = max(self.answered, asked)

    async def _wait_held(self, result: PassResult) -> None:
        """Wait until somebody approves the plan, or it is time to make it anew."""
        self.holds, self.digest = result.holds, result.digest
        self._compares_all |= any(hold.reason in _ROOT_HOLDS for hold in result.holds)
        self._show("; ".join(hold.detail for hold in result.holds))
        await self._rest(HELD_AGAIN_S)

    def _note_problems(self, scope: Scope, result: PassResult) -> None:
        if scope.is_whole and not result.is_away:
            self._problems.clear()
        for path in [path for path in self._problems if scope.covers(path) or not path]:
            del self._problems[path]
        for problem in result.problems:
            if len(self._problems) < KEPT_PROBLEMS or problem.path in self._problems:
                found = self._problems.get(problem.path, ())
                self._problems[problem.path] = (*found, problem)

    # Audits

    def _audit_is_due(self) -> bool:
        return self.asked > self.answered or self.clock.now() - self._compared_at >= self.audit_s

    async def _audit(self) -> None:
        """Compare everything, while it goes on changing: what differs is suspect, no more."""
        audit = Audit(self.asked)
        self._audit_now = audit
        compared = await self.passes.compare(Scope.whole())
        self.counts.add(compared.counts)
        if compared.is_away or compared.holds:
            self._audit_now = None
            self._show(_first(compared.problems) or "; ".join(one.detail for one in compared.holds))
            await self._rest(self._again_s())
            return
        audit.suspects = {path for path, _ in compared.unequal} - self._problems.keys()
        audit.compared_at, audit.judged_from = self.wall(), self.clock.now() + AUDIT_SETTLES_S
        if not audit.suspects:
            self._end_audit(audit, 0)

    async def _judge(self, audit: "Audit") -> None:
        """Count, and mend, what differed and no event has told of: neither before nor until now."""
        missed = audit.missed()
        found = 0
        if missed:
            result = await self._pass_over(Scope(shallow=missed))
            if result is None:
                return
            found = result.changes
        self._end_audit(audit, found)

    def _end_audit(self, audit: "Audit", found: int) -> None:
        self._audit_now = None
        self._note_compared(audit.asked)
        self.audits += 1
        self.audit_found += found
        if found:
            log.warning("audit_found", member=self.member, changes=found)
        self.news()

    # Waiting

    async def _idle(self) -> None:
        """Wait until something is pending, an audit is due, or somebody wants something."""
        audit = self._audit_now
        until = self._compared_at + self.audit_s if audit is None else audit.judged_from
        left_s = until - self.clock.now()
        changed = asyncio.create_task(self.feed.changed())
        told = asyncio.create_task(self._told.wait())
        try:
            await asyncio.wait(
                {changed, told}, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED
            )
            if changed.done():
                changed.result()
        finally:
            for task in (changed, told):
                task.cancel()
            await asyncio.gather(changed, told, return_exceptions=True)

    async def _rest(self, seconds: float) -> None:
        """Wait for so long, or until somebody wants something."""
        try:
            async with asyncio.timeout(seconds):
                await self._told.wait()
        except TimeoutError:
            pass

    def _tried(self, scope: Scope, failed: Sequence[bytes]) -> float:
        """Count what failed; return how soon to try it again, as the one that failed least asks."""
        others = {path: tries for path, tries in self._tries.items() if not scope.covers(path)}
        now = {path: self._tries.get(path, 0) + 1 for path in failed}
        self._tries = others | now
        least = min(now.values(), default=1)
        return min(FIRST_AGAIN_S * 2.0 ** min(least - 1, 20), LAST_AGAIN_S) if failed else 0.0

    def _again_s(self) -> float:
        self._failures += 1
        return min(FIRST_AGAIN_S * 2.0 ** min(self._failures - 1, 20), LAST_AGAIN_S)

    def _show(self, why: str) -> None:
        self.why = why
        self.news()


def apart(hints: Iterable[Graft]) -> list[Graft]:
    """Return the renames that have to do with no other: none of their paths lies on another's way.

    What settled first is told first, so that renames of a directory and of what is in it may come in
    another order than they happened. Those that are left out are recognized by inode, or sent anew.
    """
    found = list(hints)
    ends = Counter(path for hint in found for path in hint)
    above = Counter(path for hint in found for path in _above(hint.path) | _above(hint.to))

    def is_apart(hint: Graft) -> bool:
        own = _above(hint.path) | _above(hint.to)
        return (
            ends[hint.path] == ends[hint.to] == 1
            and not above[hint.path]
            and not above[hint.to]
            and not any(ends[path] for path in own)
        )

    return [hint for hint in found if is_apart(hint)]


def _above(path: bytes) -> set[bytes]:
    found = set()
    while path:
        path = parent_of(path)
        found.add(path)
    return found - {b""}


def _first(problems: Sequence[Problem]) -> str:
    failing = next((problem for problem in problems if problem.what.fails), None)
    if failing is None:
        return ""
    where = failing.path.decode("utf-8", "replace")
    return f"{where}: {failing.detail}" if where else failing.detail
