"""Between the attempts of a run: whether there is another one, and when it may begin. Pure."""

from datetime import datetime, timedelta

import msgspec

from coordinator.catalog import Job
from coordinator.records import RunRecord
from coordinator.run_records import close_attempt
from wire.orders import Outcome

MONITOR_AGAIN_S = 300.0
"""How long a monitor that broke waits at most before it goes on: it heals by itself, however often."""


def after_failure(
    job: Job, failed: RunRecord, now: datetime, next_due: datetime | None
) -> RunRecord:
    """Return a failed run as it waits for its next attempt, or as it ended when there is none.

    No attempt comes later than the next run by the schedule, which does the same work.
    """
    retries = job.spec.attempts_of(by_hand=failed.by_hand)
    failures = failed.failures + 1
    failed = msgspec.structs.replace(failed, failures=failures)
    if failed.monitor is not None:
        delay_s = min(retries.delay_s(failures), MONITOR_AGAIN_S)
        again = now + timedelta(seconds=delay_s)
        return _between(failed, f"it goes on at {_clock(again)}: {failed.reason}", again)
    if failures >= retries.attempts:
        return failed
    again = now + timedelta(seconds=retries.delay_s(failures))
    if next_due is not None and next_due <= again:
        return failed
    reason = (
        f"attempt {failures} of {retries.attempts} failed, the next begins at {_clock(again)}: "
        f"{failed.reason}"
    )
    return _between(failed, reason, again)


def parked(record: RunRecord, why: str, again: datetime | None, now: datetime) -> RunRecord:
    """Return a run that was stopped, to be gone on with later; None: when somebody says so."""
    when = f": it goes on at {_clock(again)}" if again is not None else ""
    return _between(close_attempt(record, why, now), why + when, again)


def _between(record: RunRecord, reason: str, again: datetime | None) -> RunRecord:
    return msgspec.structs.replace(
        record,
        outcome=Outcome.RUNNING,
        reason=reason,
        ended=None,
        again_at=again,
        is_parked=True,
        waits=None,
    )


def _clock(instant: datetime) -> str:
    return instant.isoformat(sep=" ", timespec="seconds")
