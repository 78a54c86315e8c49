"""Proves from a job's ledger alone that nothing is missing, double, set back or tampered with. Pure.

Every record has its place (`seq`), for an instant of the schedule the one it follows, and a seal: a
digest over all of it with its job and its key. The state says the last place, and up to where was
trimmed. So a record that was removed, changed or put in by another hand shows, unless that hand made
all of it anew.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from coordinator.catalog import Job
from coordinator.errors import BadKey
from coordinator.keys import parse_instant
from coordinator.records import (
    AttemptRecord,
    BadRecord,
    RunRecord,
    StateRecord,
    decode,
    seal_of,
)
from coordinator.schedule import next_due
from coordinator.timetable import begins_at, due_next
from wire.token import BadToken, Token

LATE = timedelta(seconds=60)
"""How late an instant may be before its absence counts: a takeover, and a look at the clock."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that cannot be: the runs that show it, as few as do."""

    what: str
    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Proof:
    """What the ledger of one job proves."""

    job: str
    records: int
    instants: int
    """How many instants of the schedule have records of their own."""
    attempts: int
    findings: tuple[Finding, ...]
    """Those with the fewest runs first; none at all when everything holds."""


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    run: RunRecord


def prove(
    name: str, job: Job | None, state: StateRecord, raw: Sequence[tuple[str, bytes]], now: datetime
) -> Proof:
    """Judge a job's ledger: `raw` is the last part of each key, and its value."""
    findings: list[Finding] = []
    entries = []
    for key, value in raw:
        try:
            instant, run = parse_instant(key), decode(value, RunRecord)
        except (BadKey, BadRecord) as error:
            findings.append(Finding(f"record {key} cannot be read: {error}", (key,)))
            continue
        if run.seal != seal_of(name, instant, run):
            findings.append(Finding(f"record {key} was changed by another hand", (key,)))
        entries.append(_Entry(key, run))
    entries.sort(key=lambda entry: entry.run.seq)
    findings += _places(entries, state)
    findings += _tokens(entries)
    findings += _instants(entries, state, job)
    findings += _overdue(entries, state, job, now)
    findings.sort(key=lambda finding: len(finding.runs))
    return Proof(
        name,
        len(entries),
        len(_scheduled(entries)),
        sum(len(entry.run.attempts) for entry in entries),
        tuple(findings),
    )


def _scheduled(entries: Iterable[_Entry]) -> list[_Entry]:
    return [entry for entry in entries if not entry.run.by_hand]


def _places(entries: Sequence[_Entry], state: StateRecord) -> Iterator[Finding]:
    """Every place is taken once, but for those that were trimmed."""
    by_seq: dict[int, _Entry] = {}
    for entry in entries:
        other = by_seq.setdefault(entry.run.seq, entry)
        if other is not entry:
            yield Finding(
                f"records {other.key} and {entry.key} have the same place {entry.run.seq}",
                (other.key, entry.key),
            )
        if entry.run.seq > state.seq:
            yield Finding(
                f"record {entry.key} has place {entry.run.seq}, and the state knows {state.seq}",
                (entry.key,),
            )
    places = [*sorted(by_seq), state.seq + 1]
    for before, after in pairwise([0, *places]):
        missing = range(max(before, *state.trimmed) + 1, after)
        if missing:
            beside = (by_seq[n].key for n in (before, after) if n in by_seq)
            count = f"{len(missing)} records are" if len(missing) > 1 else "a record is"
            yield Finding(f"{count} missing, from place {missing[0]} of {state.seq}", tuple(beside))


def _tokens(entries: Sequence[_Entry]) -> Iterator[Finding]:
    """Owners follow one another: a token never goes back."""
    last: tuple[Token, str] | None = None
    for entry in entries:
        for attempt in entry.run.attempts:
            token = _token(attempt)
            if token is None:
                yield Finding(f"run {entry.key} has no token: {attempt.token!r}", (entry.key,))
                continue
            if last is not None and last[0].cluster_id == token.cluster_id and token < last[0]:
                yield Finding(
                    f"run {entry.key} was owned under token {token} "
                    f"after run {last[1]} under {last[0]}",
                    tuple(dict.fromkeys((last[1], entry.key))),
                )
            last = token, entry.key


def _token(attempt: AttemptRecord) -> Token | None:
    try:
        return Token.parse(attempt.token)
    except BadToken:
        return None


def _instants(entries: Sequence[_Entry], state: StateRecord, job: Job | None) -> Iterator[Finding]:
    """Each instant of the schedule follows the one before, none missing and none twice."""
    scheduled = _scheduled(entries)
    places = {entry.run.seq for entry in entries}
    trimmed = max(state.trimmed)
    for before, after in pairwise(scheduled):
        between = range(before.run.seq + 1, after.run.seq)
        is_whole = all(place in places or place > trimmed for place in between)
        if is_whole and after.run.follows != before.run.due:
            yield Finding(
                f"instant {after.key} does not follow {before.key}", (before.key, after.key)
            )
        if after.run.due == before.run.due:
            yield Finding(f"instant {before.key} is there twice", (before.key, after.key))
    for entry in scheduled:
        yield from _expected(entry, job)
    if scheduled and state.last_due != scheduled[-1].run.due:
        yield Finding(
            f"the state's last instant is {state.last_due}, and the ledger's {scheduled[-1].key}",
            (scheduled[-1].key,),
        )


def _expected(entry: _Entry, job: Job | None) -> Iterator[Finding]:
    """The schedule has no instant between this one and the one that it follows."""
    run = entry.run
    first = run.first or run.due
    if first > run.due:
        yield Finding(f"record {entry.key} begins after it ends", (entry.key,))
    if job is None or run.follows is None or run.generation != job.generation:
        return  # of an earlier definition, which is not kept
    if job.spec.trigger.is_from_end or job.spec.trigger.form == "manual":
        return
    expected = next_due(
        job.spec, anchor=job.record.changed_at, last_due=run.follows, last_ended=None
    )
    # One that came earlier than expected: the wall clock had been set back.
    if expected is not None and first > expected:
        yield Finding(f"instant {expected.isoformat()} is missing before {entry.key}", (entry.key,))


def _overdue(
    entries: Sequence[_Entry], state: StateRecord, job: Job | None, now: datetime
) -> Iterator[Finding]:
    """Nothing that came long ago is without a record; a run under way may hold up what follows."""
    if job is None or job.record.paused is not None or state.was_paused:
        return
    if any(entry.run.is_open for entry in entries):
        return
    due = due_next(job, state)
    span = job.spec.open_times.opening(now)
    if due is None or (span is not None and max(span[0], due) > now - LATE):
        return
    if now - begins_at(job, due) > LATE:
        yield Finding(f"instant {due.isoformat()} is overdue: nobody owns the job?", ())
