"""One target of a monitor, on a real journal: what changed is passed over until it is there."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from syncengine.agreed import Graft
from syncengine.model import Counts, Hold, HoldReason, Problem, What
from syncengine.scope import Scope
from wire.clock import BootClock
from worker import following
from worker.following import Follower, apart
from worker.passes import PassResult
from worker.watching.feed import Feed
from worker.watching.journal import Change, ChangeJournal, Rename
from worker.watching.pending import Consumer
from worker.watching.state import WatchPhase, WatchSource, WatchState
from worker.watching.store import Store

if TYPE_CHECKING:
    from worker.watching.root_watch import RootWatch

TARGET = "b:data"
GOOD = WatchState(WatchSource.EVENTS, WatchPhase.WATCHING, "", 1, None)
HOLD = Hold(HoldReason.MAX_DELETE, TARGET, "would delete all")


def _wall() -> float:
    """A wall clock an hour slow: whoever looks at another one misjudges what the journal says."""
    return time.time() - 3_600


@dataclass
class Passes:
    """Passes that do what a test says; `seen` are their scopes."""

    seen: list[Scope] = field(default_factory=list)
    hints: list[tuple[Graft, ...]] = field(default_factory=list)
    fails: set[bytes] = field(default_factory=set)
    is_away: bool = False
    holds: tuple[Hold, ...] = ()
    differs: set[bytes] = field(default_factory=set)
    """What a comparison finds."""
    during: Callable[[], None] = lambda: None
    """Called in the middle of every pass, and of a comparison."""

    async def pass_over(
        self, scope: Scope, *, hints: Sequence[Graft] = (), approved: bytes = b""
    ) -> PassResult:
        self.seen.append(scope)
        self.hints.append(tuple(hints))
        self.during()
        if self.is_away:
            refused = Problem(b"", TARGET, What.UNREACHABLE, "connection refused")
            return PassResult(TARGET, scope, scope, (refused,), is_away=True)
        if self.holds and approved != b"plan":
            return PassResult(TARGET, scope, scope, holds=self.holds, digest=b"plan")
        failed = [path for path, _ in scope if path in self.fails]
        why = tuple(Problem(path, TARGET, What.NO_SPACE, "disk full") for path in failed)
        found = {path for path in self.differs if scope.covers(path)}
        changes = len(found) or len(scope)
        self.differs -= found
        return PassResult(
            TARGET, scope, Scope(shallow=failed), why, changes=changes, counts=Counts(1, 1)
        )

    async def compare(self, scope: Scope) -> PassResult:
        self.during()
        return PassResult(
            TARGET, scope, Scope(shallow=set(self.differs)), changes=len(self.differs)
        )

    async def close(self) -> None:
        pass


@dataclass
class Scene:
    """A follower at work."""

    journal: ChangeJournal
    feed: Feed
    passes: Passes
    follower: Follower

    def change(self, *paths: bytes, at: float | None = None) -> None:
        self.journal.add([Change(path, at or _wall()) for path in paths])
        self.feed.tell()

    async def until(self, condition: Callable[[], bool], within_s: float = 20.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.005)

    async def in_step(self) -> None:
        await self.until(lambda: not self.follower.is_behind)


@asynccontextmanager
async def following_in(path: Path, *, audit_s: float = 1e6) -> AsyncIterator[Scene]:
    store = Store(path / "journal.db")
    journal = ChangeJournal(store, wall=_wall)
    consumer = Consumer("job", TARGET, b"")
    journal.register(consumer, _wall())
    watch = SimpleNamespace(journal=journal, is_ready=lambda _: True, state=lambda: GOOD)
    feed = Feed(consumer, cast("RootWatch", watch))
    passes = Passes()
    follower = Follower(TARGET, passes, feed, audit_s, BootClock(), _wall, lambda: None)
    task = asyncio.create_task(follower.follow())
    try:
        scene = Scene(journal, feed, passes, follower)
        await scene.in_step()
        assert [scope.is_whole for scope in passes.seen] == [True]
        passes.seen.clear()
        yield scene
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        store.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "FIRST_AGAIN_S", 0.02)
    monkeypatch.setattr(following, "HELD_AGAIN_S", 0.05)
    monkeypatch.setattr(following, "AUDIT_SETTLES_S", 0.1)


async def test_what_changes_is_passed_over_once(tmp_path: Path) -> None:
    async with following_in(tmp_path) as scene:
        scene.change(b"a", b"b")
        await scene.until(lambda: bool(scene.passes.seen))
        await scene.in_step()
        assert scene.passes.seen == [Scope(shallow=[b"a", b"b"])]
        assert scene.follower.counts.files_copied == 2
        assert await scene.feed.oldest_change_at() is None


async def test_renames_are_told_as_hints(tmp_path: Path) -> None:
    async with following_in(tmp_path) as scene:
        now = _wall()
        changes = [Change(b"old", now), Change(b"new", now)]
        scene.journal.add(changes, [Rename(b"old", b"new", is_directory=True)])
        scene.feed.tell()
        await scene.until(lambda: bool(scene.passes.hints[1:]))
        assert scene.passes.hints[1] == (Graft(b"old", b"new"),)


async def test_what_fails_stays_until_it_does_not(tmp_path: Path) -> None:
    async with following_in(tmp_path) as scene:
        scene.passes.fails = {b"bad"}
        at = _wall() - 50
        scene.change(b"bad", at=at)
        scene.change(b"good")
        await scene.until(lambda: len(scene.passes.seen) >= 3)
        assert [problem.path for problem in scene.follower.problems] == [b"bad"]
        assert scene.follower.why == "bad: disk full"
        assert await scene.feed.oldest_change_at() == pytest.approx(at)
        scene.passes.fails.clear()
        await scene.until(lambda: not scene.follower.why)
        assert scene.follower.problems == []
        await scene.in_step()
        assert await scene.feed.oldest_change_at() is None


async def test_a_file_in_flux_is_tried_soon_whatever_else_fails_for_long(tmp_path: Path) -> None:
    async with following_in(tmp_path) as scene:
        follower = scene.follower
        flux, both = Scope(shallow=[b"flux"]), Scope(shallow=[b"bad", b"flux"])
        waits = [follower._tried(both, [b"bad"]) for _ in range(12)]
        assert waits[:3] == pytest.approx([0.02, 0.04, 0.08])
        assert waits[-1] == following.LAST_AGAIN_S
        assert follower._tried(both, [b"bad", b"flux"]) == pytest.approx(0.02)
        assert follower._tried(flux, []) == 0
        assert follower._tries == {b"bad": 13}


async def test_a_target_that_is_away_loses_nothing(tmp_path: Path) -> None:
    async with following_in(tmp_path) as scene:
        scene.passes.is_away = True
        scene.change(b"a")
        await scene.until(lambda: len(scene.passes.seen) >= 3)
        assert scene.follower.why == "connection refused"
        scene.change(b"b")
        scene.passes.is_away = False
        await scene.until(lambda: scene.follower.why == "" and not scene.follower.is_behind)
        assert scene.passes.seen[-1] == Scope(shallow=[b"a", b"b"])
        assert scene.follower.problems == []


async def test_what_changes_under_a_pass_is_passed_over_again(tmp_path: Path) -> None:
    async with following_in(tmp_path) as scene:

        def once() -> None:
            scene.passes.during = lambda: None
            scene.change(b"a")

        scene.passes.during = once
        scene.change(b"a")
        await scene.until(lambda: len(scene.passes.seen) == 2)
        assert scene.passes.seen == [Scope(shallow=[b"a"])] * 2


async def test_i8_a_held_plan_waits_for_exactly_its_approval(tmp_path: Path) -> None:
    async with following_in(tmp_path) as scene:
        scene.passes.holds = (HOLD,)
        scene.change(b"a")
        await scene.until(lambda: scene.follower.holds == (HOLD,))
        scene.follower.tell(approved=b"another", asked=0)
        await scene.until(lambda: len(scene.passes.seen) >= 3)
        assert [hold.member for hold in scene.follower.holds] == [TARGET]
        scene.follower.tell(approved=b"plan", asked=0)
        await scene.in_step()
        assert not scene.follower.holds
        assert not scene.follower.digest


async def test_a_hold_that_goes_away_lets_it_go_on(tmp_path: Path) -> None:
    async with following_in(tmp_path) as scene:
        scene.passes.holds = (Hold(HoldReason.ROOT_MISSING, TARGET, "is gone"),)
        scene.change(b"a")
        await scene.until(lambda: bool(scene.follower.holds))
        scene.passes.holds = ()
        await scene.in_step()
        assert scene.passes.seen[-1].is_whole, "it may be another root"


async def test_an_audit_counts_what_no_event_told(tmp_path: Path) -> None:
    async with following_in(tmp_path) as scene:
        scene.passes.differs = {b"lost", b"lost/too"}
        scene.follower.tell(approved=b"", asked=1)
        await scene.until(lambda: scene.follower.answered == 1)
        assert (scene.follower.audits, scene.follower.audit_found) == (1, 2)
        assert scene.passes.seen == [Scope(shallow=[b"lost", b"lost/too"])]


async def test_an_audit_does_not_count_what_the_journal_tells_meanwhile(tmp_path: Path) -> None:
    async with following_in(tmp_path) as scene:

        def once() -> None:
            scene.passes.during = lambda: None
            scene.change(b"dir/new")
            scene.journal.add([Change(b"deep", _wall(), is_deep=True)])

        scene.passes.differs = {b"dir", b"dir/new", b"deep/below"}
        scene.passes.during = once
        scene.follower.tell(approved=b"", asked=1)
        await scene.until(lambda: scene.follower.answered == 1)
        assert (scene.follower.audits, scene.follower.audit_found) == (1, 0)
        assert scene.passes.seen == [Scope(shallow=[b"dir/new"], deep=[b"deep"])]


async def test_audits_come_by_themselves_under_changes_that_never_end(tmp_path: Path) -> None:
    async with following_in(tmp_path, audit_s=0.2) as scene:
        numbers = itertools.count()

        def change() -> None:
            """Let something be pending again before the pass at hand has ended."""
            path = b"%d" % next(numbers)
            scene.change(path)
            scene.passes.differs.add(path)

        scene.passes.during = change
        change()
        await scene.until(lambda: scene.follower.audits >= 2)
        assert scene.follower.audit_found == 0


def test_only_renames_that_have_to_do_with_no_other_are_hints() -> None:
    one, other = Graft(b"a/b", b"c/d"), Graft(b"e", b"f/g")
    assert apart([one, other]) == [one, other]
    assert apart([one, Graft(b"a", b"z"), other]) == [other]
    assert apart([one, Graft(b"y", b"a/b/c"), other]) == [other]
    assert apart([Graft(b"a", b"b"), Graft(b"b", b"c")]) == []
    assert apart([Graft(b"a", b"b"), Graft(b"b", b"a")]) == []
    assert apart([Graft(b"a", b"c/d"), Graft(b"b", b"c/e")]) == [(b"a", b"c/d"), (b"b", b"c/e")]
