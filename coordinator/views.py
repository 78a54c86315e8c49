"""What the API answers, as values whose fields are those of the JSON output, name by name.

Times are RFC 3339 texts with a zone, None for never; `errors` carry paths as text in which a byte that
is no UTF-8 stands as a lone surrogate.
"""

from dataclasses import dataclass, field
from typing import Any


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


@dataclass(frozen=True, slots=True)
class RootView:
    """One exported root of a worker."""

    name: str
    path: str
    read_only: bool
    available: bool
    free_bytes: int


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
    errors: tuple[ProblemView, ...]
    errors_total: int
    holds: tuple[HoldView, ...]
    plan: str | None
    """Digest of the plan that waits for an approval."""
    progress: ProgressView | None = None


@dataclass(frozen=True, slots=True)
class ChangeView:
    """One change that a plan would make."""

    path: str
    member: str
    action: str
    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class PreviewView:
    """A part of a preview; the last part has `ended` and the outcome."""

    changes: tuple[ChangeView, ...]
    errors: tuple[ProblemView, ...]
    holds: tuple[HoldView, ...]
    ended: bool
    outcome: str


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


@dataclass(frozen=True, slots=True)
class StatusView:
    """The cluster at a glance."""

    answered_by: str
    coordinators: tuple[CoordinatorView, ...]
    workers: tuple[WorkerView, ...]
    jobs: tuple[JobView, ...]
