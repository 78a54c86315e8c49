"""What the workers of a job are told of a run. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from coordinator.catalog import Job
from coordinator.errors import BadKey, CoordinatorError
from coordinator.keys import parse_instant
from coordinator.records import WorkerRecord
from coordinator.run_driver import RunOrder
from syncengine.model import Compare
from wire.orders import Assignment, Member, Monitor

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UnknownWorker(CoordinatorError):
    """A job names a worker that is not registered (any more)."""


def run_order(
    job: Job,
    workers: Mapping[str, WorkerRecord],
    run: str,
    *,
    preview: bool = False,
    approved: bytes = b"",
    verify: bool = False,
    monitor: Monitor | None = None,
) -> RunOrder:
    """Put together the order of one run, with the addresses of its workers; raises UnknownWorker.

    To `verify` is to compare contents, whatever runs of the job compare.
    """
    spec = job.spec
    addresses: dict[str, str] = {}
    for worker in spec.workers:
        known = workers.get(worker)
        if known is None:
            raise UnknownWorker(
                f"worker {worker} of job {spec.name} is not registered: "
                f"'baton worker add {worker} HOST:PORT'"
            )
        addresses[worker] = known.address
    options = spec.run_options()
    assignment = Assignment(
        job=spec.name,
        generation=job.generation,
        members=tuple(_at(member, addresses) for member in spec.all_members),
        options=replace(options, compare=Compare.CHECKSUM) if verify else options,
        made=job.record.made,
    )
    return RunOrder(
        assignment,
        run,
        addresses,
        preview,
        approved,
        _number(run),
        verify,
        monitor,
        spec.priority,
        0.0 if monitor is not None else spec.time_limit.limit_s or 0.0,  # it is not to end
    )


def _number(run: str) -> int:
    """Return a number that grows with every run of a job: the microseconds of its instant.

    A preview, whose id is no instant, agrees to nothing and needs none.
    """
    try:
        instant = parse_instant(run)
    except BadKey:
        return 0
    return (instant - _EPOCH) // timedelta(microseconds=1)


def _at(member: Member, addresses: Mapping[str, str]) -> Member:
    return Member(member.worker, member.root, member.path, addresses[member.worker])
