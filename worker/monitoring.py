"""A run that does not end, at the source's worker: each target follows the source's journal by itself.

What the owner hears is how it stands, on change and at a modest rate, and everything anew after a
takeover. What is pending is the journal's, so neither a takeover nor a restart costs a scan.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

import structlog
from blake3 import blake3

from syncengine.model import Counts, Hold, Problem
from wire.orders import (
    Assignment,
    Member,
    Monitor,
    Monitored,
    Outcome,
    RunEnded,
    Standing,
    StartRun,
)
from wire.token import Token
from worker.following import Follower
from worker.one_way_pass import OneWayPasses
from worker.run import REPORTED_PROBLEMS, Surroundings
from worker.unwatched import Unwatched
from worker.watching.feed import Feed
from worker.watching.pending import Consumer
from worker.watching.watching import Watching

log = structlog.get_logger()

REPORT_S = 0.3
"""How long passes at least between two reports."""
LOOK_S = 1.0
"""How often a target that is behind is looked at: how far."""
SAME_S = 1.0
"""Ages that differ by less, as they grow, are told as one."""


class MonitorRun:
    """A monitor of rule mirror or copy. `execute` once; `renew` and `update` meanwhile."""

    def __init__(
        self,
        assignment: Assignment,
        order: StartRun,
        around: Surroundings,
        watching: Watching,
    ) -> None:
        """Prepare; nothing happens before `execute`."""
        assert order.monitor is not None, "ordered to monitor"
        self.assignment = assignment
        self.around = around
        self._order = order
        self._monitor: Monitor = order.monitor
        self._watching = watching
        self._life = secrets.token_hex(8)
        self._passes: dict[str, OneWayPasses] = {}
        self._followers: list[Follower] = []
        self._news = asyncio.Event()
        self._said: Monitored | None = None
        self._since: dict[str, float | None] = {}
        """By target: since when it is behind, in seconds of the epoch, as it was looked at last."""
        self._degraded = ""

    # What a session asks of a run

    async def execute(self) -> RunEnded:
        """Follow the source until cancelled."""
        for target in self.assignment.targets:
            self._passes[str(target)] = OneWayPasses(
                self.assignment, self._order, target, self.around
            )
        try:
            async with contextlib.AsyncExitStack() as stack:
                for target in self.assignment.targets:
                    feed = await stack.enter_async_context(self._feed(target))
                    self._followers.append(self._follower(target, feed))
                self._pass_on(self._order)
                async with asyncio.TaskGroup() as tasks:
                    for follower in self._followers:
                        tasks.create_task(follower.follow())
                    tasks.create_task(self._report())
        finally:
            await asyncio.gather(*(passes.close() for passes in self._passes.values()))
        raise AssertionError("followers do not end")

    def renew(self, token: Token) -> None:
        """Go on under a newer token, and tell the new owner everything."""
        for passes in self._passes.values():
            passes.renew(token)
        if self._said is not None:
            self.around.report(self._said)
        self._said = None
        self._news.set()

    def update(self, order: StartRun) -> None:
        """Take what is new in an order for this very run: an approval, an audit asked for."""
        self._order = order
        self._pass_on(order)

    def cancelled(self) -> RunEnded:
        """Return how it stood, after `execute` was cancelled; the owner has heard of the rest."""
        for one in self._followers:
            if not one.is_behind:
                self._since[one.member] = None
        self.around.report(self._told(self._standings()))
        problems = self._problems()
        behind = tuple(one.member for one in self._followers if one.is_behind)
        return RunEnded(
            self.assignment.job,
            self._order.run,
            Outcome.CANCELLED,
            self._counts(),
            tuple(problems[:REPORTED_PROBLEMS]),
            len(problems),
            behind=behind,
        )

    # Parts

    @contextlib.asynccontextmanager
    async def _feed(self, target: Member) -> AsyncIterator[Feed | Unwatched]:
        source = self.assignment.source
        consumer = Consumer(self.assignment.job, self._reader(target), source.path)
        await self._forget_others(consumer)
        settle_s = self._monitor.settle_s
        feed = await self._watching.open(source.root, consumer, settle_s=settle_s)
        if feed is None:
            yield Unwatched(consumer, self.around.clock, self.around.trees.wall)
            return
        try:
            yield feed
        finally:
            await self._watching.close_feed(source.root, feed)

    async def _forget_others(self, consumer: Consumer) -> None:
        """Keep no changes for readers of this target by an older definition."""
        root = self.assignment.source.root
        target = consumer.name.rpartition("#")[0]
        for other in await self._watching.consumers(root, consumer.job):
            if other.name.rpartition("#")[0] == target and other != consumer:
                await self._watching.forget(root, other)

    def _reader(self, target: Member) -> str:
        """Name the journal's reader: another one, to compare everything, when the job reads otherwise.

        Bandwidth, safety and how content travels change nothing that a target is to have.
        """
        options = self.assignment.options
        decides = (
            options.rule,
            options.copy_when,
            options.compare,
            options.keep_mode,
            options.keep_times,
            options.keep_owner,
            options.keep_xattrs,
            options.keep_acls,
            options.keep_hardlinks,
            options.keep_devices,
            options.keep_setuid,
            options.symlinks,
            options.filters,
            options.limits,
        )
        return f"{target}#{blake3(repr(decides).encode()).hexdigest(length=6)}"

    def _follower(self, target: Member, feed: Feed | Unwatched) -> Follower:
        return Follower(
            str(target),
            self._passes[str(target)],
            feed,
            self._monitor.audit_s,
            self.around.clock,
            self.around.trees.wall,
            self._news.set,
        )

    def _pass_on(self, order: StartRun) -> None:
        """Give each follower its part of an approval, which names what all of them hold."""
        asked = order.monitor.audits_asked if order.monitor is not None else 0
        releases = bool(order.approved) and order.approved == self._digest()
        for follower in self._followers:
            approved = follower.digest if releases and follower.holds else follower.approved
            follower.tell(approved=approved, asked=asked)

    # Reports

    async def _report(self) -> None:
        """Tell the owner how it stands when that has changed, for ever."""
        while True:
            is_behind = any(one.is_behind or one.why for one in self._followers)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if is_behind else None):
                    await self._news.wait()
            self._news.clear()
            await self._look()
            told = self._told(self._standings())
            if self._is_news(told):
                self.around.report(told)
                self._said = told
            await self.around.clock.sleep(REPORT_S)

    async def _look(self) -> None:
        """Ask the journal since when each target is behind, and how it is watched."""
        for one in self._followers:
            self._since[one.member] = await one.feed.oldest_change_at()
        states = [one.feed.state() for one in self._followers]
        self._degraded = next((state.reason for state in states if state.reason), "")

    def _standings(self) -> tuple[Standing, ...]:
        """Return how it stands, as it was looked at last."""
        now = self.around.trees.wall()
        found = []
        for one in self._followers:
            since = self._since.get(one.member)
            age = 0.0 if since is None else max(0.0, now - since)
            found.append(Standing(one.member, age if one.is_known else None, one.why))
        return tuple(found)

    def _is_news(self, told: Monitored) -> bool:
        """Whether the owner does not know it already: ages grow by themselves."""
        said = self._said
        if said is None:
            return True
        return _without_ages(said) != _without_ages(told) or any(
            (before.behind_s or 0.0) >= SAME_S or (now.behind_s or 0.0) >= SAME_S
            for before, now in zip(said.members, told.members, strict=True)
        )

    def _told(self, members: tuple[Standing, ...]) -> Monitored:
        problems = self._problems()
        return Monitored(
            self.assignment.job,
            self._order.run,
            self._life,
            self._counts(),
            members,
            tuple(problems[:REPORTED_PROBLEMS]),
            len(problems),
            self._holds(),
            self._digest(),
            sum(one.audits for one in self._followers),
            sum(one.audit_found for one in self._followers),
            min((one.answered for one in self._followers), default=0),
            self._degraded,
        )

    def _counts(self) -> Counts:
        """Sum over targets; what was looked at counts for the target for which most was."""
        counts = Counts()
        for one in self._followers:
            counts.add(one.counts)
        counts.files_scanned = max((one.counts.files_scanned for one in self._followers), default=0)
        return counts

    def _problems(self) -> list[Problem]:
        found = [problem for one in self._followers for problem in one.problems]
        return sorted(found, key=lambda problem: not problem.what.fails)

    def _holds(self) -> tuple[Hold, ...]:
        return tuple(dict.fromkeys(hold for one in self._followers for hold in one.holds))

    def _digest(self) -> bytes:
        """Return what an operator approves: all that is held now, for whomever."""
        held = [one for one in self._followers if one.holds and one.digest]
        if not held:
            return b""
        digest = blake3()
        for one in held:
            digest.update(f"{one.member}\0".encode() + one.digest)
        return digest.digest()


def _without_ages(told: Monitored) -> tuple[object, ...]:
    shown = tuple((one.member, one.why) for one in told.members)
    return (
        shown,
        told.counts,
        told.problems,
        told.holds,
        told.plan,
        told.audits,
        told.audit_found,
        told.audits_answered,
        told.degraded,
    )
