"""Which coordinator should own a job, and why: a pure function of names.

The nodes that a job prefers come first, in its order. When none of them is there and fallback is
allowed, or none is named, all that are there are ranked by rendezvous hashing: every coordinator
computes the same order alone, jobs spread evenly, and a node that goes moves only its own jobs.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

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
) -> Decision:
    """Return the order in which the nodes that are there should claim a job, with reasons.

    A draining node takes nothing, whoever prefers it. An empty order means that the job waits.
    """
    live = set(live_nodes)
    usable = live - set(draining)
    preferred = tuple(node for node in placement.nodes if node in usable)
    reasons = [f"{node} is draining and takes no more" for node in sorted(live & set(draining))]
    reasons += [f"{node} is preferred but away" for node in placement.nodes if node not in live]
    if preferred:
        reasons.append(f"{preferred[0]} is the first of the preferred nodes that are there")
        return Decision(preferred, tuple(reasons))
    if placement.nodes and not placement.fallback:
        reasons.append("no preferred node is there and fallback is false: the job waits")
        return Decision((), tuple(reasons))
    order = tuple(sorted(usable, key=lambda node: (_weight(job_name, node), node), reverse=True))
    if not order:
        reasons.append("no coordinator is there")
        return Decision((), tuple(reasons))
    if placement.nodes:
        reasons.append("no preferred node is there, and fallback allows any other")
    else:
        reasons.append("any coordinator will do")
    reasons.append(f"{order[0]} has the highest rank for this job's name among {len(order)}")
    return Decision(order, tuple(reasons))


def rank(job_name: str, placement: Placement, node: str, live_nodes: Iterable[str]) -> int | None:
    """Return the place of `node` in the order, 0 for the best; None when it must not claim."""
    order = decide(job_name, placement, live_nodes).order
    return order.index(node) if node in order else None


def _weight(job_name: str, node: str) -> bytes:
    return blake3(f"{job_name}\0{node}".encode()).digest()
