"""Owners that die, hang and come back too late: another goes on, and nothing is done twice."""

import asyncio
import logging
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from coordinator.store import Changed, Changes
from tests.cluster.harness import Scene, paused, until
from tests.cluster.late_owner import LEASE, late_owner
from tests.cluster.trees import check_equal, grow, put
from wire.orders import (
    CancelRun,
    CloseSession,
    OpenSession,
    Order,
    Outcome,
    RunEnded,
    SessionOpened,
    SettleRun,
    StartRun,
)
from wire.token import Token

log = logging.getLogger(__name__)

ROUNDS = 50
TTL_S = 2


@dataclass
class Reign:
    """One ownership as etcd showed it."""

    revision: int
    seen_at: float


@dataclass
class Reigns:
    """Every ownership of one job, in order, as a watch of our own sees it."""

    seen: list[Reign] = field(default_factory=list)

    def after(self, revision: int) -> Reign | None:
        return next((one for one in self.seen if one.revision > revision), None)


@asynccontextmanager
async def watching(scene: Scene, job: str) -> AsyncIterator[Reigns]:
    reigns = Reigns()

    async def watch() -> None:
        async with scene.store.watch(scene.keys.owner(job)) as items:
            async for item in items:
                events = item.events if isinstance(item, Changes) else ()
                for event in events:
                    if isinstance(event, Changed):
                        reigns.seen.append(Reign(event.kv.create_revision, time.monotonic()))

    task = asyncio.create_task(watch())
    try:
        yield reigns
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def published_tokens(scene: Scene, worker: str, job: str) -> list[int]:
    """The tokens under which a worker published, in order, one entry for every change of it."""
    events = scene.cluster.members[worker].events("publishes_under")
    return [revision_of(event["token"]) for event in events if event["job"] == job]


def revision_of(token: object) -> int:
    return int(str(token).rpartition(".")[2])


def edit(source: Path, number: int, files: int, dice: random.Random) -> int:
    """Rewrite `files` of the source's files, one of them bigger; return their bytes."""
    total = 0
    for place in dice.sample(range(2000), files - 1):
        content = f"{number} {place} ".encode() * dice.randrange(1, 60)
        put(source / f"d{place % 40:03}" / f"f{place:06}", content)
        total += len(content)
    big = dice.randbytes(1 << 20) * 8
    put(source / "big", big)
    return total + len(big)


