"""How jobs and runs stand, put together from records for those who ask. Pure."""

from datetime import datetime

from coordinator import views
from coordinator.catalog import Job
from coordinator.forecast import Forecast
from coordinator.keys import instant_text
from coordinator.ownership import Owner
from coordinator.placement import Decision, return_to
from coordinator.records import CoordinatorRecord, PauseRecord, RunRecord, StateRecord
from syncengine.model import What
from wire.orders import Progress

MOVED_JUST_BEFORE_S = 10.0


def time_text(instant: datetime | None) -> str | None:
    """Return an instant as RFC 3339, None for never."""
    return None if instant is None else instant.isoformat()


def job_view(
    job: Job,
    state: StateRecord,
    owner: Owner | None,
    decision: Decision,
    ahead: Forecast,
    now: datetime,
) -> views.JobView:
    """Return how a job stands: its state as its owner wrote it, and whether it has one."""
    phase, reason = state.phase, state.reason
    if job.record.paused is not None:
        going = state.phase in {"running", "monitoring"}
        phase, reason = "paused", _paused(job.record.paused)
        if going:
            reason += f"; its run {state.last_run} is being stopped"
    elif owner is None:
        phase, reason = "waiting", "no coordinator owns it: " + "; ".join(decision.reasons)
    elif phase == "paused":  # resumed just now: its owner has not said so yet
        phase, reason = "idle", ""
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
        exposure_s=exposure_of(job, state, now),
        generation=job.generation,
        spec=job.record.spec,
        takeover=views.TakeoverView(
            ahead.next_owner,
            ahead.rule,
            ahead.worst_s,
            ahead.worst_with_etcd_s,
            ahead.warning if owner is not None else "",
        ),
    )


def exposure_of(job: Job, state: StateRecord, now: datetime) -> dict[str, float | None]:
    """Return by target the age in seconds of the oldest change that may be missing there.

    0 where a monitor knows of none; None where no run has made it equal ever.
    """
    exposure: dict[str, float | None] = {}
    for target in job.spec.written:
        since = state.up_to_date.get(target)
        if target in state.followed:
            since = state.followed[target] or now
        exposure[target] = None if since is None else max(0.0, (now - since).total_seconds())
    return exposure


def run_view(
    job: str, instant: datetime, record: RunRecord, progress: Progress | None = None
) -> views.RunView:
    """Return one run, with its progress while it is under way."""
    counts = record.counts
    problems = [
        views.ProblemView(one.path, one.member, one.what, one.detail) for one in record.problems
    ]
    conflicts = tuple(one for one in problems if one.what == What.CONFLICT)
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
        conflict_paths=conflicts,
        errors=tuple(one for one in problems if one.what != What.CONFLICT),
        errors_total=record.problems_total - max(counts.conflicts, len(conflicts)),
        holds=tuple(views.HoldView(one.reason, one.member, one.detail) for one in record.holds),
        plan=record.plan or None,
        progress=_progress_view(progress),
        monitor=_monitor_view(record),
    )


def coordinator_view(
    name: str,
    record: CoordinatorRecord,
    jobs_owned: int,
    *,
    draining: bool,
    clock_offset_s: float | None = None,
) -> views.CoordinatorView:
    """Return one live coordinator."""
    return views.CoordinatorView(
        name,
        record.address,
        record.http,
        record.version,
        time_text(record.since),
        jobs_owned,
        draining,
        time_text(record.held_until),
        record.held,
        clock_offset_s,
    )


def explain_view(
    job: Job, state: StateRecord, owner: Owner | None, decision: Decision, ahead: Forecast
) -> views.ExplainView:
    """Return why a job is where it is, and who would take it next, in sentences."""
    sentences = []
    if job.record.paused is not None:
        sentences.append(
            f"it is {_paused(job.record.paused)}: 'baton job resume {job.spec.name}' lets it go on"
        )
    if owner is not None:
        sentences.append(_why_there(job, state, owner, decision))
    sentences += decision.reasons
    if owner is not None and ahead.next_owner is not None:
        sentences.append(
            f"if {owner.node} goes, {ahead.next_owner} takes over, after {ahead.worst_s:g} s at worst "
            f"({ahead.worst_with_etcd_s:g} s when etcd's leader goes with it), since {ahead.rule}"
        )
    elif owner is not None:
        sentences.append(f"if {owner.node} goes, {ahead.warning}")
    return views.ExplainView(
        job.spec.name,
        owner.node if owner else None,
        tuple(sentences),
        decision.order,
        ahead.next_owner,
        ahead.worst_s,
    )


def _why_there(job: Job, state: StateRecord, owner: Owner, decision: Decision) -> str:
    """Return since when and why a node owns a job, and whether it stays there."""
    reason = owner.reason
    moved = state.moved
    if moved is not None and abs((owner.since - moved.at).total_seconds()) < MOVED_JUST_BEFORE_S:
        reason = f"{moved.node} gave it up ({moved.reason}) and {reason}"
    text = f"{owner.node} owns it since {owner.since:%Y-%m-%d %H:%M:%S} UTC because {reason}"
    home = return_to(job.spec.placement, decision, owner.node)
    if home is None:
        if decision.order and owner.node not in decision.order:
            text += f"; it stays there although {decision.order[0]} ranks first now"
        return text
    failback = job.spec.placement.failback
    if failback == "never":
        return f"{text}; it stays until you run 'baton job restart {job.spec.name}'"
    return f"{text}; it goes back to {home} when that was there for {failback.when_stable}"


def _paused(paused: PauseRecord) -> str:
    return f"paused by {paused.by} since {paused.since:%Y-%m-%d %H:%M:%S} UTC"


def _monitor_view(record: RunRecord) -> views.MonitorView | None:
    kept = record.monitor
    if kept is None:
        return None
    return views.MonitorView(
        kept.audits, kept.audit_found, kept.asked, kept.answered, kept.degraded
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
