"""The Coordinator service's messages to and from the values of `coordinator.views`."""

import json
from collections.abc import Iterable, Mapping

from baton.v1 import common_pb2, coordinator_pb2
from coordinator import views
from wire import worker_convert


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _path(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def coordinator_to_wire(view: views.CoordinatorView) -> coordinator_pb2.CoordinatorInfo:
    """Return the message of a coordinator."""
    return coordinator_pb2.CoordinatorInfo(
        name=view.name,
        address=view.address,
        http=view.http,
        version=view.version,
        since=view.since or "",
        jobs_owned=view.jobs_owned,
        draining=view.draining,
        held_until=view.held_until or "",
        held=view.held,
        clock_offset_s=view.clock_offset_s,
    )


def coordinator_from_wire(message: coordinator_pb2.CoordinatorInfo) -> views.CoordinatorView:
    """Return the coordinator of a message."""
    return views.CoordinatorView(
        message.name,
        message.address,
        message.http,
        message.version,
        message.since or None,
        message.jobs_owned,
        message.draining,
        message.held_until or None,
        message.held,
        message.clock_offset_s if message.HasField("clock_offset_s") else None,
    )


def worker_to_wire(view: views.WorkerView) -> coordinator_pb2.WorkerInfo:
    """Return the message of a worker."""
    return coordinator_pb2.WorkerInfo(
        name=view.name,
        address=view.address,
        group=view.group,
        reachable=view.reachable,
        reason=view.reason,
        identity=view.identity,
        version=view.version,
        roots=[
            coordinator_pb2.WorkerRoot(
                name=root.name,
                path=root.path,
                read_only=root.read_only,
                available=root.available,
                free_bytes=root.free_bytes,
                watch=worker_convert.watch_to_wire(root.watch),
            )
            for root in view.roots
        ],
        orders_refused=view.orders_refused,
    )


def worker_from_wire(message: coordinator_pb2.WorkerInfo) -> views.WorkerView:
    """Return the worker of a message."""
    return views.WorkerView(
        name=message.name,
        address=message.address,
        group=message.group,
        reachable=message.reachable,
        reason=message.reason,
        identity=message.identity,
        version=message.version,
        roots=tuple(
            views.RootView(
                root.name,
                root.path,
                root.read_only,
                root.available,
                root.free_bytes,
                worker_convert.watch_from_wire(root.watch),
            )
            for root in message.roots
        ),
        orders_refused=message.orders_refused,
    )


def test_to_wire(view: views.WorkerTestView) -> coordinator_pb2.WorkerTest:
    """Return the message of a test of a worker."""
    worker = views.WorkerView(
        view.name,
        view.address,
        view.group,
        reachable=True,
        identity=view.identity,
        roots=view.roots,
    )
    return coordinator_pb2.WorkerTest(
        worker=worker_to_wire(worker),
        rtt_ms=view.rtt_ms,
        throughput_bytes_per_s=view.throughput_bytes_per_s,
    )


def test_from_wire(message: coordinator_pb2.WorkerTest) -> views.WorkerTestView:
    """Return what a test of a worker found."""
    worker = worker_from_wire(message.worker)
    return views.WorkerTestView(
        worker.name,
        worker.address,
        worker.identity,
        worker.group,
        worker.roots,
        message.rtt_ms,
        message.throughput_bytes_per_s,
    )


def job_to_wire(view: views.JobView) -> coordinator_pb2.JobStatus:
    """Return the message of a job."""
    return coordinator_pb2.JobStatus(
        name=view.name,
        spec=json.dumps(view.spec).encode("ascii"),
        phase=view.phase,
        reason=view.reason,
        owner=view.owner or "",
        token=view.token or "",
        lease_ttl_s=view.lease_ttl_s,
        owner_since=view.owner_since or "",
        next_due=view.next_due or "",
        last_run=view.last_run or "",
        last_outcome=view.last_outcome or "",
        last_success=view.last_success or "",
        exposure=exposure_messages(view.exposure_s),
        generation=view.generation,
        takeover=_takeover_to_wire(view.takeover),
    )


def job_from_wire(message: coordinator_pb2.JobStatus) -> views.JobView:
    """Return the job of a message."""
    return views.JobView(
        name=message.name,
        phase=message.phase,
        reason=message.reason,
        owner=message.owner or None,
        token=message.token or None,
        lease_ttl_s=message.lease_ttl_s,
        owner_since=message.owner_since or None,
        next_due=message.next_due or None,
        last_run=message.last_run or None,
        last_outcome=message.last_outcome or None,
        last_success=message.last_success or None,
        exposure_s=exposure_by_target(message.exposure),
        generation=message.generation,
        spec=json.loads(message.spec),
        takeover=_takeover_from_wire(message.takeover),
    )


def exposure_messages(
    exposure_s: Mapping[str, float | None],
) -> list[coordinator_pb2.TargetExposure]:
    """Return the messages of an exposure by target."""
    return [
        coordinator_pb2.TargetExposure(target=target, exposure_s=age)
        for target, age in exposure_s.items()
    ]


def exposure_by_target(
    messages: Iterable[coordinator_pb2.TargetExposure],
) -> dict[str, float | None]:
    """Return an exposure by target."""
    return {one.target: one.exposure_s if one.HasField("exposure_s") else None for one in messages}


def _takeover_to_wire(view: views.TakeoverView) -> coordinator_pb2.Takeover:
    return coordinator_pb2.Takeover(
        next_owner=view.next_owner or "",
        rule=view.rule,
        worst_s=view.worst_s,
        worst_with_etcd_s=view.worst_with_etcd_s,
        warning=view.warning,
    )


def _takeover_from_wire(message: coordinator_pb2.Takeover) -> views.TakeoverView:
    return views.TakeoverView(
        message.next_owner or None,
        message.rule,
        message.worst_s,
        message.worst_with_etcd_s,
        message.warning,
    )


def run_to_wire(view: views.RunView) -> coordinator_pb2.Run:
    """Return the message of a run."""
    progress = None
    if view.progress is not None:
        done = common_pb2.Counts(
            files_copied=view.progress.files_done, bytes_copied=view.progress.bytes_done
        )
        progress = common_pb2.Progress(
            done=done,
            files_total=view.progress.files_total,
            bytes_total=view.progress.bytes_total,
            phase=view.progress.phase,
        )
    return coordinator_pb2.Run(
        job=view.job,
        id=view.id,
        due=view.due or "",
        started=view.started or "",
        ended=view.ended or "",
        outcome=view.outcome,
        attempts=[
            coordinator_pb2.Attempt(
                owner=one.owner,
                token=one.token,
                started=one.started or "",
                ended=one.ended or "",
                why_ended=one.why_ended or "",
            )
            for one in view.attempts
        ],
        counts=common_pb2.Counts(
            files_scanned=view.files_scanned,
            files_copied=view.files_copied,
            files_updated=view.files_updated,
            files_deleted=view.files_deleted,
            files_renamed=view.files_renamed,
            bytes_copied=view.bytes_copied,
            bytes_sent=view.bytes_sent,
            conflicts=view.conflicts,
        ),
        problems=[_problem_to_wire(problem) for problem in view.errors],
        problems_total=view.errors_total,
        conflict_paths=[_problem_to_wire(conflict) for conflict in view.conflict_paths],
        holds=[_hold_to_wire(hold) for hold in view.holds],
        plan=view.plan or "",
        reason=view.reason,
        progress=progress,
        monitor=None
        if view.monitor is None
        else coordinator_pb2.RunMonitor(
            audits=view.monitor.audits,
            audit_found=view.monitor.audit_found,
            audits_asked=view.monitor.audits_asked,
            audits_answered=view.monitor.audits_answered,
            degraded=view.monitor.degraded,
        ),
    )


def run_from_wire(message: coordinator_pb2.Run) -> views.RunView:
    """Return the run of a message."""
    counts = message.counts
    progress = None
    if message.HasField("progress"):
        wire = message.progress
        progress = views.ProgressView(
            wire.phase,
            wire.done.files_copied,
            wire.files_total,
            wire.done.bytes_copied,
            wire.bytes_total,
        )
    return views.RunView(
        job=message.job,
        id=message.id,
        due=message.due or None,
        started=message.started or None,
        ended=message.ended or None,
        outcome=message.outcome,
        reason=message.reason,
        attempts=tuple(
            views.AttemptView(
                one.owner,
                one.token,
                one.started or None,
                one.ended or None,
                one.why_ended or None,
            )
            for one in message.attempts
        ),
        files_scanned=counts.files_scanned,
        files_copied=counts.files_copied,
        files_updated=counts.files_updated,
        files_deleted=counts.files_deleted,
        files_renamed=counts.files_renamed,
        bytes_copied=counts.bytes_copied,
        bytes_sent=counts.bytes_sent,
        conflicts=counts.conflicts,
        errors=tuple(_problem_from_wire(problem) for problem in message.problems),
        errors_total=message.problems_total,
        conflict_paths=tuple(_problem_from_wire(one) for one in message.conflict_paths),
        holds=tuple(_hold_from_wire(hold) for hold in message.holds),
        plan=message.plan or None,
        progress=progress,
        monitor=_monitor_from_wire(message.monitor) if message.HasField("monitor") else None,
    )


def _monitor_from_wire(message: coordinator_pb2.RunMonitor) -> views.MonitorView:
    return views.MonitorView(
        message.audits,
        message.audit_found,
        message.audits_asked,
        message.audits_answered,
        message.degraded,
    )


def preview_to_wire(view: views.PreviewView) -> coordinator_pb2.PreviewJobResponse:
    """Return the message of a part of a preview."""
    return coordinator_pb2.PreviewJobResponse(
        changes=[
            common_pb2.PlannedChange(
                path=_path(change.path),
                member=change.member,
                action=change.action,
                kind=change.kind,
                size=change.size,
                origin=_path(change.origin),
            )
            for change in view.changes
        ],
        problems=[_problem_to_wire(problem) for problem in view.errors],
        holds=[_hold_to_wire(hold) for hold in view.holds],
        ended=view.ended,
        outcome=view.outcome,
        files=view.files,
    )


def preview_from_wire(message: coordinator_pb2.PreviewJobResponse) -> views.PreviewView:
    """Return the part of a preview in a message."""
    return views.PreviewView(
        changes=tuple(
            views.ChangeView(
                _text(change.path),
                change.member,
                change.action,
                change.kind,
                change.size,
                _text(change.origin),
            )
            for change in message.changes
        ),
        errors=tuple(_problem_from_wire(problem) for problem in message.problems),
        holds=tuple(_hold_from_wire(hold) for hold in message.holds),
        ended=message.ended,
        outcome=message.outcome,
        files=message.files,
    )


def accepted_to_wire(view: views.AcceptedView) -> coordinator_pb2.AcceptAtWorkerResponse:
    """Return the message of a cluster that was accepted."""
    return coordinator_pb2.AcceptAtWorkerResponse(
        name=view.name, cluster=view.cluster, revision=view.revision, forgotten=view.forgotten
    )


def accepted_from_wire(message: coordinator_pb2.AcceptAtWorkerResponse) -> views.AcceptedView:
    """Return what was accepted."""
    return views.AcceptedView(message.name, message.cluster, message.revision, message.forgotten)


def applied_to_wire(view: views.AppliedView) -> coordinator_pb2.AppliedJob:
    """Return the message of what applying a job did."""
    return coordinator_pb2.AppliedJob(
        name=view.name,
        action=view.action,
        differences=view.differences,
        generation=view.generation,
        warnings=view.warnings,
    )


def applied_from_wire(message: coordinator_pb2.AppliedJob) -> views.AppliedView:
    """Return what applying a job did."""
    return views.AppliedView(
        message.name,
        message.action,
        tuple(message.differences),
        message.generation,
        tuple(message.warnings),
    )


def explain_to_wire(view: views.ExplainView) -> coordinator_pb2.ExplainJobResponse:
    """Return the message of an explanation."""
    return coordinator_pb2.ExplainJobResponse(
        name=view.name,
        owner=view.owner or "",
        reasons=view.reasons,
        order=view.order,
        next_owner=view.next_owner or "",
        takeover_s=view.takeover_s,
    )


def explain_from_wire(message: coordinator_pb2.ExplainJobResponse) -> views.ExplainView:
    """Return the explanation of a message."""
    return views.ExplainView(
        message.name,
        message.owner or None,
        tuple(message.reasons),
        tuple(message.order),
        message.next_owner or None,
        message.takeover_s,
    )


def status_to_wire(view: views.StatusView) -> coordinator_pb2.ClusterStatus:
    """Return the message of the cluster's status."""
    return coordinator_pb2.ClusterStatus(
        coordinators=[coordinator_to_wire(one) for one in view.coordinators],
        workers=[worker_to_wire(one) for one in view.workers],
        jobs=[job_to_wire(one) for one in view.jobs],
        answered_by=view.answered_by,
        warnings=view.warnings,
    )


def status_from_wire(message: coordinator_pb2.ClusterStatus) -> views.StatusView:
    """Return the cluster's status."""
    return views.StatusView(
        message.answered_by,
        tuple(coordinator_from_wire(one) for one in message.coordinators),
        tuple(worker_from_wire(one) for one in message.workers),
        tuple(job_from_wire(one) for one in message.jobs),
        tuple(message.warnings),
    )


def _problem_to_wire(view: views.ProblemView) -> common_pb2.Problem:
    return common_pb2.Problem(
        path=_path(view.path), member=view.member, what=view.what, detail=view.detail
    )


def _problem_from_wire(message: common_pb2.Problem) -> views.ProblemView:
    return views.ProblemView(_text(message.path), message.member, message.what, message.detail)


def _hold_to_wire(view: views.HoldView) -> common_pb2.Hold:
    return common_pb2.Hold(reason=view.reason, member=view.member, detail=view.detail)


def _hold_from_wire(message: common_pb2.Hold) -> views.HoldView:
    return views.HoldView(message.reason, message.member, message.detail)
