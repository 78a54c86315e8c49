"""Disks that are full, slow or gone, an etcd at its quota, and clocks that jump."""

import asyncio
import shutil

from cli.chaos.fault import Fault
from cli.chaos.jobs import JOBS
from cli.chaos.local import COORDINATORS, ETCD, WORKERS, Local

_DAY = {"+1d": 86_400, "-1d": -86_400, "+1h": 3_600, "-1h": -3_600}
_FULL_BYTES = 64 << 10


def _needs_disks(cluster: Local) -> str:
    return cluster.why_no_disks


def _needs_strace(_: Local) -> str:
    return "" if shutil.which("strace") else "the command strace is missing (Debian: strace)"


def _needs_faketime(cluster: Local) -> str:
    return "" if cluster.clocks else "libfaketime is missing (Debian: faketime)"


async def _fill(cluster: Local, name: str) -> None:
    await asyncio.to_thread(cluster.disks.fill, name)


async def _is_full(cluster: Local, name: str) -> bool:
    return cluster.disks.room(name) < _FULL_BYTES


async def _free(cluster: Local, name: str) -> None:
    cluster.disks.free(name)


async def _fill_etcd(cluster: Local, _: str) -> None:
    await cluster.fill_etcd()


async def _etcd_is_full(cluster: Local, _: str) -> bool:
    return bool(await cluster.alarms())


async def _free_etcd(cluster: Local, _: str) -> None:
    await cluster.free_etcd()


async def _slow(cluster: Local, name: str) -> None:
    await cluster.slow_down(name)


async def _is_slow(cluster: Local, name: str) -> bool:
    return cluster.is_slow(name)


async def _fast(cluster: Local, name: str) -> None:
    await cluster.speed_up(name)


async def _detach(cluster: Local, name: str) -> None:
    await cluster.detach(name, JOBS)


async def _is_gone(cluster: Local, name: str) -> bool:
    return not cluster.disks.root(name).is_mount()


async def _attach(cluster: Local, name: str) -> None:
    await cluster.attach(name)


async def _jump(cluster: Local, target: str) -> None:
    name, amount = target.split()
    cluster.clocks[name].set(_DAY[amount])


async def _has_jumped(cluster: Local, target: str) -> bool:
    return cluster.clocks[target.split(maxsplit=1)[0]].ahead_s != 0


async def _jump_back(cluster: Local, target: str) -> None:
    cluster.clocks[target.split(maxsplit=1)[0]].set(0)


DISK_FAULTS: tuple[Fault, ...] = (
    Fault("disk-full", WORKERS, _fill, _free, (0.5, 4), _is_full, _needs_disks),
    Fault("root-unmounted", WORKERS, _detach, _attach, (0.5, 4), _is_gone, _needs_disks),
    Fault("disk-slow", (*WORKERS, *ETCD), _slow, _fast, (0.5, 3), _is_slow, _needs_strace),
    Fault(
        "etcd-full",
        ("etcd",),
        _fill_etcd,
        _free_etcd,
        (0.5, 3),
        _etcd_is_full,
        stops_coordination=True,
        touches=lambda _: ETCD,
    ),
    Fault(
        "clock-jump",
        tuple(f"{name} {amount}" for name in COORDINATORS for amount in _DAY),
        _jump,
        _jump_back,
        (0.5, 3),
        _has_jumped,
        _needs_faketime,
        touches=lambda target: (target.split()[0],),
    ),
)
