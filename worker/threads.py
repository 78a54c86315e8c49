"""Blocking work of the engine, done in threads of its own, and never left behind.

Cancelling a coroutine does not stop a thread. Whoever closes what a thread uses must wait for its step
first: these functions do. Long work gets threads of its own, so that it cannot starve the short calls
of the default executor, on which fences and sessions depend.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")

DEPTH = 4
"""Items that may wait between a thread and the loop: one would make both sides wait for each other's
slowest moments; a few even those out."""
KEPT_S = 5.0
"""How long a thread without work waits for more: short runs would else make several a run."""

_Step = tuple["Future[Any]", Callable[[], Any]]


class LongThreads(Executor):
    """Threads for long work: as many as there is work, and nobody waits for another's to end.

    To start a thread costs the loop more than many a run's step takes, so those that are done wait a
    moment for the next step. Safe to use from several threads.
    """

    def __init__(self, kept_s: float = KEPT_S) -> None:
        """Begin with no thread; each lives for `kept_s` seconds after its last step."""
        self._kept_s = kept_s
        self._lock = threading.Lock()
        self._idle: list[queue.SimpleQueue[_Step]] = []

    @property
    def idle(self) -> int:
        """How many threads wait for work."""
        return len(self._idle)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Begin to call a function in a thread that does nothing else meanwhile; returns at once."""
        future: Future[T] = Future()
        step: _Step = (future, lambda: fn(*args, **kwargs))
        with self._lock:
            waiting = self._idle.pop() if self._idle else None
        if waiting is None:
            threading.Thread(target=self._serve, args=(step,), name="work", daemon=True).start()
        else:
            waiting.put(step)
        return future

    def _serve(self, step: _Step | None) -> None:
        given: queue.SimpleQueue[_Step] = queue.SimpleQueue()
        while step is not None:
            _carry_out(step)
            with self._lock:
                self._idle.append(given)
            step = None  # holds what it used no longer than it took
            step = self._next(given)

    def _next(self, given: "queue.SimpleQueue[_Step]") -> _Step | None:
        try:
            return given.get(timeout=self._kept_s)
        except queue.Empty:
            with self._lock:
                if given in self._idle:
                    self._idle.remove(given)
                    return None
        return given.get()  # RACE: it was taken in that very moment, so its step is on the way


def _carry_out(step: _Step) -> None:
    future, function = step
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
        future.set_exception(error)
    else:
        future.set_result(result)


_threads = LongThreads()


async def in_own_thread(function: Callable[[], T], *, stop: Callable[[], object]) -> T:
    """Run a function in a thread of its own; when cancelled, `stop` it and wait for its end."""
    future = asyncio.get_running_loop().run_in_executor(_threads, function)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop()
        raise
    finally:
        await _ended(future)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do short work as `asyncio.to_thread` does; a caller that is cancelled waits for its end.

    For what uses a file, a descriptor or a database that the caller closes afterwards.
    """
    future = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    finally:
        await _ended(future)


@asynccontextmanager
async def read_ahead(
    iterator: Iterator[T], *, depth: int = DEPTH, stop: Callable[[], object] | None = None
) -> AsyncIterator[AsyncIterator[T]]:
    """Give what a blocking iterator gives, the next items made while one is used.

    The iterator runs in a thread of its own and is closed when the block is left. One that may
    wait for something else than the disk needs `stop`, which wakes it then.
    """
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
            try:
                _close(iterator)
            finally:
                loop.call_soon_threadsafe(made.put_nowait, None)

    making = loop.run_in_executor(_threads, make)

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
        if stop is not None:
            stop()
        await _ended(making)


class WorkBehind(Generic[T, R]):
    """Hands items from the loop to a thread of its own, in order, while more of them arrive.

    `tell` gets every result as soon as it is there, in order: the other side may be waiting for it.
    After a call of `work` or `tell` raised, nothing is worked on any more; `put` and `end` raise the
    same. Whoever made it calls `stop`, after `end` too.
    """

    def __init__(
        self,
        work: Callable[[T], R],
        *,
        tell: Callable[[R], Coroutine[Any, Any, None]],
        depth: int = DEPTH,
    ) -> None:
        """Begin; needs a running loop."""
        self._work = work
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(depth)
        self._results: asyncio.Queue[tuple[R] | None] = asyncio.Queue()
        self._is_over = self._stopped = False
        self._working = self._loop.run_in_executor(_threads, self._run)
        self._called: asyncio.Future[Any] | None = None
        self._telling = asyncio.create_task(self._tell_all())

    async def put(self, item: T) -> None:
        """Hand over an item when there is room: when no more than `depth` results are to be told."""
        await self._room.acquire()
        if self._is_over:
            self._room.release()
            await self._raise()
        self._waiting.put(item)

    async def end(self) -> None:
        """Wait until everything has been worked on and told."""
        self._waiting.put(None)
        await self._raise()

    async def _raise(self) -> None:
        await asyncio.shield(self._telling)
        await asyncio.shield(self._working)

    async def call(self, function: Callable[[], S]) -> S:
        """Run something else in a thread, after `end`; `stop` waits for its end too."""
        called = self._loop.run_in_executor(_threads, function)
        self._called = called
        return await asyncio.shield(called)

    async def stop(self, last: Callable[[], object]) -> None:
        """Wait for the step under way, drop the rest, and run `last` in a thread."""
        self._stopped = True
        self._telling.cancel()
        self._waiting.put(None)
        await _ended(self._working)
        await _ended(self._telling)
        if self._called is not None:
            await _ended(self._called)
        await _ended(self._loop.run_in_executor(_threads, last))

    def _run(self) -> None:
        try:
            while (item := self._waiting.get()) is not None and not self._stopped:
                result = self._work(item)
                self._loop.call_soon_threadsafe(self._results.put_nowait, (result,))
        finally:
            self._loop.call_soon_threadsafe(self._results.put_nowait, None)

    async def _tell_all(self) -> None:
        try:
            while (result := await self._results.get()) is not None:
                await self._tell(*result)
                self._room.release()
        finally:
            self._stopped = self._is_over = True
            self._room.release()
            self._waiting.put(None)


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
