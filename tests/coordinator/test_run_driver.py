"""One run as its owner drives it, against workers that come and go."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from coordinator.ledger import NotOwner
from coordinator.links import LinkDown, LinkUp
from coordinator.ownership import Ownership
from coordinator.run_driver import (
    OPEN_S,
    RESTARTS,
    RUNNER_AWAY_S,
    SOURCE_AWAY_S,
    RunDriver,
    RunOrder,
    Watchers,
)
from syncengine.model import Rule, RunOptions, What
from tests.coordinator.fake_workers import FakeLinks, FakeWorker, unreachable
from tests.coordinator.worlds import JOB, Etcd, Node
from tests.etcd.virtual_time import run_virtual
from wire.orders import (
    Assignment,
    CancelRun,
    CloseSession,
    Member,
    OpenSession,
    Outcome,
    PlannedChange,
    Progress,
    RefusalReason,
    RunEnded,
    SettleRun,
    StartRun,
)
from wire.token import Token

RUN = "r1"


@dataclass
class Stage:
    """An owner, three workers, and a driver ready to go."""

    world: Etcd
    node: Node
    owned: Ownership
    workers: dict[str, FakeWorker]
    links: FakeLinks
    progress: list[Progress] = field(default_factory=list)
    planned: list[PlannedChange] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)

    @property
    def source(self) -> FakeWorker:
        return self.workers["w1"]

    def driver(self, owned: Ownership | None = None, **order: Any) -> RunDriver:
        watchers = Watchers(self.progress.append, self.planned.extend, self.restarts.append)
        return RunDriver(
            owned or self.owned,
            run_order(**order),
            self.links.as_links(),
            self.world.clock,
            watchers,
        )

    async def drive(self, **order: Any) -> RunEnded:
        with self.driver(**order) as driver:
            return await driver.drive()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(delay_s, action)

    async def timed(self, **order: Any) -> tuple[RunEnded, float]:
        began = self.world.clock.now()
        ended = await self.drive(**order)
        return ended, self.world.clock.now() - began


def run_order(
    *,
    generation: int = 1,
    preview: bool = False,
    approved: bytes = b"",
    run: str = RUN,
    rule: Rule = Rule.MIRROR,
) -> RunOrder:
    addresses = {name: f"{name}.example:7000" for name in ("w1", "w2", "w3")}
    members = [Member(name, "data", b"", addresses[name]) for name in addresses]
    assignment = Assignment(JOB, generation, tuple(members), RunOptions(rule=rule))
    return RunOrder(assignment, run, addresses, preview, approved)


def on_stage(test: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        world = Etcd()
        node = Node(world, "c1")
        workers = {name: FakeWorker(name) for name in ("w1", "w2", "w3")}
        stage = Stage(world, node, await node.own(), workers, FakeLinks(workers.values()))
        try:
            await test(stage)
        finally:
            await node.close()

    run_virtual(main())


def test_i4_sessions_are_open_everywhere_before_the_run_is_ordered() -> None:
    async def test(stage: Stage) -> None:
        seen: list[set[str]] = []
        take = stage.source.take

        def spy(order: object, link: object) -> None:
            if isinstance(order, StartRun):
                seen.append({n for n, one in stage.workers.items() if one.highest is not None})
            take(order, link)  # type: ignore[arg-type]

        stage.source.take = spy  # type: ignore[method-assign]
        ended = await stage.drive()
        assert ended.outcome is Outcome.SUCCEEDED
        assert seen == [{"w1", "w2", "w3"}]
        assert stage.progress == [Progress(stage.progress[0].done, 2, 8, "push")]
        assert not stage.restarts

    on_stage(test)


def test_a_preview_tells_the_changes() -> None:
    async def test(stage: Stage) -> None:
        ended = await stage.drive(preview=True, run="preview-1")
        assert ended.run == "preview-1"
        assert [change.path for change in stage.planned] == [b"a\xff"]
        assert stage.source.starts[0].preview

    on_stage(test)


def test_settling_lets_every_worker_forget() -> None:
    async def test(stage: Stage) -> None:
        with stage.driver() as driver:
            await driver.drive()
            driver.settle()
            await asyncio.sleep(0.1)
        assert [type(one) for one in stage.source.heard] == [
            OpenSession,
            StartRun,
            SettleRun,
            CloseSession,
        ]
        for worker in stage.workers.values():
            assert worker.assignment is None
            assert worker.run is None

    on_stage(test)


def test_leaving_without_settling_leaves_the_sessions_to_the_next_owner() -> None:
    async def test(stage: Stage) -> None:
        stage.source.run_s = 60
        with stage.driver() as driver:
            driving = asyncio.create_task(driver.drive())
            await asyncio.sleep(1)
            driving.cancel()
        await asyncio.sleep(0.1)
        assert stage.source.run is not None
        assert all(worker.assignment is not None for worker in stage.workers.values())

    on_stage(test)


def test_a_running_run_is_adopted_and_not_ordered_again() -> None:
    async def test(stage: Stage) -> None:
        stage.source.run_s = 10
        with stage.driver() as driver:
            driving = asyncio.create_task(driver.drive())
            await asyncio.sleep(2)
            driving.cancel()
        ended, took_s = await stage.timed()
        assert ended.outcome is Outcome.SUCCEEDED
        assert took_s < 9
        assert len(stage.source.starts) == 1

    on_stage(test)


def test_a_result_that_nobody_heard_is_taken() -> None:
    async def test(stage: Stage) -> None:
        with stage.driver() as driver:
            driving = asyncio.create_task(driver.drive())
            await asyncio.sleep(0.5)
            driving.cancel()
        await asyncio.sleep(5)
        ended, took_s = await stage.timed()
        assert ended.outcome is Outcome.SUCCEEDED
        assert took_s < 0.1
        assert len(stage.source.starts) == 1

    on_stage(test)


def test_i9_a_result_of_another_definition_is_not_that_of_this_one() -> None:
    async def test(stage: Stage) -> None:
        with stage.driver(generation=2) as driver:
            driving = asyncio.create_task(driver.drive())
            await asyncio.sleep(0.5)
            driving.cancel()
        await asyncio.sleep(5)
        stage.source.run_s = 2
        ended, took_s = await stage.timed()
        assert ended.outcome is Outcome.SUCCEEDED
        assert took_s > 1.9, "it was carried out anew"
        assert len(stage.source.starts) == 2

    on_stage(test)


@pytest.mark.parametrize("other", [{"run": "r0"}, {"generation": 2}], ids=["run", "definition"])
def test_what_the_source_does_for_another_run_or_definition_is_replaced(
    other: dict[str, Any],
) -> None:
    async def test(stage: Stage) -> None:
        stage.source.run_s = 30
        with stage.driver(**other) as driver:
            driving = asyncio.create_task(driver.drive())
            await asyncio.sleep(1)
            driving.cancel()
        stage.source.run_s = 1
        ended, took_s = await stage.timed()
        assert (ended.run, ended.outcome) == (RUN, Outcome.SUCCEEDED)
        assert took_s < 3
        assert len(stage.source.starts) == 2

    on_stage(test)


def test_a_link_that_breaks_for_a_moment_changes_nothing() -> None:
    async def test(stage: Stage) -> None:
        stage.source.run_s = 10
        for worker in stage.workers.values():
            stage.after(3, worker.hang_up)
        ended, took_s = await stage.timed()
        assert ended.outcome is Outcome.SUCCEEDED
        assert took_s < 10.5
        assert len(stage.source.starts) == 1
        assert not stage.restarts

    on_stage(test)


def test_a_source_that_restarts_gets_the_run_again() -> None:
    async def test(stage: Stage) -> None:
        stage.source.run_s = 10
        stage.after(5, stage.source.die)
        stage.after(8, stage.source.come_back)
        ended, took_s = await stage.timed()
        assert ended.outcome is Outcome.SUCCEEDED
        assert 17 < took_s < 19
        assert [start.run for start in stage.source.starts] == [RUN, RUN]
        assert len(stage.restarts) == 1

    on_stage(test)


def test_a_source_that_keeps_restarting_is_given_up_by_name() -> None:
    async def test(stage: Stage) -> None:
        stage.source.run_s = 10
        for number in range(10):
            stage.after(5 + 10 * number, stage.source.die)
            stage.after(6 + 10 * number, stage.source.come_back)
        ended = await stage.drive()
        assert ended.outcome is Outcome.FAILED
        assert "w1 restarted" in ended.problems[0].detail
        assert len(stage.source.starts) == RESTARTS + 1

    on_stage(test)


@pytest.mark.parametrize("from_s", [0.0, 5.0])
def test_a_source_that_stays_away_fails_the_run_after_the_limit(from_s: float) -> None:
    async def test(stage: Stage) -> None:
        stage.source.run_s = 60
        if from_s:
            stage.after(from_s, stage.source.die)
        else:
            stage.source.die()
        ended, took_s = await stage.timed()
        assert SOURCE_AWAY_S <= took_s - from_s <= SOURCE_AWAY_S + 1
        assert ended.outcome is Outcome.FAILED
        (problem,) = ended.problems
        assert problem.what is What.UNREACHABLE
        assert problem.member == "w1:data"
        assert "w1 at w1.example:7000 cannot be reached" in problem.detail
        assert "connection refused" in problem.detail
        assert ended.behind == ("w2:data", "w3:data")

    on_stage(test)


def test_a_source_that_never_answers_fails_the_run_too() -> None:
    async def test(stage: Stage) -> None:
        stage.source.take = lambda *_: None  # type: ignore[method-assign]
        ended, took_s = await stage.timed()
        assert took_s <= SOURCE_AWAY_S + 1
        assert "it does not answer" in ended.problems[0].detail

    on_stage(test)


def test_a_target_that_is_away_holds_the_run_up_for_a_moment_only() -> None:
    async def test(stage: Stage) -> None:
        stage.workers["w2"].die()
        stage.source.problems = (unreachable("w2:data", "not from there either"),)
        stage.source.behind = ("w2:data",)
        ended, took_s = await stage.timed()
        assert OPEN_S <= took_s <= OPEN_S + 2.5
        assert ended.outcome is Outcome.FAILED
        assert ended.behind == ("w2:data",)
        assert "connection refused" in ended.problems[0].detail

    on_stage(test)


@pytest.mark.parametrize("reason", [RefusalReason.READ_ONLY, RefusalReason.FOREIGN_CLUSTER])
def test_a_target_that_refuses_is_named_with_its_reason_and_not_waited_for(
    reason: RefusalReason,
) -> None:
    async def test(stage: Stage) -> None:
        stage.workers["w3"].refuses = reason
        stage.source.problems = (unreachable("w3:data", "aborted: no session"),)
        ended, took_s = await stage.timed()
        assert took_s < 2
        assert ended.problems == (unreachable("w3:data", f"w3 refuses: {reason}"),)

    on_stage(test)


def test_a_source_that_refuses_fails_the_run_at_once() -> None:
    async def test(stage: Stage) -> None:
        stage.source.refuses = RefusalReason.NO_SUCH_ROOT
        ended, took_s = await stage.timed()
        assert took_s < 1
        assert ended.outcome is Outcome.FAILED
        assert ended.problems == (unreachable("w1:data", "w1 refuses: no-such-root"),)

    on_stage(test)


@pytest.mark.parametrize("worker", ["w1", "w2"])
def test_i4_a_worker_that_knows_a_newer_owner_ends_the_drive(worker: str) -> None:
    async def test(stage: Stage) -> None:
        token = stage.owned.token
        stage.workers[worker].highest = Token(token.cluster_id, token.revision + 5)
        with pytest.raises(NotOwner, match=worker):
            await stage.drive()
        assert not stage.source.starts

    on_stage(test)


@pytest.mark.parametrize("worker", ["w1", "w2"])
def test_a_session_that_ended_meanwhile_is_opened_anew(worker: str) -> None:
    async def test(stage: Stage) -> None:
        victim = stage.workers[worker]
        stage.source.run_s = 4

        def forget() -> None:
            victim.assignment = None
            victim.take(CancelRun(JOB, stage.owned.token, "x"), victim.links[0])  # is refused

        stage.after(2, forget)
        ended = await stage.drive()
        assert ended.outcome is Outcome.SUCCEEDED
        assert len(victim.orders(OpenSession)) == 2
        assert len(stage.source.starts) == 1

    on_stage(test)


# Cancelling


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.003, 0.2])
def test_cancelled_whenever_it_ends_as_cancelled(after_s: float) -> None:
    async def test(stage: Stage) -> None:
        stage.source.run_s = 60
        with stage.driver() as driver:
            if after_s:
                stage.after(after_s, driver.cancel)
            else:
                driver.cancel()
            began = stage.world.clock.now()
            ended = await driver.drive()
        assert ended.outcome is Outcome.CANCELLED
        assert stage.world.clock.now() - began < 2
        await asyncio.sleep(1)
        run = stage.source.run
        assert run is None or run.ended is not None, "nothing goes on behind its back"

    on_stage(test)


def test_cancelled_while_targets_are_waited_for_it_is_never_ordered() -> None:
    async def test(stage: Stage) -> None:
        stage.workers["w2"].die()
        with stage.driver() as driver:
            stage.after(2, driver.cancel)
            ended = await driver.drive()
        assert ended.outcome is Outcome.CANCELLED
        assert not stage.source.starts

    on_stage(test)


def test_cancelled_while_the_link_is_down_it_ends_when_it_is_back() -> None:
    async def test(stage: Stage) -> None:
        stage.source.run_s = 60
        with stage.driver() as driver:
            driving = asyncio.create_task(driver.drive())
            await asyncio.sleep(2)
            stage.source.links[0].is_cut = True
            driver.cancel()
            await asyncio.sleep(2)
            stage.source.links[0].is_cut = False
            stage.source.hang_up()
            ended = await driving
        assert ended.outcome is Outcome.CANCELLED
        assert stage.source.run is not None
        assert stage.source.run.ended is not None

    on_stage(test)


def test_cancelled_before_an_adoption_the_adopted_run_is_stopped() -> None:
    async def test(stage: Stage) -> None:
        stage.source.run_s = 60
        with stage.driver() as driver:
            driving = asyncio.create_task(driver.drive())
            await asyncio.sleep(2)
            driving.cancel()
        with stage.driver() as driver:
            driver.cancel()
            ended = await driver.drive()
        assert ended.outcome is Outcome.CANCELLED
        assert ended.counts.files_copied == 2, "what the source says it had done"

    on_stage(test)


def test_cancelled_with_the_source_away_it_says_both() -> None:
    async def test(stage: Stage) -> None:
        stage.source.die()
        with stage.driver() as driver:
            driver.cancel()
            ended = await driver.drive()
        assert ended.outcome is Outcome.CANCELLED
        assert "cannot be reached" in ended.problems[0].detail

    on_stage(test)


# Approvals


def test_a_hold_that_nobody_settled_is_not_the_answer_to_its_approval() -> None:
    async def test(stage: Stage) -> None:
        stage.source.plan = b"digest"
        blocked = await stage.drive()
        assert (blocked.outcome, blocked.plan) == (Outcome.BLOCKED, b"digest")
        ended = await stage.drive(approved=b"digest")
        assert ended.outcome is Outcome.SUCCEEDED
        assert [start.approved for start in stage.source.starts] == [b"", b"digest"]

    on_stage(test)


def test_an_approval_of_what_changed_since_is_held_again() -> None:
    async def test(stage: Stage) -> None:
        stage.source.plan = b"old"
        await stage.drive()
        stage.source.plan = b"new"
        ended = await stage.drive(approved=b"old")
        assert (ended.outcome, ended.plan) == (Outcome.BLOCKED, b"new")

    on_stage(test)


@pytest.mark.parametrize("rule", [Rule.SYNC, Rule.EXCHANGE])
def test_any_member_can_carry_out_a_run_and_the_first_that_is_there_does(rule: Rule) -> None:
    async def test(stage: Stage) -> None:
        stage.workers["w1"].is_up = False
        ended = await stage.drive(rule=rule)
        assert ended.outcome is Outcome.SUCCEEDED
        assert [len(stage.workers[name].starts) for name in ("w1", "w2", "w3")] == [0, 1, 0]
        assert not stage.restarts

    on_stage(test)


def test_when_nobody_is_there_the_run_fails_by_name() -> None:
    async def test(stage: Stage) -> None:
        for worker in stage.workers.values():
            worker.is_up = False
        ended, took_s = await stage.timed(rule=Rule.SYNC)
        assert ended.outcome is Outcome.FAILED
        assert ended.problems[0].member == "w1:data"
        assert ended.behind == ("w1:data", "w2:data", "w3:data")
        assert took_s < SOURCE_AWAY_S + 2

    on_stage(test)


def test_a_runner_that_dies_is_replaced_by_the_next_member() -> None:
    async def test(stage: Stage) -> None:
        stage.workers["w1"].run_s = 60
        stage.after(7, stage.workers["w1"].die)
        ended, took_s = await stage.timed(rule=Rule.SYNC)
        assert ended.outcome is Outcome.SUCCEEDED
        assert len(stage.workers["w2"].starts) == 1
        assert len(stage.restarts) == 1
        assert took_s < 7 + RUNNER_AWAY_S + 5

    on_stage(test)


def test_a_runner_that_was_replaced_is_told_to_stop_and_its_word_counts_for_nothing() -> None:
    async def test(stage: Stage) -> None:
        first, second = stage.workers["w1"], stage.workers["w2"]
        first.run_s, second.run_s = 60, 20
        (link,) = [stage.links.to("w1", "w1.example:7000")]

        def cut() -> None:
            link.tell(LinkDown("unavailable: no route"))
            link.is_cut = True

        def heal() -> None:
            link.is_cut = False
            link.tell(LinkUp())

        stage.after(3, cut)
        stage.after(12, heal)
        ended = await stage.drive(rule=Rule.SYNC)
        assert ended.outcome is Outcome.SUCCEEDED
        assert len(first.starts) == len(second.starts) == 1
        assert [order.run for order in first.orders(CancelRun)] == [RUN]  # type: ignore[union-attr]
        assert first.orders(SettleRun), "and it may forget the run"

    on_stage(test)


def test_a_takeover_adopts_the_run_wherever_it_is() -> None:
    async def test(stage: Stage) -> None:
        stage.workers["w2"].run_s = 30
        stage.workers["w1"].is_up = False

        async def watch() -> None:
            with stage.driver(rule=Rule.SYNC) as driver:
                driving = asyncio.create_task(driver.drive())
                while not stage.workers["w2"].starts:
                    await asyncio.sleep(0.1)
                driving.cancel()
                await asyncio.gather(driving, return_exceptions=True)

        await watch()
        stage.workers["w1"].come_back()
        ended = await stage.drive(rule=Rule.SYNC)
        assert ended.outcome is Outcome.SUCCEEDED
        assert [len(stage.workers[name].starts) for name in ("w1", "w2", "w3")] == [0, 1, 0]

    on_stage(test)
