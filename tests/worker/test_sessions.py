"""Sessions: opening, adopting and ending them, and what is told to whom."""

import asyncio
from pathlib import Path

from tests.worker.clocks import until
from tests.worker.workers import LEASE, T1, T2, T3, Link, Workbench, assignment
from wire.orders import (
    CancelRun,
    CloseSession,
    Extend,
    Hello,
    OpenSession,
    Outcome,
    Pulse,
    RefusalReason,
    Refused,
    RunEnded,
    SessionOpened,
    SettleRun,
    StartRun,
)
from worker.fence import PARK_LIMIT_S
from worker.sessions import REAP_S


async def test_i5_the_token_is_on_disk_for_every_root_when_the_session_is_open(
    bench: Workbench,
) -> None:
    both = assignment().source, assignment().source.__class__("w1", "more", b"sub")
    await bench.opened(T1, source=both[0], targets=(both[1],))
    assert bench.journal.tokens("job", ["data", "more", "ro"]) == {"data": T1, "more": T1}
    assert bench.link.of(SessionOpened) == [SessionOpened("job", T1)]
    assert bench.link.of(Pulse), "asks for its first extension at once"


async def test_i4_a_worker_that_restarted_still_refuses_a_lower_token(tmp_path: Path) -> None:
    first = Workbench(tmp_path)
    await first.opened(T2)
    await first.close()
    second = Workbench(tmp_path)
    refused = await second.refusal(OpenSession(assignment(), T1, LEASE))
    assert (refused.reason, refused.highest) == (RefusalReason.STALE_TOKEN, T2)
    await second.opened(T2)
    await second.close()


async def test_a_run_starts_and_its_end_is_told(bench: Workbench) -> None:
    session = await bench.opened()
    run = await bench.started()
    assert session.running is not None
    assert session.running.ended is None
    run.finish()
    assert await bench.link.next(RunEnded) == run.result()


async def test_a_run_that_is_cancelled_before_its_first_step_ends_all_the_same(
    bench: Workbench,
) -> None:
    """Both orders come in one turn of the loop: found by the simulation."""
    session = await bench.opened()
    bench.tell(StartRun("job", T1, "r1"))
    bench.tell(CancelRun("job", T1, "r1"))
    ended = await bench.link.next(RunEnded)
    assert ended.outcome is Outcome.CANCELLED
    assert session.running is not None
    assert session.running.ended == ended, "told again to whoever owns the job next"


async def test_the_same_start_again_does_not_disturb_the_run(bench: Workbench) -> None:
    await bench.opened()
    run = await bench.started()
    bench.tell(StartRun("job", T1, "r1"))
    await bench.settled_down()
    assert len(bench.runs) == 1
    assert not run.was_cancelled


async def test_a_start_of_another_run_replaces_what_goes_on(bench: Workbench) -> None:
    await bench.opened()
    first = await bench.started(run="r1")
    second = await bench.started(run="r2")
    assert first.was_cancelled
    second.finish()
    assert (await bench.link.next(RunEnded)).run == "r2", "nobody asked how the first one ended"


async def test_a_start_of_a_run_that_ended_begins_it_again(bench: Workbench) -> None:
    """As after an approval, when nobody settled the run that was held."""
    await bench.opened()
    (await bench.started()).finish(Outcome.BLOCKED)
    await bench.link.next(RunEnded)
    again = await bench.started()
    again.finish()
    assert (await bench.link.next(RunEnded, 2)).outcome is Outcome.SUCCEEDED


async def test_a_takeover_adopts_the_run_and_shows_it_the_token(bench: Workbench) -> None:
    await bench.opened(T1, generation=4)
    run = await bench.started(T1)
    bench.sessions.link_gone(bench.link)
    heir = Link()
    session = await bench.opened(T2, link=heir, lease="2f", generation=4)
    assert heir.of(SessionOpened) == [SessionOpened("job", T2, "r1", 4)]
    assert run.tokens == [T2]
    assert not run.was_cancelled
    assert session.lease == "2f"
    run.finish()
    assert (await heir.next(RunEnded)).run == "r1"
    assert not bench.link.of(RunEnded), "the owner before hears no more of it"


