"""What a pass over a part of the trees comes to, for whoever asks for one after the other.

A *pass* lists, plans, lets the guards judge and carries the plan out, once, over a `Scope`. It is the
same code for a whole run and for a monitor that passes over what changed: the same plans, guards and
promises. What a pass could not do it names, and it is for its caller to pass over that again.

    passes = OneWayPasses(assignment, order, target, around)      # worker.one_way_pass
    done = await passes.pass_over(scope, hints=[Graft(old, new)]) # as often as there is something
    await passes.close()

    passes = NWayPasses(assignment, order, around)                # worker.n_way_pass
    done = await passes.pass_over(scope, hints=...)               # one result a member
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from blake3 import blake3

from syncengine.model import Counts, Hold, Problem, What
from syncengine.names import parent_of
from syncengine.phases import Plan
from syncengine.scope import Scope


@dataclass(frozen=True, slots=True)
class PassResult:
    """What one pass came to at one member."""

    member: str
    """As the job names it."""
    scope: Scope
    """What it was to pass over."""
    unequal: Scope
    """What has to be passed over again: paths of the scope, or below its deep ones, or directories
    on the way to them. The rest of the scope is equal now: verified, and durable at the member as
    the job's `durability` says, when the pass returns. The whole scope when the member is away, or
    when the plan is held."""
    problems: tuple[Problem, ...] = ()
    """Why, and what else there is to say; those whose `what.fails` is not set need no other pass."""
    holds: tuple[Hold, ...] = ()
    """Why the plan is held: then nothing was changed anywhere."""
    digest: bytes = b""
    """Of the plan that is held: to be approved. 32 bytes; else empty."""
    is_away: bool = False
    """The member could not be reached, or no longer; `problems` say why."""
    changes: int = 0
    """How many changes the plan had: 0 where all was equal before."""
    counts: Counts = field(default_factory=Counts)
    """What was done at the member in this pass; `files_scanned` are entries looked at."""

    @property
    def is_equal(self) -> bool:
        """Whether all of the scope is equal now."""
        return self.unequal.is_empty

    def with_piece(self, later: "PassResult") -> "PassResult":
        """Return what this and a later pass over another part of the scope came to."""
        counts = Counts()
        counts.add(self.counts)
        counts.add(later.counts)
        return PassResult(
            member=self.member,
            scope=self.scope | later.scope,
            unequal=self.unequal | later.unequal,
            problems=(*self.problems, *later.problems),
            holds=later.holds,
            digest=later.digest,
            is_away=later.is_away,
            changes=self.changes + later.changes,
            counts=counts,
        )

    def left_out(self, piece: Scope) -> "PassResult":
        """Return this result with a part of the scope that was not come to."""
        return replace(self, scope=self.scope | piece, unequal=self.unequal | piece)


def told(before: int, entries: int | None) -> int | None:
    """Return what a target is to remember; None while what it remembers is about right.

    It is written to disk, durably: not with every file that a monitor sends.
    """
    if entries is None or abs(entries - before) * 100 <= min(before, entries):
        return None
    return entries


def digest_of(holds: Iterable[Hold], plans: Iterable[tuple[str, Plan]]) -> bytes:
    """Return what an operator approves: these changes of these members, despite these holds."""
    digest = blake3()
    for hold in holds:
        digest.update(f"{hold.reason.value}\0{hold.member}\0".encode())
    for member, plan in plans:
        digest.update(f"{member}\0".encode())
        digest.update(plan.digest)
    return digest.digest()


def unequal(scope: Scope, plans: Sequence[Plan], problems: Iterable[Problem]) -> Scope:
    """Return what of a scope plans that were carried out to their ends did not make equal."""
    failed: set[bytes] = set()
    leaves_deletes = not all(plan.summary.is_complete for plan in plans)
    for problem in problems:
        if problem.what.fails:
            failed.add(problem.path)
        elif problem.what is What.SKIPPED and not problem.path:
            leaves_deletes = True
    if b"" in failed:
        return scope  # something failed that nobody can put a path to
    if leaves_deletes:
        # INVARIANT I8: they were left out, and so was what they were to make way for.
        for plan in plans:
            spools = (plan.in_way, plan.extras, plan.replacements)
            failed.update(change.path for spool in spools for change in spool)
    # What failed may have hidden what is below it.
    below = [one for one in scope if any(above in failed for above in _above(one.path))]
    return Scope.of([*below, *map(scope.part_at, failed)])


def _above(path: bytes) -> Iterator[bytes]:
    while path := parent_of(path):
        yield path
