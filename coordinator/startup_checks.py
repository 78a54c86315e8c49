"""What a coordinator makes sure of beside its work when it starts: that etcd does what all relies on."""

import asyncio
from typing import NamedTuple

import structlog

from coordinator.errors import CoordinatorError, StoreError
from coordinator.keys import Keys
from coordinator.store import Store

log = structlog.get_logger()

_TTL_S = 2
_GONE_AFTER_S = 6.0


class LeasesStay(CoordinatorError):
    """A lease that nobody renewed did not expire."""


class Expired(NamedTuple):
    """What a lease that was left alone showed."""

    gone_s: float
    """After how many seconds it was gone."""
    write_s: float
    """How many seconds etcd took for each of the two writes before."""


async def see_lease_expire(store: Store, keys: Keys) -> Expired:
    """See a key written and a lease of 2 s expire.

    Takes up to 8 s and harms nobody: its one key is bound to the lease that ends. Raises LeasesStay
    and StoreError.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    lease = await store.grant(_TTL_S)
    key = f"{keys.prefix}checks/{lease.lease_id:x}"
    await store.put(key, b"expires by itself", lease=lease.lease_id)
    write_s = (loop.time() - began) / 2
    try:
        async with asyncio.timeout(lease.ttl_s + _GONE_AFTER_S):
            while await store.get(key) is not None:
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise LeasesStay(
            f"a lease of {_TTL_S} s is there after {loop.time() - began:.0f} s"
        ) from None
    return Expired(loop.time() - began, write_s)


async def check_store(store: Store, keys: Keys) -> None:
    """See a lease expire; what is wrong is logged as an error."""
    try:
        await see_lease_expire(store, keys)
    except LeasesStay:
        log.error(
            "leases_do_not_expire",
            then="a dead coordinator's jobs would never be taken over: check etcd's health",
        )
    except StoreError as error:
        log.error(
            "etcd_check_failed",
            why=str(error),
            then=f"this user must be able to write under {keys.prefix}",
        )
