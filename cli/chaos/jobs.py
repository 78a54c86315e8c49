"""The jobs of a chaos run: scheduled and real-time ones, one-way and N-way, on the same workers."""

from dataclasses import dataclass
from typing import Any

from cli.chaos.checker import Job
from cli.chaos.local import ROOT, WORKERS

_EVERY: dict[str, Any] = {"every": "2s"}
_REALTIME: dict[str, Any] = {"realtime": {"settle": "20ms", "audit": "1h"}}


@dataclass(frozen=True, slots=True)
class Traffic:
    """A job that has writers: of a one-way job at its source, else at all members."""

    job: Job
    rule: str
    trigger: dict[str, Any]

    @property
    def is_realtime(self) -> bool:
        """Whether it follows changes by itself."""
        return self.trigger == _REALTIME

    @property
    def writers(self) -> tuple[str, ...]:
        """The members at which somebody writes."""
        return self.job.members[:1] if self.job.is_one_way else self.job.members

    def spec(self) -> dict[str, Any]:
        """Return the job file."""
        members = [f"{worker}:{ROOT}/{self.job.name}" for worker in self.job.members]
        places = (
            {"source": members[0], "targets": members[1:]}
            if self.job.is_one_way
            else {"members": members}
        )
        retries = {} if self.is_realtime else {"retries": {"attempts": 1}}
        return {
            "name": self.job.name,
            "rule": self.rule,
            **places,
            "lease_ttl": "2s",
            "trigger": self.trigger,
            "safety": {"max_delete": "off", "max_delete_files": "off", "keep_replaced": True},
            **retries,
        }


def _one_way(name: str, *members: str, keeps_deleted: bool = False) -> Job:
    return Job(name, members, is_one_way=True, keeps_deleted=keeps_deleted)


TRAFFIC: tuple[Traffic, ...] = (
    Traffic(_one_way("mirror", "w1", "w2", "w3"), "mirror", _EVERY),
    Traffic(Job("sync", WORKERS, is_one_way=False), "sync", _EVERY),
    Traffic(_one_way("live", "w2", "w3", "w1"), "mirror", _REALTIME),
    Traffic(_one_way("feed", "w3", "w1", keeps_deleted=True), "copy", _REALTIME),
)
JOBS = tuple(one.job for one in TRAFFIC)
