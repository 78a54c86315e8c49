"""Processes that are killed, stopped, paused and replaced."""

import asyncio
from collections.abc import Iterable

from cli.chaos.fault import EVERYTHING, Fault, nothing
from cli.chaos.local import COORDINATORS, ETCD, WORKERS, Local
from cli.local_cluster import Part


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


async def _is_down(cluster: Local, name: str) -> bool:
    return not cluster.is_running(name)


async def _is_still(cluster: Local, name: str) -> bool:
    return cluster.is_still(name)


async def _kill_leader(cluster: Local, _: str) -> None:
    await cluster.kill(await cluster.leader())


async def _one_is_down(cluster: Local, _: str) -> bool:
    return not all(cluster.is_running(name) for name in ETCD)


async def _start_etcd(cluster: Local, _: str) -> None:
    await cluster.start(ETCD)


async def _kill_leader_and(cluster: Local, name: str) -> None:
    await asyncio.gather(_kill_leader(cluster, name), cluster.kill(name))


async def _both_are_down(cluster: Local, name: str) -> bool:
    return await _one_is_down(cluster, name) and not cluster.is_running(name)


async def _start_etcd_and(cluster: Local, name: str) -> None:
    await cluster.start((*ETCD, name))


async def _power_cut(cluster: Local, _: str) -> None:
    await asyncio.gather(*(cluster.kill(name) for name in EVERYTHING))


async def _all_are_down(cluster: Local, _: str) -> bool:
    return not any(cluster.is_running(name) for name in EVERYTHING)


async def _power_back(cluster: Local, _: str) -> None:
    await cluster.start(ETCD)
    await cluster.start((*COORDINATORS, *WORKERS))


async def _upgrade(cluster: Local, _: str) -> None:
    """Replace every process by a new one, one by one, as an upgrade does."""
    for name in EVERYTHING:
        await cluster.stop(name)
        await cluster.start([name])


def _all_kinds(_: str) -> Iterable[str]:
    return EVERYTHING


def _etcd_and(name: str) -> Iterable[str]:
    return (*ETCD, name)


PROCESS_FAULTS: tuple[Fault, ...] = (
    Fault("coordinator-killed", COORDINATORS, _kill, _start, (0.5, 4), _is_down, weight=0.3),
    Fault(
        "coordinator-child-killed",
        COORDINATORS,
        _kill_child,
        _start,
        (0.5, 4),
        _is_down,
        weight=0.3,
    ),
    Fault("coordinator-stopped", COORDINATORS, _stop, _start, (0.5, 4), _is_down, weight=0.3),
    Fault("coordinator-paused", COORDINATORS, _pause, _resume, (1, 4), _is_still),
    Fault("worker-killed", WORKERS, _kill, _start, (0.2, 4), _is_down, weight=0.3),
    Fault("worker-paused", WORKERS, _pause, _resume, (0.5, 4), _is_still),
    Fault("worker-stopped", WORKERS, _stop, _start, (0.2, 3), _is_down, weight=0.3),
    Fault("etcd-member-killed", ETCD, _kill, _start, (0.5, 4), _is_down),
    Fault("etcd-member-paused", ETCD, _pause, _resume, (0.5, 4), _is_still),
    Fault(
        "etcd-leader-killed",
        ("etcd",),
        _kill_leader,
        _start_etcd,
        (0.5, 3),
        _one_is_down,
        touches=lambda _: ETCD,
    ),
    Fault(
        "coordinator-and-etcd-leader-killed",
        COORDINATORS,
        _kill_leader_and,
        _start_etcd_and,
        (2, 5),
        _both_are_down,
        weight=0.3,
        touches=_etcd_and,
    ),
    Fault(
        "power-cut",
        ("everything",),
        _power_cut,
        _power_back,
        (0.5, 2),
        _all_are_down,
        stops_coordination=True,
        weight=0.1,
        touches=_all_kinds,
    ),
    Fault(
        "rolling-upgrade",
        ("everything",),
        _upgrade,
        nothing,
        (0, 0),
        weight=0.05,
        touches=_all_kinds,
    ),
)
