"""What must hold at every commit, every order and every slice that is published.

These look at the world from outside, with books of their own: what the code under test believes of
itself is not asked. The first violation ends the simulation.
"""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from coordinator.errors import CoordinatorError
from coordinator.ownership import Claim
from coordinator.records import RunRecord, decode
from coordinator.store import Changed, Deleted, KeyValue
from tests.simulation.loop import Process
from wire.orders import Extend, Hello, OpenSession, Order, Outcome
from wire.token import Token

if TYPE_CHECKING:
    from datetime import datetime

    from tests.simulation.workers import SimulatedWorker
    from tests.simulation.world import World

MARGIN = 0.1
"""The share of a TTL by which an owner is silent before etcd frees its keys: `lease_session`."""


class Violation(AssertionError):
    """Something that must never be."""


class Checks:
    """The books, and what is compared with them."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.count = 0
        self._deadlines: dict[int, float] = {}
        """By lease until when its holder may give orders, by the answers it got."""
        self._expired: set[int] = set()
        """Leases that etcd let go because nobody renewed them."""
        self._lease_of: dict[Token, int] = {}
        self._published: dict[tuple[str, str], Token] = {}
        """By worker and job the highest token that something was published under."""
        self._accepted: dict[tuple[str, str, str], Token] = {}
        """By worker, job and root the token on disk."""
        self._runs: dict[str, KeyValue] = {}
        self._records: dict[str, RunRecord] = {}
        self._dues: dict[tuple[str, datetime], str] = {}
        self._seqs: dict[str, int] = {}

    def fail(self, promise: str, what: str) -> None:
        violation = Violation(f"{promise}: {what}")
        self._world.trace.add("CHECK", violation)
        self._world.violated(violation)
        raise violation

    # Leases

    def renewed(self, lease: int, sent_at: float, ttl_s: float) -> None:
        """Hear that a client got an answer about its lease."""
        deadline = self._deadlines.get(lease)
        if ttl_s > 0 and (deadline is None or self._world.clock.now() < deadline):
            self._deadlines[lease] = sent_at + ttl_s - ttl_s * MARGIN

    def expired(self, lease: int) -> None:
        """Hear that etcd is about to let a lease go because it was not renewed."""
        self._expired.add(lease)

    # Orders (I12)

    def ordered(self, process: Process, order: Order) -> None:
        """Look at an order as it leaves a coordinator."""
        if isinstance(order, Hello):
            return
        self.count += 1
        lease = int(order.lease, 16) if isinstance(order, Extend) else self._lease_of[order.token]
        late_s = self._world.clock.now() - self._deadlines[lease]
        if late_s >= 0:
            name = type(order).__name__
            self.fail("I12", f"{process.name} gave {name} {late_s:.3f} s after its deadline")
        if isinstance(order, OpenSession):
            self._world.trace.add(process.name, f"orders {order.assignment.job} {order.token}")

    # Slices (I4, I5, I12)

    def accepted(self, worker: str, job: str, root: str, token: Token) -> None:
        """Look at a token that a worker puts on its disk."""
        self.count += 1
        before = self._accepted.setdefault((worker, job, root), token)
        if token < before:
            self.fail("I4", f"{worker} accepts {token} for {job} after {before}")
        self._accepted[worker, job, root] = token

    def published_under(self, worker: str, job: str) -> Token | None:
        """Return the highest token that a worker has published a job's slices under."""
        return self._published.get((worker, job))

    def published(
        self, worker: "SimulatedWorker", job: str, root: str, run: str, badge: Token
    ) -> None:
        """Look at a slice that a worker makes visible."""
        self.count += 1
        self._world.trace.add(worker.name, f"publishes {job} {run} {badge}")
        accepted = worker.journal.accepted.get((job, root))
        if accepted is None or accepted < badge:
            self.fail("I5", f"{worker.name} publishes {job} under {badge}; on disk is {accepted}")
        elif badge < accepted:
            self.fail("I4", f"{worker.name} publishes {job} under {badge} after {accepted}")
        before = self._published.setdefault((worker.name, job), badge)
        if badge < before:
            self.fail("I4", f"{worker.name} published {job} under {before}, now under {badge}")
        self._published[worker.name, job] = badge
        if self._lease_of[badge] in self._expired:
            self.fail("I12", f"{worker.name} publishes {job} under {badge}, whose lease expired")
        record = self._records.get(f"{job}/{run}")
        if record is None:
            self.fail("I9", f"{worker.name} publishes run {run} of {job}, which nobody recorded")
        elif record.outcome is Outcome.SUCCEEDED:
            self.fail("I9", f"{worker.name} publishes run {run} of {job}, which has succeeded")

    # Commits (I9, and who may hold the pen)

    def committed(self, writer: Process | None, events: Iterable[Changed | Deleted]) -> None:
        """Look at a transaction that etcd has carried out."""
        keys = self._world.keys
        root = len(keys.prefix)
        for event in events:
            key = (event.kv.key if isinstance(event, Changed) else event.key)[root:]
            family, _, name = key.partition("/")
            self._world.trace.add(
                writer.name if writer else "etcd",
                f"{'puts' if isinstance(event, Changed) else 'deletes'} {key}",
            )
            if not isinstance(event, Changed):
                continue
            self.count += 1
            if family == "owners":
                self._owner_put(name, event.kv, writer)
            elif family == "state":
                self._pen_used(writer, name, key)
                self._state_put(name, event.kv)
            elif family == "runs":
                job = name.partition("/")[0]
                self._pen_used(writer, job, key)
                self._run_put(job, name, event.kv)

    def _owner_put(self, job: str, kv: KeyValue, writer: Process | None) -> None:
        token = Token(self._world.etcd.cluster_id, kv.create_revision)
        self._lease_of[token] = kv.lease
        if kv.version != 1:
            self.fail("I9", f"the owner key of {job} was put again")
        for other in self._world.coordinators.values():
            scheduler = other.scheduler
            if other.process.is_dead or scheduler is None or other.process is writer:
                continue
            owned = scheduler.election.owned.get(job)
            if owned is None or not owned.is_held:
                continue
            lease = owned.session.lease_id
            is_gone = self._world.etcd.lease_deadline(lease) is None
            if is_gone and lease not in self._expired:
                continue  # revoked by somebody else: fencing, not time, holds it off
            self.fail("I12", f"{other.name} still holds {job}, which has a new owner")

    def _pen_used(self, writer: Process | None, job: str, key: str) -> None:
        if writer is None:
            return
        kv = self._world.etcd.get(self._world.keys.owner(job))
        node = None if kv is None else Claim.from_json(kv.value).node
        if node != writer.name:
            self.fail("I9", f"{writer.name} wrote {key}, and the owner is {node}")

    def _state_put(self, job: str, kv: KeyValue) -> None:
        seq = json.loads(kv.value)["seq"]
        if seq < self._seqs.get(job, 0):
            self.fail("I9", f"the state of {job} went back to place {seq}")
        self._seqs[job] = seq

    def _run_put(self, job: str, name: str, kv: KeyValue) -> None:
        record = decode(kv.value, RunRecord)
        before = self._records.get(name)
        if before is None:
            if kv.version != 1:
                self.fail("I9", f"record {name} comes from nowhere")
            if not record.by_hand and not self._world.was_set_back:
                other = self._dues.setdefault((job, record.due), name)
                if other != name:
                    self.fail(
                        "I9", f"{record.due} of {job} is in the ledger twice: {other}, {name}"
                    )
        else:
            self._check_change(job, name, before, record)
        self._records[name] = record

    def _check_change(self, job: str, name: str, before: RunRecord, record: RunRecord) -> None:
        if before.ended is not None and before != record:
            self.fail("I9", f"run {name} had ended {before.outcome}, and now is {record.outcome}")
        if before.due != record.due or before.seq != record.seq:
            self.fail("I9", f"run {name} changed its place")
        old, new = ([one.token for one in run.attempts] for run in (before, record))
        if new[: len(old)] not in (old, old[:-1]):  # what every worker refused was no attempt
            self.fail("I9", f"run {name} lost an attempt: {old} became {new}")
        owner = self._world.etcd.get(self._world.keys.owner(job))
        token = "" if owner is None else f"{self._world.etcd.cluster_id:x}.{owner.create_revision}"
        if new[: len(old)] == old[:-1] and old and before.attempts[-1].token != token:
            self.fail("I9", f"run {name} lost an attempt of another owner: {old} became {new}")
        if any(one != token for one in new[len(old) :]):
            self.fail("I9", f"run {name} has an attempt under {new[-1]}; the owner has {token}")

    # Processes

    def ended_well(self, name: str, results: Iterable[object]) -> None:
        """Look at how the tasks of a coordinator ended: by errors that the daemon knows."""
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, CoordinatorError):
                self.fail("errors", f"{name} broke: {result!r}")
