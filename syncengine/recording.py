"""What the members agree to, while a joint plan is made: only what differs from their records.

What a member's tree has already is recorded before anything is done, the rest when it is done.
"""

from syncengine.joint import CERTAIN, Recorded, SyncPlan
from syncengine.levels import Place
from syncengine.model import Entry
from syncengine.reconcile import Verdict


class Recording:
    """Collects the agreements of one joint plan."""

    def __init__(self, plan: SyncPlan, *, number: int, is_everyone: bool) -> None:
        self._recorded = plan.recorded
        self._number = number
        self._is_everyone = is_everyone

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

    def present(
        self, member: int, place: Place, verdict: Verdict, expected: Entry, *, is_there: bool
    ) -> None:
        """Let a member agree to what it has in the end."""
        number = verdict.number or self._number
        self.note(member, place.path, number, expected, already=is_there)

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
        if self._is_everyone and not any(nows) and not any(one and one.entry for one in agreeds):
            # Everybody knows by now: nobody can bring it back.
            for member, agreed in enumerate(agreeds):
                if agreed is not None:
                    self.note(member, path, 0, None, already=True, rests_on=1 << member)
            return
        for member, (now, agreed) in enumerate(zip(nows, agreeds, strict=True)):
            if skip >> member & 1:
                continue
            if now is not None:
                self.note(member, path, number, None, already=False, rests_on=verdict.rests_on)
            elif agreed is not None and (agreed.entry is not None or agreed.number < number):
                self.note(member, path, number, None, already=True, rests_on=1 << member)

    def forget(self, place: Place) -> None:
        """Let all members drop their records of a path that is left alone."""
        for member, agreed in enumerate(place.agreeds):
            if agreed is not None:
                self.note(member, place.path, 0, None, already=True)
