"""An event loop on which several processes live, in virtual time, interleaved by a seed.

Within a process callbacks run in the order in which they became ready, as asyncio promises; between
processes nothing is promised, and the seed chooses. A process can be paused (SIGSTOP: it finds on its
return all that came meanwhile) and killed (SIGKILL: nothing of it runs any more, not even a `finally`).
Which process a callback belongs to, its context says.
"""

import asyncio
import contextlib
import contextvars
import heapq
import random
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_START_S = 1_000.0
_CALL_S = (0.0001, 0.004)
"""How long what is done in a thread takes."""


class Stuck(RuntimeError):
    """Nothing is left to run and no timer is set."""


class Halted(Exception):
    """Somebody wanted no further step."""


class Handle:
    """A callback of a process, to be run soon or later."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "process")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
        process: "Process",
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.process = process
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled


class Process:
    """One life of a process; `main` is what it does."""

    def __init__(self, loop: "SimulatedLoop", name: str) -> None:
        self.name = name
        self.ready: deque[Handle] = deque()
        self.is_paused = False
        self.is_dead = False
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)
        self._loop = loop

    def pause(self) -> None:
        """Stop it where it is; what is ready, and what becomes so, waits."""
        if not self.is_paused and not self.is_dead:
            self.is_paused = True
            if self.ready:
                self._loop.runnable.remove(self)

    def resume(self) -> None:
        """Let it go on, with all that has come meanwhile."""
        if self.is_paused and not self.is_dead:
            self.is_paused = False
            if self.ready:
                self._loop.runnable.append(self)

    def kill(self) -> None:
        """End it between two callbacks."""
        self.pause()
        self.is_dead = True

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run a coroutine as a task of this process."""
        return self._loop.create_task(work, context=self.context.copy())

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> None:
        """Have something happen in this process, from outside."""
        self._loop.call_at(when, callback, *args, context=self.context)


_PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")


class SimulatedLoop(asyncio.AbstractEventLoop):
    """The loop of all processes. Only what asyncio's tasks, futures and time-outs need is there."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.runnable: list[Process] = []
        self.steps = 0
        self.errors: list[str] = []
        """What nobody caught: an error of the program, or of the simulation."""
        self._now = _START_S
        self._timers: list[tuple[float, int, Handle]] = []
        self._timers_made = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self._traps: list[tuple[int, int, Callable[[], None]]] = []
        self._traps_made = 0
        self._trap = sys.maxsize
        self._is_halted = False
        self._is_over = False
        self.outside = Process(self, "outside")

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run until this coroutine, outside of all processes, has ended; everything else is dropped."""
        asyncio._set_running_loop(self)
        try:
            task = self.outside.start(main)
            while not (task.done() or self._is_halted):
                self._step()
            if self._is_halted:
                raise Halted
            return task.result()
        finally:
            self._drop_all()
            asyncio._set_running_loop(None)

    def halt(self) -> None:
        """End `run` after the present step, with Halted."""
        self._is_halted = True

    def after_steps(self, steps: int, act: Callable[[], None]) -> None:
        """Have something happen between two callbacks of the same moment."""
        self._traps_made += 1
        heapq.heappush(self._traps, (self.steps + steps, self._traps_made, act))
        self._trap = self._traps[0][0]

    def _spring(self) -> None:
        while self._traps and self._traps[0][0] <= self.steps:
            self.outside.context.run(heapq.heappop(self._traps)[2])
        self._trap = self._traps[0][0] if self._traps else sys.maxsize

    def _step(self) -> None:
        if self.steps >= self._trap:
            self._spring()
        runnable = self.runnable
        if not runnable:
            self._go_on()
            return
        self.steps += 1
        at = int(self.random.random() * len(runnable)) if len(runnable) > 1 else 0
        process = runnable[at]
        handle = process.ready.popleft()
        if not process.ready:
            runnable[at] = runnable[-1]
            runnable.pop()
        if not handle.is_cancelled:
            handle.context.run(handle.callback, *handle.args)

    def _go_on(self) -> None:
        """Let time pass until the next timer."""
        timers = self._timers
        while timers:
            when, _, handle = heapq.heappop(timers)
            if handle.is_cancelled or handle.process.is_dead:
                continue
            self._now = max(self._now, when)
            self._add(handle)
            return
        raise Stuck("every task waits for another")

    def _add(self, handle: Handle) -> None:
        process = handle.process
        if process.is_dead:
            return
        if not process.ready and not process.is_paused:
            self.runnable.append(process)
        process.ready.append(handle)

    def _drop_all(self) -> None:
        """Forget every task: none of them runs another step, and none complains."""
        self._is_over = True
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                # A `finally` that waits for something makes close() complain.
                with contextlib.suppress(RuntimeError):
                    self.outside.context.run(task.get_coro().close)
        self._tasks.clear()
        self._timers.clear()
        self.runnable.clear()

    # What asyncio asks of a loop

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self._is_over

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> "asyncio.Task[T]":
        task = _Task(coro, loop=self, name=str(name or "task"), context=context)
        task.number = len(self._tasks)
        self._tasks.append(task)
        return task

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        if context is None:
            context = contextvars.copy_context()
        handle = Handle(callback, args, context, context[_PROCESS])
        if not self._is_over:
            self._add(handle)
        return handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        if context is None:
            context = contextvars.copy_context()
        handle = Handle(callback, args, context, context[_PROCESS])
        if not self._is_over:
            self._timers_made += 1
            heapq.heappush(self._timers, (when, self._timers_made, handle))
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: None, func: Callable[..., T], *args: Any
    ) -> "asyncio.Future[T]":
        """Do what would be done in a thread all at once, after a while."""
        done: asyncio.Future[T] = self.create_future()

        def do() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - the caller's
                if not done.cancelled():
                    done.set_exception(error)
            else:
                if not done.cancelled():
                    done.set_result(result)

        self.call_later(self.random.uniform(*_CALL_S), do)
        return done

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._is_over:
            error = context.get("exception")
            self.errors.append(f"{context.get('message')}: {error!r}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


class _Task(asyncio.Task[T]):
    """A task whose place in a set depends on the seed only, not on its address."""

    number = 0

    def __hash__(self) -> int:
        return self.number
