"""What this coordinator knows of the cluster: jobs, workers and coordinators, as etcd last said.

Follows four prefixes. Everything here is a view that may lag; whoever decides something that must be
right compares in a transaction.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
import structlog

from coordinator.job import JobSpec
from coordinator.job_file import JobFileInvalid, spec_from_plain
from coordinator.keys import Family, Keys
from coordinator.records import (
    BadRecord,
    CoordinatorRecord,
    DrainRecord,
    JobRecord,
    WorkerRecord,
    decode,
)
from coordinator.store import Changed, Deleted, KeyValue, Snapshot, Store

log = structlog.get_logger()

BURST_S = 0.05
"""Within which time changes are told together."""
_AT_A_TIME = 200
"""How many records are read before others have their turn."""
BURST_SHARE = 4
"""How much longer than telling takes nothing is told after it."""

R = TypeVar("R", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as this version understands it, with its definition's own record."""

    spec: JobSpec
    record: JobRecord

    @property
    def generation(self) -> int:
        """Which revision of the definition."""
        return self.record.generation


class View(Generic[R]):
    """One prefix, decoded; what cannot be read is left out and logged."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        kind: type[R],
        changed: Callable[[], None],
        was_read: Callable[[str, R], None] = lambda _name, _record: None,
    ) -> None:
        """Follow nothing yet."""
        self._was_read = was_read
        self.records: dict[str, R] = {}
        self.is_ready = asyncio.Event()
        self._store = store
        self._prefix = prefix
        self._kind = kind
        self._changed = changed

    async def follow(self) -> None:
        """Keep `records` up to date until cancelled; `changed` is called after every batch."""
        async with self._store.watch(self._prefix) as batches:
            async for batch in batches:
                if isinstance(batch, Snapshot):
                    self.records = await self._read(batch.kvs)
                else:
                    for event in batch.events:
                        self._apply(event)
                self.is_ready.set()
                self._changed()
                await asyncio.sleep(
                    0
                )  # many batches may lie there, and the loop has leases to keep

    async def _read(self, kvs: Sequence[KeyValue]) -> dict[str, R]:
        """Read all records anew, a few at a time for the same reason."""
        records: dict[str, R] = {}
        for number, kv in enumerate(kvs, 1):
            self._put(records, kv)
            if number % _AT_A_TIME == 0:
                await asyncio.sleep(0)
        return records

    def _apply(self, event: Changed | Deleted) -> None:
        if isinstance(event, Changed):
            self._put(self.records, event.kv)
        else:
            self.records.pop(event.key.removeprefix(self._prefix), None)

    def _put(self, records: dict[str, R], kv: KeyValue) -> None:
        name = kv.key.removeprefix(self._prefix)
        try:
            records[name] = decode(kv.value, self._kind)
        except BadRecord as error:
            log.warning("record_unreadable", key=kv.key, why=str(error))
            records.pop(name, None)
        else:
            self._was_read(name, records[name])


class Catalog:
    """The four views, and the jobs in them as specs."""

    def __init__(self, store: Store, keys: Keys) -> None:
        """Follow nothing yet."""
        self._listeners: list[Callable[[], None]] = []
        self._jobs = View(
            store, keys.under(Family.JOBS), JobRecord, self._jobs_changed, self._job_read
        )
        self._workers = View(store, keys.under(Family.WORKERS), WorkerRecord, self._tell)
        self._coordinators = View(
            store, keys.under(Family.COORDINATORS), CoordinatorRecord, self._tell
        )
        self._drains = View(store, keys.under(Family.DRAINS), DrainRecord, self._tell)
        self.jobs: dict[str, Job] = {}
        self._read_jobs: dict[str, Job] = {}
        self._telling: asyncio.TimerHandle | None = None
        self._quiet_until = 0.0

    @property
    def workers(self) -> dict[str, WorkerRecord]:
        """The registered workers, by name."""
        return self._workers.records

    @property
    def coordinators(self) -> dict[str, CoordinatorRecord]:
        """The live coordinators, by name."""
        return self._coordinators.records

    @property
    def held(self) -> dict[str, str]:
        """The live coordinators that are held down, by name until when and why."""
        return {name: one.held for name, one in self.coordinators.items() if one.held_until}

    @property
    def drains(self) -> dict[str, DrainRecord]:
        """The coordinators that take no jobs, by name; some may not be there."""
        return self._drains.records

    @property
    def _views(self) -> "tuple[View[Any], ...]":
        return self._jobs, self._workers, self._coordinators, self._drains

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` on the loop after anything changed."""
        self._listeners.append(listener)

    async def follow(self) -> None:
        """Keep all views up to date until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for view in self._views:
                tasks.create_task(view.follow())

    async def ready(self) -> None:
        """Wait until every view was read once."""
        for view in self._views:
            await view.is_ready.wait()

    def _job_read(self, name: str, record: JobRecord) -> None:
        known = self._read_jobs.get(name)
        if known is not None and known.record == record:
            return
        try:
            self._read_jobs[name] = Job(spec_from_plain(record.spec), record)
        except JobFileInvalid as error:
            log.warning("job_not_understood", job=name, why=str(error))
            self._read_jobs.pop(name, None)

    def _jobs_changed(self) -> None:
        there = self._jobs.records
        self._read_jobs = {name: job for name, job in self._read_jobs.items() if name in there}
        self.jobs = dict(self._read_jobs)
        self._tell()

    def _tell(self) -> None:
        """Call the listeners: at once, or soon when they were called just now.

        They look at every job there is, so what comes in a burst is looked at together.
        """
        if self._telling is not None:
            return
        loop = asyncio.get_running_loop()
        wait_s = self._quiet_until - loop.time()
        if wait_s > 0:
            self._telling = loop.call_later(wait_s, self._tell_now)
        else:
            self._tell_now()

    def _tell_now(self) -> None:
        self._telling = None
        loop = asyncio.get_running_loop()
        began = loop.time()
        for listener in self._listeners:
            listener()
        ended = loop.time()
        self._quiet_until = ended + max(BURST_S, BURST_SHARE * (ended - began))
