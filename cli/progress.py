"""Following a run to its end, across coordinators that go away, with progress on standard error.

On a terminal a bar with files, bytes, rate and what remains; elsewhere a line now and then.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from baton.v1.coordinator_pb2 import FollowRunRequest
from cli.client import Client, connect
from cli.command import Call
from cli.exits import CommandFailed, NobodyAnswered
from cli.output import human_bytes, say
from coordinator.convert import run_from_wire
from coordinator.views import RunView

PATIENCE_S = 60.0
"""How long nobody may answer before a follower gives up: several takeovers' worth."""

_RETRY_S = 0.5
_LINE_EVERY_S = 5.0


def has_ended(run: RunView) -> bool:
    """Whether a run has ended or is held."""
    return run.outcome != "running"


def has_audited(run: RunView) -> bool:
    """Whether a run has ended, or has compared everything once more if it is one that does not end."""
    kept = run.monitor
    return has_ended(run) or (kept is not None and kept.audits_answered >= kept.audits_asked)


def has_let_go(run: RunView) -> bool:
    """Whether a run that was approved has ended, or holds nothing any more if it does not end."""
    return has_ended(run) or (run.monitor is not None and run.plan is None)


async def follow(
    call: Call, job: str, run_id: str, is_over: Callable[[RunView], bool] = has_ended
) -> RunView:
    """Wait until a run ended or is held, and return it. `run_id` may be empty: the next one.

    Of one that does not end, `is_over` may say for what else to wait.
    A coordinator that goes away is replaced by another of those named. Raises `CommandFailed` when
    nobody answered for `PATIENCE_S`, or when there is no such run.
    """
    loop = asyncio.get_running_loop()
    client = call.client
    patient_until = loop.time() + PATIENCE_S
    said = ""
    async with contextlib.AsyncExitStack() as stack:
        display = stack.enter_context(_Display(job))
        while True:
            try:
                async for run in _watch(client, job, run_id):
                    patient_until = loop.time() + PATIENCE_S
                    run_id = run.id
                    display.show(run)
                    if is_over(run):
                        return run
                await asyncio.sleep(_RETRY_S)  # the stream ended early: its coordinator stops
            except NobodyAnswered as silence:
                if loop.time() > patient_until:
                    raise
                if str(silence) != said:
                    said = str(silence)
                    say(f"{said}; asking again")
                await asyncio.sleep(_RETRY_S)
                with contextlib.suppress(CommandFailed):  # nobody there yet: the old one may return
                    client = await stack.enter_async_context(connect(call.settings, call.timeout_s))


async def _watch(client: Client, job: str, run_id: str) -> AsyncIterator[RunView]:
    request = FollowRunRequest(job=job, run=run_id)
    answers = client.stream(client.stub.FollowRun, request, deadline=False)
    async with contextlib.aclosing(answers):
        async for answer in answers:
            yield run_from_wire(answer.run)


class _Display:
    """Where the progress of one run is shown."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[files]}", markup=False),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(job, total=None, files="")
        self._said_at = 0.0
        self._said = ""

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _show_monitor(self, run: RunView) -> None:
        done = (
            f"{run.files_copied} copied, {run.files_updated} updated, {run.files_deleted} deleted, "
            f"{run.files_renamed} renamed, {human_bytes(run.bytes_copied)}"
        )
        text = f"follows changes: {done}" + (f"; {run.reason}" if run.reason else "")
        if text != self._said:
            self._said = text
            say(f"{self._job} {run.id}: {text}")

    def show(self, run: RunView) -> None:
        """Show how far it is."""
        if run.monitor is not None:
            self._show_monitor(run)
        now = run.progress
        if now is None:
            return
        files = f"{now.files_done}/{now.files_total} files" if now.files_total else ""
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=f"{self._job} {now.phase}",
                completed=now.bytes_done,
                total=now.bytes_total or None,
                files=files,
            )
            return
        at = time.monotonic()
        if now.phase == self._said and at - self._said_at < _LINE_EVERY_S:
            return
        self._said, self._said_at = now.phase, at
        done = f", {files}, {human_bytes(now.bytes_done)} of {human_bytes(now.bytes_total)}"
        say(f"{self._job} {run.id}: {now.phase}" + (done if files else ""))
