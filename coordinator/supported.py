"""What job files may say already, and this version does not carry out yet: one table.

A job that asks for any of it is refused with the field and with what can be done instead, which is
better than a job that seems to work. A version that learns something removes its line.
"""

from collections.abc import Callable
from typing import NamedTuple

from coordinator.job import CopyWhen, JobSpec, Retries, Rule, Symlinks


class _Line(NamedTuple):
    field: str
    asks_for_it: Callable[[JobSpec], bool]
    instead: str


_NOT_YET = (
    _Line("rule", lambda job: job.rule is not Rule.MIRROR, "use rule: mirror"),
    _Line(
        "trigger",
        lambda job: job.trigger.form not in {"manual", "every"},
        "use {manual: true} or {every: 15m}",
    ),
    _Line("copy_when", lambda job: job.copy_when is not CopyWhen.DIFFERING, "leave it out"),
    _Line(
        "retries",
        lambda job: job.retries != Retries(),
        "leave it out, a failed run is tried again when the next one is due",
    ),
    _Line("windows", lambda job: bool(job.windows), "leave it out"),
    _Line("filters", lambda job: bool(job.filters), "leave it out, all entries are covered"),
    _Line("placement.failback", lambda job: job.placement.failback != "never", "use never"),
    _Line("metadata.owner", lambda job: not job.metadata.owner, "use true"),
    _Line("metadata.xattrs", lambda job: not job.metadata.xattrs, "use true"),
    _Line("metadata.acls", lambda job: not job.metadata.acls, "use true"),
    _Line("metadata.hardlinks", lambda job: not job.metadata.hardlinks, "use true"),
    _Line("metadata.devices", lambda job: job.metadata.devices, "use false"),
    _Line("metadata.symlinks", lambda job: job.metadata.symlinks is not Symlinks.KEEP, "use keep"),
    _Line("transfer.compression", lambda job: job.transfer.compression != "auto", "use auto"),
    _Line("transfer.delta", lambda job: job.transfer.delta != "auto", "use auto"),
    _Line(
        "transfer.bandwidth",
        lambda job: job.transfer.bandwidth.bytes_per_s is not None,
        "leave it out, transfers are not limited",
    ),
)


def unsupported(job: JobSpec) -> list[str]:
    """Return one sentence for each thing that the job asks for and this version does not do."""
    return [
        f"{line.field}: this version of Baton does not carry that out yet: {line.instead}"
        for line in _NOT_YET
        if line.asks_for_it(job)
    ]
