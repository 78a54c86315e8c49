"""A child of a guardian that owns a lease and then runs out of memory: `memory_hog.py ETCD KEY HOW`."""

import asyncio
import resource
import sys
from contextlib import suppress
from pathlib import Path

from coordinator.etcd_store import EtcdConfig, EtcdStore
from coordinator.guardian_link import GuardianLink
from coordinator.lease_session import LeasePool
from wire.clock import BootClock

TTL_S = 60
_ROOM = 64 << 20


async def main(url: str, key: str, how: str) -> None:
    config = EtcdConfig((url,))
    store = EtcdStore(config)
    link = GuardianLink.from_environment(lambda: store.serving)
    link.begin("hog", config, orphaned=lambda: None)
    pool = LeasePool(store, BootClock())
    pool.observe(link)
    session = await pool.session(TTL_S)
    await store.put(key, b"held", lease=session.lease_id)
    await asyncio.sleep(0.5)  # a few beats, as a coordinator that has worked for a while
    exhaust(*(MemoryError,) * (how == "hangs"))


def exhaust(*survived: type[Exception]) -> None:
    """Ask for memory beyond the limit again and again, so that the event loop turns no more."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM, size + _ROOM))
    hold: list[bytearray] = []
    while True:
        with suppress(*survived):
            hold.append(bytearray(1 << 16))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
