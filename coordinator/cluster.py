"""Changing and reading the cluster's definitions: jobs and workers, on behalf of an operator.

Any coordinator can do this: everything is a transaction on etcd that compares what it was decided on.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from coordinator.conflicts import conflicts
from coordinator.errors import CoordinatorError
from coordinator.job import JobSpec
from coordinator.job_file import JobFileInvalid, diff, spec_from_plain, spec_to_plain
from coordinator.job_owner import utc_now
from coordinator.keys import Family, Keys, check_name
from coordinator.ledger import Ledger
from coordinator.records import (
    DrainRecord,
    JobRecord,
    PauseRecord,
    WorkerRecord,
    decode,
    encode,
)
from coordinator.store import Compare, Delete, Field, Get, Put, Store
from coordinator.views import AcceptedView, AppliedView, RootView, WorkerTestView, WorkerView
from coordinator.worker_client import WorkerUnreachable, accept_cluster, describe, measure
from syncengine.model import Rule
from wire.address import parse_address
from wire.channel import Credentials
from wire.errors import AddressInvalid
from wire.orders import Member, WorkerDescription

_TRIES = 5


class NotFound(CoordinatorError):
    """There is nothing of that name."""


class AlreadyThere(CoordinatorError):
    """The name is in use for something else."""


class Invalid(CoordinatorError):
    """What was asked for makes no sense here; the text says which field and what would be right."""


class Contended(CoordinatorError):
    """Somebody else kept changing the same thing."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Definitions in etcd, read fresh for every request."""

    store: Store
    keys: Keys
    ledger: Ledger
    credentials: Credentials

    # Jobs

    async def apply(
        self, specs: Sequence[JobSpec], *, by: str, dry_run: bool, create_only: bool
    ) -> list[AppliedView]:
        """Make the definitions as given: all of them are checked before the first is written.

        Raises Invalid, AlreadyThere (`create_only`), Contended. RACE: two operators who apply
        overlapping jobs within the same milliseconds may both pass the check against each other.
        """
        known = await self._jobs()
        others = {name: spec for name, (spec, _, _) in known.items()}
        others.update({spec.name: spec for spec in specs})
        problems, warnings = [], {}
        described = await self._describe_workers(specs)
        nodes = await self._known_coordinators() if any(s.placement.nodes for s in specs) else set()
        for spec in specs:
            if create_only and spec.name in known:
                raise AlreadyThere(
                    f"name: job {spec.name} exists: change it with 'baton job apply', "
                    "or choose another name"
                )
            own, warnings[spec.name] = _check_members(spec, described)
            problems += own
            if spec.name not in known or known[spec.name][0].placement != spec.placement:
                refused, doubts = _check_placement(spec, nodes)
                problems += refused
                warnings[spec.name] += doubts
            problems += [f"{spec.name}: {p}" for p in conflicts(spec, others.values())]
        if problems:
            raise Invalid("\n".join(dict.fromkeys(problems)))
        applied = []
        for spec in specs:
            before = known.get(spec.name)
            old = before[0] if before else None
            differences = tuple(diff(old, spec))
            generation = before[1].generation if before else 0
            action = "created" if before is None else ("updated" if differences else "unchanged")
            if differences or before is None:
                generation += 1
                if before is None and not dry_run:
                    await self.ledger.forget(spec.name)  # what an unfinished deletion left
                if not dry_run:
                    record = JobRecord(
                        spec=spec_to_plain(spec),
                        generation=generation,
                        changed_by=by,
                        changed_at=utc_now(),
                        made=before[1].made if before else secrets.token_hex(8),
                        paused=before[1].paused if before else None,
                    )
                    await self._put_job(spec.name, record, before[2] if before else 0)
            applied.append(
                AppliedView(spec.name, action, differences, generation, tuple(warnings[spec.name]))
            )
        return applied

    async def _known_coordinators(self) -> set[str]:
        """Return the names of all coordinators that are there, or were before."""
        names: set[str] = set()
        for family in (Family.COORDINATORS, Family.LIVES, Family.DRAINS):
            prefix = self.keys.under(family)
            found = await self.store.range(prefix)
            names |= {kv.key.removeprefix(prefix) for kv in found.kvs}
        return names

    async def has_job(self, name: str) -> bool:
        """Say whether a job is defined."""
        _check_label("NAME", name)
        return await self.store.get(self.keys.job(name)) is not None

    async def delete_job(self, name: str) -> None:
        """Remove a job and all that is recorded of it; files stay where they are."""
        _check_label("NAME", name)
        key = self.keys.job(name)
        kv = await self.store.get(key)
        if kv is None:
            raise NotFound(f"there is no job {name}: 'baton job list' shows those there are")
        # With its key the owner loses the right to write another word about the job.
        deleted = await self.store.txn(
            [Compare(key, Field.MOD, kv.mod_revision)],
            [Delete(key), Delete(self.keys.owner(name))],
        )
        if not deleted.succeeded:
            raise Contended(f"job {name} was changed by somebody else just now: look, try again")
        await self.ledger.forget(name)

    async def _jobs(self) -> dict[str, tuple[JobSpec, JobRecord, int]]:
        snapshot = await self.store.range(self.keys.under(Family.JOBS))
        jobs = {}
        for kv in snapshot.kvs:
            record = decode(kv.value, JobRecord)
            try:
                spec = spec_from_plain(record.spec)
            except JobFileInvalid:
                continue  # of a newer version; the catalog logs it
            jobs[spec.name] = (spec, record, kv.mod_revision)
        return jobs

    async def pause(self, name: str, *, by: str) -> None:
        """Let nothing of a job go on until `resume`; one that is paused stays so as it is."""
        record, revision = await self._job_record(name)
        if record.paused is None:
            paused = PauseRecord(by=by, since=utc_now())
            await self._put_job(name, msgspec.structs.replace(record, paused=paused), revision)

    async def resume(self, name: str) -> None:
        """Let a job go on; one that is not paused does."""
        record, revision = await self._job_record(name)
        if record.paused is not None:
            await self._put_job(name, msgspec.structs.replace(record, paused=None), revision)

    async def _job_record(self, name: str) -> tuple[JobRecord, int]:
        _check_label("NAME", name)
        kv = await self.store.get(self.keys.job(name))
        if kv is None:
            raise NotFound(f"there is no job {name}: 'baton job list' shows those there are")
        return decode(kv.value, JobRecord), kv.mod_revision

    async def _put_job(self, name: str, record: JobRecord, revision: int) -> None:
        key = self.keys.job(name)
        result = await self.store.txn(
            [Compare(key, Field.MOD, revision)], [Put(key, encode(record))]
        )
        if not result.succeeded:
            raise Contended(f"job {name} was changed by somebody else just now: look, try again")

    # Coordinators

    async def drain(self, name: str, *, by: str) -> None:
        """Say that a coordinator takes no jobs, and gives up those that it has; raises NotFound."""
        _check_label("NAME", name)
        if await self.store.get(self.keys.coordinator(name)) is None:
            raise NotFound(
                f"there is no coordinator {name} up: 'baton coordinator list' shows those there are"
            )
        record = DrainRecord(by=by, since=utc_now())
        key = self.keys.drain(name)
        await self.store.txn([Compare(key, Field.CREATE, 0)], [Put(key, encode(record))])

    async def undrain(self, name: str) -> None:
        """Let a coordinator take jobs again; raises NotFound for one that is not there nor drained."""
        _check_label("NAME", name)
        key = self.keys.drain(name)
        known = await self.store.txn((), [Get(key), Get(self.keys.coordinator(name))])
        if all(kv is None for kv in known.gets):
            raise NotFound(
                f"there is no coordinator {name}: 'baton coordinator list' shows those there are"
            )
        await self.store.txn((), [Delete(key)])

    async def _describe_workers(
        self, specs: Sequence[JobSpec]
    ) -> dict[str, WorkerDescription | str | None]:
        """By worker: what it says of itself, why it cannot be asked, or None when unknown."""
        names = sorted({worker for spec in specs for worker in spec.workers})

        async def ask(name: str) -> WorkerDescription | str | None:
            kv = await self.store.get(self.keys.worker(name))
            if kv is None:
                return None
            address = decode(kv.value, WorkerRecord).address
            try:
                return await describe(name, address, self.credentials)
            except WorkerUnreachable as error:
                return str(error)

        return dict(zip(names, await asyncio.gather(*map(ask, names)), strict=True))

    # Workers

    async def add_worker(self, name: str, address: str, group: str, by: str) -> WorkerView:
        """Register a worker, or where it is now if it moved.

        Raises AlreadyThere while one of that name answers at another address, Contended.
        """
        _check_label("NAME", name)
        try:
            parse_address(address)
        except AddressInvalid as error:
            raise Invalid(f"HOST:PORT: {error}") from error
        key = self.keys.worker(name)
        record = WorkerRecord(address=address, group=group, added_by=by, added_at=utc_now())
        kv = await self.store.get(key)
        if kv is not None:
            await self._check_moved(name, decode(kv.value, WorkerRecord), address)
        revision = kv.mod_revision if kv is not None else 0
        result = await self.store.txn(
            [Compare(key, Field.MOD, revision)], [Put(key, encode(record))]
        )
        if not result.succeeded:
            raise Contended(f"worker {name} was changed by somebody else just now: try again")
        return await self._look_at(name, record)

    async def _check_moved(self, name: str, known: WorkerRecord, address: str) -> None:
        """Refuse a second worker of a name: the first must not answer any more."""
        if known.address == address:
            return
        if (await self._look_at(name, known)).reachable:
            raise AlreadyThere(
                f"worker {name} is registered at {known.address} and answers there: "
                f"stop it first if it is to move to {address}; else choose another name"
            )

    async def workers(self) -> list[WorkerView]:
        """Return all registered workers, each asked how it is."""
        snapshot = await self.store.range(self.keys.under(Family.WORKERS))
        prefix = self.keys.under(Family.WORKERS)
        known = [
            (kv.key.removeprefix(prefix), decode(kv.value, WorkerRecord)) for kv in snapshot.kvs
        ]
        return list(await asyncio.gather(*(self._look_at(name, one) for name, one in known)))

    async def worker(self, name: str) -> WorkerView:
        """Return one registered worker, asked how it is; raises NotFound."""
        return await self._look_at(name, await self._worker_record(name))

    async def remove_worker(self, name: str) -> None:
        """Forget a worker that no job names; raises NotFound, Invalid."""
        await self._worker_record(name)
        users = sorted(
            job for job, (spec, _, _) in (await self._jobs()).items() if name in spec.workers
        )
        if users:
            raise Invalid(
                f"NAME: worker {name} is used by job {', '.join(users)}: change or delete that first"
            )
        await self.store.txn([], [Delete(self.keys.worker(name))])

    async def test_worker(self, name: str) -> WorkerTestView:
        """Connect to a worker and measure; raises NotFound, WorkerUnreachable."""
        record = await self._worker_record(name)
        described = await describe(name, record.address, self.credentials)
        rtt_ms, throughput = await measure(name, record.address, self.credentials)
        return WorkerTestView(
            name,
            record.address,
            described.identity,
            record.group,
            _roots(described),
            rtt_ms,
            throughput,
        )

    async def accept_at_worker(self, name: str) -> AcceptedView:
        """Have a worker take tokens of this etcd cluster as it is now; raises NotFound, Contended.

        A token beyond the present revision is none of this cluster: it was set back to a backup.
        """
        record = await self._worker_record(name)
        cluster_id = await self.store.cluster_id()
        revision = (await self.store.txn((), [Get(self.keys.worker(name))])).revision
        gone = await accept_cluster(name, record.address, self.credentials, cluster_id, revision)
        return AcceptedView(name, f"{cluster_id:x}", revision, gone)

    async def address_of(self, name: str) -> str:
        """Return where a worker is said to listen; raises NotFound, Invalid."""
        return (await self._worker_record(name)).address

    async def _worker_record(self, name: str) -> WorkerRecord:
        _check_label("NAME", name)
        kv = await self.store.get(self.keys.worker(name))
        if kv is None:
            raise NotFound(f"there is no worker {name}: 'baton worker list' shows those there are")
        return decode(kv.value, WorkerRecord)

    async def _look_at(self, name: str, record: WorkerRecord) -> WorkerView:
        try:
            described = await describe(name, record.address, self.credentials)
        except WorkerUnreachable as error:
            return WorkerView(
                name, record.address, record.group, reachable=False, reason=str(error)
            )
        return WorkerView(
            name,
            record.address,
            record.group,
            reachable=True,
            identity=described.identity,
            version=described.version,
            roots=_roots(described),
            orders_refused=described.orders_refused,
        )


