"""Leases as their holder sees them: held by the clock, one end, a new one by itself."""

import asyncio
import time

import pytest

from coordinator.errors import StoreUnavailable
from coordinator.etcd_store import EtcdStore
from coordinator.lease_session import EndReason, LeasePool, LeaseSession
from coordinator.memory_store import MemoryEtcd, MemoryStore
from tests.etcd.virtual_time import VirtualClock, run_virtual
from wire.clock import BootClock


def test_a_session_outlives_its_ttl_and_ends_once() -> None:
    async def main() -> None:
        clock = VirtualClock()
        store = MemoryStore(MemoryEtcd(clock))
        session = await LeaseSession.open(store, clock, 2)
        reasons: list[EndReason] = []
        session.on_end(reasons.append)
        for _ in range(100):
            await clock.sleep(0.1)
            assert session.is_held
            assert 1.4 < session.remaining_s() < 1.8, "an election fits in at any moment"
        await session.close()
        assert not session.is_held
        assert session.remaining_s() <= 0
        assert await session.ended() is EndReason.CLOSED
        session.on_end(reasons.append)
        assert reasons == [EndReason.CLOSED, EndReason.CLOSED]
        assert await store.time_to_live(session.lease_id) == 0

    run_virtual(main())


def test_the_deadline_counts_from_before_the_renewal_was_sent() -> None:
    async def main() -> None:
        clock = VirtualClock()
        etcd = MemoryEtcd(clock)
        store = MemoryStore(etcd)
        session = await LeaseSession.open(store, clock, 4, margin_s=0.0)
        await clock.sleep(0.9)
        # The renewal that is due at 1.0 s takes 2 s to be answered: those do not count.
        store.is_cut = True
        await clock.sleep(2.1)
        store.is_cut = False
        await clock.sleep(0.2)
        assert 1.7 < session.remaining_s() < 3.0
        await session.close()

    run_virtual(main())


def test_i12_without_renewals_a_session_ends_before_its_lease() -> None:
    async def main() -> None:
        clock = VirtualClock()
        etcd = MemoryEtcd(clock)
        holder, witness = MemoryStore(etcd), MemoryStore(etcd)
        session = await LeaseSession.open(holder, clock, 2)
        await witness.put("/k/", b"", lease=session.lease_id)
        await clock.sleep(3)
        holder.is_cut = True
        while session.is_held:
            assert await witness.get("/k/") is not None
            await clock.sleep(0.001)
        assert await witness.get("/k/") is not None, "the key went before the holder was silent"
        assert await session.ended() is EndReason.EXPIRED
        holder.is_cut = False
        await clock.sleep(10)
        assert not session.is_held

    run_virtual(main())


def test_i12_a_blocked_loop_holds_nothing() -> None:
    async def main() -> None:
        clock = VirtualClock()
        etcd = MemoryEtcd(VirtualClock())
        session = await LeaseSession.open(MemoryStore(etcd, clock), clock, 2)
        clock.skip(6)  # the loop stood still for three times the TTL: nothing could run
        assert session.end_reason is None
        assert not session.is_held
        assert session.remaining_s() < 0
        # The lease itself is alive in etcd, and a renewal would be answered: over is over.
        assert await session.ended() is EndReason.EXPIRED
        await clock.sleep(5)
        assert not session.is_held

    run_virtual(main())


async def test_i12_a_really_blocked_loop_holds_nothing(store: EtcdStore) -> None:
    session = await LeaseSession.open(store, BootClock(), 2)
    await asyncio.sleep(0.1)
    assert session.remaining_s() > 1
    time.sleep(6)  # noqa: ASYNC251  this is the fault
    assert not session.is_held
    async with asyncio.timeout(30):
        assert await session.ended() is not EndReason.CLOSED
    assert not session.is_held
    await session.close()


def test_a_lease_taken_away_is_noticed_at_the_next_renewal() -> None:
    async def main() -> None:
        clock = VirtualClock()
        etcd = MemoryEtcd(clock)
        session = await LeaseSession.open(MemoryStore(etcd), clock, 4)
        etcd.revoke_all()
        started = clock.now()
        assert await session.ended() is EndReason.LOST
        assert clock.now() - started < 1.1
        assert not session.is_held

    run_virtual(main())


class Diary:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def session_started(self, session: LeaseSession) -> None:
        self.lines.append(f"started {session.ttl_s:g}")

    def session_ended(self, session: LeaseSession, reason: EndReason) -> None:
        self.lines.append(f"ended {session.ttl_s:g} {reason}")


def test_a_pool_replaces_what_was_lost_and_tells() -> None:
    async def main() -> None:
        clock = VirtualClock()
        etcd = MemoryEtcd(clock)
        store = MemoryStore(etcd)
        pool, diary = LeasePool(store, clock), Diary()
        pool.observe(diary)
        first, again, other = await asyncio.gather(
            pool.session(2), pool.session(2), pool.session(5)
        )
        assert first is again
        assert first.lease_id != other.lease_id
        etcd.revoke(first.lease_id)
        await first.ended()
        second = await pool.session(2)
        assert second.is_held
        assert second.lease_id != first.lease_id
        assert pool.current(5) is other
        store.is_cut = True
        await other.ended()
        assert pool.current(5) is None
        store.is_cut = False
        third = await pool.session(5)
        assert third.is_held
        await clock.sleep(1)
        assert await store.time_to_live(other.lease_id) == 0, "given up, so revoked"
        await pool.close()
        assert await store.time_to_live(third.lease_id) == 0
        with pytest.raises(StoreUnavailable):
            await pool.session(2)
        assert sorted(diary.lines[:2]) == ["started 2", "started 5"]
        assert diary.lines[2:4] == ["ended 2 lost", "started 2"]
        assert sorted(diary.lines[-2:]) == ["ended 2 closed", "ended 5 closed"]

    run_virtual(main())


def test_a_lease_that_etcd_kept_over_an_outage_is_let_go_when_it_returns() -> None:
    """Without a quorum no lease ends, and afterwards all begin anew: nobody waits for that one."""

    async def main() -> None:
        clock = VirtualClock()
        etcd = MemoryEtcd(clock)
        holder, witness = MemoryStore(etcd), MemoryStore(etcd)
        pool = LeasePool(holder, clock)
        lease_id = (await pool.session(10)).lease_id
        holder.is_cut = True
        for _ in range(60):
            await clock.sleep(1)
            assert await witness.keep_alive(lease_id) > 0
        holder.is_cut = False
        back = clock.now()
        while await witness.time_to_live(lease_id) > 0:
            await clock.sleep(0.05)
        assert clock.now() - back < 3
        assert (await pool.session(10)).lease_id != lease_id
        holder.is_cut = True
        await clock.sleep(15)
        closing = clock.now()
        await pool.close()  # does not wait for an etcd that does not come back
        assert clock.now() - closing < 20

    run_virtual(main())
