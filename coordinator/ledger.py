"""`state/` and `runs/` in etcd: written only by a job's owner, in transactions that prove it.

Every write compares the create revision of the owner key, and the revision of the job's state as this
owner last wrote or read it: a write that was given up and lands late, after a newer one, has no effect.
A run is created once, under the id (job, due instant), before anything acts; everything after that puts
the same key again.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
import structlog

from coordinator.errors import CoordinatorError, StoreFull, StoreUnavailable
from coordinator.keys import Keys, parse_instant
from coordinator.ownership import Ownership
from coordinator.records import RunRecord, StateRecord, decode, encode, seal_of
from coordinator.store import Compare, Delete, Field, Get, KeyValue, Op, Put, Store
from coordinator.write_times import WriteTimes
from wire.clock import Clock

log = structlog.get_logger()

RETRY_S = 0.2
FULL_RETRY_S = 1.0
"""How often a write is tried again while etcd is at its quota."""
KEPT_RUNS = 200
"""How many ended runs of a job stay in the ledger; the open one always does."""
KEPT_PASSED_OVER = 1_000
"""How many instants without a run stay in it: they push no run out."""
KEPT_AGE = timedelta(days=400)
"""How long they stay: over a year, so that a yearly run can be compared with the one before."""
KEPT_ANYWAY = 10
TRIM_EVERY = 20
"""So many records may be more than are kept, so that not every run reads all that there are."""
RECALLS_AT_ONCE = 32
_TXN_OPS = 100
_TICK = timedelta(microseconds=1)


class NotOwner(CoordinatorError):
    """The owner key is not ours any more: stop, another coordinator goes on."""


class TokenRefused(NotOwner):
    """A worker has accepted a higher token: of a newer owner, or before etcd was set back."""

    def __init__(self, worker: str, detail: str) -> None:
        super().__init__(f"worker {worker}: {detail}")
        self.worker = worker


class LedgerMoved(CoordinatorError):
    """An earlier write of ours that was given up came through: recall what is true before writing."""


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
        self._recalls = asyncio.Semaphore(RECALLS_AT_ONCE)
        self.full = ""
        """Why nothing can be written at present, empty when it can: etcd is at its quota."""
        self.times = WriteTimes()
        self._revisions: dict[str, int] = {}
        """By job the revision of its state when we last wrote or recalled it; 0 for none."""
        self._pens: dict[str, asyncio.Lock] = {}
        """By job: its owner writes one thing after another."""
        self._trims: dict[str, tuple[int, datetime | None]] = {}
        """By job the place in the ledger, and the moment, before which nothing is to be trimmed."""

    async def recall(self, job: str) -> JobMemory:
        """Read a job's state and its open runs, oldest first: what its new owner does first.

        A few jobs at a time: whoever takes over thousands must not bury etcd under reads.
        """
        async with self._recalls:
            kv = await self._store.get(self._keys.state(job))
            self._revisions[job] = 0 if kv is None else kv.mod_revision
            state = StateRecord() if kv is None else decode(kv.value, StateRecord)
            runs = await self.runs(job)
        self._note_kept(job, state, [run for _, run in runs if not run.is_open])
        return JobMemory(state, tuple((at, run) for at, run in runs if run.is_open))

    async def state(self, job: str) -> StateRecord:
        """Read a job's state; a job that never ran has an empty one."""
        kv = await self._store.get(self._keys.state(job))
        return StateRecord() if kv is None else decode(kv.value, StateRecord)

    async def runs(self, job: str) -> list[tuple[datetime, RunRecord]]:
        """Read a job's runs, oldest first."""
        snapshot = await self._store.range(self._keys.runs(job))
        return [self._read_run(kv) for kv in snapshot.kvs]

    async def whole(self, job: str) -> tuple[StateRecord, list[tuple[str, bytes]]]:
        """Read a job's state and its runs of the same moment, as they lie there; raise StoreUnavailable.

        Every write about runs writes the state with it.
        """
        prefix = self._keys.runs(job)
        before = await self._store.get(self._keys.state(job))
        while True:
            snapshot = await self._store.range(prefix)
            after = await self._store.get(self._keys.state(job))
            if before == after:
                break
            before = after
        state = StateRecord() if before is None else decode(before.value, StateRecord)
        return state, [(kv.key.removeprefix(prefix), kv.value) for kv in snapshot.kvs]

    async def run(self, job: str, instant: datetime) -> RunRecord | None:
        """Read one run."""
        kv = await self._store.get(self._keys.run(job, instant))
        return None if kv is None else _unsealed(kv)

    async def create(
        self, owned: Ownership, instant: datetime, run: RunRecord, state: StateRecord
    ) -> None:
        """Create a run, once; raise RunExists when somebody did before, and NotOwner."""
        key = self._keys.run(owned.job, instant)
        new = Compare(key, Field.CREATE, 0)
        put = self._put_run(owned, instant, run)
        await self._commit(owned, [new], [put, self._put(owned, state)])

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
        puts: list[Op] = [self._put_run(owned, at, run) for at, run in runs]
        puts.append(self._put(owned, state))
        for start in range(0, len(puts), _TXN_OPS):
            await self._commit(owned, [], puts[start : start + _TXN_OPS])

    async def add(
        self, owned: Ownership, state: StateRecord, runs: Sequence[tuple[datetime, RunRecord]]
    ) -> None:
        """Create records of instants passed over, all at once; raise NotOwner.

        At most `schedule.TOLD_AT_MOST` + 1 of them. An instant that has a record already, since the
        wall clock was set back, gets a key beside it.
        """
        while True:
            keys = [self._keys.run(owned.job, at) for at, _ in runs]
            new = [Compare(key, Field.CREATE, 0) for key in keys]
            puts = [self._put_run(owned, at, run) for at, run in runs]
            try:
                await self._commit(owned, new, [*puts, self._put(owned, state)])
            except RunExists:
                found = await self._store.txn((), [Get(key) for key in keys])
                runs = [
                    (at if kv is None else at + _TICK, run)
                    for (at, run), kv in zip(runs, found.gets, strict=True)
                ]
            else:
                return

    async def trim(self, owned: Ownership, state: StateRecord, now: datetime) -> StateRecord:
        """Delete ended runs beyond what is kept, by count and age; return the state that says so.

        However old, the newest KEPT_ANYWAY stay. Reads the records when there may be some to
        delete: up to TRIM_EVERY more than are kept may be there.
        """
        place, moment = self._trims.get(owned.job, (0, None))
        if state.seq < place and (moment is None or now < moment):
            return state
        ended = [(at, run) for at, run in await self.runs(owned.job) if not run.is_open]
        ended.sort(key=lambda one: one[1].seq)
        ran = _surplus([one for one in ended if one[1].started is not None], KEPT_RUNS, now)
        passed_over = _surplus(
            [one for one in ended if one[1].started is None], KEPT_PASSED_OVER, now
        )
        surplus = [*ran, *passed_over]
        gone = {at for at, _ in surplus}
        self._note_kept(owned.job, state, [run for at, run in ended if at not in gone])
        if not surplus:
            return state
        last_seqs = [
            max([trimmed, *(run.seq for _, run in some)])
            for trimmed, some in ((state.trimmed[0], ran), (state.trimmed[1], passed_over))
        ]
        state = msgspec.structs.replace(state, trimmed=(last_seqs[0], last_seqs[1]))
        # CRASH: the state, which says what may be missing, comes before the deletions.
        await self._commit(owned, [], [self._put(owned, state)])
        deletes = [Delete(self._keys.run(owned.job, at)) for at, _ in surplus]
        for start in range(0, len(deletes), _TXN_OPS):
            await self._commit(owned, [], deletes[start : start + _TXN_OPS])
        return state

    def _note_kept(self, job: str, state: StateRecord, ended: Sequence[RunRecord]) -> None:
        """Note when there may be something to trim, of these records that have ended."""
        began = sum(run.started is not None for run in ended)
        room = min(KEPT_RUNS - began, KEPT_PASSED_OVER - (len(ended) - began))
        oldest = min((run.ended for run in ended if run.ended is not None), default=None)
        moment = None if oldest is None else oldest + KEPT_AGE
        self._trims[job] = (state.seq + max(room, 0) + TRIM_EVERY, moment)

    async def forget(self, job: str) -> None:
        """Delete everything about a job that was deleted."""
        self._trims.pop(job, None)
        snapshot = await self._store.range(self._keys.runs(job))
        for kv in snapshot.kvs:
            await self._store.delete(kv.key)
        await self._store.delete(self._keys.state(job))

    def _put_run(self, owned: Ownership, at: datetime, run: RunRecord) -> Put:
        sealed = msgspec.structs.replace(run, seal=seal_of(owned.job, at, run))
        return Put(self._keys.run(owned.job, at), encode(sealed))

    def _put(self, owned: Ownership, state: StateRecord) -> Put:
        return Put(self._keys.state(owned.job), encode(state))

    async def _commit(
        self, owned: Ownership, compares: Sequence[Compare], ops: Sequence[Op]
    ) -> None:
        """Run the transaction until it is answered or the job is not ours any more.

        Puts of the same values may be repeated, so a lost answer is followed by another attempt.
        """
        async with self._pens.setdefault(owned.job, asyncio.Lock()):
            await self._commit_alone(owned, compares, ops)

    async def _commit_alone(
        self, owned: Ownership, compares: Sequence[Compare], ops: Sequence[Op]
    ) -> None:
        key = self._keys.state(owned.job)
        while True:
            if not owned.is_held:
                raise NotOwner(f"the lease of job {owned.job} is over")
            unchanged = Compare(key, Field.MOD, self._revisions.get(owned.job, 0))
            began = self._clock.now()
            try:
                result = await self._store.txn([owned.compare(), unchanged, *compares], ops)
                self.times.note(now := self._clock.now(), now - began)
                self.full = ""
                if result.succeeded:
                    if any(isinstance(op, Put) and op.key == key for op in ops):
                        self._revisions[owned.job] = result.revision
                    return
                if await self._was_done(owned, compares, ops):
                    return
            except StoreUnavailable as error:
                log.warning("ledger_write_delayed", job=owned.job, why=str(error))
                await self._clock.sleep(RETRY_S)
            except StoreFull as error:
                if not self.full:
                    log.error("etcd_full", job=owned.job, why=str(error))
                self.full = str(error)
                await self._clock.sleep(FULL_RETRY_S)

    async def _was_done(
        self, owned: Ownership, compares: Sequence[Compare], ops: Sequence[Op]
    ) -> bool:
        """Find out why a transaction failed: True when it is an earlier attempt of ours that did it.

        Raises NotOwner, LedgerMoved and RunExists; False means that it is worth another attempt.

        RACE: whoever is cancelled in the middle of a write does not know what became of it. What it
        wrote must not be overwritten by somebody who has not read it.
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
        if revision != self._revisions.get(owned.job, 0):
            values = {one: kv.value for one, kv in there.items() if kv is not None}
            if key not in puts or not puts.items() <= values.items():
                raise LedgerMoved(
                    f"job {owned.job}: a write that was given up has come through after all"
                )
            self._revisions[owned.job] = revision
            return True
        if any(there[compare.key] is not None for compare in compares):
            raise RunExists(f"job {owned.job}: a run for this instant exists")
        return False

    def _read_run(self, kv: KeyValue) -> tuple[datetime, RunRecord]:
        return parse_instant(kv.key.rsplit("/", 1)[1]), _unsealed(kv)


def _surplus(
    ended: list[tuple[datetime, RunRecord]], kept: int, now: datetime
) -> list[tuple[datetime, RunRecord]]:
    """Return which records go of those that ended, oldest first."""
    too_many = ended[:-kept]
    rest = ended[len(too_many) : -KEPT_ANYWAY]
    return too_many + [one for one in rest if now - (one[1].ended or now) > KEPT_AGE]


def _unsealed(kv: KeyValue) -> RunRecord:
    """Return a record as its owner made it; the seal is between the ledger and its proof."""
    return msgspec.structs.replace(decode(kv.value, RunRecord), seal="")
