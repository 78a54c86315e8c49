"""What an owner says to a worker and hears from it, as values.

The protobuf forms are in `worker_convert`, and nothing else knows them.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from syncengine.model import Counts, Hold, MirrorOptions, Problem
from wire.token import Token


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a job: a worker, one of its roots, and a path below that root."""

    worker: str
    root: str
    path: bytes = b""
    address: str = ""
    """HOST:PORT where the worker listens; set for members that the receiver may have to call."""

    def __str__(self) -> str:
        """Return the form of the job file, WORKER:ROOT[/PATH]."""
        below = f"/{self.path.decode('utf-8', 'surrogateescape')}" if self.path else ""
        return f"{self.worker}:{self.root}{below}"


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the workers of a job must know of it: the members, the rule's options, the generation."""

    job: str
    generation: int
    source: Member
    targets: tuple[Member, ...]
    options: MirrorOptions


@dataclass(frozen=True, slots=True)
class Hello:
    """The first order of a link: who speaks."""

    coordinator: str


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Fence first: accept the token, durably, or refuse it."""

    assignment: Assignment
    token: Token
    lease: str


@dataclass(frozen=True, slots=True)
class CloseSession:
    """The owner is done with the job for now."""

    job: str
    token: Token


@dataclass(frozen=True, slots=True)
class Extend:
    """The sessions of `lease` may go on for `remaining_s` from when the pulse `stamp_ns` was sent."""

    lease: str
    stamp_ns: int
    remaining_s: float


@dataclass(frozen=True, slots=True)
class StartRun:
    """Carry out a run, or only plan it; `approved` releases exactly the plan of that digest."""

    job: str
    token: Token
    run: str
    preview: bool = False
    approved: bytes = b""


@dataclass(frozen=True, slots=True)
class CancelRun:
    """Stop a run at the next safe point."""

    job: str
    token: Token
    run: str


@dataclass(frozen=True, slots=True)
class SettleRun:
    """The outcome of a run is recorded: forget it."""

    job: str
    token: Token
    run: str


Order = Hello | OpenSession | CloseSession | Extend | StartRun | CancelRun | SettleRun


class Outcome(StrEnum):
    """How a run stands; the ledger adds to this what never became a run."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"
    MISSED = "missed"
    SKIPPED = "skipped"


class RefusalReason(StrEnum):
    """Why a worker refused an order."""

    STALE_TOKEN = "stale-token"  # noqa: S105 - a word, not a secret
    FOREIGN_CLUSTER = "foreign-cluster"
    EXPIRED = "expired"
    NO_SESSION = "no-session"
    NO_SUCH_ROOT = "no-such-root"
    READ_ONLY = "read-only"
    WRONG_WORKER = "wrong-worker"
    STATE_FAILED = "state-failed"


@dataclass(frozen=True, slots=True)
class Pulse:
    """The worker's clock, for the owner to extend deadlines from."""

    stamp_ns: int


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """The token is durable; `run` is what the session still does, or did and nobody settled."""

    job: str
    token: Token
    run: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """An order was refused; nothing of it was done."""

    job: str
    token: Token
    highest: Token
    order: str
    reason: RefusalReason
    detail: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is; totals are 0 until the plan is known."""

    done: Counts
    files_total: int = 0
    bytes_total: int = 0
    phase: str = "scan"


@dataclass(frozen=True, slots=True)
class RunProgress:
    """A run goes on."""

    job: str
    run: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """One change that a plan would make at one target."""

    path: bytes
    member: str
    action: str
    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class RunPlanned:
    """Some of the changes that a preview found."""

    job: str
    run: str
    changes: tuple[PlannedChange, ...]


@dataclass(frozen=True, slots=True)
class RunEnded:
    """How a run ended at the workers; sent again after every takeover until it is settled."""

    job: str
    run: str
    outcome: Outcome
    counts: Counts
    problems: tuple[Problem, ...] = ()
    problems_total: int = 0
    holds: tuple[Hold, ...] = ()
    plan: bytes = b""
    behind: tuple[str, ...] = field(default=())
    """The targets that the run did not make equal."""


Report = Pulse | SessionOpened | Refused | RunProgress | RunPlanned | RunEnded


@dataclass(frozen=True, slots=True)
class RootDescription:
    """One exported directory."""

    name: str
    path: str
    read_only: bool
    available: bool
    free_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerDescription:
    """Who a worker says it is."""

    name: str
    identity: str
    instance: str
    version: str
    group: str
    roots: tuple[RootDescription, ...]
    orders_refused: int


@dataclass(frozen=True, slots=True)
class PeerGrant:
    """On whose orders a source worker calls a target; the target believes only its own session."""

    job: str
    token: Token
    run: str
    member: str
