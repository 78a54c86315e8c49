"""What the baton command asks, answered by any coordinator.

Definitions and views come from etcd. What only a job's owner can do is done here when the owner is this
process, else passed on to it, once. While a job has no owner, a request waits a while for one.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio
import structlog

from baton.v1 import coordinator_pb2 as pb
from baton.v1 import coordinator_pb2_grpc
from coordinator import clocks, convert, present
from coordinator.catalog import Job
from coordinator.clocks import Clocks
from coordinator.cluster import AlreadyThere, Cluster, Contended, Invalid, NotFound
from coordinator.errors import BadKey, CoordinatorError, StoreUnavailable
from coordinator.forecast import Forecast, forecast
from coordinator.job_file import JobFileInvalid, decode_spec
from coordinator.job_owner import JobOwner, RequestRefused, utc_now
from coordinator.keys import Family, instant_text, parse_instant
from coordinator.ledger import Ledger, LedgerMoved, NotOwner
from coordinator.ownership import Owner
from coordinator.placement import Decision
from coordinator.records import RunRecord, StateRecord, decode
from coordinator.run_order import UnknownWorker
from coordinator.scheduler import Scheduler
from coordinator.trash_api import TrashApi
from coordinator.views import (
    ChangeView,
    CoordinatorView,
    HoldView,
    JobView,
    PreviewView,
    ProblemView,
    RunView,
    StatusView,
)
from coordinator.worker_client import WorkerUnreachable
from wire.channel import Credentials, open_channel
from wire.identity import Identity, Role
from wire.orders import Outcome, PlannedChange, RunEnded

if TYPE_CHECKING:  # the typed form of the stub exists for type checkers only
    from baton.v1.coordinator_pb2_grpc import CoordinatorAsyncStub as Stub

log = structlog.get_logger()

OWNER_WAIT_S = 8.0
"""How long a request waits for a job to have an owner that answers."""
FORWARD_S = 10.0
CONNECT_S = 1.0
"""How long an owner elsewhere may take to be connected before we look who owns the job now."""
LIST_RUNS = 100
_LOOK_S = 0.1
_FOLLOW_S = 0.25

T = TypeVar("T")

_CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (AlreadyThere, grpc.StatusCode.ALREADY_EXISTS),
    (Invalid, grpc.StatusCode.INVALID_ARGUMENT),
    (JobFileInvalid, grpc.StatusCode.INVALID_ARGUMENT),
    (BadKey, grpc.StatusCode.INVALID_ARGUMENT),
    (Contended, grpc.StatusCode.ABORTED),
    (RequestRefused, grpc.StatusCode.FAILED_PRECONDITION),
    (UnknownWorker, grpc.StatusCode.FAILED_PRECONDITION),
    (NotOwner, grpc.StatusCode.UNAVAILABLE),
    (LedgerMoved, grpc.StatusCode.UNAVAILABLE),
    (WorkerUnreachable, grpc.StatusCode.UNAVAILABLE),
    (StoreUnavailable, grpc.StatusCode.UNAVAILABLE),
    (CoordinatorError, grpc.StatusCode.INTERNAL),
)


def code_of(error: Exception) -> grpc.StatusCode | None:
    """Return the status code that tells a caller of an error of ours."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), None)


