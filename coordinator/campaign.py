"""What an election needs to know of its node: which jobs it would own, and whom it tells."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from coordinator.claim_budget import DEFAULT_PER_S
from coordinator.ownership import LostReason, Ownership

RANK_DELAY_S = 0.05
"""How much later each further rank claims: time for the better one's claim to be seen."""


@dataclass(frozen=True, slots=True)
class Candidacy:
    """That this node would own a job: after how many others, and under which lease."""

    rank: int
    """0 for the best placed node; the claim comes `rank` x 50 ms after the vacancy."""
    ttl_s: int
    reason: str = "vacant"
    later_s: float = 0.0
    """By how much more the claim comes later."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """What an election needs to know of its node and tells it. The functions must not block."""

    node: str
    jobs: Callable[[], Collection[str]]
    """The names of all jobs there are."""
    candidacy: Callable[[str], Candidacy | None]
    """Whether this node would own a job, were it vacant now; None: not at present."""
    gained: Callable[[Ownership], None]
    lost: Callable[[str, LostReason], None]
    """Called once after each `gained`, at its end whatever the reason, also for a release."""
    wall: Callable[[], datetime] = lambda: datetime.now(UTC)
    claims_per_s: float = DEFAULT_PER_S
    """How many jobs it claims a second at most, after a first burst."""


@dataclass(frozen=True, slots=True)
class PlannedClaim:
    """A claim to come."""

    vacant_at: float
    candidacy: Candidacy

    @property
    def due(self) -> float:
        """When to claim, on the election's clock."""
        return self.vacant_at + self.candidacy.rank * RANK_DELAY_S + self.candidacy.later_s
