"""`state/` and `runs/` in etcd: written only by a job's owner, in transactions that prove it.

Every write compares the create revision of the owner key, and the revision of the job's state as this
owner last wrote or read it: a write that was given up and lands late, after a newer one, has no effect.
A run is created once, under the id (job, due instant), before anything acts; everything after that puts
the same key again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from coordinator.errors import CoordinatorError, StoreUnavailable
from coordinator.keys import Keys, parse_instant
from coordinator.ownership import Ownership
from coordinator.records import RunRecord, StateRecord, decode, encode
from coordinator.store import Compare, Delete, Field, Get, KeyValue, Op, Put, Store
from wire.clock import Clock

log = structlog.get_logger()

RETRY_S = 0.2
KEPT_RUNS = 200
"""How many ended runs of a job stay in the ledger; the open one always does."""
KEPT_PASSED_OVER = 1_000
"""How many instants without a run stay in it: they push no run out."""
_TXN_OPS = 100


class NotOwner(CoordinatorError):
    """The owner key is not ours any more: stop, another coordinator goes on."""


class RunExists(CoordinatorError):
    """A run for this instant is in the ledger already."""


@dataclass(frozen=True, slots=True)
class JobMemory:
    """What the ledger knows of a job."""

    state: StateRecord
    open_runs: tuple[tuple[datetime, RunRecord], ...]


class Ledger:
    """The durable memory of all jobs, as their owners write it and anybody reads it."""

    def __init__(self, store: Store, keys: Keys, clock: Clock) -> None:
        """Write under these keys."""
        self._store = store
        self._keys = keys
        self._clock = clock
        self._revisions: dict[str, int] = {}
        """By job the revision of its state when we last wrote or recalled it; 0 for none."""

    async def recall(self, job: str) -> JobMemory:
        """Read a job's state and its open runs, oldest first: what its new owner does first."""
        kv = await self._store.get(self._keys.state(job))
        self._revisions[job] = 0 if kv is None else kv.mod_revision
        state = StateRecord() if kv is None else decode(kv.value, StateRecord)
        runs = await self.runs(job)
        return JobMemory(state, tuple((at, run) for at, run in runs if run.is_open))

    async def state(self, job: str) -> StateRecord:
        """Read a job's state; a job that never ran has an empty one."""
        kv = await self._store.get(self._keys.state(job))
        return StateRecord() if kv is None else decode(kv.value, StateRecord)

    async def runs(self, job: str) -> list[tuple[datetime, RunRecord]]:
        """Read a job's runs, oldest first."""
        snapshot = await self._store.range(self._keys.runs(job))
        return [self._read_run(kv) for kv in snapshot.kvs]

    async def run(self, job: str, instant: datetime) -> RunRecord | None:
        """Read one run."""
        kv = await self._store.get(self._keys.run(job, instant))
        return None if kv is None else decode(kv.value, RunRecord)

    async def create(
        self, owned: Ownership, instant: datetime, run: RunRecord, state: StateRecord
    ) -> None:
        """Create a run, once; raise RunExists when somebody did before, and NotOwner."""
        key = self._keys.run(owned.job, instant)
        new = Compare(key, Field.CREATE, 0)
        await self._commit(owned, [new], [Put(key, encode(run)), self._put(owned, state)])

    async def write(
        self,
        owned: Ownership,
        state: StateRecord,
        runs: Iterable[tuple[datetime, RunRecord]] = (),
    ) -> None:
        """Put a job's state, and runs with it, while it is ours; raise NotOwner.

        CRASH: many runs take several transactions. The state, which says up to where instants have
        been dealt with, comes in the last, so that the next owner puts the rest.
        """
        puts: list[Op] = [Put(self._keys.run(owned.job, at), encode(run)) for at, run in runs]
        puts.append(self._put(owned, state))
        for start in range(0, len(puts), _TXN_OPS):
            await self._commit(owned, [], puts[start : start + _TXN_OPS])

    async def trim(self, owned: Ownership) -> None:
        """Delete the oldest ended runs beyond what is kept."""
        ended = [(at, run) for at, run in await self.runs(owned.job) if not run.is_open]
        ran = [at for at, run in ended if run.started is not None]
        passed_over = [at for at, run in ended if run.started is None]
        surplus = [
            Delete(self._keys.run(owned.job, at))
            for at in (*ran[:-KEPT_RUNS], *passed_over[:-KEPT_PASSED_OVER])
        ]
        for start in range(0, len(surplus), _TXN_OPS):
            await self._commit(owned, [], surplus[start : start + _TXN_OPS])

    async def forget(self, job: str) -> None:
        """Delete everything about a job that was deleted."""
        snapshot = await self._store.range(self._keys.runs(job))
        for kv in snapshot.kvs:
            await self._store.delete(kv.key)
        await self._store.delete(self._keys.state(job))

    def _put(self, owned: Ownership, state: StateRecord) -> Put:
        return Put(self._keys.state(owned.job), encode(state))

    async def _commit(
        self, owned: Ownership, compares: Sequence[Compare], ops: Sequence[Op]
    ) -> None:
        """Run the transaction until it is answered or the job is not ours any more.

        Puts of the same values may be repeated, so a lost answer is followed by another attempt.
        """
        key = self._keys.state(owned.job)
        while True:
            if not owned.is_held:
                raise NotOwner(f"the lease of job {owned.job} is over")
            unchanged = Compare(key, Field.MOD, self._revisions.get(owned.job, 0))
            try:
                result = await self._store.txn([owned.compare(), unchanged, *compares], ops)
                if result.succeeded:
                    if any(isinstance(op, Put) and op.key == key for op in ops):
                        self._revisions[owned.job] = result.revision
                    return
                if await self._was_done(owned, compares, ops):
                    return
            except StoreUnavailable as error:
                log.warning("ledger_write_delayed", job=owned.job, why=str(error))
                await self._clock.sleep(RETRY_S)

    async def _was_done(
        self, owned: Ownership, compares: Sequence[Compare], ops: Sequence[Op]
    ) -> bool:
        """Find out why a transaction failed: True when it is an earlier attempt of ours that did it.

        Raises NotOwner and RunExists; False means that it is worth another attempt.
        """
        key = self._keys.state(owned.job)
        puts = {op.key: op.value for op in ops if isinstance(op, Put)}
        keys = dict.fromkeys([key, *(compare.key for compare in compares), *puts])
        found = await self._store.txn([owned.compare()], [Get(one) for one in keys])
        if not found.succeeded:
            raise NotOwner(f"job {owned.job} has another owner")
        there = dict(zip(keys, found.gets, strict=True))
        state = there[key]
        revision = 0 if state is None else state.mod_revision
        has_changed = revision != self._revisions.get(owned.job, 0)
        self._revisions[owned.job] = revision
        if has_changed and key in puts:
            values = {one: kv.value for one, kv in there.items() if kv is not None}
            if puts.items() <= values.items():
                return True
        if any(there[compare.key] is not None for compare in compares):
            raise RunExists(f"job {owned.job}: a run for this instant exists")
        return False

    def _read_run(self, kv: KeyValue) -> tuple[datetime, RunRecord]:
        return parse_instant(kv.key.rsplit("/", 1)[1]), decode(kv.value, RunRecord)
