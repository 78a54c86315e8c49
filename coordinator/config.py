"""What one coordinator process is told at its start, whole and checked. Values only."""

from dataclasses import dataclass, field
from pathlib import Path

from coordinator.claim_budget import DEFAULT_PER_S
from coordinator.etcd_config import EtcdConfig
from coordinator.flapping import FlapLimits
from coordinator.keys import DEFAULT_PREFIX
from wire.credentials import Credentials


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """One coordinator; made by `cli.daemons` from flags, environment and file."""

    name: str
    """A DNS label; with certificates it is the name in them."""
    etcd: EtcdConfig
    listen: str
    """HOST:PORT of the gRPC services; port 0 chooses one."""
    http: str
    """HOST:PORT of the status page and the metrics."""
    state: Path
    """A directory of this process alone."""
    credentials: Credentials
    advertise: str = ""
    """HOST:PORT under which others reach `listen`; empty when that is `listen` itself."""
    max_runs: int | None = None
    """How many runs it carries on at once; None for any number."""
    flaps: FlapLimits = field(default_factory=FlapLimits)
    claims_per_s: float = DEFAULT_PER_S
    """How many jobs it claims a second at most when many are vacant at once."""
    prefix: str = DEFAULT_PREFIX
    """Where Baton's keys are in etcd; begins and ends with `/`."""
