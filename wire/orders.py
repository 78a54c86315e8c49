"""What an owner says to a worker and hears from it, as values.

The protobuf forms are in `worker_convert`, and nothing else knows them.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from syncengine.model import Counts, Hold, Problem, RunOptions
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
    members: tuple[Member, ...]
    """In the order of the job; of a one-way rule the source is the first."""
    options: RunOptions
    made: str = ""
    """Differs for a job that was deleted and made again; empty for one of an earlier version."""

    @property
    def source(self) -> Member:
        """The source of a one-way rule; else the member that is listed first."""
        return self.members[0]

    @property
    def targets(self) -> tuple[Member, ...]:
        """The targets of a one-way rule; else the other members."""
        return self.members[1:]

    @property
    def written(self) -> tuple[Member, ...]:
        """The members that a run changes by its rule: of a one-way rule the targets, else all."""
        return self.targets if self.options.rule.is_one_way else self.members

    @property
    def runners(self) -> tuple[str, ...]:
        """The workers that can carry out a run, the preferred first: of a one-way rule the source's."""
        able = (self.source,) if self.options.rule.is_one_way else self.members
        return tuple(dict.fromkeys(member.worker for member in able))


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
class Monitor:
    """That a run is to follow changes, and does not end."""

    settle_s: float
    """How long a path must be quiet before its change is sent."""
    audit_s: float
    """How often everything is compared anyway."""
    audits_asked: int = 0
    """How many audits somebody has asked for since the run began: each number is answered once."""


@dataclass(frozen=True, slots=True)
class StartRun:
    """Carry out a run, or only plan it; `approved` releases exactly the plan of that digest.

    A worker that carries this very run out takes from it what is new: an approval, an audit.
    """

    job: str
    token: Token
    run: str
    preview: bool = False
    approved: bytes = b""
    number: int = 0
    """Grows with every run of the job; what members agree to stands under it, or a greater one."""
    verify: bool = False
    """Only compare the members: what differs is told as planned changes are."""
    monitor: Monitor | None = None
    """Do not end: follow what changes."""
    time_limit_s: float = 0.0
    """After so long the worker stops the run at the next safe point; 0 for no limit."""


@dataclass(frozen=True, slots=True)
class WantRoom:
    """Wait for room for a run; answered with RoomAt, at once and again when there is room."""

    job: str
    token: Token
    run: str
    priority: int = 0
    waited_s: float = 0.0
    """How long it has waited for room, at this worker or another."""
    is_under_way: bool = False
    """The run goes on already: it is counted, and need not wait."""


@dataclass(frozen=True, slots=True)
class LeaveRoom:
    """Give room back, or wait for none any more; the session stays."""

    job: str
    token: Token


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


Order = (
    Hello
    | OpenSession
    | CloseSession
    | Extend
    | StartRun
    | WantRoom
    | LeaveRoom
    | CancelRun
    | SettleRun
)


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
    room_limit: int = 0
    """In how many runs the worker takes part at once; 0 for any number, and none need ask."""


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
class RoomAt:
    """Whether a run has room at the worker, and how much there is."""

    job: str
    run: str
    is_given: bool
    taken: int = 0
    limit: int = 0
    """0 for no limit."""


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
    origin: bytes = b""
    """Of a rename: the path before."""


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
    """The members that the run did not make equal: of a one-way rule, targets."""
    generation: int = 0
    """Of the definition under which it ran; 0 where that is not known."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a monitor is with one member."""

    member: str
    behind_s: float | None
    """The age of the oldest change that is not there; 0 when there is none, None when unknown."""
    why: str = ""
    """What keeps it from being sent, empty when nothing does."""


@dataclass(frozen=True, slots=True)
class Monitored:
    """How a monitor stands: told on change, and anew to every owner."""

    job: str
    run: str
    life: str
    """Differs for every time that a worker began to monitor: `counts` begin with 0 then."""
    counts: Counts
    members: tuple[Standing, ...]
    problems: tuple[Problem, ...] = ()
    problems_total: int = 0
    holds: tuple[Hold, ...] = ()
    plan: bytes = b""
    """Digest of what is held, while something is."""
    audits: int = 0
    """How many whole comparisons after the first have been made in this life."""
    audit_found: int = 0
    """What those found that no event had told: changes."""
    audits_answered: int = 0
    """Up to which number audits that somebody asked for have been made."""
    degraded: str = ""
    """Why changes may be found by comparing only, empty while events tell of all."""


Report = Pulse | SessionOpened | Refused | RoomAt | RunProgress | RunPlanned | RunEnded | Monitored


@dataclass(frozen=True, slots=True)
class WatchDescription:
    """How a root is watched."""

    mode: str = "auto"
    """What the worker's configuration says: auto, always or never."""
    source: str = "none"
    """Where news of changes comes from: events, polling or none."""
    phase: str = "idle"
    """idle, scanning, watching or degraded."""
    reason: str = ""
    """Why it scans or is degraded, and what to do about it."""
    directories: int = 0
    """Directories that the kernel watches."""
    pending: int = 0
    """Paths that are still to be looked at, summed over those who want to know of them."""


NOT_WATCHED = WatchDescription()
"""Nobody watches, or nobody says so."""


@dataclass(frozen=True, slots=True)
class RootDescription:
    """One exported directory."""

    name: str
    path: str
    read_only: bool
    available: bool
    free_bytes: int
    watch: WatchDescription = NOT_WATCHED


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
    """On whose orders a worker calls a member; the callee believes only its own session."""

    job: str
    token: Token
    run: str
    member: str
