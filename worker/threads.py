"""Blocking work of the engine, done in threads of its own, and never left behind.

Cancelling a coroutine does not stop a thread. Whoever closes what a thread uses must wait for its step
first: these functions do. Long work gets threads of its own, so that it cannot starve the short calls
of the default executor, on which fences and sessions depend.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")

DEPTH = 4
"""Items that may wait between a thread and the loop: one would make both sides wait for each other's
slowest moments; a few even those out."""


async def in_own_thread(function: Callable[[], T], *, stop: Callable[[], object]) -> T:
    """Run a function in a thread of its own; when cancelled, `stop` it and wait for its end."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="work")
    future = asyncio.get_running_loop().run_in_executor(executor, function)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop()
        raise
    finally:
        executor.shutdown(wait=False)
        await _ended(future)


@asynccontextmanager
async def read_ahead(
    iterator: Iterator[T], *, depth: int = DEPTH
) -> AsyncIterator[AsyncIterator[T]]:
    """Give what a blocking iterator gives, the next items made while one is used.

    The iterator runs in a thread of its own and is closed there when the block is left.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="read")
    loop = asyncio.get_running_loop()
    made: asyncio.Queue[T | None] = asyncio.Queue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def make() -> None:
        try:
            for item in iterator:
                loop.call_soon_threadsafe(made.put_nowait, item)
                room.acquire()
                if stopped.is_set():
                    return
        finally:
            loop.call_soon_threadsafe(made.put_nowait, None)

    making = loop.run_in_executor(executor, make)

    async def items() -> AsyncIterator[T]:
        while (item := await made.get()) is not None:
            room.release()
            yield item
        await asyncio.shield(making)  # raises what the iterator raised

    try:
        yield items()
    finally:
        stopped.set()
        room.release()
        try:
            await _ended(making)
        finally:
            closing = loop.run_in_executor(executor, _close, iterator)
            executor.shutdown(wait=False)
            await _ended(closing)


class WorkBehind(Generic[T, R]):
    """Hands items from the loop to a thread of its own, in order, while more of them arrive.

    After a call of `work` raised, nothing is handed to it any more; `put` and `end` raise the same.
    Whoever made it calls `stop`, after `end` too.
    """

    def __init__(self, work: Callable[[T], R], *, depth: int = DEPTH) -> None:
        """Begin; needs a running loop."""
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(depth)
        self._results: list[R] = []
        self._is_over = self._stopped = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="work")
        self._working = self._loop.run_in_executor(self._executor, self._run)

    async def put(self, item: T) -> list[R]:
        """Hand over an item when there is room; return the results that came since the last call."""
        await self._room.acquire()
        if self._is_over:
            self._room.release()
            await asyncio.shield(self._working)  # raises
        self._waiting.put(item)
        results, self._results = self._results, []
        return results

    async def end(self) -> list[R]:
        """Wait until everything has been worked on; return the results not yet given."""
        self._waiting.put(None)
        await asyncio.shield(self._working)
        results, self._results = self._results, []
        return results

    async def call(self, function: Callable[[], S]) -> S:
        """Run something else in the same thread, after `end`."""
        return await self._loop.run_in_executor(self._executor, function)

    async def stop(self, last: Callable[[], object]) -> None:
        """Wait for the step under way, drop the rest, and run `last` in the thread."""
        self._stopped = True
        self._waiting.put(None)
        await _ended(self._working)
        await _ended(self._loop.run_in_executor(self._executor, last))
        self._executor.shutdown(wait=False)

    def _run(self) -> None:
        try:
            while (item := self._waiting.get()) is not None and not self._stopped:
                self._loop.call_soon_threadsafe(self._done, self._work(item))
        finally:
            self._loop.call_soon_threadsafe(self._over)

    def _over(self) -> None:
        self._is_over = True
        self._room.release()

    def _done(self, result: R) -> None:
        self._results.append(result)
        self._room.release()


def _close(iterator: Iterator[object]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


async def to_the_end(work: Coroutine[Any, Any, object]) -> None:
    """Let a clean-up run to its end, however often the caller is cancelled meanwhile."""
    await _ended(asyncio.ensure_future(work))


async def _ended(future: "asyncio.Future[T]") -> None:
    """Wait for the end of a step, however often we are cancelled; what it raised has been told.

    A second cancellation must not let its caller go on while the step still uses what is closed next.
    It is raised when the step has ended.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if not future.cancelled():
        future.exception()
    if cancelled is not None:
        raise cancelled
