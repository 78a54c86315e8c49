"""Between the loop and the threads of the engine: order, room, failures, and ends."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from worker.threads import LongThreads, WorkBehind, in_own_thread, in_thread, read_ahead


class Broken(Exception):
    pass


async def _nobody(_: object) -> None:
    """Tell nobody."""


async def test_what_is_read_ahead_arrives_in_order_and_whole() -> None:
    async with read_ahead(iter(range(1_000))) as items:
        assert [item async for item in items] == list(range(1_000))


async def test_no_more_is_read_ahead_than_there_is_room_for() -> None:
    made = 0
    third = threading.Event()

    def numbers() -> Iterator[int]:
        nonlocal made
        for number in range(100):
            made += 1
            if made == 4:
                third.set()
            yield number

    async with read_ahead(numbers(), depth=3) as items:
        assert await anext(items) == 0
        assert await asyncio.to_thread(third.wait, 60)
        assert made <= 5, "one given out, three that wait, one in the maker's hand"


async def test_a_reader_that_stops_early_leaves_nothing_running() -> None:
    closed_in: list[threading.Thread] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed_in.append(threading.current_thread())

    async with read_ahead(endless()) as items:
        await anext(items)
    assert len(closed_in) == 1
    assert closed_in[0] is not threading.main_thread()


async def test_what_the_iterator_raises_comes_after_what_it_gave() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise Broken

    async with read_ahead(failing()) as items:
        assert await anext(items) == 1
        with pytest.raises(Broken):
            await anext(items)


async def test_work_is_done_in_order_and_every_result_comes_back() -> None:
    results: list[int] = []

    async def tell(result: int) -> None:
        results.append(result)

    behind: WorkBehind[int, int] = WorkBehind(lambda number: number * 2, tell=tell)
    for number in range(500):
        await behind.put(number)
    await behind.end()
    assert results == [number * 2 for number in range(500)]
    assert await behind.call(lambda: "after") == "after"
    await behind.stop(lambda: None)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("depth", [1, 4])
async def test_after_a_failure_nothing_more_is_worked_on_and_whoever_puts_is_told(
    depth: int,
) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 3:
            raise Broken
        done.append(number)

    behind = WorkBehind(work, tell=_nobody, depth=depth)

    async def put_all() -> None:
        for number in range(1_000):
            await behind.put(number)

    with pytest.raises(Broken):
        await put_all()
    with pytest.raises(Broken):
        await behind.put(1_000)
    with pytest.raises(Broken):
        await behind.end()
    await behind.stop(lambda: None)
    assert done == [0, 1, 2]


async def test_stopping_waits_for_the_step_under_way_drops_the_rest_and_cleans_up_last() -> None:
    begun, go_on = threading.Event(), threading.Event()
    said: list[str] = []

    def work(name: str) -> None:
        begun.set()
        go_on.wait(60)
        said.append(name)

    behind = WorkBehind(work, tell=_nobody, depth=2)
    await behind.put("first")
    await behind.put("second")
    assert await asyncio.to_thread(begun.wait, 60)
    stopping = asyncio.create_task(behind.stop(lambda: said.append("cleaned")))
    await asyncio.sleep(0)
    assert said == []
    go_on.set()
    await stopping
    assert said == ["first", "cleaned"]


@pytest.mark.timeout(90)
async def test_a_result_is_told_although_nothing_else_is_put() -> None:
    told = asyncio.Event()

    async def tell(_: int) -> None:
        told.set()

    behind: WorkBehind[int, int] = WorkBehind(lambda number: number, tell=tell)
    await behind.put(1)
    await asyncio.wait_for(told.wait(), 60)
    await behind.end()
    await behind.stop(lambda: None)


@pytest.mark.timeout(90)
async def test_who_cannot_be_told_ends_the_work() -> None:
    async def tell(_: int) -> None:
        raise Broken

    behind: WorkBehind[int, int] = WorkBehind(lambda number: number, tell=tell, depth=2)

    async def put_all() -> None:
        for number in range(1_000):
            await behind.put(number)

    with pytest.raises(Broken):
        await put_all()
    with pytest.raises(Broken):
        await behind.end()
    await behind.stop(lambda: None)


@pytest.mark.timeout(90)
async def test_no_more_results_wait_to_be_told_than_there_is_room_for() -> None:
    worked = 0
    go_on = asyncio.Event()

    def work(_: int) -> None:
        nonlocal worked
        worked += 1

    async def tell(_: object) -> None:
        await go_on.wait()

    behind = WorkBehind(work, tell=tell, depth=3)

    async def put_all() -> None:
        for number in range(10):
            await behind.put(number)

    putting = asyncio.create_task(put_all())
    done, _ = await asyncio.wait([putting], timeout=0.2)
    assert not done
    assert worked <= 3
    go_on.set()
    await putting
    await behind.end()
    assert worked == 10
    await behind.stop(lambda: None)


async def test_an_iterator_that_waits_for_others_is_woken_when_its_block_is_left() -> None:
    waits, comes = threading.Event(), threading.Event()

    def waiting() -> Iterator[int]:
        yield 1
        waits.set()
        comes.wait()
        yield 2

    async def left_in_the_middle() -> None:
        async with read_ahead(waiting(), stop=comes.set) as items:
            await anext(items)
            await asyncio.to_thread(waits.wait)
            raise Broken

    with pytest.raises(Broken):
        await asyncio.wait_for(left_in_the_middle(), 60)


async def test_who_is_cancelled_closes_nothing_that_a_thread_still_uses() -> None:
    begun, goes_on = threading.Event(), threading.Event()
    told: list[str] = []

    def use() -> None:
        begun.set()
        assert goes_on.wait(60)
        told.append("used")

    async def use_and_close() -> None:
        try:
            await in_thread(use)
        finally:
            told.append("closed")

    task = asyncio.create_task(use_and_close())
    assert await asyncio.to_thread(begun.wait, 60)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["used", "closed"]


def test_long_work_waits_for_no_other() -> None:
    threads = LongThreads()
    everybody = threading.Barrier(40)
    waiting = [threads.submit(everybody.wait, 10) for _ in range(40)]
    assert sorted(one.result(10) for one in waiting) == list(range(40))


def test_a_thread_does_one_step_after_the_other() -> None:
    threads = LongThreads()
    first = threads.submit(threading.get_ident).result(10)
    until(lambda: threads.idle == 1)
    assert threads.submit(threading.get_ident).result(10) == first


def test_threads_without_work_end_and_others_come_when_there_is_some() -> None:
    threads = LongThreads(kept_s=0.01)
    for _ in range(20):
        steps = [threads.submit(int, text) for text in ("1", "2", "3")]
        assert [one.result(10) for one in steps] == [1, 2, 3]
    until(lambda: threads.idle == 0)
    assert threads.submit(int, "4").result(10) == 4


def test_a_step_that_raises_leaves_its_thread_for_the_next() -> None:
    threads = LongThreads()
    with pytest.raises(ValueError, match="invalid literal"):
        threads.submit(int, "none").result(10)
    assert threads.submit(int, "5").result(10) == 5


async def test_who_stops_waits_for_what_was_called_last() -> None:
    """What `last` closes may be in use by a call whose caller was cancelled."""
    begun, may_end = threading.Event(), threading.Event()
    order: list[str] = []

    def long() -> None:
        begun.set()
        may_end.wait(10)
        order.append("called")

    work = WorkBehind(str, tell=_nobody)
    await work.end()
    calling = asyncio.create_task(work.call(long))
    await asyncio.to_thread(begun.wait, 10)
    calling.cancel()
    await asyncio.wait([calling])
    stopping = asyncio.create_task(work.stop(lambda: order.append("last")))
    await in_own_thread(may_end.set, stop=may_end.set)
    await stopping
    assert order == ["called", "last"]


def until(condition: Callable[[], bool]) -> None:
    """Wait for what other threads do."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
