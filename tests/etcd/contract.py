"""What every `Store` must do: cases that run against memory and against real clusters."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from coordinator.errors import LeaseNotFound, StoreRejected
from coordinator.store import (
    Changed,
    Changes,
    Compare,
    Delete,
    Deleted,
    Field,
    Get,
    Put,
    Snapshot,
    Store,
)
from wire.clock import Clock


@dataclass(frozen=True)
class World:
    """Two clients of one cluster, and a prefix that nobody else uses."""

    store: Store
    second: Store
    clock: Clock
    prefix: str


Case = Callable[[World], Awaitable[None]]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


async def next_changes(items: AsyncIterator[Snapshot | Changes]) -> Changes:
    async with asyncio.timeout(60):
        item = await anext(items)
    assert isinstance(item, Changes)
    return item


@case
async def numbers_of_a_key(world: World) -> None:
    key = world.prefix + "a"
    assert await world.store.get(key) is None
    first = await world.store.put(key, b"1")
    second = await world.second.put(key, b"2")
    kv = await world.store.get(key)
    assert second > first
    assert kv is not None
    assert (kv.key, kv.value, kv.lease) == (key, b"2", 0)
    assert (kv.create_revision, kv.mod_revision, kv.version) == (first, second, 2)


@case
async def delete_says_whether_it_was_there(world: World) -> None:
    key = world.prefix + "a"
    await world.store.put(key, b"")
    assert await world.store.delete(key)
    assert not await world.store.delete(key)
    again = await world.store.put(key, b"")
    kv = await world.store.get(key)
    assert kv is not None
    assert (kv.create_revision, kv.version) == (again, 1)


@case
async def range_is_sorted_and_stays_within_the_prefix(world: World) -> None:
    for name in ("b", "a/2", "a/1", "a0", "a"):
        revision = await world.store.put(world.prefix + name, name.encode())
    snapshot = await world.second.range(world.prefix + "a/")
    assert [kv.value for kv in snapshot.kvs] == [b"a/1", b"a/2"]
    assert snapshot.revision >= revision


@case
async def of_two_creators_one_wins(world: World) -> None:
    key = world.prefix + "a"

    async def create(store: Store, value: bytes) -> bool:
        result = await store.txn(
            [Compare(key, Field.CREATE, 0)], [Put(key, value)], [Get(key), Get(key + "x")]
        )
        if not result.succeeded:
            assert result.gets[0] is not None
            assert result.gets[0].value != value
            assert result.gets[1] is None
        return result.succeeded

    won = await asyncio.gather(create(world.store, b"1"), create(world.second, b"2"))
    assert sorted(won) == [False, True]


@case
async def every_field_compares(world: World) -> None:
    key, missing = world.prefix + "a", world.prefix + "missing"
    lease = await world.store.grant(5)
    await world.store.put(key, b"0")
    mod = await world.store.put(key, b"1", lease=lease.lease_id)
    kv = await world.store.get(key)
    assert kv is not None

    async def holds(compare: Compare) -> bool:
        return (await world.store.txn([compare], [])).succeeded

    for field, value, other in (
        (Field.CREATE, kv.create_revision, mod),
        (Field.MOD, mod, kv.create_revision),
        (Field.VERSION, 2, 1),
        (Field.VALUE, b"1", b"0"),
        (Field.LEASE, lease.lease_id, 0),
    ):
        assert await holds(Compare(key, field, value)), field
        assert not await holds(Compare(key, field, other)), field
        if field is Field.VALUE:
            assert not await holds(Compare(missing, field, b""))
        else:
            assert await holds(Compare(missing, field, 0)), field
    await world.store.revoke(lease.lease_id)


@case
async def a_transaction_is_one_revision_and_one_change(world: World) -> None:
    a, b, c = (world.prefix + name for name in "abc")
    await world.store.put(c, b"old")
    async with world.second.watch(world.prefix) as items:
        assert isinstance(await anext(items), Snapshot)
        result = await world.store.txn([], [Put(a, b"1"), Get(a), Put(b, b"2"), Delete(c), Get(c)])
        assert result.gets[0] is not None
        assert result.gets[0].mod_revision == result.revision
        assert result.gets[1] is None
        changes = await next_changes(items)
    assert changes.revision == result.revision
    assert [type(event) for event in changes.events] == [Changed, Changed, Deleted]
    assert changes.events[2] == Deleted(c, result.revision)


@case
async def a_transaction_that_etcd_refuses_changes_nothing(world: World) -> None:
    puts = [Put(f"{world.prefix}{n:03}", b"") for n in range(129)]
    with pytest.raises(StoreRejected):
        await world.store.txn([], puts)
    with pytest.raises(StoreRejected):
        await world.store.txn([], [puts[0], puts[0]])
    with pytest.raises(LeaseNotFound):
        await world.store.txn([], [puts[0], Put(world.prefix + "x", b"", 4711)])
    assert (await world.store.range(world.prefix)).kvs == ()
    assert (await world.store.txn([], puts[:128])).succeeded
    assert len((await world.store.range(world.prefix)).kvs) == 128


@case
async def a_watch_begins_with_what_is_there_and_loses_nothing(world: World) -> None:
    await world.store.put(world.prefix + "first", b"")
    seen: list[int] = []
    async with world.second.watch(world.prefix) as items:
        snapshot = await anext(items)
        assert isinstance(snapshot, Snapshot)
        assert [kv.key for kv in snapshot.kvs] == [world.prefix + "first"]

        async def write() -> list[int]:
            return [await world.store.put(f"{world.prefix}{n % 7}", b"") for n in range(100)]

        writing = asyncio.create_task(write())
        while len(seen) < 100:
            changes = await next_changes(items)
            assert all(isinstance(event, Changed) for event in changes.events)
            seen += [
                event.kv.mod_revision for event in changes.events if isinstance(event, Changed)
            ]
            assert changes.revision == seen[-1]
        assert seen == await writing


@case
async def two_watches_get_their_own_events_only(world: World) -> None:
    async with (
        world.store.watch(world.prefix + "a/") as a,
        world.store.watch(world.prefix + "b/") as b,
    ):
        await anext(a)
        await anext(b)
        await world.second.put(world.prefix + "b/1", b"")
        await world.second.put(world.prefix + "a/1", b"")
        for items, key in ((a, "a/1"), (b, "b/1")):
            (event,) = (await next_changes(items)).events
            assert isinstance(event, Changed)
            assert event.kv.key == world.prefix + key


@case
async def keys_go_when_their_lease_expires(world: World) -> None:
    lease = await world.store.grant(2)
    assert lease.ttl_s == 2
    assert lease.sent_at <= world.clock.now()
    await world.store.put(world.prefix + "a", b"", lease=lease.lease_id)
    async with world.second.watch(world.prefix) as items:
        await anext(items)
        changes = await next_changes(items)
    assert [type(event) for event in changes.events] == [Deleted]
    assert 2.0 <= world.clock.now() - lease.sent_at < 4.0
    assert await world.store.keep_alive(lease.lease_id) == 0
    assert await world.second.time_to_live(lease.lease_id) == 0


@case
async def a_lease_that_is_renewed_stays(world: World) -> None:
    lease = await world.store.grant(2)
    key = world.prefix + "a"
    await world.store.put(key, b"", lease=lease.lease_id)
    for _ in range(7):
        assert await world.store.keep_alive(lease.lease_id) == lease.ttl_s
        await world.clock.sleep(0.5)
    kv = await world.second.get(key)
    assert kv is not None
    assert kv.lease == lease.lease_id
    assert await world.second.time_to_live(lease.lease_id) > 0
    await world.store.revoke(lease.lease_id)


@case
async def revoking_deletes_the_keys_at_once(world: World) -> None:
    lease = await world.store.grant(60)
    other = await world.store.grant(60)
    for name in "ab":
        await world.store.put(world.prefix + name, b"", lease=lease.lease_id)
    await world.store.put(world.prefix + "b", b"")  # bound to no lease any more
    await world.store.put(world.prefix + "c", b"", lease=other.lease_id)
    await world.second.revoke(lease.lease_id)
    await world.second.revoke(lease.lease_id)
    assert [kv.key for kv in (await world.store.range(world.prefix)).kvs] == [
        world.prefix + "b",
        world.prefix + "c",
    ]
    assert await world.store.keep_alive(lease.lease_id) == 0
    await world.store.revoke(other.lease_id)


@case
async def a_put_under_a_lease_that_is_gone_writes_nothing(world: World) -> None:
    with pytest.raises(LeaseNotFound):
        await world.store.put(world.prefix + "a", b"", lease=4711)
    assert await world.store.get(world.prefix + "a") is None


@case
async def all_clients_see_one_cluster(world: World) -> None:
    assert await world.store.cluster_id() == await world.second.cluster_id() > 0


@case
async def cancelled_calls_do_no_harm(world: World) -> None:
    lease = await world.store.grant(60)
    for n in range(50):
        calls = [
            asyncio.create_task(world.store.put(f"{world.prefix}{n}", b"")),
            asyncio.create_task(world.store.keep_alive(lease.lease_id)),
        ]
        for _ in range(n % 5):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert await world.store.keep_alive(lease.lease_id) == 60
    assert await world.store.put(world.prefix + "x", b"") > 0
    await world.store.revoke(lease.lease_id)


@case
async def watches_can_be_left_at_any_time(world: World) -> None:
    for n in range(20):
        async with world.store.watch(world.prefix) as items:
            if n % 2:
                await anext(items)
    await world.store.put(world.prefix + "a", b"")
    async with world.store.watch(world.prefix) as items:
        snapshot = await anext(items)
        assert isinstance(snapshot, Snapshot)
        assert len(snapshot.kvs) == 1
