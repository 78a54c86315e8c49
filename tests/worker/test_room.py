"""In how many runs a worker takes part, whoever asks it; and how long a run may be."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from syncengine.model import What
from tests.worker.workers import T1, T2, Link, Workbench
from wire.orders import CloseSession, LeaveRoom, Outcome, RoomAt, RunEnded, SessionOpened
from wire.orders import StartRun as Start
from wire.orders import WantRoom as Want
from worker.fence import PARK_LIMIT_S


@pytest.fixture
async def narrow(tmp_path: Path) -> AsyncIterator[Workbench]:
    bench = Workbench(tmp_path, max_runs=1)
    yield bench
    await bench.close()


async def asked(bench: Workbench, job: str, link: Link, **more: object) -> RoomAt:
    """Open a job's session, ask for room, and return the answer."""
    await bench.opened(job=job, link=link, lease=job)
    count = len(link.of(RoomAt)) + 1
    bench.tell(Want(job, T1, "r1", **more), link)  # type: ignore[arg-type]
    return await link.next(RoomAt, count)


async def test_the_limit_is_said_when_a_session_opens(narrow: Workbench) -> None:
    await narrow.opened()
    assert narrow.link.of(SessionOpened) == [SessionOpened("job", T1, room_limit=1)]


async def test_room_holds_across_coordinators_and_goes_by_priority(narrow: Workbench) -> None:
    a, b, c = Link(), Link(), Link()
    assert await asked(narrow, "one", a) == RoomAt("one", "r1", True, 1, 1)
    assert await asked(narrow, "two", b) == RoomAt("two", "r1", False, 1, 1)
    assert await asked(narrow, "three", c, priority=3) == RoomAt("three", "r1", False, 1, 1)
    narrow.tell(CloseSession("one", T1), a)
    assert await c.next(RoomAt, 2) == RoomAt("three", "r1", True, 1, 1)
    narrow.tell(LeaveRoom("three", T1), c)
    assert await b.next(RoomAt, 2) == RoomAt("two", "r1", True, 1, 1)
    assert narrow.sessions.get("three") is not None, "the session stays"


async def test_what_goes_on_already_is_counted(narrow: Workbench) -> None:
    a, b, c = Link(), Link(), Link()
    await asked(narrow, "one", a)
    assert await asked(narrow, "two", b, is_under_way=True) == RoomAt("two", "r1", True, 2, 1)
    await asked(narrow, "three", c)
    narrow.tell(CloseSession("one", T1), a)
    await narrow.settled_down()
    assert not c.of(RoomAt)[1:], "one goes on still"
    narrow.tell(CloseSession("two", T1), b)
    assert (await c.next(RoomAt, 2)).is_given


async def test_a_takeover_keeps_the_room_and_the_place(narrow: Workbench) -> None:
    a, b, heir = Link(), Link(), Link()
    await asked(narrow, "one", a)
    await asked(narrow, "two", b, waited_s=5.0)
    await narrow.opened(T2, job="one", link=heir, lease="heir")
    narrow.tell(Want("one", T2, "r1"), heir)
    assert (await heir.next(RoomAt)).is_given
    await narrow.opened(T2, job="two", link=heir, lease="heir")
    late = Link()
    await asked(narrow, "three", late)
    narrow.tell(CloseSession("one", T2), heir)
    await narrow.settled_down()
    assert narrow.sessions.room.has("two"), "it asked before the takeover"


async def test_no_room_goes_to_a_session_whose_owner_is_gone(narrow: Workbench) -> None:
    a, gone, c = Link(), Link(), Link()
    await asked(narrow, "one", a)
    await asked(narrow, "gone", gone)
    narrow.clock.advance(6.0)
    narrow.extend(60.0, a, "one")
    await asked(narrow, "three", c)
    narrow.tell(CloseSession("one", T1), a)
    assert (await c.next(RoomAt, 2)).is_given
    narrow.clock.advance(PARK_LIMIT_S)
    await narrow.sessions._drop(narrow.sessions._sessions["gone"])
    assert narrow.sessions.room.waiting == 0


async def test_a_run_is_stopped_at_its_time_limit_and_has_failed(bench: Workbench) -> None:
    await bench.opened()
    bench.tell(Start("job", T1, "r1", time_limit_s=0.05))
    ended = await bench.link.next(RunEnded)
    assert bench.runs[0].was_cancelled
    assert (ended.outcome, ended.counts.files_copied) == (Outcome.FAILED, 3)
    assert ended.behind == ("w2:data",)
    (problem,) = ended.problems
    assert problem.what is What.OUT_OF_TIME
    assert problem.detail == "the run reached its time limit of 0.05 s and was stopped"


async def test_a_run_within_its_time_limit_ends_as_it_does(bench: Workbench) -> None:
    await bench.opened()
    bench.tell(Start("job", T1, "r1", time_limit_s=30))
    await bench.settled_down()
    bench.runs[0].finish()
    assert (await bench.link.next(RunEnded)).outcome is Outcome.SUCCEEDED
    await asyncio.sleep(0)
    assert len(bench.link.of(RunEnded)) == 1
