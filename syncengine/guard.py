"""Guard: what makes a plan too dangerous to be carried out without an approval. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from syncengine.model import Hold, HoldReason, Safety
from syncengine.phases import Summary


@dataclass(frozen=True, slots=True)
class Before:
    """How many entries a member had after its last successful run; None when there was none."""

    source: int | None = None
    target: int | None = None


def judge(
    summary: Summary,
    safety: Safety,
    *,
    source_member: str,
    target_member: str,
    before: Before,
    marker_holds: Iterable[Hold] = (),
    covered: int | None = None,
) -> list[Hold]:
    """Return every reason to hold the plan; an empty list lets it through.

    The limits are the job's and can be switched off. That a tree had entries and has none now, and
    what the markers say, holds whatever the limits. A plan made from scans within a few paths comes
    with `covered`, the entries that the job covers at the target in all: deletes are measured
    against these, and whether a tree was emptied is left to plans that saw all of it.
    """
    holds = list(marker_holds)
    for member, had, has in (
        (source_member, before.source, summary.source_entries),
        (target_member, before.target, summary.target_entries),
    ):
        if had and not has and covered is None:
            detail = f"it had {had} entries and is empty now"
            holds.append(Hold(HoldReason.EMPTIED, member, detail))
    deletes = summary.deletes
    if covered is None:
        covered = summary.target_entries
    if safety.max_delete is not None and deletes > safety.max_delete * covered:
        detail = (
            f"{deletes} of {covered} entries would be deleted, more than {safety.max_delete:.4g}"
            " of them"
        )
        holds.append(Hold(HoldReason.MAX_DELETE, target_member, detail))
    if safety.max_delete_files is not None and deletes > safety.max_delete_files:
        detail = f"{deletes} entries would be deleted, more than {safety.max_delete_files}"
        holds.append(Hold(HoldReason.MAX_DELETE_FILES, target_member, detail))
    return holds
