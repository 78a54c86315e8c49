"""What the API answers, as values whose fields are those of the JSON output, name by name.

Times are RFC 3339 texts with a zone, None for never; `errors` carry paths as text in which a byte that
is no UTF-8 stands as a lone surrogate.
"""

from dataclasses import dataclass, field
from typing import Any

from wire.orders import NOT_WATCHED, WatchDescription


@dataclass(frozen=True, slots=True)
class CoordinatorView:
    """One live coordinator."""

    name: str
    address: str
    http: str
    version: str
    since: str | None
    jobs_owned: int
    draining: bool
    held_until: str | None = None
    """Until when it is held down; None: it is not."""
    held: str = ""
    """The same for people, with the reason."""
    clock_offset_s: float | None = None
    """How far its wall clock is ahead of that of the coordinator that answered; None when unknown."""


@dataclass(frozen=True, slots=True)
class RootView:
    """One exported root of a worker."""

    name: str
    path: str
    read_only: bool
    available: bool
    free_bytes: int
    watch: WatchDescription = NOT_WATCHED


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One registered worker; what only it can say is empty while it is not reachable."""

    name: str
    address: str
    group: str
    reachable: bool
    reason: str = ""
    identity: str = ""
    version: str = ""
    roots: tuple[RootView, ...] = ()
    orders_refused: int = 0


@dataclass(frozen=True, slots=True)
class WorkerTestView:
    """What a test of a worker found."""

    name: str
    address: str
    identity: str
    group: str
    roots: tuple[RootView, ...]
    rtt_ms: float
    throughput_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class AcceptedView:
    """That a worker takes tokens of the etcd cluster as it is now."""

    name: str
    cluster: str
    """Its id, in hex."""
    revision: int
    forgotten: int
    """How many tokens it had that were not of it."""


@dataclass(frozen=True, slots=True)
class TakeoverView:
    """Who would take a job over if its owner went now."""

    next_owner: str | None
    rule: str
    """Why it would be that one, or why nobody."""
    worst_s: float
    """How long it takes at worst, from the owner's death to the claim."""
    worst_with_etcd_s: float
    """The same when the leader of etcd dies with it."""
    warning: str
    """Empty when somebody could."""


@dataclass(frozen=True, slots=True)
class JobView:
    """One job, and how it stands."""

    name: str
    phase: str
    reason: str
    owner: str | None
    token: str | None
    lease_ttl_s: float
    owner_since: str | None
    next_due: str | None
    last_run: str | None
    last_outcome: str | None
    last_success: str | None
    exposure_s: dict[str, float | None]
    """By target: the age of the oldest change that may not be there; None when unknown."""
    generation: int
    spec: dict[str, Any]
    takeover: TakeoverView


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One owner's part in a run."""

    owner: str
    token: str
    started: str | None
    ended: str | None
    why_ended: str | None


@dataclass(frozen=True, slots=True)
class ProblemView:
    """One thing that a run could not do."""

    path: str
    member: str
    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class HoldView:
    """Why a run waits for an approval."""

    reason: str
    member: str
    detail: str


@dataclass(frozen=True, slots=True)
class ProgressView:
    """How far a running run is; totals are 0 until the plan is known."""

    phase: str
    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class MonitorView:
    """What a run that follows changes has beside what every run has."""

    audits: int
    """How many whole comparisons after the first have been made."""
    audit_found: int
    """What those found that no event had told: changes."""
    audits_asked: int
    audits_answered: int
    """Up to which number of those asked for have been made."""
    degraded: str
    """Why changes may be found by comparing only, empty while events tell of all."""


@dataclass(frozen=True, slots=True)
class RunView:
    """One run of a job."""

    job: str
    id: str
    due: str | None
    started: str | None
    ended: str | None
    outcome: str
    reason: str
    attempts: tuple[AttemptView, ...]
    files_scanned: int
    files_copied: int
    files_updated: int
    files_deleted: int
    files_renamed: int
    bytes_copied: int
    bytes_sent: int
    conflicts: int
    conflict_paths: tuple[ProblemView, ...]
    """The first of them, each with what was found; a run with conflicts may be a good one."""
    errors: tuple[ProblemView, ...]
    errors_total: int
    holds: tuple[HoldView, ...]
    plan: str | None
    """Digest of the plan that waits for an approval."""
    progress: ProgressView | None = None
    monitor: MonitorView | None = None
    """Of a run that follows changes and does not end."""


@dataclass(frozen=True, slots=True)
class ChangeView:
    """One change that a plan would make."""

    path: str
    member: str
    action: str
    kind: str
    size: int
    origin: str = ""
    """Of a rename: the path before."""


@dataclass(frozen=True, slots=True)
class PreviewView:
    """A part of a preview; the last part has `ended` and the outcome."""

    changes: tuple[ChangeView, ...]
    errors: tuple[ProblemView, ...]
    holds: tuple[HoldView, ...]
    ended: bool
    outcome: str
    files: int = 0
    """At the end: how many were looked at, or compared."""


@dataclass(frozen=True, slots=True)
class AppliedView:
    """What applying one job file document did, or would do."""

    name: str
    action: str
    """created, updated or unchanged."""
    differences: tuple[str, ...]
    generation: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExplainView:
    """Why a job is where it is."""

    name: str
    owner: str | None
    reasons: tuple[str, ...]
    order: tuple[str, ...] = field(default=())
    """Who would take it, first to last."""
    next_owner: str | None = None
    """Who takes it when the owner goes."""
    takeover_s: float = 0.0
    """How long that takes at worst, from the owner's death to the claim."""


@dataclass(frozen=True, slots=True)
class DrillView:
    """What a planned loss of the lease took, in seconds from the last word of the owner."""

    job: str
    owner: str
    next_owner: str
    lease_ttl_s: float
    detection_s: float
    claim_s: float
    adoption_s: float
    total_s: float
    run: str | None
    exposure_before_s: dict[str, float | None] = field(default_factory=dict)
    """By target, when the owner fell silent; None where nothing was ever made equal."""
    exposure_s: dict[str, float | None] = field(default_factory=dict)
    """By target, the highest that was seen until the next owner gave orders."""


@dataclass(frozen=True, slots=True)
class FindingView:
    """Something that cannot be in a ledger, and the runs that show it."""

    what: str
    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProofView:
    """What the ledger of one job proves; no findings: everything holds."""

    job: str
    records: int
    instants: int
    attempts: int
    findings: tuple[FindingView, ...]


@dataclass(frozen=True, slots=True)
class CheckView:
    """One thing that `baton doctor` looked at."""

    name: str
    level: str
    """ok, warning or failed."""
    detail: str
    advice: str
    """What to do, empty when nothing is."""


@dataclass(frozen=True, slots=True)
class StatusView:
    """The cluster at a glance."""

    answered_by: str
    coordinators: tuple[CoordinatorView, ...]
    workers: tuple[WorkerView, ...]
    jobs: tuple[JobView, ...]
    warnings: tuple[str, ...] = ()
    """What somebody should see to: clocks that are apart."""
