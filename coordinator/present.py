"""How jobs and runs stand, put together from records for those who ask. Pure."""

from datetime import datetime

from coordinator import views
from coordinator.catalog import Job
from coordinator.keys import instant_text
from coordinator.ownership import Owner
from coordinator.placement import Decision
from coordinator.records import CoordinatorRecord, RunRecord, StateRecord
from wire.orders import Progress


def time_text(instant: datetime | None) -> str | None:
    """Return an instant as RFC 3339, None for never."""
    return None if instant is None else instant.isoformat()


def job_view(
    job: Job, state: StateRecord, owner: Owner | None, decision: Decision, now: datetime
) -> views.JobView:
    """Return how a job stands: its state as its owner wrote it, and whether it has one."""
    phase, reason = state.phase, state.reason
    if owner is None:
        phase, reason = "waiting", "no coordinator owns it: " + "; ".join(decision.reasons)
    exposure: dict[str, float | None] = {}
    for target in job.spec.targets:
        since = state.up_to_date.get(target)
        exposure[target] = None if since is None else max(0.0, (now - since).total_seconds())
    return views.JobView(
        name=job.spec.name,
        phase=phase,
        reason=reason,
        owner=owner.node if owner else None,
        token=str(owner.token) if owner else None,
        lease_ttl_s=job.spec.lease_ttl.seconds,
        owner_since=time_text(owner.since) if owner else None,
        next_due=time_text(state.next_due),
        last_run=state.last_run or None,
        last_outcome=state.last_outcome or None,
        last_success=time_text(state.last_success),
        exposure_s=exposure,
        generation=job.generation,
        spec=job.record.spec,
    )


def run_view(
    job: str, instant: datetime, record: RunRecord, progress: Progress | None = None
) -> views.RunView:
    """Return one run, with its progress while it is under way."""
    counts = record.counts
    return views.RunView(
        job=job,
        id=instant_text(instant),
        due=time_text(record.due),
        started=time_text(record.started),
        ended=time_text(record.ended),
        outcome=record.outcome.value,
        reason=record.reason,
        attempts=tuple(
            views.AttemptView(
                one.owner,
                one.token,
                time_text(one.started),
                time_text(one.ended),
                one.why_ended or None,
            )
            for one in record.attempts
        ),
        files_scanned=counts.files_scanned,
        files_copied=counts.files_copied,
        files_updated=counts.files_updated,
        files_deleted=counts.files_deleted,
        files_renamed=counts.files_renamed,
        bytes_copied=counts.bytes_copied,
        bytes_sent=counts.bytes_sent,
        conflicts=counts.conflicts,
        errors=tuple(
            views.ProblemView(one.path, one.member, one.what, one.detail) for one in record.problems
        ),
        errors_total=record.problems_total,
        holds=tuple(views.HoldView(one.reason, one.member, one.detail) for one in record.holds),
        plan=record.plan or None,
        progress=_progress_view(progress),
    )


def coordinator_view(
    name: str, record: CoordinatorRecord, jobs_owned: int
) -> views.CoordinatorView:
    """Return one live coordinator."""
    return views.CoordinatorView(
        name,
        record.address,
        record.http,
        record.version,
        time_text(record.since),
        jobs_owned,
        record.draining,
    )


def explain_view(job: Job, owner: Owner | None, decision: Decision) -> views.ExplainView:
    """Return why a job is where it is, and who would take it next."""
    reasons = list(decision.reasons)
    if owner is not None:
        since = owner.since.isoformat(timespec="seconds")
        first = f"{owner.node} owns it since {since} ({owner.reason})"
        if decision.order and decision.order[0] != owner.node:
            first += f"; it stays there although {decision.order[0]} ranks first now"
        reasons.insert(0, first)
    return views.ExplainView(
        job.spec.name, owner.node if owner else None, tuple(reasons), decision.order
    )


def _progress_view(progress: Progress | None) -> views.ProgressView | None:
    if progress is None:
        return None
    # Files count when they are published; bytes already when they are sent, so that a large file shows.
    done = progress.done
    return views.ProgressView(
        progress.phase,
        done.files_copied,
        progress.files_total,
        min(progress.bytes_total, max(done.bytes_copied, done.bytes_sent)),
        progress.bytes_total,
    )
