"""The values of Baton's keys in etcd: JSON that an operator can read with etcdctl.

Paths that are no UTF-8 stand as escapes of lone surrogates, which only the standard library's JSON
writes and reads; msgspec gives the values their types.
"""

import json
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from blake3 import blake3

from coordinator.errors import CoordinatorError
from wire.orders import Outcome


class BadRecord(CoordinatorError, ValueError):
    """The value of a key is not what this version writes."""


class PauseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """That somebody paused a job."""

    by: str
    since: datetime


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`jobs/NAME`: what to do, which revision of it, and who said so."""

    spec: dict[str, Any]
    generation: int
    changed_by: str
    changed_at: datetime
    made: str = ""
    """Drawn when the job is made, and kept while it is: another job of the same name has another."""
    paused: PauseRecord | None = None


class CoordinatorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`coordinators/NAME`, bound to the coordinator's lease."""

    address: str
    http: str
    version: str
    since: datetime
    instance: str
    """Differs for every process, so that a second one under the name is found out."""
    held_until: datetime | None = None
    """Until when nothing is placed on it that another may own; None: it is not held down."""
    held: str = ""
    """The same for people, with the reason."""


class LifeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`lives/NAME`: whether a coordinator is up or ended in order, and when it lost its jobs."""

    is_running: bool = False
    losses: tuple[datetime, ...] = ()


class DrainRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`drains/NAME`: that a coordinator takes no jobs, until somebody says otherwise."""

    by: str
    since: datetime


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`workers/NAME`: where a worker listens."""

    address: str
    group: str = ""
    added_by: str = ""
    added_at: datetime | None = None


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One owner's part in a run."""

    owner: str
    token: str
    started: datetime
    ended: datetime | None = None
    why_ended: str = ""


class CountsRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did, summed over its targets."""

    files_scanned: int = 0
    files_copied: int = 0
    files_updated: int = 0
    files_deleted: int = 0
    files_renamed: int = 0
    bytes_copied: int = 0
    bytes_sent: int = 0
    conflicts: int = 0


class ProblemRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a run could not do."""

    path: str
    member: str
    what: str
    detail: str


class MonitorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a run that follows changes has beside what every run has."""

    life: str = ""
    """Of the worker's counts that were added last: they begin anew with every life."""
    counted: CountsRecord = CountsRecord()
    """Those counts."""
    audits: int = 0
    """How many whole comparisons after the first have been made."""
    audit_found: int = 0
    """What those found that no event had told."""
    counted_audits: tuple[int, int] = (0, 0)
    """Of the same life: audits, and what they found."""
    asked: int = 0
    """How many audits somebody has asked for."""
    answered: int = 0
    """Up to which number of those have been made."""
    degraded: str = ""
    """Why changes may be found by comparing only, empty while events tell of all."""


class HoldRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Why a run waits for an approval."""

    reason: str
    member: str
    detail: str


class WaitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """That a run waits for room."""

    since: datetime
    worker: str = ""
    """Where; empty for its coordinator. At workers that come before it the run has room."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`runs/NAME/INSTANT`: one execution of a job, from its creation to its end."""

    due: datetime
    generation: int
    outcome: Outcome
    reason: str = ""
    """Why it was begun or how it stands, in words."""
    begun: str = ""
    """Why it was begun: what remains to be said of a run that succeeded."""
    started: datetime | None = None
    ended: datetime | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    counts: CountsRecord = CountsRecord()
    problems: tuple[ProblemRecord, ...] = ()
    problems_total: int = 0
    holds: tuple[HoldRecord, ...] = ()
    plan: str = ""
    """Digest of the held plan, in hex."""
    approved: str = ""
    """Digest of the plan that somebody released."""
    by_hand: bool = False
    """Asked for, not due by the schedule."""
    failures: int = 0
    """How many attempts have failed."""
    again_at: datetime | None = None
    """When the next attempt may begin, for a run between attempts."""
    planned_from: datetime | None = None
    """Since when the trees were looked at: what changed later may be missing at targets."""
    is_parked: bool = False
    """Between attempts: nothing of it goes on at any worker."""
    monitor: MonitorRecord | None = None
    """Of a run that follows changes and does not end."""
    waits: WaitRecord | None = None
    """For room to begin, or to begin its next attempt."""
    cancelled: str = ""
    """That it is to end, and why: whoever owns the job carries it out."""
    seq: int = 0
    """Its place among all records of the job, from 1, in the order of their making."""
    follows: datetime | None = None
    """For an instant of the schedule: the one before it."""
    first: datetime | None = None
    """For a record of many instants that were passed over: the first; `due` is the last."""
    seal: str = ""
    """Digest of the rest, as it was last written: see `seal_of`."""

    @property
    def is_open(self) -> bool:
        """Whether an owner still has something to do for it, or waits for an approval."""
        return self.ended is None

    @property
    def is_queued(self) -> bool:
        """Whether it waits for the run before it to end."""
        return self.ended is None and self.started is None


class MoveRecord(msgspec.Struct, frozen=True, kw_only=True):
    """That an owner gave a job up on purpose."""

    node: str
    reason: str
    at: datetime


class StateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`state/NAME`: how a job stands, written by its owner only."""

    phase: str = "idle"
    reason: str = ""
    next_due: datetime | None = None
    last_due: datetime | None = None
    """The last instant of the schedule that became a run or was passed over."""
    last_run: str = ""
    last_outcome: str = ""
    last_success: datetime | None = None
    last_began: datetime | None = None
    last_ended: datetime | None = None
    set_back_at: datetime | None = None
    """From when the schedule counts on, since the wall clock was set back behind `last_due`."""
    moved: MoveRecord | None = None
    was_paused: bool = False
    """The owner has seen a pause: instants that came since are not made up for."""
    seq: int = 0
    """The `seq` of the newest record of the ledger."""
    trimmed: tuple[int, int] = (0, 0)
    """Up to which `seq` the ledger was trimmed: of runs, and of instants passed over."""
    up_to_date: dict[str, datetime] = {}
    """By target: the start of the last run that made it equal, or until when a monitor knew it was."""
    followed: dict[str, datetime | None] = {}
    """By target that a monitor follows: since when a change waits for it, None when none does."""
    followed_at: datetime | None = None
    """When that was known last."""


R = TypeVar("R", bound=msgspec.Struct)


def seal_of(job: str, instant: datetime, run: RunRecord) -> str:
    """Return the digest that the ledger keeps with a record, over it, its job and its key."""
    bare = encode(msgspec.structs.replace(run, seal=""))
    return blake3(f"{job}/{instant.isoformat()}\0".encode() + bare).hexdigest(length=16)


def encode(record: msgspec.Struct) -> bytes:
    """Return a record as JSON, fields in order, defaults left out where they say nothing."""
    return json.dumps(msgspec.to_builtins(record), separators=(",", ":")).encode("ascii")


def decode(raw: bytes, kind: type[R]) -> R:
    """Read a record; raise BadRecord when it is not one of this kind."""
    try:
        plain: Any = json.loads(raw)
        return msgspec.convert(plain, kind)
    except (ValueError, msgspec.ValidationError) as error:
        raise BadRecord(f"not a {kind.__name__}: {error}") from error
