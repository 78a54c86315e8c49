"""The table of everything that can be done to a cluster."""

from collections.abc import Iterable

from cli.chaos.disk_faults import DISK_FAULTS
from cli.chaos.fault import Fault
from cli.chaos.network_faults import NETWORK_FAULTS
from cli.chaos.process_faults import PROCESS_FAULTS

FAULTS: tuple[Fault, ...] = (*PROCESS_FAULTS, *NETWORK_FAULTS, *DISK_FAULTS)


def by_name(names: Iterable[str]) -> tuple[Fault, ...]:
    """Return the faults of these names, all when there are none; raises ValueError."""
    wanted = list(names)
    known = {fault.name: fault for fault in FAULTS}
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no such fault: {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(known[name] for name in wanted) or FAULTS
