"""What job files may say already, and this version does not carry out yet: one table.

A job that asks for any of it is refused with the field and with what can be done instead, which is
better than a job that seems to work. A version that learns something removes its line.
"""

from collections.abc import Callable
from typing import NamedTuple

from coordinator.job import JobSpec
from syncengine.model import Rule


class _Line(NamedTuple):
    field: str
    asks_for_it: Callable[[JobSpec], bool]
    instead: str


_FOLLOWED = frozenset({Rule.MIRROR, Rule.COPY})

_NOT_YET = (
    _Line(
        "trigger",
        lambda job: job.trigger.form == "realtime" and job.rule not in _FOLLOWED,
        "realtime follows changes for rules mirror and copy: use {every: 15m} or {cron: ...}",
    ),
)


def unsupported(job: JobSpec) -> list[str]:
    """Return one sentence for each thing that the job asks for and this version does not do."""
    return [
        f"{line.field}: this version of Baton does not carry that out yet: {line.instead}"
        for line in _NOT_YET
        if line.asks_for_it(job)
    ]
