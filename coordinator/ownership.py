"""Who owns a job: the value of an owner key, and an ownership of our own. Values, and one flag."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from coordinator.errors import BadOwner
from coordinator.keys import check_name
from coordinator.lease_session import LeaseSession
from coordinator.store import Compare, Field, KeyValue
from wire.token import Token

DRILL = "drill"
"""The reason in the key of an owner that lost its lease on purpose, and does not stand again at once."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a coordinator writes into an owner key."""

    node: str
    since: datetime
    """When, by the claimer's wall clock: for display only."""
    reason: str
    nonce: str
    """Differs for every transaction of every process: tells whose key this is."""

    def to_json(self) -> bytes:
        """Write the value of the key."""
        fields = {
            "node": self.node,
            "since": self.since.astimezone(UTC).isoformat(timespec="milliseconds"),
            "reason": self.reason,
            "nonce": self.nonce,
        }
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, value: bytes) -> "Claim":
        """Read the value of a key; raises BadOwner."""
        try:
            fields = json.loads(value)
            since = datetime.fromisoformat(fields["since"])
            if since.tzinfo is None:
                raise BadOwner(f"an owner's time without a zone: {value[:200]!r}")
            texts = [fields[name] for name in ("node", "reason", "nonce")]
            if not all(isinstance(text, str) for text in texts):
                raise BadOwner(f"an owner with a field that is no text: {value[:200]!r}")
            return cls(check_name(texts[0]), since, texts[1], texts[2])
        except (ValueError, KeyError, TypeError) as error:
            raise BadOwner(f"not the value of an owner key: {value[:200]!r}") from error


@dataclass(frozen=True, slots=True)
class Owner:
    """The present owner of a job as etcd has it, whichever node that is."""

    node: str
    token: Token
    since: datetime
    reason: str
    lease_id: int
    nonce: str

    @classmethod
    def of(cls, kv: KeyValue, cluster_id: int) -> "Owner":
        """Read an owner key; one with a value that nobody here wrote has the node `?`."""
        token = Token(cluster_id, kv.create_revision)
        try:
            claim = Claim.from_json(kv.value)
        except BadOwner:
            return cls("?", token, datetime.fromtimestamp(0, UTC), "unreadable", kv.lease, "")
        return cls(claim.node, token, claim.since, claim.reason, kv.lease, claim.nonce)


class LostReason(StrEnum):
    """Why an ownership ended."""

    RELEASED = "released"
    """We gave it up."""
    SESSION_ENDED = "session-ended"
    """The lease behind it is over."""
    VANISHED = "vanished"
    """The key was deleted by somebody else, or its lease ended in etcd."""
    DRILLED = "drilled"
    """We fell silent on purpose, and leave the key to its lease."""
    CHANGED = "changed"
    """The key is there, but no longer as we wrote it."""


@dataclass(eq=False, slots=True)
class Ownership:
    """The right to give orders for a job: a key that we created, under a lease that we keep."""

    job: str
    key: str
    token: Token
    session: LeaseSession
    since: datetime
    reason: str
    lost: LostReason | None = field(default=None)
    """Set by the election when it is over; nobody else writes it."""

    @property
    def is_held(self) -> bool:
        """Whether orders may be given now: by the clock, whatever the event loop is doing."""
        return self.lost is None and self.session.is_held

    def remaining_s(self) -> float:
        """Return the seconds for which orders may be given; 0 or less when none may."""
        left_s = self.session.remaining_s()
        return left_s if self.lost is None else min(0.0, left_s)

    def compare(self) -> Compare:
        """Return what every transaction of this owner compares: the key is still the one we made."""
        return Compare(self.key, Field.CREATE, self.token.revision)
