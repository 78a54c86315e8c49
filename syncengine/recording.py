"""What the members agree to, while a joint plan is made: only what differs from their records.

INVARIANT I7: what any member has recorded, so many have had in their trees that every majority of the
job has one of them. So whatever a later run agrees to, without the member, was decided by somebody who
knew; that is why a member that is behind may be overwritten. What enough trees have already is recorded
before anything is done, the rest when it is done.
"""

from collections.abc import Sequence
from typing import NamedTuple

from syncengine.joint import CERTAIN, JointRun, Recorded, SyncPlan
from syncengine.levels import Place
from syncengine.model import Entry
from syncengine.reconcile import Verdict


class Having(NamedTuple):
    """What a member has at a path in the end."""

    member: int
    entry: Entry
    is_there: bool
    """Whether it has it before anything is done."""
    is_recorded: bool
    """Whether it has agreed to just that."""


class Recording:
    """Collects the agreements of one joint plan."""

    def __init__(self, plan: SyncPlan, run: JointRun) -> None:
        self._recorded = plan.recorded
        self._number = run.number
        self._run = run

    def note(
        self,
        member: int,
        path: bytes,
        number: int,
        entry: Entry | None,
        *,
        already: bool,
        rests_on: int = CERTAIN,
    ) -> None:
        """Let a member record something; `rests_on` as in Recorded."""
        spool = self._recorded[member][0 if already else 1]
        spool.append(Recorded(path, number, entry, rests_on))

    def present(self, path: bytes, verdict: Verdict, having: Sequence[Having]) -> None:
        """Let members agree to what they have in the end."""
        number = verdict.number or self._number
        # What an earlier run agreed to is known; else, too few that died now would be all that know.
        is_known = verdict.number or self._run.is_enough(sum(one.is_there for one in having))
        for one in having:
            if not one.is_recorded:
                already = bool(is_known and one.is_there)
                self.note(one.member, path, number, one.entry, already=already)

    def moved(self, member: int, path: bytes) -> None:
        """Let a member agree that nothing is at the path that something is renamed from."""
        self.note(member, path, self._number, None, already=False)

    def copy(self, copy: Entry) -> None:
        """Let all members agree to a conflict copy."""
        for member in range(len(self._recorded)):
            self.note(member, copy.path, self._number, copy, already=False)

    def absent(self, place: Place, verdict: Verdict, *, skip: int = 0) -> None:
        """Let all members but `skip` agree that nothing is there."""
        path, nows, agreeds = place
        number = verdict.number or self._number
        if (
            self._run.is_everyone
            and not any(nows)
            and not any(one and one.entry for one in agreeds)
        ):
            # Everybody knows by now: nobody can bring it back.
            for member, agreed in enumerate(agreeds):
                if agreed is not None:
                    self.note(member, path, 0, None, already=True, rests_on=1 << member)
            return
        is_known = verdict.number or self._run.is_enough(sum(now is None for now in nows))
        for member, (now, agreed) in enumerate(zip(nows, agreeds, strict=True)):
            if skip >> member & 1:
                continue
            if now is not None:
                self.note(member, path, number, None, already=False, rests_on=verdict.rests_on)
            elif agreed is not None and (agreed.entry is not None or agreed.number < number):
                already = bool(is_known)
                self.note(member, path, number, None, already=already, rests_on=1 << member)

    def forget(self, place: Place) -> None:
        """Let all members drop their records of a path that is left alone."""
        for member, agreed in enumerate(place.agreeds):
            if agreed is not None:
                self.note(member, place.path, 0, None, already=True)
