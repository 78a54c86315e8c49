"""The values of Baton's keys in etcd: JSON that an operator can read with etcdctl.

Paths that are no UTF-8 stand as escapes of lone surrogates, which only the standard library's JSON
writes and reads; msgspec gives the values their types.
"""

import json
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from coordinator.errors import CoordinatorError
from wire.orders import Outcome


class BadRecord(CoordinatorError, ValueError):
    """The value of a key is not what this version writes."""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`jobs/NAME`: what to do, which revision of it, and who said so."""

    spec: dict[str, Any]
    generation: int
    changed_by: str
    changed_at: datetime


class CoordinatorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`coordinators/NAME`, bound to the coordinator's lease."""

    address: str
    http: str
    version: str
    since: datetime
    instance: str
    """Differs for every process, so that a second one under the name is found out."""
    draining: bool = False


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


class HoldRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Why a run waits for an approval."""

    reason: str
    member: str
    detail: str


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`runs/NAME/INSTANT`: one execution of a job, from its creation to its end."""

    due: datetime
    generation: int
    outcome: Outcome
    reason: str = ""
    """Why it was started or how it stands, in words."""
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

    @property
    def is_open(self) -> bool:
        """Whether an owner still has something to do for it, or waits for an approval."""
        return self.ended is None


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
    last_ended: datetime | None = None
    up_to_date: dict[str, datetime] = {}
    """By target: the start of the last run that made it equal."""


R = TypeVar("R", bound=msgspec.Struct)


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