async def test_a_result_is_told_after_every_takeover_until_it_is_settled(
    bench: Workbench,
) -> None:
    await bench.opened(T1)
    run = await bench.started(T1)
    bench.sessions.link_gone(bench.link)
    run.finish()
    for token in (T2, T3):
        heir = Link()
        await bench.opened(token, link=heir)
        assert await heir.next(RunEnded) == run.result()
        assert heir.of(SessionOpened)[0].run == "r1"
    bench.tell(SettleRun("job", T3, "r1"), heir)
    await bench.settled_down()
    last = Link()
    await bench.opened(T3, link=last)
    assert last.of(SessionOpened) == [SessionOpened("job", T3)]
    assert not last.of(RunEnded)


async def test_settling_another_run_or_one_that_goes_on_forgets_nothing(bench: Workbench) -> None:
    session = await bench.opened()
    run = await bench.started()
    bench.tell(SettleRun("job", T1, "r1"))
    await bench.settled_down()
    assert session.running is not None
    run.finish()
    await bench.link.next(RunEnded)
    bench.tell(SettleRun("job", T1, "r0"))
    await bench.settled_down()
    assert session.running is not None


async def test_a_run_of_an_older_definition_is_replaced_by_the_next_start(
    bench: Workbench,
) -> None:
    await bench.opened(T1, generation=1)
    old = await bench.started(T1)
    await bench.opened(T2, generation=2)
    assert bench.link.of(SessionOpened)[-1].generation == 1, "so that the owner can judge"
    new = await bench.started(T2)
    assert old.was_cancelled
    assert new.generation == 2
    await bench.settled_down()
    assert not bench.link.of(RunEnded), "or the owner would take the run for cancelled"


async def test_cancel_stops_only_the_run_it_names(bench: Workbench) -> None:
    await bench.opened()
    run = await bench.started()
    bench.tell(CancelRun("job", T1, "r0"))
    await bench.settled_down()
    assert not run.was_cancelled
    bench.tell(CancelRun("job", T1, "r1"))
    assert (await bench.link.next(RunEnded)).outcome is Outcome.CANCELLED
    bench.tell(CancelRun("job", T1, "r1"))
    await bench.settled_down()
    assert len(bench.link.of(RunEnded)) == 1
    assert not bench.link.of(Refused)


async def test_a_run_that_breaks_ends_as_failed_and_is_told(bench: Workbench) -> None:
    await bench.opened()
    run = await bench.started()
    run.end.set_exception(ZeroDivisionError("ours"))
    ended = await bench.link.next(RunEnded)
    assert ended.outcome is Outcome.FAILED
    assert "ZeroDivisionError" in ended.problems[0].detail
    assert ended.behind == ("w2:data",)


async def test_close_ends_the_session_and_what_it_does(bench: Workbench) -> None:
    session = await bench.opened()
    run = await bench.started()
    bench.tell(CloseSession("job", T1))
    await until(lambda: run.was_cancelled)
    await bench.settled_down()
    assert bench.sessions.get("job") is None
    assert not session.fence.is_live
    refused = await bench.refusal(StartRun("job", T1, "r2"))
    assert (refused.reason, refused.highest) == (RefusalReason.NO_SESSION, T1)


async def test_a_worker_that_stops_does_not_call_its_run_cancelled(tmp_path: Path) -> None:
    """Its owner begins the run again when the worker is back."""
    bench = Workbench(tmp_path)
    await bench.opened()
    run = await bench.started()
    await bench.close()
    assert run.was_cancelled
    assert not bench.link.of(RunEnded)
    bench.tell(OpenSession(assignment(), T1, LEASE))
    await bench.settled_down()
    assert bench.sessions.get("job") is None, "nothing new begins while it stops"


