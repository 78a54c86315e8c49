"""What one worker process is told at its start, whole and checked. Values only."""

from dataclasses import dataclass
from pathlib import Path

from coordinator.etcd_config import EtcdConfig
from wire.credentials import Credentials
from worker.roots import ExportedRoot

DEFAULT_MAX_RUNS = 32
"""In how many runs a worker takes part at once: more of them at once end no sooner, and each has its
threads and its memory."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """One worker; made by `cli.daemons` from flags, environment and file."""

    name: str
    """A DNS label; with certificates it is the name in them."""
    listen: str
    """HOST:PORT of the gRPC services; port 0 chooses one."""
    roots: tuple[ExportedRoot, ...]
    """At least one; names differ, and no path lies within another."""
    state: Path
    """A directory of this process alone: journal, tokens."""
    credentials: Credentials
    http: str | None = None
    """HOST:PORT of the metrics; None serves none."""
    advertise: str = ""
    """HOST:PORT under which others reach `listen`; empty when that is `listen` itself."""
    group: str | None = None
    """The worker group that this one is a member of; needs `etcd`."""
    etcd: EtcdConfig | None = None
    max_runs: int = DEFAULT_MAX_RUNS
    """In how many runs it takes part at once."""
