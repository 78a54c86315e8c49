"""What this coordinator knows of the cluster: jobs, workers and coordinators, as etcd last said.

Follows three prefixes. Everything here is a view that may lag; whoever decides something that must be
right compares in a transaction.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
import structlog

from coordinator.job import JobSpec
from coordinator.job_file import JobFileInvalid, spec_from_plain
from coordinator.keys import Family, Keys
from coordinator.records import BadRecord, CoordinatorRecord, JobRecord, WorkerRecord, decode
from coordinator.store import Changed, Changes, KeyValue, Snapshot, Store

log = structlog.get_logger()

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
        self, store: Store, prefix: str, kind: type[R], changed: Callable[[], None]
    ) -> None:
        """Follow nothing yet."""
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
                self._apply(batch)
                self.is_ready.set()
                self._changed()

    def _apply(self, batch: Snapshot | Changes) -> None:
        if isinstance(batch, Snapshot):
            self.records.clear()
            for kv in batch.kvs:
                self._put(kv)
            return
        for event in batch.events:
            if isinstance(event, Changed):
                self._put(event.kv)
            else:
                self.records.pop(event.key.removeprefix(self._prefix), None)

    def _put(self, kv: KeyValue) -> None:
        name = kv.key.removeprefix(self._prefix)
        try:
            self.records[name] = decode(kv.value, self._kind)
        except BadRecord as error:
            log.warning("record_unreadable", key=kv.key, why=str(error))
            self.records.pop(name, None)


class Catalog:
    """The three views, and the jobs in them as specs."""

    def __init__(self, store: Store, keys: Keys) -> None:
        """Follow nothing yet."""
        self._listeners: list[Callable[[], None]] = []
        self._jobs = View(store, keys.under(Family.JOBS), JobRecord, self._jobs_changed)
        self._workers = View(store, keys.under(Family.WORKERS), WorkerRecord, self._tell)
        self._coordinators = View(
            store, keys.under(Family.COORDINATORS), CoordinatorRecord, self._tell
        )
        self.jobs: dict[str, Job] = {}

    @property
    def workers(self) -> dict[str, WorkerRecord]:
        """The registered workers, by name."""
        return self._workers.records

    @property
    def coordinators(self) -> dict[str, CoordinatorRecord]:
        """The live coordinators, by name."""
        return self._coordinators.records

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` on the loop after anything changed."""
        self._listeners.append(listener)

    async def follow(self) -> None:
        """Keep all views up to date until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for view in (self._jobs, self._workers, self._coordinators):
                tasks.create_task(view.follow())

    async def ready(self) -> None:
        """Wait until every view was read once."""
        for view in (self._jobs, self._workers, self._coordinators):
            await view.is_ready.wait()

    def _jobs_changed(self) -> None:
        jobs: dict[str, Job] = {}
        for name, record in self._jobs.records.items():
            known = self.jobs.get(name)
            if known is not None and known.record == record:
                jobs[name] = known
                continue
            try:
                jobs[name] = Job(spec_from_plain(record.spec), record)
            except JobFileInvalid as error:
                log.warning("job_not_understood", job=name, why=str(error))
        self.jobs = jobs
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