async def test_orders_of_one_job_are_carried_out_in_their_order(bench: Workbench) -> None:
    """Opening takes a flush to disk; what was said after it waits for it."""
    orders = (
        Hello("c1"),
        OpenSession(assignment(), T1, LEASE),
        StartRun("job", T1, "r1"),
        StartRun("job", T1, "r2"),
        CancelRun("job", T1, "r2"),
        OpenSession(assignment(), T2, LEASE),
        StartRun("job", T1, "late"),
    )
    for order in orders:
        bench.tell(order)
    await bench.settled_down()
    assert [run.order.run for run in bench.runs] == ["r1", "r2"]
    assert [run.was_cancelled for run in bench.runs] == [True, True]
    assert [one.token for one in bench.link.of(SessionOpened)] == [T1, T2]
    assert [one.order for one in bench.link.of(Refused)] == ["StartRun"]


async def test_one_job_does_not_wait_for_another(bench: Workbench) -> None:
    lock = bench.sessions._order.setdefault("slow", asyncio.Lock())
    async with lock:
        bench.tell(OpenSession(assignment("slow"), T1, LEASE))
        await bench.opened(job="quick")
    await bench.link.next(SessionOpened, 2)
    await bench.settled_down()


async def test_an_extension_counts_for_its_own_link_and_lease_only(bench: Workbench) -> None:
    elsewhere = Link()
    mine = await bench.opened(job="mine", live_s=5)
    other_lease = await bench.opened(job="other-lease", lease="99", live_s=5)
    other_link = await bench.opened(job="other-link", link=elsewhere, live_s=5)
    bench.clock.advance(4)
    bench.extend(5)
    bench.clock.advance(3)
    live = [one.fence.is_live for one in (mine, other_lease, other_link)]
    assert live == [True, False, False]


async def test_the_deadline_counts_from_the_pulse_not_from_the_answer(bench: Workbench) -> None:
    session = await bench.opened(live_s=1)
    stamp = int(bench.clock.now() * 1e9)
    bench.clock.advance(4)
    bench.tell(Extend(LEASE, stamp, 5.0))
    assert session.fence.is_live
    bench.clock.advance(1.001)
    assert not session.fence.is_live, "4 s on the way shortened it"


async def test_sessions_go_on_when_the_link_breaks(bench: Workbench) -> None:
    session = await bench.opened(live_s=5)
    run = await bench.started()
    bench.sessions.link_gone(bench.link)
    assert bench.sessions.get("job") is session
    assert not run.was_cancelled
    before = len(bench.link.reports)
    run.finish()
    await until(lambda: session.running is not None and session.running.ended is not None)
    assert len(bench.link.reports) == before


async def test_sessions_that_nobody_owns_are_dropped_after_the_park_limit(
    bench: Workbench,
) -> None:
    session = await bench.opened(live_s=10)
    run = await bench.started()
    reaping = asyncio.create_task(bench.sessions.reap())
    try:
        await asyncio.sleep(0)
        for _ in range(int(PARK_LIMIT_S / REAP_S)):
            bench.clock.advance(REAP_S)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert bench.sessions.get("job") is session, "not before"
        assert not run.was_cancelled
        for _ in range(3):
            bench.clock.advance(REAP_S)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await until(lambda: run.was_cancelled)
        assert bench.sessions.get("job") is None
    finally:
        reaping.cancel()


async def test_a_session_that_is_taken_over_late_is_not_dropped_at_once(
    bench: Workbench,
) -> None:
    await bench.opened(live_s=5)
    run = await bench.started()
    bench.clock.advance(PARK_LIMIT_S + 100)  # nobody looked in the meantime
    bench.tell(OpenSession(assignment(), T2, LEASE))
    await bench.link.next(SessionOpened, 2)
    reaping = asyncio.create_task(bench.sessions.reap())
    try:
        await asyncio.sleep(0)
        bench.clock.advance(REAP_S)
        await asyncio.sleep(0.01)
        assert bench.sessions.get("job") is not None
        assert not run.was_cancelled
    finally:
        reaping.cancel()


async def test_refused_orders_are_counted(bench: Workbench) -> None:
    await bench.refusal(StartRun("job", T1, "r1"))
    await bench.refusal(CancelRun("job", T1, "r1"))
    assert bench.sessions.orders_refused == 2
