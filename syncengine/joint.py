"""A plan for all members of a `sync` or `exchange` job together, as data.

`plan_sync.plan_sync(listings, options, run, *, grafts=None, spool_folder=None)` makes it, from one
listing of Sightings for each member that could be reached. One member, the runner, carries it out:

1. While `relisting` is not None, the plan is not final: close it, let every member list itself again
   in the way it says, and plan once more.
2. Let the guards judge `summaries`; with a hold nothing is done anywhere.
3. Record `agreements(m, already=True)` at every member: what so many trees have already that every
   majority of the job has one of them. A crash further on leaves the others behind, and no conflicts.
4. Gather, so that the runner's tree becomes the outcome: `local` there; then, from each member m,
   `fetches[m]` (which m's Sender reads and the runner's Receiver carries out); then `closing` there.
5. Spread: `plans[m]` to every other member m, read from the runner's tree.
6. Record `agreements(m, already=False)` at every member that is equal now, if these are enough.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import msgspec

from syncengine.agreed import Agreement, Graft
from syncengine.model import Entry, Problem, RunOptions
from syncengine.phases import Plan, Summary
from syncengine.spool import ValueSpool

CERTAIN = 1 << 62
"""As a bit beside those of members: something was seen, and not merely nothing."""


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """What a joint plan must know of one member beside its listing."""

    name: str
    """WORKER:ROOT[/PATH] as the job names it."""
    worker: str
    """What conflict copies of its versions are named after."""
    is_complete: Callable[[], bool]
    """Asked once, when its listing has been read to the end: whether that was all of it. If not,
    nothing is concluded from what it did not show."""
    is_new: bool = False
    """It keeps no agreed state for this job at all, as a member that joined, or lost its state:
    whatever it holds counts as an edit of its own, and is neither deleted nor overwritten unseen."""
    is_older: bool = False
    """Approved as a new member after its marker was missing or set back: what it agreed to counts
    for nothing, and its versions lose every conflict."""


@dataclass(frozen=True, slots=True)
class JointRun:
    """What a joint plan must know of its run."""

    members: tuple[MemberFacts, ...]
    """Who listed what, in the order of the job."""
    runner: int
    """Which of these carries the plan out."""
    number: int
    """Greater than that of every earlier run of the job, also of runs that reached other members
    only: made from the run's instant, it is."""
    stamp: str
    """The UTC time of the run, YYYYMMDD-HHMMSS."""
    total: int = 0
    """How many members the job has; 0: just these."""

    @property
    def is_everyone(self) -> bool:
        """Whether these are all members of the job."""
        return self.total in {0, len(self.members)}

    def is_enough(self, holders: int) -> bool:
        """Say whether every majority of the job has one of so many members."""
        return is_enough(holders, self.total or len(self.members))


def is_enough(holders: int, total: int) -> bool:
    """Say whether every majority of `total` members has one of `holders`."""
    return 2 * holders >= total


class Conflict(NamedTuple):
    """One path that members changed differently, for counts and events."""

    path: bytes
    detail: str


class Relisting(NamedTuple):
    """How the members are to list themselves for a plan that can be final."""

    grafts: tuple[Graft, ...]
    """Renames to be shown as if done: what plan_sync is given as `grafts` then, also when empty."""
    digests: tuple[ValueSpool[bytes], ...]
    """For each member the paths, in tree order and as the grafts show them, at which the next listing
    needs `now.digest`: only their content tells whether two members differ. They live as long as
    the plan."""


class Recorded(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An agreement as it waits in its spool: with what it rests upon."""

    path: bytes
    number: int
    entry: Entry | None
    rests_on: int
    """Bits of the members one of which must have been seen whole; CERTAIN when none has to."""


class SyncPlan:
    """What makes all members equal: a plan for each, and what is agreed to afterwards.

    Index m counts the listings as they were given to `plan_sync`. Reading blocks on spool files; one
    thread at a time. A context manager: it may hold unlinked temporary files.
    """

    def __init__(self, options: RunOptions, run: JointRun, folder: str | None = None) -> None:
        self.options = options
        self.members = run.members
        self.runner = run.runner
        count = len(self.members)
        self.plans = tuple(Plan(options, folder) for _ in range(count))
        """For each member, what makes it equal, its content read from the runner's tree after
        gathering; the runner's own is empty. Of a WriteFile with `source_seen` 0, size and time tell
        (only the size, unless `keep_times`) that the runner still has what is meant."""
        self.local = Plan(options, folder)
        """At the runner, first: renames, making way, directories, links, metadata, devices. Needs no
        content from anybody."""
        self.fetches = tuple(Plan(options, folder) for _ in range(count))
        """For each member, the files whose content the runner gets from it: WriteFile changes whose
        `origin` (or `path`) is to be read in that member's tree as it was listed."""
        self.closing = Plan(options, folder)
        """At the runner, after the fetches: hard links, deletes, modes and times of directories."""
        self.summaries = tuple(Summary() for _ in range(count))
        """What the plan comes to at each member, the runner too: for `guard.judge_member`."""
        self.problems: list[Problem] = []
        self.relisting: Relisting | None = None
        self.narrow: list[bytes] = []
        """As of `Plan`: directories that not all members have, or had, and that the scope of the
        listings does not cover whole. With any, the members are to be listed anew, these deep."""
        self.digest = b""
        """BLAKE3 over all that would be done, 32 bytes; the run's stamp and number leave it alone."""
        self.is_complete = (False,) * count
        """Of each member, whether it was seen whole."""
        self.found = ValueSpool(folder, list[Conflict])
        self.recorded = tuple(
            (ValueSpool(folder, list[Recorded]), ValueSpool(folder, list[Recorded]))
            for _ in range(count)
        )

    @property
    def conflicts_total(self) -> int:
        """How many paths are in conflict."""
        return len(self.found)

    def conflicts(self) -> Iterator[Conflict]:
        """Iterate over the paths in conflict: those decided, and those suppressed."""
        return iter(self.found)

    def agreements(self, member: int, *, already: bool) -> Iterator[Agreement]:
        """Iterate over what a member is to record; only what differs from its record.

        With `already`, of what it may record before anything is done; else of what it has after. The
        two share no path of one member. Not in tree order.
        """
        complete = CERTAIN
        for other, is_whole in enumerate(self.is_complete):
            complete |= is_whole << other
        for one in self.recorded[member][0 if already else 1]:
            if one.rests_on & complete:
                yield Agreement(one.path, one.number, one.entry)

    @property
    def is_empty(self) -> bool:
        """Whether no tree needs any change."""
        return all(plan.is_empty for plan in self.all_plans())

    def all_plans(self) -> tuple[Plan, ...]:
        """Return every plan that this one is made of."""
        return (self.local, *self.fetches, self.closing, *self.plans)

    def close(self) -> None:
        """Let go of everything but summaries, problems and digest."""
        for plan in self.all_plans():
            plan.close()
        self.found.close()
        for already, later in self.recorded:
            already.close()
            later.close()
        if self.relisting is not None:
            for spool in self.relisting.digests:
                spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
