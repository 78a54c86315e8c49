"""The ledger on an etcd in memory: written once, by the owner only, whatever is lost on the way."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import msgspec
import pytest

from coordinator import ledger as ledger_module
from coordinator.errors import StoreUnavailable
from coordinator.ledger import (
    KEPT_AGE,
    KEPT_ANYWAY,
    KEPT_RUNS,
    TRIM_EVERY,
    Ledger,
    LedgerMoved,
    NotOwner,
    RunExists,
)
from coordinator.memory_store import Fault
from coordinator.ownership import Ownership
from coordinator.records import RunRecord, StateRecord, decode
from coordinator.store import Put
from tests.coordinator.worlds import JOB, START, Etcd, Node
from tests.etcd.virtual_time import run_virtual
from wire.orders import Outcome

Test = Callable[["Scene"], Awaitable[None]]


def _bare(record: RunRecord) -> RunRecord:
    """Without the seal, which is between the ledger and its proof."""
    return msgspec.structs.replace(record, seal="")


class Scene:
    """A node that owns the job, and its ledger."""

    def __init__(self, world: Etcd, node: Node, owned: Ownership) -> None:
        self.world = world
        self.node = node
        self.owned = owned
        self.ledger = Ledger(node.store, world.keys, world.clock)

    def on_etcd(self, index: int = 0) -> RunRecord | None:
        """The run as another reader sees it, at once."""
        kv = self.world.etcd.get(self.world.keys.run(JOB, at(index)))
        return None if kv is None else _bare(decode(kv.value, RunRecord))

    async def heir(self) -> "Scene":
        """Have another node take the job, the first knowing nothing of it."""
        other = Node(self.world, "heir")
        self.node.store.is_cut = True
        return Scene(self.world, other, await other.own())


def in_scene(test: Test) -> None:
    async def main() -> None:
        world = Etcd()
        node = Node(world, "first")
        scene = Scene(world, node, await node.own())
        try:
            await test(scene)
        finally:
            await node.close()

    run_virtual(main())


def at(index: int) -> datetime:
    return START + timedelta(minutes=index)


def run(index: int = 0, outcome: Outcome = Outcome.RUNNING, *, ended: bool = False) -> RunRecord:
    return RunRecord(
        due=at(index),
        generation=1,
        outcome=outcome,
        started=at(index),
        ended=at(index) if ended else None,
    )


def state(reason: str) -> StateRecord:
    return StateRecord(reason=reason)


FAULTS = [Fault.REQUEST_LOST, Fault.ANSWER_LOST, Fault.REQUEST_LATE]


def test_an_unknown_job_has_an_empty_memory() -> None:
    async def test(scene: Scene) -> None:
        memory = await scene.ledger.recall(JOB)
        assert memory.state == StateRecord()
        assert memory.open_runs == ()
        assert await scene.ledger.run(JOB, at(0)) is None

    in_scene(test)


def test_what_is_written_is_recalled() -> None:
    async def test(scene: Scene) -> None:
        ledger = scene.ledger
        await ledger.create(scene.owned, at(1), run(1), state("one"))
        await ledger.create(scene.owned, at(0), run(0), state("two"))
        await ledger.write(
            scene.owned, state("three"), [(at(2), run(2, Outcome.FAILED, ended=True))]
        )
        memory = await ledger.recall(JOB)
        assert memory.state == state("three")
        assert memory.open_runs == ((at(0), run(0)), (at(1), run(1))), "oldest first"
        assert [one for one, _ in await ledger.runs(JOB)] == [at(0), at(1), at(2)]
        assert await ledger.state(JOB) == state("three")

    in_scene(test)


def test_i9_a_run_is_created_once() -> None:
    async def test(scene: Scene) -> None:
        await scene.ledger.create(scene.owned, at(0), run(), state("first"))
        with pytest.raises(RunExists):
            await scene.ledger.create(scene.owned, at(0), run(), state("second"))
        assert await scene.ledger.state(JOB) == state("first"), "all or nothing"

    in_scene(test)


def test_i9_two_owners_cannot_both_create_it() -> None:
    async def test(scene: Scene) -> None:
        heir = await scene.heir()
        await heir.ledger.recall(JOB)
        await heir.ledger.create(heir.owned, at(0), run(), state("heir"))
        scene.node.store.is_cut = False
        with pytest.raises(NotOwner):
            await scene.ledger.create(scene.owned, at(0), run(), state("first"))
        assert await heir.ledger.state(JOB) == state("heir")
        await heir.node.close()

    in_scene(test)


@pytest.mark.parametrize("faults", [[one] * n for one in FAULTS for n in (1, 3)])
def test_i9_a_creation_whose_answer_is_lost_succeeds_all_the_same(faults: list[Fault]) -> None:
    async def test(scene: Scene) -> None:
        scene.node.store.fail_next(*faults)
        await scene.ledger.create(scene.owned, at(0), run(), state("created"))
        assert scene.on_etcd() == run()
        await asyncio.sleep(5)
        assert await scene.ledger.state(JOB) == state("created")

    in_scene(test)


def test_i9_a_creation_that_is_lost_is_not_mistaken_for_one_of_before() -> None:
    async def test(scene: Scene) -> None:
        await scene.ledger.create(scene.owned, at(0), run(), state("same"))
        scene.node.store.fail_next(Fault.REQUEST_LOST)
        with pytest.raises(RunExists):
            await scene.ledger.create(scene.owned, at(0), run(), state("same"))

    in_scene(test)


@pytest.mark.parametrize("fault", FAULTS)
def test_writes_come_through_whatever_is_lost(fault: Fault) -> None:
    async def test(scene: Scene) -> None:
        for index in range(5):
            scene.node.store.fail_next(fault)
            await scene.ledger.write(scene.owned, state(f"{index}"), [(at(index), run(index))])
        await asyncio.sleep(5)
        assert await scene.ledger.state(JOB) == state("4")
        assert len(await scene.ledger.runs(JOB)) == 5

    in_scene(test)


def test_i9_a_write_that_lands_late_does_not_open_an_ended_run_again() -> None:
    """The client gave up, tried again, went on; then the first attempt arrives at etcd."""

    async def test(scene: Scene) -> None:
        scene.node.store.fail_next(Fault.REQUEST_LATE)
        await scene.ledger.write(scene.owned, state("running"), [(at(0), run())])
        ended = run(0, Outcome.SUCCEEDED, ended=True)
        await scene.ledger.write(scene.owned, state("ended"), [(at(0), ended)])
        await asyncio.sleep(5)
        assert scene.on_etcd() == ended
        assert await scene.ledger.state(JOB) == state("ended")

    in_scene(test)


def test_two_writes_at_once_are_both_done() -> None:
    """As when an operator's request and the owner's own work fall together."""

    async def test(scene: Scene) -> None:
        await asyncio.gather(
            *(scene.ledger.write(scene.owned, state("same"), [(at(n), run(n))]) for n in range(10))
        )
        assert len(await scene.ledger.runs(JOB)) == 10

    in_scene(test)


def test_nobody_but_the_owner_writes() -> None:
    async def test(scene: Scene) -> None:
        await scene.ledger.write(scene.owned, state("mine"))
        heir = await scene.heir()
        await heir.ledger.recall(JOB)
        await heir.ledger.write(heir.owned, state("heir"))
        scene.node.store.is_cut = False
        actions = (
            scene.ledger.write(scene.owned, state("late"), [(at(0), run())]),
            scene.ledger.create(scene.owned, at(1), run(1), state("late")),
        )
        for action in actions:
            with pytest.raises(NotOwner):
                await action
        assert await heir.ledger.state(JOB) == state("heir")
        assert await heir.ledger.runs(JOB) == []
        await heir.node.close()

    in_scene(test)


def test_i12_past_the_lease_nothing_is_even_tried() -> None:
    async def test(scene: Scene) -> None:
        scene.world.etcd.has_quorum = False
        writing = asyncio.create_task(scene.ledger.write(scene.owned, state("late")))
        with pytest.raises(NotOwner, match="lease"):
            await writing
        assert scene.world.clock.now() < 1_000 + 60
        scene.world.etcd.has_quorum = True

    in_scene(test)


def test_a_short_outage_only_delays_a_write() -> None:
    async def test(scene: Scene) -> None:
        scene.node.store._total_s = 0.5
        scene.world.etcd.has_quorum = False
        writing = asyncio.create_task(scene.ledger.write(scene.owned, state("later")))
        await asyncio.sleep(2)
        assert not writing.done()
        scene.world.etcd.has_quorum = True
        await writing
        assert await scene.ledger.state(JOB) == state("later")

    in_scene(test)


def test_state_that_somebody_else_touched_is_recalled_before_its_owner_goes_on() -> None:
    """An operator with etcdctl; or the job was deleted and applied again."""

    async def test(scene: Scene) -> None:
        await scene.ledger.write(scene.owned, state("one"))
        key = scene.world.keys.state(JOB)
        await scene.world.store().put(key, b"{}")
        with pytest.raises(LedgerMoved):
            await scene.ledger.write(scene.owned, state("two"))
        assert (await scene.ledger.recall(JOB)).state == StateRecord()
        await scene.ledger.write(scene.owned, state("two"))
        await scene.world.store().delete(key)
        with pytest.raises(LedgerMoved):
            await scene.ledger.create(scene.owned, at(0), run(), state("three"))
        await scene.ledger.recall(JOB)
        await scene.ledger.create(scene.owned, at(0), run(), state("three"))
        assert await scene.ledger.state(JOB) == state("three")

    in_scene(test)


def test_i9_many_instants_are_recorded_before_the_state_passes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CRASH between two transactions: the next owner finds the state as it was."""
    monkeypatch.setattr(ledger_module, "_TXN_OPS", 10)

    async def test(scene: Scene) -> None:
        await scene.ledger.write(scene.owned, state("before"))
        runs = [(at(n), run(n, Outcome.MISSED, ended=True)) for n in range(35)]
        writing = asyncio.create_task(scene.ledger.write(scene.owned, state("after"), runs))
        while not await scene.ledger.runs(JOB):
            await asyncio.sleep(0.0005)
        writing.cancel()
        found = await scene.ledger.runs(JOB)
        assert 0 < len(found) < 35
        assert await scene.ledger.state(JOB) == state("before")
        await scene.ledger.write(scene.owned, state("after"), runs)
        assert len(await scene.ledger.runs(JOB)) == 35
        assert await scene.ledger.state(JOB) == state("after")

    in_scene(test)