@dataclass(frozen=True, slots=True)
class Api(TrashApi):
    """One coordinator's answers; `service.bind_service` puts them on the wire."""

    node: str
    cluster: Cluster
    scheduler: Scheduler
    ledger: Ledger
    credentials: Credentials
    clocks: Clocks

    # The cluster

    async def status(self) -> StatusView:
        """Return the cluster at a glance, every worker asked how it is."""
        workers, jobs, offsets = await asyncio.gather(
            self.cluster.workers(), self._job_views(), self._offsets()
        )
        slow = self.ledger.times.slow(self.scheduler.clock.now())
        warnings = (*filter(None, (self.ledger.full, slow)), *clocks.warnings(offsets))
        coordinators = self._coordinators(offsets)
        return StatusView(self.node, coordinators, tuple(workers), tuple(jobs), warnings)

    async def get_status(self, _: pb.GetStatusRequest, _caller: Identity) -> pb.ClusterStatus:
        """Answer `baton status`."""
        return convert.status_to_wire(await self.status())

    async def list_coordinators(
        self, _: pb.ListCoordinatorsRequest, _caller: Identity
    ) -> pb.ListCoordinatorsResponse:
        """Answer `baton coordinator list`."""
        found = self._coordinators(await self._offsets())
        coordinators = [convert.coordinator_to_wire(one) for one in found]
        return pb.ListCoordinatorsResponse(coordinators=coordinators)

    async def _offsets(self) -> dict[str, float | None]:
        return await self.clocks.offsets(self.scheduler.catalog.coordinators)

    def _coordinators(
        self, offsets_s: Mapping[str, float | None] = MappingProxyType({})
    ) -> tuple[CoordinatorView, ...]:
        owners = Counter(owner.node for owner in self.scheduler.election.owners.values())
        return tuple(
            present.coordinator_view(
                name,
                record,
                owners[name],
                draining=name in self.scheduler.catalog.drains,
                clock_offset_s=offsets_s.get(name),
            )
            for name, record in sorted(self.scheduler.catalog.coordinators.items())
        )

    # Workers

    async def add_worker(self, request: pb.AddWorkerRequest, caller: Identity) -> pb.WorkerInfo:
        """Answer `baton worker add`."""
        view = await self.cluster.add_worker(
            request.name, request.address, request.group, str(caller)
        )
        return convert.worker_to_wire(view)

    async def list_workers(
        self, _: pb.ListWorkersRequest, _caller: Identity
    ) -> pb.ListWorkersResponse:
        """Answer `baton worker list`."""
        workers = [convert.worker_to_wire(worker) for worker in await self.cluster.workers()]
        return pb.ListWorkersResponse(workers=workers)

    async def get_worker(self, request: pb.GetWorkerRequest, _caller: Identity) -> pb.WorkerInfo:
        """Answer `baton worker show`."""
        return convert.worker_to_wire(await self.cluster.worker(request.name))

    async def remove_worker(
        self, request: pb.RemoveWorkerRequest, _caller: Identity
    ) -> pb.RemoveWorkerResponse:
        """Answer `baton worker remove`."""
        await self.cluster.remove_worker(request.name)
        return pb.RemoveWorkerResponse()

    async def test_worker(self, request: pb.TestWorkerRequest, _caller: Identity) -> pb.WorkerTest:
        """Answer `baton worker test`."""
        return convert.test_to_wire(await self.cluster.test_worker(request.name))

    async def accept_at_worker(
        self, request: pb.AcceptAtWorkerRequest, caller: Identity
    ) -> pb.AcceptAtWorkerResponse:
        """Answer `baton worker accept`."""
        log.warning("cluster_accepted", worker=request.name, by=str(caller))
        return convert.accepted_to_wire(await self.cluster.accept_at_worker(request.name))

    # Jobs

    async def apply_jobs(
        self, request: pb.ApplyJobsRequest, caller: Identity
    ) -> pb.ApplyJobsResponse:
        """Answer `baton job apply` and `add`."""
        specs = [decode_spec(raw) for raw in request.specs]
        applied = await self.cluster.apply(
            specs, by=str(caller), dry_run=request.dry_run, create_only=request.create_only
        )
        return pb.ApplyJobsResponse(jobs=[convert.applied_to_wire(one) for one in applied])

    async def list_jobs(self, _: pb.ListJobsRequest, _caller: Identity) -> pb.ListJobsResponse:
        """Answer `baton job list`."""
        return pb.ListJobsResponse(
            jobs=[convert.job_to_wire(view) for view in await self._job_views()]
        )

    async def get_job(self, request: pb.GetJobRequest, _caller: Identity) -> pb.JobStatus:
        """Answer `baton job show`."""
        job = await self._job(request.name)
        state = await self.ledger.state(request.name)
        return convert.job_to_wire(self._job_view(job, state))

    async def delete_job(
        self, request: pb.DeleteJobRequest, _caller: Identity
    ) -> pb.DeleteJobResponse:
        """Answer `baton job delete`."""
        await self.cluster.delete_job(request.name)
        return pb.DeleteJobResponse()

    async def explain_job(
        self, request: pb.ExplainJobRequest, _caller: Identity
    ) -> pb.ExplainJobResponse:
        """Answer `baton job explain`."""
        job = await self._job(request.name)
        state = await self.ledger.state(request.name)
        owner = self._owner_of(request.name)
        view = present.explain_view(job, state, owner, self._decide(job), self._forecast(job))
        return convert.explain_to_wire(view)

    async def _job(self, name: str) -> Job:
        """Return a job, waiting a moment for one that was applied elsewhere just now."""
        catalog = self.scheduler.catalog
        await catalog.ready()
        if name not in catalog.jobs and await self.cluster.has_job(name):
            for _ in range(int(OWNER_WAIT_S / _LOOK_S)):
                if name in catalog.jobs:
                    break
                await asyncio.sleep(_LOOK_S)
        if name not in catalog.jobs:
            raise NotFound(f"there is no job {name}: 'baton job list' shows those there are")
        return catalog.jobs[name]

    async def _job_views(self) -> list[JobView]:
        await self.scheduler.catalog.ready()
        prefix = self.cluster.keys.under(Family.STATE)
        snapshot = await self.cluster.store.range(prefix)
        states = {kv.key.removeprefix(prefix): decode(kv.value, StateRecord) for kv in snapshot.kvs}
        jobs = sorted(self.scheduler.catalog.jobs.items())
        return [self._job_view(job, states.get(name, StateRecord())) for name, job in jobs]

    def _job_view(self, job: Job, state: StateRecord) -> JobView:
        owner = self._owner_of(job.spec.name)
        ahead = self._forecast(job)
        return present.job_view(job, state, owner, self._decide(job), ahead, utc_now())

    def _forecast(self, job: Job) -> Forecast:
        owner = self._owner_of(job.spec.name)
        node = None if owner is None else owner.node
        without = self.scheduler.decide(job, without=node)
        return forecast(job.spec.placement, job.spec.lease_ttl.seconds, node, without)

    def _owner_of(self, name: str) -> Owner | None:
        return self.scheduler.election.owners.get(name)

    def _decide(self, job: Job) -> Decision:
        return self.scheduler.decide(job)

    # Runs

    async def run_job(self, request: pb.RunJobRequest, caller: Identity) -> pb.RunJobResponse:
        """Answer `baton job run`."""
        by = asker(request, caller)

        async def here(owner: JobOwner) -> pb.RunJobResponse:
            return pb.RunJobResponse(job=request.name, run=await owner.request_run(by))

        async def there(stub: "Stub") -> pb.RunJobResponse:
            passed_on = pb.RunJobRequest(name=request.name, forwarded=True, by=by)
            return await stub.RunJob(passed_on, timeout=FORWARD_S)

        return await self._at_owner(request.name, request.forwarded, here, there)

    async def approve_run(self, request: pb.ApproveRunRequest, _caller: Identity) -> pb.Run:
        """Answer `baton run approve`."""
        instant = parse_instant(request.run)

        async def here(owner: JobOwner) -> pb.Run:
            record = await owner.approve(instant)
            return convert.run_to_wire(present.run_view(request.job, instant, record))

        async def there(stub: "Stub") -> pb.Run:
            passed_on = pb.ApproveRunRequest(job=request.job, run=request.run, forwarded=True)
            return await stub.ApproveRun(passed_on, timeout=FORWARD_S)

        await self._run(request.job, instant)
        return await self._at_owner(request.job, request.forwarded, here, there)

    async def cancel_run(self, request: pb.CancelRunRequest, _caller: Identity) -> pb.Run:
        """Answer `baton run cancel`."""
        instant = parse_instant(request.run)

        async def here(owner: JobOwner) -> pb.Run:
            record = await owner.cancel(instant)
            return convert.run_to_wire(present.run_view(request.job, instant, record))

        async def there(stub: "Stub") -> pb.Run:
            passed_on = pb.CancelRunRequest(job=request.job, run=request.run, forwarded=True)
            return await stub.CancelRun(passed_on, timeout=FORWARD_S)

        await self._run(request.job, instant)
        return await self._at_owner(request.job, request.forwarded, here, there)

    async def list_runs(
        self, request: pb.ListRunsRequest, _caller: Identity
    ) -> pb.ListRunsResponse:
        """Answer `baton run list`: the newest first."""
        runs = await self.runs(request.job, request.limit or LIST_RUNS)
        return pb.ListRunsResponse(runs=[convert.run_to_wire(run) for run in runs])

    async def runs(self, job: str = "", limit: int = LIST_RUNS) -> list[RunView]:
        """Return the newest runs of one job, or of all, newest first."""
        if job:
            await self._job(job)
        names = [job] if job else sorted(self.scheduler.catalog.jobs)
        found = [(name, at, run) for name in names for at, run in await self.ledger.runs(name)]
        found.sort(key=lambda one: one[1], reverse=True)
        return [present.run_view(name, at, run) for name, at, run in found[:limit]]

    async def get_run(self, request: pb.GetRunRequest, _caller: Identity) -> pb.Run:
        """Answer `baton run show`."""
        instant = parse_instant(request.run)
        record = await self._run(request.job, instant)
        return convert.run_to_wire(self._run_view(request.job, instant, record))

    async def follow_run(
        self, request: pb.FollowRunRequest, _caller: Identity
    ) -> AsyncIterator[pb.FollowRunResponse]:
        """Answer `baton run follow`: how the run stands, until it has ended or waits for approval."""
        await self._job(request.job)
        instant = parse_instant(request.run) if request.run else await self._current(request.job)
        while True:
            record = await self._run(request.job, instant)
            view = convert.run_to_wire(self._run_view(request.job, instant, record))
            owner = self._owner_of(request.job)
            if not request.forwarded and record.is_open and owner and owner.node != self.node:
                passed_on = pb.FollowRunRequest(
                    job=request.job, run=instant_text(instant), forwarded=True
                )
                async for answer in self._followed_elsewhere(owner.node, passed_on):
                    view = answer.run
                    yield answer
            yield pb.FollowRunResponse(run=view)
            if view.ended or view.outcome == Outcome.BLOCKED.value:
                return
            here = self.scheduler.owner(request.job)
            # RACE: what ended since the record was read is seen after _FOLLOW_S, not at once.
            await (here.until_told(_FOLLOW_S) if here is not None else asyncio.sleep(_FOLLOW_S))

    async def _followed_elsewhere(
        self, node: str, request: pb.FollowRunRequest
    ) -> AsyncIterator[pb.FollowRunResponse]:
        """Yield what the owner knows until it has said all, or does not answer any more."""
        known = self.scheduler.catalog.coordinators.get(node)
        if known is None:
            return
        try:
            async with open_channel(
                known.address, self.credentials, (Role.COORDINATOR, node)
            ) as channel:
                stub = coordinator_pb2_grpc.CoordinatorStub(channel)
                async for answer in stub.FollowRun(request):
                    yield answer
        except grpc.aio.AioRpcError as error:
            log.info("owner_silent", job=request.job, owner=node, why=error.details())

    async def preview_job(
        self, request: pb.PreviewJobRequest, _caller: Identity
    ) -> AsyncIterator[pb.PreviewJobResponse]:
        """Answer `baton job preview` and `baton verify`: changes or differences, then the end."""
        await self._job(request.name)
        owner = await self._reach_owner(request.name, here_only=request.forwarded)
        if isinstance(owner, str):
            async with self._channel_to(owner) as channel:
                passed_on = pb.PreviewJobRequest(
                    name=request.name, forwarded=True, verify=request.verify
                )
                async for answer in coordinator_pb2_grpc.CoordinatorStub(channel).PreviewJob(
                    passed_on
                ):
                    yield answer
            return
        batches: asyncio.Queue[tuple[PlannedChange, ...] | None] = asyncio.Queue()
        planning = asyncio.create_task(owner.preview(batches.put_nowait, verify=request.verify))
        planning.add_done_callback(lambda _: batches.put_nowait(None))
        try:
            while (batch := await batches.get()) is not None:
                changes = tuple(map(_change_view, batch))
                part = PreviewView(changes, (), (), ended=False, outcome="")
                yield convert.preview_to_wire(part)
            yield convert.preview_to_wire(_preview_end(await planning))
        finally:
            planning.cancel()

    async def _current(self, job: str) -> datetime:
        """Return the run that is under way, else the last one, else wait for the first."""
        while True:
            runs = await self.ledger.runs(job)
            if runs:
                return next((at for at, run in reversed(runs) if run.is_open), runs[-1][0])
            await asyncio.sleep(_FOLLOW_S)

    async def _run(self, job: str, instant: datetime) -> RunRecord:
        await self._job(job)
        record = await self.ledger.run(job, instant)
        if record is None:
            raise NotFound(
                f"job {job} has no run {instant_text(instant)}: "
                f"'baton run list {job}' shows those there are"
            )
        return record

    def _run_view(self, job: str, instant: datetime, record: RunRecord) -> RunView:
        owner = self.scheduler.owner(job)
        progress = None
        if owner is not None and owner.current is not None and owner.current.instant == instant:
            progress = owner.current.progress
        return present.run_view(job, instant, record, progress)

    # Reaching the owner

    async def _at_owner(
        self,
        job: str,
        forwarded: bool,  # noqa: FBT001 - as the message says it
        here: Callable[[JobOwner], Awaitable[T]],
        there: Callable[["Stub"], Awaitable[T]],
    ) -> T:
        """Do something where the job is owned."""
        await self._job(job)
        for _ in range(int(OWNER_WAIT_S / CONNECT_S)):
            owner = await self._reach_owner(job, here_only=forwarded)
            if isinstance(owner, JobOwner):
                return await here(owner)
            async with self._channel_to(owner) as channel:
                # Nothing is said to an owner that may be dead: its successor is asked then, once.
                if await _connects(channel):
                    return await there(coordinator_pb2_grpc.CoordinatorStub(channel))
        raise NotOwner(f"{owner}, which owns job {job}, does not answer: try again")

    async def _reach_owner(self, job: str, *, here_only: bool) -> JobOwner | str:
        """Return the owner of a job if it is here, else the name of the node where it is."""
        for _ in range(int(OWNER_WAIT_S / _LOOK_S)):
            owner = self.scheduler.owner(job)
            if owner is not None:
                return owner
            known = self._owner_of(job)
            nodes = self.scheduler.catalog.coordinators
            if (
                known is not None
                and known.node in nodes
                and known.node != self.node
                and not here_only
            ):
                return known.node
            await asyncio.sleep(_LOOK_S)
        reasons = "; ".join(self._decide(await self._job(job)).reasons)
        raise NotOwner(f"no coordinator owns job {job} now: {reasons}")

    def _channel_to(self, node: str) -> grpc.aio.Channel:
        address = self.scheduler.catalog.coordinators[node].address
        return open_channel(address, self.credentials, (Role.COORDINATOR, node))


async def _connects(channel: grpc.aio.Channel) -> bool:
    try:
        async with asyncio.timeout(CONNECT_S):
            await channel.channel_ready()
    except TimeoutError:
        return False
    return True


def asker(
    request: pb.RunJobRequest | pb.RestartJobRequest | pb.DrillJobRequest, caller: Identity
) -> str:
    """Return who asks: a coordinator that passes a request on says for whom."""
    passed_on = request.forwarded and caller.role is Role.COORDINATOR
    return request.by if passed_on and request.by else str(caller)


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _change_view(change: PlannedChange) -> ChangeView:
    path, origin = _text(change.path), _text(change.origin)
    return ChangeView(path, change.member, change.action, change.kind, change.size, origin)


def _preview_end(ended: RunEnded) -> PreviewView:
    problems = tuple(
        ProblemView(_text(one.path), one.member, one.what.value, one.detail)
        for one in ended.problems
    )
    holds = tuple(HoldView(one.reason.value, one.member, one.detail) for one in ended.holds)
    return PreviewView((), problems, holds, True, ended.outcome.value, ended.counts.files_scanned)
