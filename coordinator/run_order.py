"""What the workers of a job are told of a run. Pure."""

from collections.abc import Mapping

from coordinator.catalog import Job
from coordinator.errors import CoordinatorError
from coordinator.records import WorkerRecord
from coordinator.run_driver import RunOrder
from wire.orders import Assignment, Member


class UnknownWorker(CoordinatorError):
    """A job names a worker that is not registered (any more)."""


def run_order(
    job: Job,
    workers: Mapping[str, WorkerRecord],
    run: str,
    *,
    preview: bool = False,
    approved: bytes = b"",
) -> RunOrder:
    """Put together the order of one run, with the addresses of its workers; raises UnknownWorker."""
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
    assignment = Assignment(
        job=spec.name,
        generation=job.generation,
        source=_at(spec.source_member, addresses),
        targets=tuple(_at(target, addresses) for target in spec.target_members),
        options=spec.mirror_options(),
    )
    return RunOrder(assignment, run, addresses, preview, approved)


def _at(member: Member, addresses: Mapping[str, str]) -> Member:
    return Member(member.worker, member.root, member.path, addresses[member.worker])