def test_trimming_keeps_the_newest_and_every_open_run() -> None:
    async def test(scene: Scene) -> None:
        ended = Outcome.SUCCEEDED
        runs = [(at(n), run(n, ended, ended=True)) for n in range(KEPT_RUNS + 130)]
        runs[3] = (at(3), run(3))
        await scene.ledger.write(scene.owned, state("full"), runs)
        await scene.ledger.trim(scene.owned, state("full"), at(0))
        kept = [one for one, _ in await scene.ledger.runs(JOB)]
        assert kept == [at(3), *(at(n) for n in range(130, KEPT_RUNS + 130))]
        assert await scene.ledger.state(JOB) == state("full")
        await scene.ledger.trim(scene.owned, state("full"), at(0))
        assert len(await scene.ledger.runs(JOB)) == KEPT_RUNS + 1

    in_scene(test)


def test_records_are_read_only_when_some_may_be_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    runs = Ledger.runs

    async def counted(self: Ledger, job: str) -> list[tuple[datetime, RunRecord]]:
        reads.append(job)
        return await runs(self, job)

    monkeypatch.setattr(Ledger, "runs", counted)

    async def test(scene: Scene) -> None:
        after = StateRecord()
        await scene.ledger.recall(JOB)
        reads.clear()
        most = KEPT_RUNS + 5 * TRIM_EVERY
        for number in range(most):
            after = msgspec.structs.replace(after, seq=number + 1)
            one = run(number, Outcome.SUCCEEDED, ended=True)
            one = msgspec.structs.replace(one, seq=number + 1)
            await scene.ledger.write(scene.owned, after, [(at(number), one)])
            after = await scene.ledger.trim(scene.owned, after, at(number))
        assert 4 <= len(reads) <= 5, reads
        kept = [one for one, _ in await scene.ledger.runs(JOB)]
        assert KEPT_RUNS <= len(kept) < KEPT_RUNS + TRIM_EVERY
        assert kept[-KEPT_RUNS:] == [at(n) for n in range(most - KEPT_RUNS, most)]
        reads.clear()
        await scene.ledger.trim(scene.owned, after, at(most))
        assert reads == []
        await scene.ledger.trim(scene.owned, after, at(most) + KEPT_AGE)
        assert reads == [JOB], "what was young grows old"

    in_scene(test)


