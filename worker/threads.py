"""Blocking iterators of the engine, read from the event loop one step ahead."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def read_ahead(iterator: Iterator[T], executor: Executor) -> AsyncIterator[T]:
    """Yield what a blocking iterator yields, its next item made while the last one is used.

    Whoever stops early must let the executor finish its step before closing what the iterator reads.
    """
    loop = asyncio.get_running_loop()
    following = loop.run_in_executor(executor, _step, iterator)
    try:
        while (item := await following) is not None:
            following = loop.run_in_executor(executor, _step, iterator)
            yield item
    finally:
        # Cancellation does not stop a thread: wait for its step, so that nobody uses a closed file.
        await asyncio.wait([following])
        if not following.cancelled():
            following.exception()


def _step(iterator: Iterator[T]) -> T | None:
    return next(iterator, None)
