"""What can be done to a cluster: each fault begins, lasts, and is healed; a table of them all."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from cli.chaos.local import COORDINATORS, WORKERS, Local
from cli.local_cluster import Part

ETCD = ("etcd1", "etcd2", "etcd3")
EVERYTHING = (*ETCD, *COORDINATORS, *WORKERS)

Step = Callable[[Local, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of trouble."""

    name: str
    targets: tuple[str, ...]
    """Whom it may hit; one is chosen."""
    inject: Step
    heal: Step
    lasts_s: tuple[float, float]
    stops_coordination: bool = False
    """Whether jobs may be without an owner until it is healed."""
    touches: Callable[[str], Iterable[str]] = lambda target: (target,)
    """Which members it takes away: no other fault hits them, nor their kind's majority."""

    def choose(self, dice: random.Random) -> tuple[str, float]:
        """Return whom it hits and how long it lasts."""
        return dice.choice(self.targets), dice.uniform(*self.lasts_s)


async def _kill(cluster: Local, name: str) -> None:
    await cluster.kill(name)


async def _kill_child(cluster: Local, name: str) -> None:
    await cluster.kill(name, Part.PROPER)


async def _start(cluster: Local, name: str) -> None:
    await cluster.start([name])


async def _pause(cluster: Local, name: str) -> None:
    cluster.pause(name)


async def _resume(cluster: Local, name: str) -> None:
    cluster.resume(name)
    await cluster.start([name])  # a guardian may have ended what hung


async def _stop(cluster: Local, name: str) -> None:
    await cluster.stop(name)


async def _kill_leader(cluster: Local, _: str) -> None:
    await cluster.kill(await cluster.leader())


async def _start_etcd(cluster: Local, _: str) -> None:
    await cluster.start(ETCD)


async def _kill_leader_and_owner(cluster: Local, name: str) -> None:
    await asyncio.gather(_kill_leader(cluster, name), cluster.kill(name))


async def _start_etcd_and(cluster: Local, name: str) -> None:
    await cluster.start((*ETCD, name))


async def _power_cut(cluster: Local, _: str) -> None:
    await asyncio.gather(*(cluster.kill(name) for name in EVERYTHING))


async def _power_back(cluster: Local, _: str) -> None:
    await cluster.start(ETCD)
    await cluster.start((*COORDINATORS, *WORKERS))


async def _upgrade(cluster: Local, _: str) -> None:
    """Replace every process by a new one, one by one, as an upgrade does."""
    for name in EVERYTHING:
        await cluster.stop(name)
        await cluster.start([name])


async def _nothing(_: Local, __: str) -> None:
    """Leave it: the fault heals itself."""


def _all_kinds(_: str) -> Iterable[str]:
    return EVERYTHING


def _etcd_and(name: str) -> Iterable[str]:
    return (*ETCD, name)


FAULTS: tuple[Fault, ...] = (
    Fault("coordinator-killed", COORDINATORS, _kill, _start, (0.5, 8)),
    Fault("coordinator-child-killed", COORDINATORS, _kill_child, _start, (0.5, 5)),
    Fault("coordinator-stopped", COORDINATORS, _stop, _start, (0.5, 5)),
    Fault("coordinator-paused", COORDINATORS, _pause, _resume, (1, 6)),
    Fault("worker-killed", WORKERS, _kill, _start, (0.2, 6)),
    Fault("worker-paused", WORKERS, _pause, _resume, (0.5, 6)),
    Fault("worker-stopped", WORKERS, _stop, _start, (0.2, 4)),
    Fault("etcd-member-killed", ETCD, _kill, _start, (0.5, 8)),
    Fault("etcd-member-paused", ETCD, _pause, _resume, (0.5, 6)),
    Fault(
        "etcd-leader-killed", ("etcd1",), _kill_leader, _start_etcd, (1, 6), touches=lambda _: ETCD
    ),
    Fault(
        "owner-and-etcd-leader-killed",
        COORDINATORS,
        _kill_leader_and_owner,
        _start_etcd_and,
        (2, 8),
        touches=_etcd_and,
    ),
    Fault(
        "power-cut",
        ("everything",),
        _power_cut,
        _power_back,
        (0.5, 2),
        stops_coordination=True,
        touches=_all_kinds,
    ),
    Fault(
        "rolling-upgrade",
        ("everything",),
        _upgrade,
        _nothing,
        (0, 0),
        touches=_all_kinds,
    ),
)


def by_name(names: Iterable[str]) -> tuple[Fault, ...]:
    """Return the faults of these names, all when there are none; raises ValueError."""
    wanted = list(names)
    known = {fault.name: fault for fault in FAULTS}
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no such fault: {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(known[name] for name in wanted) or FAULTS