def _roots(described: WorkerDescription) -> tuple[RootView, ...]:
    return tuple(
        RootView(root.name, root.path, root.read_only, root.available, root.free_bytes, root.watch)
        for root in described.roots
    )


def _check_label(field: str, name: str) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise Invalid(f"{field}: {error}") from error


def _check_members(
    spec: JobSpec, described: dict[str, WorkerDescription | str | None]
) -> tuple[list[str], list[str]]:
    """Return what is wrong with a job's members, and what could not be checked."""
    problems: list[str] = []
    warnings: list[str] = []
    for field, member in spec.named_members:
        found = described[member.worker]
        where = f"{spec.name}: {field}: {member}"
        if found is None:
            problems.append(
                f"{where}: there is no worker {member.worker}: "
                f"'baton worker add {member.worker} HOST:PORT' registers it"
            )
        elif isinstance(found, str):
            warnings.append(f"{field}: {member} could not be checked: {found}")
        else:
            role = _role(spec, field)
            problems += _check_root(where, role, member, found)
    return problems, warnings


def _check_placement(spec: JobSpec, known: set[str]) -> tuple[list[str], list[str]]:
    """Return why a job could wait for ever for a coordinator that nobody knows, or what is doubtful."""
    unknown = [node for node in spec.placement.nodes if node not in known]
    if not unknown:
        return [], []
    there = ", ".join(sorted(known)) or "none"
    what = f"there is no coordinator {', '.join(unknown)}, and there was none; known: {there}"
    if spec.placement.fallback:
        return [], [f"placement.nodes: {what}"]
    advice = "start it first, name another, or allow fallback"
    return [f"{spec.name}: placement.nodes: {what}: with fallback: false, {advice}"], []


def _role(spec: JobSpec, field: str) -> str:
    """Say as what a job writes to the member that a field names; empty when it only reads there."""
    if field != "source":
        return "a target" if spec.rule.is_one_way else f"a member of rule {spec.rule}"
    return f"the source of rule {spec.rule}" if spec.rule is Rule.MOVE else ""


def _check_root(where: str, role: str, member: Member, worker: WorkerDescription) -> list[str]:
    root = next((one for one in worker.roots if one.name == member.root), None)
    if root is None:
        names = ", ".join(one.name for one in worker.roots) or "none"
        return [f"{where}: worker {member.worker} exports no root {member.root}; it has {names}"]
    if root.read_only and role:
        how = f"start worker {member.worker} with --root {member.root}={root.path}"
        return [f"{where}: root {member.root} is read-only and cannot be {role}: {how}"]
    return []
