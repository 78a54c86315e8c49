"""What would happen to a job if its owner went now: who takes over, by which rule, how soon. Pure."""

from dataclasses import dataclass

from coordinator.job import Placement
from coordinator.placement import Decision

TAKEOVER_MARGIN_S = 1.0
"""What passes at most between the end of a lease and the claim of the next owner."""
ETCD_LEADER_MARGIN_S = 3.0
"""The same, beside a second TTL, when etcd's leader dies with the owner and renews every lease once."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Who would take a job over from its owner."""

    next_owner: str | None
    rule: str
    """Why it is that one, or why nobody is."""
    worst_s: float
    """From the owner's death to the claim, in seconds, at worst; without meaning when nobody claims."""
    worst_with_etcd_s: float
    """The same when the leader of etcd dies as well."""

    @property
    def warning(self) -> str:
        """What to say when nobody could; empty when somebody can."""
        return "" if self.next_owner is not None else f"nobody could take over: {self.rule}"


def forecast(
    placement: Placement, lease_ttl_s: float, owner: str | None, without: Decision
) -> Forecast:
    """Judge by `without`, which is the decision on the job as if `owner` were not there."""
    first = without.order[0] if without.order else None
    return Forecast(
        first,
        _why_nobody(placement, owner) if first is None else _rule(placement, first, without),
        lease_ttl_s + TAKEOVER_MARGIN_S,
        2 * lease_ttl_s + ETCD_LEADER_MARGIN_S,
    )


def _rule(placement: Placement, first: str, without: Decision) -> str:
    if first in placement.nodes:
        return "it is the first of the other preferred nodes that are there"
    ranks = f"it ranks first for this job's name among the other {len(without.order)}"
    if placement.nodes:
        return f"no other preferred node is there, fallback allows any, and {ranks}"
    return ranks


def _why_nobody(placement: Placement, owner: str | None) -> str:
    if placement.nodes and not placement.fallback:
        others = [node for node in placement.nodes if node != owner]
        if not others:
            return f"placement names {owner or placement.nodes[0]} alone, and fallback is false"
        return f"of {', '.join(others)} none is there that takes jobs, and fallback is false"
    return "no other coordinator is there that takes jobs"
