"""One pass of a joint run: what each member listed, and the joint plan that came of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from syncengine.agreed import Sighting
from syncengine.changes import MakeDirectory, MakeLink, MakeSpecial, MakeSymlink, WriteFile
from syncengine.errors import EngineError
from syncengine.joint import JointRun, MemberFacts, SyncPlan
from syncengine.model import Hold
from syncengine.phases import Phase
from syncengine.wall import stamp_of
from worker.peer_listing import Listing, PeerFailed
from worker.run import Part


class Again(Exception):
    """A member failed while it was listed, or a store was lost: plan without it."""


@dataclass(slots=True)
class Seen:
    """One member's listing of a pass."""

    part: Part
    holds: tuple[Hold, ...]
    entries_before: int
    number: int
    sightings: Iterator[Sighting]
    is_complete: Callable[[], bool]
    listing: Listing | None = None
    """None for the runner's own."""
    is_empty: bool = False
    """Whether nothing lies at its top."""


@dataclass(slots=True)
class Pass:
    """One joint plan, and whom it is for."""

    plan: SyncPlan
    seen: list[Seen]

    def index(self, part: Part) -> int:
        """Return the number that the plan knows a member by."""
        return next(number for number, one in enumerate(self.seen) if one.part is part)


def sightings_of(part: Part, listing: Listing) -> Iterator[Sighting]:
    """Yield a member's sightings; when these break off, the run goes on without the member."""
    try:
        yield from listing.sightings()
    except PeerFailed as error:
        part.failed(error)
        raise Again from error
    except EngineError as error:
        part.failed(PeerFailed(f"the listing makes no sense: {error}"))
        raise Again from error


def stop_listing(seen: list[Seen]) -> None:
    """End the reading of the listings, from the event loop."""
    for one in seen:
        if one.listing is not None:
            one.listing.stop()


def entries_more(now: Pass, number: int) -> int:
    """Return by how many entries a member has more after the pass than before; fewer are negative.

    Blocks on the plan's spools.
    """
    plan = now.plan
    mine = [plan.local, *plan.fetches, plan.closing]
    made = sum(
        isinstance(change, MakeDirectory)
        or (
            isinstance(change, WriteFile | MakeSymlink | MakeSpecial | MakeLink) and not change.seen
        )
        for one in (mine if number == plan.runner else [plan.plans[number]])
        for change in one.phase(Phase.MAKE)
    )
    return made - plan.summaries[number].deletes


def entries_after(now: Pass, number: int) -> int:
    """Return how many entries a member has after a pass over the whole trees; blocks as the other."""
    return max(0, now.plan.summaries[number].target_entries + entries_more(now, number))


def joint_run(
    seen: Sequence[Seen], *, number: int, now: float, own: Part, members: int
) -> JointRun:
    """Return what a joint plan must know of its run; `number` is that of the run's instant, or 0."""
    facts = tuple(
        MemberFacts(
            name=one.part.name,
            worker=one.part.member.worker,
            is_complete=one.is_complete,
            is_new=not one.number,
            is_older=bool(one.holds),
        )
        for one in seen
    )
    return JointRun(
        members=facts,
        runner=next(place for place, one in enumerate(seen) if one.part is own),
        number=max(number, 1 + max(one.number for one in seen)),
        stamp=stamp_of(number / 1e6 if number else now),
        total=members,
    )