@pytest.mark.alone
@pytest.mark.timeout(480)
async def test_i4_i9_i15_fifty_owners_killed_in_the_middle_of_runs(trio: Scene) -> None:
    source, target = trio.roots["a"], trio.roots["b"]
    grow(source, 2000)
    put(source / "big", "b")
    await trio.apply(name="kills", source="a:data", targets=["b:data"], lease_ttl=f"{TTL_S}s")
    await trio.run_ok("kills")
    dice = random.Random(20)
    takeovers: list[float] = []
    in_the_middle = 0
    async with watching(trio, "kills") as reigns:
        for number in range(ROUNDS):
            size = edit(source, number, 800, dice)
            run = await trio.request_run("kills")
            await asyncio.sleep(dice.uniform(0, 0.5))  # the moment of death: any
            owner = await trio.owner("kills")
            assert owner is not None
            name, revision = owner
            victim = trio.cluster.members[name]
            record = await trio.record("kills", run)
            victim.signal(signal.SIGKILL)
            died_at = time.monotonic()
            await victim.wait()
            reign = await until(partial(reigns.after, revision), "the next owner")
            takeovers.append(reign.seen_at - died_at)
            await victim.start()
            was_open = record is not None and record.ended is None
            record = await trio.run_ended("kills", run)
            said = (number, record)
            assert record.outcome.value == "succeeded", said
            assert record.counts.files_copied == 800, said
            assert record.counts.bytes_copied == size, said
            assert record.counts.files_deleted == 0, said
            tokens = [revision_of(one.token) for one in record.attempts]
            assert tokens == sorted(set(tokens)), said
            if len(record.attempts) > 1:
                assert was_open
                in_the_middle += 1
                assert record.attempts[-1].owner != name, said
                assert record.attempts[0].why_ended == "its owner was lost", said
            await victim.wait_ready()
    check_equal(source, target)
    owner = await trio.owner("kills")
    assert owner is not None
    assert len(trio.cluster.coordinators) == 3
    runs = await trio.ledger.runs("kills")
    assert len(runs) == ROUNDS + 1
    assert all(run.outcome.value == "succeeded" for _, run in runs)
    tokens = published_tokens(trio, "b", "kills")
    assert tokens == sorted(tokens), "a lower token published after a higher one"
    assert in_the_middle >= ROUNDS * 0.6, in_the_middle
    takeovers.sort()
    p50, p99 = takeovers[ROUNDS // 2], takeovers[int(ROUNDS * 0.99)]
    log.info("takeover: p50 %.2f s, p99 %.2f s, max %.2f s", p50, p99, max(takeovers))
    log.info("%d of %d in the middle of a run", in_the_middle, ROUNDS)
    assert max(takeovers) < TTL_S + 1
    assert (await trio.run_ok("kills"))["files_copied"] == 0


@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_i12_an_owner_stopped_for_three_leases_gives_no_late_order(trio: Scene) -> None:
    source, target = trio.roots["a"], trio.roots["b"]
    await trio.apply(name="stops", source="a:data", targets=["b:data"], lease_ttl=f"{TTL_S}s")
    await trio.run_ok("stops")
    grow(source, 15_000)
    run = await trio.request_run("stops")
    await until((target / "d000").exists, "the beginning")
    owner = await trio.owner("stops")
    assert owner is not None
    name, revision = owner
    old = trio.cluster.members[name]
    old.signal(signal.SIGSTOP)
    stopped_at = time.monotonic()

    async def successor() -> tuple[str, int] | None:
        now = await trio.owner("stops")
        return now if now is not None and now[1] > revision else None

    later = await until(successor, "another owner")
    assert later[0] != name
    assert time.monotonic() - stopped_at < TTL_S + 1.5
    await asyncio.sleep(max(0.0, stopped_at + 3 * TTL_S - time.monotonic()))
    old.signal(signal.SIGCONT)
    record = await trio.run_ended("stops", run, 60)
    assert record.outcome.value == "succeeded"
    assert record.counts.files_copied == 15_000
    assert [one.owner for one in record.attempts] == [name, later[0]]
    check_equal(source, target)
    await until(lambda: old.events("ownership_lost"), "that the old owner knows it")
    for worker in ("a", "b"):
        member = trio.cluster.members[worker]
        tokens = [revision_of(one["token"]) for one in member.events("session_opened")]
        assert tokens == sorted(tokens)
        for event in member.events("order_refused"):
            assert event["reason"] == "stale-token"
    assert (await trio.owner("stops")) == later
    assert (await trio.run_ok("stops"))["files_copied"] == 0


async def test_i4_every_kind_of_order_of_a_late_owner_is_refused(trio: Scene) -> None:
    put(trio.roots["a"] / "file", "x")
    await trio.apply(name="late", source="a:data", targets=["b:data"], lease_ttl=f"{TTL_S}s")
    await trio.run_ok("late")
    first = await trio.owner("late")
    assert first is not None
    await trio.cluster.members[first[0]].stop()
    await until(lambda: owner_above(trio, "late", first[1]), "the next owner")
    run = await trio.run_ok("late")
    token = Token(await trio.store.cluster_id(), first[1])
    for worker in ("a", "b"):
        shown = (await trio.ok("worker", "show", worker, "-o", "json")).json
        async with late_owner(trio, first[0], worker) as late:
            orders: list[Order] = [
                OpenSession(late.assignment("late"), token, "1"),
                StartRun("late", token, run["id"]),
                CancelRun("late", token, run["id"]),
                SettleRun("late", token, run["id"]),
                CloseSession("late", token),
            ]
            for order in orders:
                refused = await late.refusal_of(order)
                assert (refused.reason.value, refused.order) == (
                    "stale-token",
                    type(order).__name__,
                )
                assert refused.highest.revision > token.revision
        after = (await trio.ok("worker", "show", worker, "-o", "json")).json
        assert after["orders_refused"] == shown["orders_refused"] + len(orders)
    assert (await trio.run_ok("late"))["files_copied"] == 0


async def owner_above(scene: Scene, job: str, revision: int) -> bool:
    now = await scene.owner(job)
    return now is not None and now[1] > revision


async def test_i5_an_old_token_is_refused_by_a_worker_that_was_killed(trio: Scene) -> None:
    put(trio.roots["a"] / "file", "x")
    await trio.apply(name="old", source="a:data", targets=["b:data"], lease_ttl=f"{TTL_S}s")
    await trio.run_ok("old")
    now = await trio.owner("old")
    assert now is not None
    cluster_id = await trio.store.cluster_id()
    for worker in ("a", "b"):
        member = trio.cluster.members[worker]
        await member.kill()
        await trio.cluster.start(worker)
        async with late_owner(trio, now[0], worker) as late:
            old = OpenSession(late.assignment("old"), Token(cluster_id, now[1] - 1), "1")
            assert (await late.refusal_of(old)).reason.value == "stale-token"
            foreign = OpenSession(late.assignment("old"), Token(cluster_id ^ 1, now[1] + 1), "1")
            assert (await late.refusal_of(foreign)).reason.value == "foreign-cluster"
    await trio.run_ok("old")


@pytest.mark.parametrize("first", ["a", "b"])
async def test_a_takeover_between_listing_and_push_costs_nothing(steady: Scene, first: str) -> None:
    """The new token reaches one of two workers long before the other."""
    root, cluster_id = steady.spare.pop(), await steady.store.cluster_id()
    old, new = Token(cluster_id, 10), Token(cluster_id, 20)
    source = steady.root("a", root)
    grow(source, 4000)
    async with late_owner(steady, "c1", "a") as a, late_owner(steady, "c1", "b") as b:
        assignment = a.assignment(f"between-{root}", root)
        job = assignment.job
        await a.open(assignment, old)
        await b.open(assignment, old)
        await a.say(StartRun(job, old, "run"))
        await (a if first == "a" else b).open(assignment, new)
        await asyncio.sleep(1.5)  # the state to be survived, not a wait for something
        assert not (steady.root("b", root) / "d000").exists(), "nothing is published in between"
        if first == "a":
            await b.open(assignment, new)
        else:
            await a.say(OpenSession(assignment, new, LEASE))
            assert (await a.hear(SessionOpened)).run == "run"
        ended = await a.hear(RunEnded)
    assert ended.outcome is Outcome.SUCCEEDED, ended
    assert ended.counts.files_copied == 4000
    check_equal(source, steady.root("b", root))


@pytest.mark.alone
async def test_a_stopped_owner_hands_over_at_once_in_the_middle_of_a_run(trio: Scene) -> None:
    source, target = trio.roots["a"], trio.roots["b"]
    files = 20_000
    grow(source, files, size=40)
    await trio.apply(name="drain", source="a:data", targets=["b:data"], lease_ttl="10s")
    run = await trio.request_run("drain")
    await until((target / "d000").exists, "the beginning")
    first = await trio.owner("drain")
    assert first is not None
    with paused(trio.cluster.members["b"]):  # or the run would end before its owner
        async with watching(trio, "drain") as reigns:
            asked_at = time.monotonic()
            trio.cluster.members[first[0]].signal(signal.SIGTERM)
            reign = await until(lambda: reigns.after(first[1]), "the next owner")
            assert reign.seen_at - asked_at < 1.0
    record = await trio.run_ended("drain", run)
    assert record.outcome.value == "succeeded"
    assert record.counts.files_copied == files
    assert "handed the job over" in record.attempts[0].why_ended
    check_equal(source, target)


@pytest.mark.timeout(180)
async def test_a_command_that_waits_outlives_the_owner_that_it_asked(trio: Scene) -> None:
    source, target = trio.roots["a"], trio.roots["b"]
    grow(source, 6000)
    await trio.apply(name="wait", source="a:data", targets=["b:data"], lease_ttl=f"{TTL_S}s")
    waiting = asyncio.create_task(trio.baton("job", "run", "wait", "--wait", "-o", "json"))
    await until((target / "d000").exists, "the beginning")
    owner = await trio.owner("wait")
    assert owner is not None
    await trio.cluster.members[owner[0]].kill()
    ended = await waiting
    assert ended.code == 0, ended
    assert ended.json["files_copied"] == 6000
    assert len(ended.json["attempts"]) == 2


@pytest.mark.timeout(180)
async def test_commands_during_a_takeover_wait_for_the_next_owner(trio: Scene) -> None:
    put(trio.roots["a"] / "file", "x")
    await trio.apply(name="now", source="a:data", targets=["b:data"], lease_ttl=f"{TTL_S}s")
    await trio.run_ok("now")
    env = trio.cluster.environment()  # the dead one's address too: people do not edit theirs
    owner = await trio.owner("now")
    assert owner is not None
    await trio.cluster.members[owner[0]].kill()
    run = trio.baton("job", "run", "now", "--wait", "-o", "json", env=env)
    show = trio.baton("job", "show", "now", "-o", "json", env=env)
    ended, shown = await asyncio.gather(run, show)
    assert shown.code == 0, shown
    assert ended.code == 0, ended
    assert [one["owner"] != owner[0] for one in ended.json["attempts"]] == [True]
