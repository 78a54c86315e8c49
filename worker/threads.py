"""Blocking work of the engine, done in threads of its own, and never left behind.

Cancelling a coroutine does not stop a thread. Whoever closes what a thread uses must wait for its step
first: these functions do. Long work gets threads of its own, so that it cannot starve the short calls
of the default executor, on which fences and sessions depend.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


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
        await _ended(future)
        executor.shutdown(wait=False)


@asynccontextmanager
async def read_ahead(iterator: Iterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Give what a blocking iterator gives, its next item made while the last one is used.

    The iterator runs in a thread of its own and is closed there when the block is left.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="read")
    loop = asyncio.get_running_loop()
    step: asyncio.Future[T | None] = loop.run_in_executor(executor, _step, iterator)

    async def items() -> AsyncIterator[T]:
        nonlocal step
        while (item := await asyncio.shield(step)) is not None:
            step = loop.run_in_executor(executor, _step, iterator)
            yield item

    try:
        yield items()
    finally:
        await _ended(step)
        await _ended(loop.run_in_executor(executor, _close, iterator))
        executor.shutdown(wait=False)


def _step(iterator: Iterator[T]) -> T | None:
    return next(iterator, None)


def _close(iterator: Iterator[object]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


async def _ended(future: "asyncio.Future[T]") -> None:
    """Wait for a thread's step, also while being cancelled; what it raised has been told."""
    await asyncio.wait([future])
    if not future.cancelled():
        future.exception()
