"""Who owns which job, as a watch on etcd sees it."""

from collections.abc import Callable

from cli.chaos import history as h
from coordinator.etcd_store import EtcdStore
from coordinator.keys import Family, Keys
from coordinator.ownership import Claim
from coordinator.store import Changed, Snapshot


async def watch_owners(
    store: EtcdStore,
    keys: Keys,
    jobs: frozenset[str],
    now: Callable[[], float],
    note: Callable[[h.Any], None],
) -> None:
    """Note who owns these jobs, until cancelled."""
    prefix = keys.under(Family.OWNERS)
    known: dict[str, int] = {}

    def owned(job: str, value: bytes, token: int) -> None:
        if job in jobs and known.get(job) != token:
            known[job] = token
            note(h.Owned(at=now(), job=job, node=Claim.from_json(value).node, token=token))

    def disowned(job: str) -> None:
        if known.pop(job, None) is not None:
            note(h.Disowned(at=now(), job=job))

    async with store.watch(prefix) as items:
        async for item in items:
            if isinstance(item, Snapshot):
                there = {kv.key.removeprefix(prefix): kv for kv in item.kvs}
                for job in set(known) - set(there):
                    disowned(job)
                for job, kv in there.items():
                    owned(job, kv.value, kv.create_revision)
                continue
            for event in item.events:
                if isinstance(event, Changed):
                    job = event.kv.key.removeprefix(prefix)
                    owned(job, event.kv.value, event.kv.create_revision)
                else:
                    disowned(event.key.removeprefix(prefix))
