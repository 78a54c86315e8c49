"""A coordinator's name: its own while its lease lives, free at once after a quick restart."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from coordinator.lease_session import EndReason, LeasePool
from coordinator.memory_store import MemoryEtcd, MemoryStore
from coordinator.presence import TTL_S, NameInUse, Presence, PreviousLife
from coordinator.records import CoordinatorRecord, decode
from coordinator.startup_checks import check_store
from tests.coordinator.worlds import START, Etcd, until
from tests.etcd.virtual_time import run_virtual
from wire.clock import BootClock


@dataclass
class Process:
    """One process that calls itself c1."""

    world: Etcd
    store: MemoryStore
    leases: LeasePool
    presence: Presence

    @classmethod
    def of(cls, world: Etcd) -> "Process":
        store = world.store()
        leases = LeasePool(store, world.clock)
        return cls(world, store, leases, Presence(store, world.keys, world.clock, leases, "c1"))

    def record(self, address: str = "here:1") -> CoordinatorRecord:
        return CoordinatorRecord(
            address=address, http="", version="0", since=START, instance=self.presence.instance
        )

    def on_etcd(self) -> CoordinatorRecord | None:
        kv = self.world.etcd.get(self.world.keys.coordinator("c1"))
        return None if kv is None else decode(kv.value, CoordinatorRecord)


def in_world(test: Callable[[Etcd], Awaitable[None]]) -> None:
    async def main() -> None:
        await test(Etcd())

    run_virtual(main())


def test_the_key_lives_with_the_lease_and_comes_back_with_the_next() -> None:
    async def test(world: Etcd) -> None:
        one = Process.of(world)
        await one.presence.claim(one.record())
        keeping = asyncio.create_task(one.presence.keep(one.record()))
        await asyncio.sleep(30)
        assert one.on_etcd() == one.record()
        session = one.leases.current(TTL_S)
        assert session is not None
        world.etcd.revoke(session.lease_id)
        assert one.on_etcd() is None
        await until(lambda: one.on_etcd() == one.record(), within_s=TTL_S)
        keeping.cancel()
        await one.leases.close()
        assert one.on_etcd() is None

    in_world(test)


def test_a_second_process_of_the_name_is_refused_after_the_lease_could_have_ended() -> None:
    async def test(world: Etcd) -> None:
        first, second = Process.of(world), Process.of(world)
        await first.presence.claim(first.record("first:1"))
        began = world.clock.now()
        with pytest.raises(NameInUse, match="running already, at first:1"):
            await second.presence.claim(second.record("second:1"))
        assert TTL_S < world.clock.now() - began < TTL_S + 3
        assert first.on_etcd() == first.record("first:1")
        await first.leases.close()
        await second.leases.close()

    in_world(test)


def test_the_name_of_one_that_died_is_free_when_its_lease_is_over() -> None:
    async def test(world: Etcd) -> None:
        first, second = Process.of(world), Process.of(world)
        await first.presence.claim(first.record())
        first.store.is_cut = True
        began = world.clock.now()
        await second.presence.claim(second.record("second:1"))
        assert world.clock.now() - began <= TTL_S + 1
        assert second.on_etcd() == second.record("second:1")
        await second.leases.close()

    in_world(test)


def test_one_whose_name_was_taken_while_it_was_cut_off_ends() -> None:
    async def test(world: Etcd) -> None:
        first, second = Process.of(world), Process.of(world)
        await first.presence.claim(first.record())
        keeping = asyncio.create_task(first.presence.keep(first.record()))
        await asyncio.sleep(1)
        first.store.is_cut = True
        await second.presence.claim(second.record("second:1"))
        first.store.is_cut = False
        with pytest.raises(NameInUse, match="second:1"):
            await keeping
        await first.leases.close()
        await second.leases.close()

    in_world(test)


def test_an_unreadable_key_does_not_keep_the_name() -> None:
    async def test(world: Etcd) -> None:
        await world.store().put(world.keys.coordinator("c1"), b"?")
        one = Process.of(world)
        await one.presence.claim(one.record())
        assert one.on_etcd() == one.record()
        await one.leases.close()

    in_world(test)


def test_keeping_goes_on_through_a_time_without_etcd() -> None:
    async def test(world: Etcd) -> None:
        one = Process.of(world)
        await one.presence.claim(one.record())
        keeping = asyncio.create_task(one.presence.keep(one.record()))
        world.etcd.has_quorum = False
        await asyncio.sleep(60)
        world.etcd.has_quorum = True
        await asyncio.sleep(TTL_S + 3)
        assert one.on_etcd() == one.record()
        assert not keeping.done()
        keeping.cancel()
        await one.leases.close()

    in_world(test)


# Quick restarts: these write files from threads, so they take real time, which is short.


async def test_a_restart_with_the_same_state_frees_all_leases_at_once(tmp_path: Path) -> None:
    clock = BootClock()
    etcd = MemoryEtcd(clock)
    store = MemoryStore(etcd)
    leases = LeasePool(store, clock)
    life = PreviousLife(tmp_path)
    leases.observe(life)
    sessions = [await leases.session(ttl_s) for ttl_s in (5, 9, 30)]
    for number, session in enumerate(sessions):
        await store.put(f"/k{number}", b"", lease=session.lease_id)
    await asyncio.gather(*life._writes)
    remembered = json.loads((tmp_path / "leases.json").read_text())
    assert sorted(remembered) == sorted(session.lease_id for session in sessions)
    await PreviousLife(tmp_path).bury(store)  # the process is dead, its leases are not
    assert etcd.read("/k") == ()
    await leases.close()
    await asyncio.gather(*life._writes)


async def test_leases_that_ended_are_forgotten_in_order(tmp_path: Path) -> None:
    clock = BootClock()
    store = MemoryStore(MemoryEtcd(clock))
    leases = LeasePool(store, clock)
    life = PreviousLife(tmp_path)
    sessions = [await leases.session(ttl_s) for ttl_s in (5, 9)]
    for _ in range(20):
        for session in sessions:
            life.session_started(session)
        for session in sessions:
            life.session_ended(session, EndReason.LOST)
    life.session_started(sessions[1])
    await asyncio.gather(*life._writes)
    assert json.loads((tmp_path / "leases.json").read_text()) == [sessions[1].lease_id]
    await leases.close()


@pytest.mark.parametrize("content", [None, "", "{}", '["x"]', "[1, 2"])
async def test_a_missing_or_damaged_memory_is_no_obstacle(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "leases.json").write_text(content)
    await PreviousLife(tmp_path).bury(MemoryStore(MemoryEtcd(BootClock())))


# Checks at start


def test_a_sound_etcd_passes_the_check_and_keeps_nothing_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def test(world: Etcd) -> None:
        await check_store(world.store(), world.keys)
        assert world.etcd.read(world.keys.prefix) == ()

    in_world(test)
    assert "error" not in capsys.readouterr().out


def test_an_etcd_whose_leases_do_not_expire_is_found_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: Etcd) -> None:
        grant = world.etcd.grant
        monkeypatch.setattr(world.etcd, "grant", lambda _: (grant(10_000)[0], 2))
        await check_store(world.store(), world.keys)

    in_world(test)
    assert "leases_do_not_expire" in capsys.readouterr().out


def test_an_etcd_that_does_not_answer_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    async def test(world: Etcd) -> None:
        world.etcd.has_quorum = False
        await check_store(world.store(), world.keys)

    in_world(test)
    assert "etcd_check_failed" in capsys.readouterr().out
