"""What an operator asks of the trash of a root of this worker, by way of a coordinator.

Disk goes to threads. Every failure is told as a status with a sentence.
"""

import asyncio
import datetime as dt
import itertools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NoReturn, TypeVar

import grpc
import grpc.aio

from baton.v1 import common_pb2 as pb
from syncengine.errors import EngineError, MalformedFrame
from syncengine.trashed import NotInTrash, Trashed, list_trash, purge, restore
from syncengine.tree import Tree
from syncengine.wall import Wall, machine_wall
from worker.errors import StartRefused
from worker.roots import Roots
from worker.threads import read_ahead

_BATCH = 500
_NAMED = 1_000
"""How many paths an answer names; the rest it counts."""
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}|")

T = TypeVar("T")


class TrashCallFailed(Exception):
    """A call ends with this status and sentence."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        """Keep both."""
        super().__init__(text)
        self.code = code


class TrashCalls:
    """Answers for the roots of one worker; raises TrashCallFailed."""

    def __init__(self, worker: str, roots: Roots, wall: Wall = machine_wall) -> None:
        """Serve these roots."""
        self._worker = worker
        self._roots = roots
        self._wall = wall

    async def list(self, request: pb.ListTrashRequest) -> AsyncIterator[pb.ListTrashResponse]:
        """Yield what lies in the trash, in batches."""
        _check_date(request.date)
        async with read_ahead(self._batches(request)) as batches:
            try:
                async for batch in batches:
                    yield batch
            except (EngineError, OSError) as error:
                _fail(error)

    async def restore(self, request: pb.RestoreTrashRequest) -> pb.RestoreTrashResponse:
        """Bring something back."""
        _check_date(request.date)
        to = request.to if request.HasField("to") else None
        result = await self._at(
            request.root, lambda tree: restore(tree, request.path, date=request.date, to=to)
        )
        return pb.RestoreTrashResponse(
            restored=len(result.paths),
            paths=result.paths[:_NAMED],
            date=result.date,
            in_the_way=len(result.in_the_way),
            left=result.in_the_way[:_NAMED],
        )

    async def purge(self, request: pb.PurgeTrashRequest) -> pb.PurgeTrashResponse:
        """Remove days."""
        older_than_s = request.older_than_s if request.HasField("older_than_s") else None
        if older_than_s is not None and older_than_s < 0:
            raise TrashCallFailed(grpc.StatusCode.INVALID_ARGUMENT, "a negative age")
        days = await self._at(
            request.root, lambda tree: purge(tree, older_than_s=older_than_s, now=self._wall())
        )
        return pb.PurgeTrashResponse(days=days)

    async def _at(self, root: str, work: Callable[[Tree], T]) -> T:
        def opened() -> T:
            with self._open(root) as tree:
                return work(tree)

        try:
            return await asyncio.to_thread(opened)
        except (EngineError, OSError) as error:
            _fail(error)

    def _batches(self, request: pb.ListTrashRequest) -> Iterator[pb.ListTrashResponse]:
        with self._open(request.root) as tree:
            entries = list_trash(tree, date=request.date, below=request.below)
            while batch := [_to_wire(one) for one in itertools.islice(entries, _BATCH)]:
                yield pb.ListTrashResponse(entries=batch)

    def _open(self, name: str) -> Tree:
        if name not in self._roots:
            raise TrashCallFailed(
                grpc.StatusCode.NOT_FOUND,
                f"worker {self._worker} exports no root {name!r}; it has "
                f"{', '.join(self._roots.names) or 'none'}",
            )
        try:
            root = self._roots[name]
        except StartRefused as error:
            raise TrashCallFailed(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from error
        return Tree.open(bytes(root.path), read_only=root.read_only)


def _to_wire(one: Trashed) -> pb.TrashedEntry:
    return pb.TrashedEntry(
        date=one.date,
        path=one.path,
        kind=one.kind.name.lower(),
        size=one.size,
        mtime_ns=one.mtime_ns,
    )


def _check_date(date: str) -> None:
    is_date = _DATE.fullmatch(date) is not None
    if is_date and date:
        try:
            dt.date.fromisoformat(date)
        except ValueError:
            is_date = False
    if not is_date:
        text = f"{date!r} is no date: write it as YYYY-MM-DD"
        raise TrashCallFailed(grpc.StatusCode.INVALID_ARGUMENT, text)


def _fail(error: EngineError | OSError) -> NoReturn:
    match error:
        case NotInTrash():
            code = grpc.StatusCode.NOT_FOUND
        case MalformedFrame():
            text = f"PATH must lie below the root, and not be Baton's own: {error}"
            raise TrashCallFailed(grpc.StatusCode.INVALID_ARGUMENT, text) from error
        case _:
            code = grpc.StatusCode.FAILED_PRECONDITION
    raise TrashCallFailed(code, str(error)) from error
