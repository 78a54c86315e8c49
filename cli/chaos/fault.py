"""What a fault is: it begins, bites, lasts, and is healed."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from cli.chaos.local import COORDINATORS, ETCD, WORKERS, Local

EVERYTHING = (*ETCD, *COORDINATORS, *WORKERS)

Step = Callable[[Local, str], Awaitable[None]]
Look = Callable[[Local, str], Awaitable[bool]]


async def nothing(_: Local, __: str) -> None:
    """Leave it: the fault heals itself."""


async def unseen(_: Local, __: str) -> bool:
    """Say that there is nothing to look at: the fault is over when `inject` returns."""
    return True


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of trouble."""

    name: str
    targets: tuple[str, ...]
    """Whom it may hit; one is chosen."""
    inject: Step
    heal: Step
    lasts_s: tuple[float, float]
    verify: Look = unseen
    """Whether it has bitten, asked while it lasts."""
    available: Callable[[Local], str] = lambda _: ""
    """Why it cannot be done in this cluster, nothing when it can."""
    stops_coordination: bool = False
    """Whether jobs may be without an owner until it is healed."""
    weight: float = 1.0
    """How often it comes, beside others."""
    touches: Callable[[str], Iterable[str]] = lambda target: (target,)
    """Which members it takes away: no other fault hits them, nor their kind's majority."""
