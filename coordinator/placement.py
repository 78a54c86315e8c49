"""Which coordinator should own a job, and why: a pure function of names.

The nodes that a job prefers come first, in its order. When none of them is there and fallback is
allowed, or none is named, all that are there are ranked by rendezvous hashing: every coordinator
computes the same order alone, jobs spread evenly, and a node that goes moves only its own jobs.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from blake3 import blake3

from coordinator.job import Placement


@dataclass(frozen=True, slots=True)
class Decision:
    """Who may own a job now, best first, and the sentences that explain it."""

    order: tuple[str, ...]
    reasons: tuple[str, ...]


def decide(
    job_name: str,
    placement: Placement,
    live_nodes: Iterable[str],
    *,
    draining: Collection[str] = (),
    held: Mapping[str, str] = MappingProxyType({}),
) -> Decision:
    """Return the order in which the nodes that are there should claim a job, with reasons.

    A draining node takes nothing, whoever prefers it. One that is held down (`held` says until when and
    why) takes only what nobody else may own. An empty order means that the job waits.
    """
    live = set(live_nodes)
    usable = live - set(draining)
    reasons = [f"{node} is draining and takes no more" for node in sorted(live & set(draining))]
    reasons += [f"{node} is held down {held[node]}" for node in sorted(usable & set(held))]
    reasons += [f"{node} is preferred but away" for node in placement.nodes if node not in live]
    decision = _among(job_name, placement, usable - set(held), reasons)
    if not decision.order and (last_resort := _among(job_name, placement, usable, reasons)).order:
        because = "nobody else is there who may own it, so those that are held down may"
        return Decision(last_resort.order, (*last_resort.reasons, because))
    return decision


def _among(job_name: str, placement: Placement, nodes: set[str], reasons: list[str]) -> Decision:
    """Return the order among nodes that are all free to take a job, and why after `reasons`."""
    preferred = tuple(node for node in placement.nodes if node in nodes)
    if preferred:
        because = f"{preferred[0]} is the first of the preferred nodes that are there"
        return Decision(preferred, (*reasons, because))
    if placement.nodes and not placement.fallback:
        because = "no preferred node is there and fallback is false: the job waits"
        return Decision((), (*reasons, because))
    order = tuple(sorted(nodes, key=lambda node: (_weight(job_name, node), node), reverse=True))
    if not order:
        return Decision((), (*reasons, "no coordinator is there"))
    if placement.nodes:
        because = "no preferred node is there, and fallback allows any other"
    else:
        because = "any coordinator will do"
    first = f"{order[0]} has the highest rank for this job's name among {len(order)}"
    return Decision(order, (*reasons, because, first))


@dataclass(frozen=True, slots=True)
class Absence:
    """What a coordinator knows of those that are not to be had."""

    left_at: Mapping[str, str]
    """By node: when it was seen to go, as text for people."""
    draining: Collection[str] = ()
    held: Collection[str] = ()
    silent: str | None = None
    """The last owner, when it is listed and claims no more."""

    def why(self, node: str) -> str:
        """Say why a node does not own a job."""
        if node == self.silent:
            return "fell silent"
        if node in self.draining:
            return "is draining"
        if node in self.held:
            return "is held down"
        at = self.left_at.get(node)
        return "was not there" if at is None else f"left at {at}"


def claim_reason(
    placement: Placement, decision: Decision, node: str, former: str | None, absence: Absence
) -> str:
    """Return why `node` claims a job that `former` had, so that "because ..." can be read on.

    `former` is None when nobody is known to have had it.
    """
    rank = decision.order.index(node)
    if rank > 0:
        return f"{', '.join(decision.order[:rank])}, ranked before it, did not claim"
    prefers = placement.nodes
    before = prefers[: prefers.index(node)] if node in prefers else prefers
    if before:
        return "; ".join(f"{one}, preferred, {absence.why(one)}" for one in before)
    if node in prefers:
        return "it is the preferred coordinator"
    if former is not None and former not in decision.order:
        return f"{former}, which had it, {absence.why(former)}"
    return f"it ranks first for this job's name among {len(decision.order)}"


def return_to(placement: Placement, decision: Decision, owner: str) -> str | None:
    """Return the preferred node that ranks before the owner and is there; None when none is."""
    first = decision.order[0] if decision.order else None
    if first is None or first not in placement.nodes or first == owner:
        return None
    return first


def rank(job_name: str, placement: Placement, node: str, live_nodes: Iterable[str]) -> int | None:
    """Return the place of `node` in the order, 0 for the best; None when it must not claim."""
    order = decide(job_name, placement, live_nodes).order
    return order.index(node) if node in order else None


def _weight(job_name: str, node: str) -> bytes:
    return blake3(f"{job_name}\0{node}".encode()).digest()
