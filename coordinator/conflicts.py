"""Whether jobs get along: no two write the same files, and no chain of jobs feeds itself. Pure."""

from collections.abc import Iterable, Sequence

from coordinator.job import JobSpec
from coordinator.members import members_overlap
from wire.orders import Member


def overlaps(new: JobSpec, other: JobSpec) -> list[str]:
    """Return why two different jobs cannot both exist; empty when they can.

    Two jobs may read the same files, and one may read what the other writes (a chain), but no two
    may write the same ones, nor each read what the other writes.
    """
    found = [
        f"{_field(new, mine)} {mine} overlaps {theirs}, which job {other.name} writes too"
        for mine in _written(new)
        for theirs in _written(other)
        if members_overlap(mine, theirs)
    ]
    if not found and _feeds(new, other) and _feeds(other, new):
        found.append(
            f"jobs {new.name} and {other.name} form a loop: each reads what the other writes"
        )
    return found


def conflicts(new: JobSpec, others: Iterable[JobSpec]) -> list[str]:
    """Return why a job cannot join the others; one of the same name is the one it replaces."""
    rest = [job for job in others if job.name != new.name]
    found = [reason for other in rest for reason in overlaps(new, other)]
    if not found:
        loop = _loop_through(new, rest)
        if loop:
            names = " -> ".join([*loop, new.name])
            found.append(f"jobs form a loop, each reads what the one before writes: {names}")
    return found


def _written(job: JobSpec) -> Sequence[Member]:
    return job.target_members if job.rule.is_one_way else job.all_members


def _read(job: JobSpec) -> Sequence[Member]:
    return (job.source_member,) if job.rule.is_one_way else job.all_members


def _field(job: JobSpec, member: Member) -> str:
    fields = (
        ("targets", job.target_members) if job.rule.is_one_way else ("members", job.all_members)
    )
    return f"{fields[0]}[{fields[1].index(member)}]"


def _feeds(first: JobSpec, second: JobSpec) -> bool:
    """Say whether one job reads what another writes.

    A job of `sync` or `exchange` reads what it writes, and is no loop for that. Nor can it be part of
    one: what feeds it writes to a member of it, and that is refused as such.
    """
    if first is second and not first.rule.is_one_way:
        return False
    return any(members_overlap(out, into) for out in _written(first) for into in _read(second))


def _loop_through(new: JobSpec, others: Sequence[JobSpec]) -> list[str]:
    """Return the names of a chain of jobs from `new` back to it, or nothing."""
    came_from: dict[str, str] = {}
    at = [new]
    while at:
        job = at.pop()
        for following in (*others, new):
            if following.name in came_from or not _feeds(job, following):
                continue
            came_from[following.name] = job.name
            at.append(following)
    if new.name not in came_from:
        return []
    chain = [came_from[new.name]]
    while chain[-1] != new.name:
        chain.append(came_from[chain[-1]])
    return chain[::-1]
