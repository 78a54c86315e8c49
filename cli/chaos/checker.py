"""Judge a history: which invariants it proves, breaks, or says nothing about.

Pure. A verdict that breaks something carries the shortest part of the history that shows it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from cli.chaos import history as h


class Judgement(StrEnum):
    """What a history says of an invariant."""

    HOLDS = "holds"
    BROKEN = "broken"
    UNSEEN = "not exercised"


@dataclass(frozen=True, slots=True)
class Job:
    """What the checker must know of a job."""

    name: str
    members: tuple[str, ...]
    is_one_way: bool
    keeps_deleted: bool = False
    """Whether targets keep what their source has no more."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take."""

    takeover_s: float = 30.0
    """From the last fault that stops coordination to an owner of every job, on a busy machine."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came out for one invariant."""

    invariant: str
    promise: str
    judgement: Judgement
    evidence: int
    """How many observations it rests on."""
    what: str = ""
    shown_by: tuple[h.Any, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class _Broken:
    what: str
    shown_by: tuple[h.Any, ...]


@dataclass(slots=True)
class _Case:
    """The history, sorted by what the judges ask."""

    events: Sequence[h.Any]
    jobs: dict[str, Job]
    limits: Limits

    def of(self, kind: type[h.E]) -> list[h.E]:
        return [event for event in self.events if isinstance(event, kind)]


_Judge = Callable[[_Case], tuple[int, Iterator[_Broken]]]


def judge(
    events: Sequence[h.Any], jobs: Iterable[Job], limits: Limits | None = None
) -> list[Verdict]:
    """Return a verdict for every invariant, in their order."""
    case = _Case(events, {job.name: job for job in jobs}, limits or Limits())
    return [_verdict(case, *row) for row in _JUDGES]


def _verdict(case: _Case, invariant: str, promise: str, judge_: _Judge) -> Verdict:
    evidence, broken = judge_(case)
    found = sorted(broken, key=lambda one: len(one.shown_by))
    if found:
        worst = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        what = worst.what + more
        return Verdict(invariant, promise, Judgement.BROKEN, evidence, what, worst.shown_by)
    judgement = Judgement.HOLDS if evidence else Judgement.UNSEEN
    return Verdict(invariant, promise, judgement, evidence)


def _readers(case: _Case) -> tuple[int, Iterator[_Broken]]:
    """I1."""
    torn = case.of(h.Read)
    seen = sum(event.files for event in case.of(h.ReadMany)) + len(torn)
    return seen, (
        _Broken(f"{one.member}:{one.path} was neither old nor new ({one.size} bytes)", (one,))
        for one in torn
    )


def _publishing(case: _Case) -> tuple[int, Iterator[_Broken]]:
    """I4, I5."""
    published = case.of(h.Published)

    def broken() -> Iterator[_Broken]:
        highest: dict[tuple[str, str], h.Published] = {}
        for one in published:
            key = (one.worker, one.job)
            before = highest.get(key)
            if before is not None and one.token < before.token:
                what = (
                    f"{one.worker} published for {one.job} under {one.token} after {before.token}"
                )
                yield _Broken(what, (before, one))
            else:
                highest[key] = one

    return len(published), broken()


def _owners(case: _Case) -> tuple[int, Iterator[_Broken]]:
    """Tokens grow with every owner (I4)."""
    owned = case.of(h.Owned)

    def broken() -> Iterator[_Broken]:
        last: dict[str, h.Owned] = {}
        for one in owned:
            before = last.get(one.job)
            if before is not None and one.token <= before.token:
                what = f"{one.node} owns {one.job} under {one.token}, after {before.token}"
                yield _Broken(what, (before, one))
            last[one.job] = one

    return len(owned), broken()


def _kept(case: _Case) -> tuple[int, Iterator[_Broken]]:
    """I7 (of a sync I11 too): a version that no writer took away himself is still somewhere."""
    changes = case.of(h.Changed)
    written = {one.version: one for one in changes if one.what == "write"}
    trees = case.of(h.FinalTree)
    if not trees:
        return 0, iter(())
    displaced: dict[str, set[str]] = defaultdict(set)
    for one in changes:
        displaced[one.job].add(one.displaced)
    alive: dict[str, set[str]] = defaultdict(set)
    kept: dict[str, set[str]] = defaultdict(set)
    for tree in trees:
        alive[tree.job].update(tree.entries.values())
        kept[tree.job].update(tree.trash)
    for one_trash in case.of(h.Trashed):
        kept[one_trash.job].update(one_trash.versions)

    def broken() -> Iterator[_Broken]:
        for version, one in written.items():
            if version in displaced[one.job] or version in alive[one.job]:
                continue
            where = f"version {version} of {one.job}, written at {one.member}:{one.path},"
            touching = tuple(
                other
                for other in changes
                if other.job == one.job and one.path in {other.path, other.origin}
            )
            if version not in kept[one.job]:
                yield _Broken(f"{where} is nowhere any more", touching)
            elif not case.jobs[one.job].is_one_way:
                yield _Broken(f"{where} was deleted, and nobody had deleted it", touching)

    return len(written), broken()


def _doubts(case: _Case) -> tuple[int, Iterator[_Broken]]:
    """I8: while a source was not there, targets lost only what its writer had taken away."""
    doubts = case.of(h.Doubted)
    displaced = {(one.job, one.displaced) for one in case.of(h.Changed)}

    def broken() -> Iterator[_Broken]:
        for one in doubts:
            lost = [name for name in one.vanished if (one.job, name) not in displaced]
            if lost:
                what = f"{one.member} lost {len(lost)} files of {one.job}, {lost[0]} among them, "
                yield _Broken(f"{what}while {one.source} had no root", (one,))

    return sum(one.looked_at for one in doubts), broken()


def _events(case: _Case) -> tuple[int, Iterator[_Broken]]:
    """I13."""
    runs = [run for run in case.of(h.FinalRun) if run.audits]
    return sum(run.audits for run in runs), (
        _Broken(f"an audit of {run.job} found {run.audit_found} changes", (run,))
        for run in runs
        if run.audit_found
    )


def _ledgers(case: _Case) -> tuple[int, Iterator[_Broken]]:
    """I9."""
    proofs = case.of(h.Proved)
    return sum(one.records for one in proofs), (
        _Broken(f"{one.job}: {finding}", (one,)) for one in proofs for finding in one.findings
    )


def _convergence(case: _Case) -> tuple[int, Iterator[_Broken]]:
    """I10."""
    trees, runs = case.of(h.FinalTree), case.of(h.FinalRun)

    def broken() -> Iterator[_Broken]:
        first: dict[str, h.FinalTree] = {}
        for tree in trees:
            model = first.setdefault(tree.job, tree)
            extra = set() if case.jobs[tree.job].keeps_deleted else tree.entries.keys()
            for path in sorted(model.entries.keys() | extra):
                one, other = model.entries.get(path, "nothing"), tree.entries.get(path, "nothing")
                if one != other:
                    touching = tuple(
                        change
                        for change in case.of(h.Changed)
                        if change.job == tree.job and path in {change.path, change.origin}
                    )
                    what = f"{tree.job} at {path}: {model.member} has {one}, {tree.member} {other}"
                    yield _Broken(what, touching)
        for run in runs:
            if run.outcome != "succeeded" or run.moved:
                what = f"one more run of {run.job} ended {run.outcome} and moved {run.moved}"
                yield _Broken(what, (run,))

    return len(trees) + len(runs), broken()


def _takeovers(case: _Case) -> tuple[int, Iterator[_Broken]]:
    """I15: a job without an owner gets one, soon after the last fault that stops coordination."""
    lapses = 0
    found: list[_Broken] = []
    ownerless: dict[str, h.Disowned] = {}
    stopping: dict[int, h.Injected] = {}
    last_stop = 0.0
    for event in case.events:
        match event:
            case h.Injected(stops_coordination=True):
                stopping[event.number] = event
            case h.Healed() if event.number in stopping:
                del stopping[event.number]
                last_stop = event.at
            case h.Disowned():
                ownerless.setdefault(event.job, event)
            case h.Owned() if event.job in ownerless:
                lapses += 1
                since = ownerless.pop(event.job)
                began = since.at if not stopping else event.at
                waited = event.at - max(began, last_stop)
                if waited > case.limits.takeover_s:
                    what = f"{event.job} had no owner for {waited:.1f} s"
                    found.append(_Broken(what, (since, event)))
            case _:
                pass
    found += [_Broken(f"{job} has no owner", (since,)) for job, since in ownerless.items()]
    return lapses, iter(found)


def _outside(case: _Case) -> tuple[int, Iterator[_Broken]]:
    """I14."""
    looks = case.of(h.Sentinel)
    return sum(one.looked_at for one in looks), (
        _Broken(f"{path} lies outside of every root and changed", (one,))
        for one in looks
        for path in one.changed
    )


_JUDGES: tuple[tuple[str, str, _Judge], ...] = (
    ("I1", "a reader sees old or new content, never a mix", _readers),
    ("I4", "nothing is published under a lower token than before", _publishing),
    ("I4", "every owner has a higher token than the one before", _owners),
    ("I7", "every version that loses is kept; nobody's work is deleted", _kept),
    ("I8", "nothing is deleted because a source is not there", _doubts),
    ("I9", "every due instant is in the ledger once", _ledgers),
    ("I10", "when faults stop, members become equal, and one more run moves nothing", _convergence),
    ("I13", "no change goes unnoticed by those who follow changes", _events),
    ("I14", "nothing outside a root is touched", _outside),
    ("I15", "jobs get an owner again", _takeovers),
)
