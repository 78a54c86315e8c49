"""Guard: what makes a plan too dangerous to be carried out without an approval. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from syncengine.model import Hold, HoldReason, Safety
from syncengine.phases import Summary

TIDE_S = 600.0
"""Over how long the passes of a monitor are looked at together."""


@dataclass(frozen=True, slots=True)
class Before:
    """How many entries a member had after its last successful run; None when there was none."""

    source: int | None = None
    target: int | None = None


@dataclass(frozen=True, slots=True)
class Scoped:
    """What a plan over a part of the trees cannot see by itself."""

    covered: int | None
    """Entries that the job covers at the target in all, against which deletes are measured; None
    when nobody counted them yet: then those of the scope are all."""
    source_is_empty: bool
    """Whether nothing is left at the source's top, be it covered by the job or not."""
    target_is_empty: bool


class Tide:
    """The entries of a target over the last minutes, as one pass after the other changes them.

    Many small passes must not delete together what one large pass would have been held for. What
    counts here is by how much there are fewer entries than there were: files that come and go
    all the time are none. Times are of one monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = []
        """Until when there were how many entries: falling numbers, each the most since then."""

    @property
    def entries(self) -> int | None:
        """How many there were last; None when nobody said so."""
        return self._marks[-1][1] if self._marks else None

    def note(self, now: float, entries: int) -> None:
        """Take how many entries there are now."""
        if self._marks:
            self._marks[-1] = (now, self._marks[-1][1])
        while self._marks and self._marks[-1][1] <= entries:
            self._marks.pop()
        self._marks.append((math.inf, entries))

    def accept(self, entries: int) -> None:
        """Begin anew with what there is: somebody approved of it."""
        self._marks = [(math.inf, entries)]

    def judge(self, now: float, entries: int, safety: Safety, *, member: str) -> list[Hold]:
        """Return why a plan is held that would leave so many entries."""
        while len(self._marks) > 1 and self._marks[0][0] <= now - TIDE_S:
            del self._marks[0]
        most = self._marks[0][1] if self._marks else 0
        fewer = most - entries
        holds: list[Hold] = []
        since = f"of {most} entries, {fewer} would be deleted within {TIDE_S // 60:.0f} minutes"
        if safety.max_delete is not None and fewer > safety.max_delete * most:
            detail = f"{since}, more than {safety.max_delete:.4g} of them"
            holds.append(Hold(HoldReason.MAX_DELETE, member, detail))
        if safety.max_delete_files is not None and fewer > safety.max_delete_files:
            detail = f"{since}, more than {safety.max_delete_files}"
            holds.append(Hold(HoldReason.MAX_DELETE_FILES, member, detail))
        return holds


def judge(
    summary: Summary,
    safety: Safety,
    *,
    source_member: str,
    target_member: str,
    before: Before,
    marker_holds: Iterable[Hold] = (),
    scoped: Scoped | None = None,
) -> list[Hold]:
    """Return every reason to hold the plan; an empty list lets it through.

    The limits are the job's and can be switched off. That a tree had entries and has none now, and
    what the markers say, holds whatever the limits. A plan of listings in a scope comes with what
    these did not show: see `Scoped`.
    """
    holds = list(marker_holds)
    # What the filters of the job hide by now is there: that is no emptied tree.
    source_is_empty = not summary.source_entries + summary.source_hidden
    target_is_empty = not summary.target_entries + summary.target_hidden
    covered = summary.target_entries
    if scoped is not None:
        source_is_empty, target_is_empty = scoped.source_is_empty, scoped.target_is_empty
        if scoped.covered is not None:
            covered = scoped.covered
    for member, had, is_empty in (
        (source_member, before.source, source_is_empty),
        (target_member, before.target, target_is_empty),
    ):
        if had and is_empty:
            detail = f"it had {had} entries and is empty now"
            holds.append(Hold(HoldReason.EMPTIED, member, detail))
    deletes = summary.deletes
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


def judge_member(
    summary: Summary,
    safety: Safety,
    *,
    member: str,
    entries_before: int | None,
    marker_holds: Iterable[Hold] = (),
    scoped: Scoped | None = None,
) -> list[Hold]:
    """Return every reason to hold a joint plan because of what it does to, or saw at, one member.

    `entries_before` is what the member had after the last run that succeeded there.
    """
    return judge(
        summary,
        safety,
        source_member=member,
        target_member=member,
        before=Before(None, entries_before),
        marker_holds=marker_holds,
        scoped=scoped,
    )