def test_trimming_by_age_keeps_a_few_and_every_open_run() -> None:
    async def test(scene: Scene) -> None:
        runs = [(at(n), run(n, Outcome.SUCCEEDED, ended=True)) for n in range(30)]
        runs[2] = (at(2), run(2))
        await scene.ledger.write(scene.owned, state("old"), runs)
        await scene.ledger.trim(scene.owned, state("old"), at(0) + KEPT_AGE)
        assert len(await scene.ledger.runs(JOB)) == 30, "none is older than that"
        trimmed = await scene.ledger.trim(scene.owned, state("old"), at(30) + 2 * KEPT_AGE)
        kept = [one for one, _ in await scene.ledger.runs(JOB)]
        assert kept == [at(2), *(at(n) for n in range(30 - KEPT_ANYWAY, 30))]
        assert await scene.ledger.state(JOB) == trimmed

    in_scene(test)


def test_forgetting_leaves_nothing_of_this_job_and_all_of_others() -> None:
    async def test(scene: Scene) -> None:
        other = scene.world.keys.run("job-2", at(0))
        await scene.world.store().txn([], [Put(other, b"{}")])
        await scene.ledger.create(scene.owned, at(0), run(), state("x"))
        await scene.ledger.forget(JOB)
        assert (await scene.ledger.recall(JOB)).state == StateRecord()
        assert await scene.ledger.runs(JOB) == []
        assert scene.world.etcd.get(other) is not None

    in_scene(test)


def test_reading_without_etcd_says_so() -> None:
    async def test(scene: Scene) -> None:
        scene.node.store.is_cut = True
        with pytest.raises(StoreUnavailable):
            await scene.ledger.recall(JOB)

    in_scene(test)


def test_i9_what_a_cancelled_write_did_is_not_written_over_unread() -> None:
    """Who is cancelled while its answer is on the way does not know: found by the simulation."""

    async def test(scene: Scene) -> None:
        ledger = scene.ledger
        await ledger.recall(JOB)
        creating = asyncio.create_task(ledger.create(scene.owned, at(1), run(1), state("new")))
        while scene.world.etcd.get(scene.world.keys.run(JOB, at(1))) is None:
            await asyncio.sleep(0.0001)
        creating.cancel()
        await asyncio.gather(creating, return_exceptions=True)
        with pytest.raises(LedgerMoved):
            await ledger.write(scene.owned, state("of before"))
        assert await ledger.state(JOB) == state("new")
        memory = await ledger.recall(JOB)
        assert memory.open_runs == ((at(1), run(1)),)
        await ledger.write(scene.owned, state("of now"))
        assert await ledger.state(JOB) == state("of now")

    in_scene(test)
