"""What happens to packets: pairs cut in one direction, members cut off, losses, delays, narrow links."""

from itertools import permutations

from cli.chaos import network
from cli.chaos.fault import EVERYTHING, Fault
from cli.chaos.local import COORDINATORS, ETCD, WORKERS, Local

LOSS = 0.2
DELAY_S = 0.15
NARROW = "2mbit"
_TO = ">"
# Who has something to say to whom: all but etcd and workers.
_PAIRS = tuple(
    f"{sender}{_TO}{receiver}"
    for sender, receiver in permutations(EVERYTHING, 2)
    if {sender[0], receiver[0]} != {ETCD[0][0], WORKERS[0][0]}
)


def _needs(cluster: Local) -> str:
    return cluster.why_no_network


def _needs_delays(cluster: Local) -> str:
    return cluster.why_no_network or network.no_delays()


def _both(pair: str) -> tuple[str, str]:
    sender, _, receiver = pair.partition(_TO)
    return sender, receiver


async def _cut(cluster: Local, pair: str) -> None:
    await cluster.net.cut(*_both(pair))


async def _is_cut(cluster: Local, pair: str) -> bool:
    return await cluster.net.reach(*_both(pair)) is None


async def _mend(cluster: Local, pair: str) -> None:
    await cluster.net.mend(*_both(pair))


async def _isolate(cluster: Local, name: str) -> None:
    await cluster.net.isolate(name)


async def _is_isolated(cluster: Local, name: str) -> bool:
    other = next(one for one in EVERYTHING if one != name)
    return await cluster.net.reach(other, name) is None


async def _connect(cluster: Local, name: str) -> None:
    await cluster.net.connect(name)


async def _lose(cluster: Local, name: str) -> None:
    await cluster.net.lose(name, LOSS)


async def _loses(cluster: Local, name: str) -> bool:
    other = next(one for one in EVERYTHING if one != name)
    for _ in range(20):
        await cluster.net.reach(other, name)
        if await cluster.net.lost(name):
            return True
    return False


async def _lose_no_more(cluster: Local, name: str) -> None:
    await cluster.net.lose_no_more(name, LOSS)


async def _delay(cluster: Local, name: str) -> None:
    await cluster.net.delay(name, DELAY_S)


async def _is_late(cluster: Local, name: str) -> bool:
    other = next(one for one in EVERYTHING if one != name)
    took_s = await cluster.net.reach(other, name)
    return took_s is None or took_s >= DELAY_S


async def _hurry(cluster: Local, name: str) -> None:
    await cluster.net.hurry(name)


async def _narrow(cluster: Local, name: str) -> None:
    await cluster.net.narrow(name, NARROW)


async def _is_narrow(cluster: Local, name: str) -> bool:
    return await cluster.net.is_narrow(name)


async def _widen(cluster: Local, name: str) -> None:
    await cluster.net.widen(name)


NETWORK_FAULTS: tuple[Fault, ...] = (
    Fault("cut", _PAIRS, _cut, _mend, (0.5, 3), _is_cut, _needs, weight=4, touches=_both),
    Fault("coordinator-isolated", COORDINATORS, _isolate, _connect, (1, 4), _is_isolated, _needs),
    Fault("worker-isolated", WORKERS, _isolate, _connect, (0.5, 3), _is_isolated, _needs),
    Fault("etcd-member-isolated", ETCD, _isolate, _connect, (0.5, 3), _is_isolated, _needs),
    Fault("packets-lost", EVERYTHING, _lose, _lose_no_more, (0.5, 3), _loses, _needs),
    Fault("packets-late", EVERYTHING, _delay, _hurry, (0.5, 3), _is_late, _needs_delays),
    Fault("link-narrow", EVERYTHING, _narrow, _widen, (0.5, 3), _is_narrow, _needs),
)
