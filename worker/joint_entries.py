"""How many entries the members of a joint run have: what guards judge by, and what is remembered."""

from collections.abc import Mapping

from syncengine.guard import Scoped, Tide, judge_member
from syncengine.model import Hold, Safety
from worker.joint_pass import Pass, Seen, entries_after, entries_more
from worker.member_tree import UNKNOWN
from worker.passes import told


class JointEntries:
    """The entries of all members, over one pass or many."""

    def __init__(self, names: Mapping[str, Tide] | None = None) -> None:
        """Begin with what `names` tells of members by name: for a run that ends, with nothing."""
        self._tides = names or {}

    def judge(
        self, now: Pass, one: Seen, safety: Safety, *, is_whole: bool, at: float
    ) -> list[Hold]:
        """Return every reason to hold what a pass does to one member; `at` is monotonic, seconds."""
        before = None if one.entries_before == UNKNOWN else one.entries_before
        number = now.index(one.part)
        scoped = None
        if not is_whole:
            scoped = Scoped(before, source_is_empty=False, target_is_empty=one.is_empty)
        found = judge_member(
            now.plan.summaries[number],
            safety,
            member=one.part.name,
            entries_before=before,
            marker_holds=one.holds,
            scoped=scoped,
        )
        tide = self._tides.get(one.part.name)
        if tide is None or before is None:
            return found
        if tide.entries is None:
            tide.accept(before)
        after = (tide.entries or 0) + entries_more(now, number)
        return found + tide.judge(at, after, safety, member=one.part.name)

    def to_remember(self, now: Pass, one: Seen, *, is_whole: bool) -> int | None:
        """Return how many entries a member is to remember after a pass; None for as many as it does.

        It is written to disk, durably: not with every file that a monitor sends.
        """
        number, before = now.index(one.part), one.entries_before
        if is_whole:
            return entries_after(now, number)
        if before == UNKNOWN:
            return None
        tide = self._tides.get(one.part.name)
        had = tide.entries if tide is not None and tide.entries is not None else before
        return told(before, max(0, had + entries_more(now, number)))

    def note(self, now: Pass, *, is_whole: bool, at: float, is_approved: bool) -> None:
        """Take what a pass did at the members that were reached."""
        for one in now.seen:
            tide = self._tides.get(one.part.name)
            if tide is None or one.part.why_away is not None:
                continue
            number = now.index(one.part)
            if is_whole:
                entries = entries_after(now, number)
            elif tide.entries is not None:
                entries = max(0, tide.entries + entries_more(now, number))
            else:
                continue
            if is_approved:
                tide.accept(entries)
            else:
                tide.note(at, entries)
