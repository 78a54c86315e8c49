"""What the ledger proves by itself: every way to tamper with it shows."""

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from coordinator import schedule, timetable
from coordinator.catalog import Job
from coordinator.keys import instant_text, parse_instant
from coordinator.ledger import KEPT_RUNS, TRIM_EVERY
from coordinator.ledger_proof import Finding, prove
from coordinator.records import RunRecord, StateRecord, decode, encode, seal_of
from tests.coordinator.owners import OwnerNode, OwnerScene, in_owner_scene, running
from tests.coordinator.test_attempts import FULL
from tests.coordinator.test_moving import pause
from tests.coordinator.test_scheduled import at, until_wall
from tests.coordinator.worlds import JOB

Raw = list[tuple[str, bytes]]


async def story(scene: OwnerScene, node: OwnerNode) -> tuple[Job, StateRecord, Raw, datetime]:
    """Runs by the schedule and by hand, a takeover in a run, retries, a pause, a long absence."""
    await until_wall(scene, 130)
    await scene.ended(await node.owner.request_run())
    scene.source.problems = FULL
    await until_wall(scene, 185)
    scene.source.problems = ()
    await until_wall(scene, 230)
    scene.source.run_s = 8
    await until_wall(scene, 245)
    await node.die()
    second = scene.add("c2")
    await second.begin()
    scene.source.run_s = 1
    await until_wall(scene, 270)
    await pause(scene)
    await until_wall(scene, 430)
    await pause(scene, on=False)
    await until_wall(scene, 490)
    await second.die()
    scene.world.set_wall(60 * 200)
    third = scene.add("c3")
    await third.begin()
    await scene.sleep(5)
    state, raw = await scene.ledger.whole(JOB)
    return third.catalog.jobs[JOB], state, raw, scene.world.wall()


def told(
    scene_story: tuple[Job, StateRecord, Raw, datetime],
    raw: Raw | None = None,
    state: StateRecord | None = None,
) -> list[str]:
    job, known, was, now = scene_story
    proof = prove(JOB, job, state or known, was if raw is None else raw, now)
    sizes = [len(finding.runs) for finding in proof.findings]
    assert sizes == sorted(sizes), "the shortest first"
    return [finding.what for finding in proof.findings]


def changed(raw: Raw, place: int, change: Callable[[RunRecord], RunRecord], *, seal: bool) -> Raw:
    key, value = raw[place]
    record = change(decode(value, RunRecord))
    if seal:
        record = msgspec.structs.replace(record, seal=seal_of(JOB, parse_instant(key), record))
    return [*raw[:place], (key, encode(record)), *raw[place + 1 :]]


def test_i9_the_whole_story_holds_and_every_change_of_it_shows() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        whole = await story(scene, node)
        _, state, raw, _ = whole
        assert told(whole) == []
        assert len(raw) == state.seq > 100
        for place in {*range(0, len(raw), 4), len(raw) - 1}:
            key = raw[place][0]
            missing = told(whole, [*raw[:place], *raw[place + 1 :]])
            assert any("missing" in one or "last instant" in one for one in missing), key
            reason = changed(
                raw, place, lambda r: msgspec.structs.replace(r, reason="x"), seal=False
            )
            assert told(whole, reason) == [f"record {key} was changed by another hand"]
        moved = [(instant_text(parse_instant(raw[0][0]) + timedelta(seconds=1)), raw[0][1])]
        assert "was changed by another hand" in told(whole, [*moved, *raw[1:]])[0]
        assert "have the same place" in " ".join(told(whole, [*raw, *moved]))
        assert "cannot be read" in told(whole, [*raw, ("nonsense", b"{}")])[0]
        assert "cannot be read" in told(whole, [(raw[0][0], b"no json"), *raw[1:]])[0]

    in_owner_scene(test, trigger={"every": "60s"}, retries={"attempts": 2, "delay": "5s"})


def test_one_who_can_seal_is_found_by_what_he_says() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        whole = await story(scene, node)
        _, state, raw, now = whole
        places = [n for n, (_, v) in enumerate(raw) if decode(v, RunRecord).attempts]

        def older(record: RunRecord) -> RunRecord:
            attempts = tuple(
                msgspec.structs.replace(one, token=one.token.split(".")[0] + ".1")
                for one in record.attempts
            )
            return msgspec.structs.replace(record, attempts=attempts)

        said = told(whole, changed(raw, places[-1], older, seal=True))
        assert any("was owned under token" in one and "after run" in one for one in said)

        def later(record: RunRecord) -> RunRecord:
            return msgspec.structs.replace(record, follows=now - timedelta(days=9))

        said = told(whole, changed(raw, 1, later, seal=True))
        assert any("does not follow" in one for one in said)
        cut = [one for one in raw if decode(one[1], RunRecord).seq != state.seq]
        assert told(whole, cut, msgspec.structs.replace(state, seq=state.seq - 1)) != []
        back = msgspec.structs.replace(state, last_due=None)
        assert any("last instant" in one for one in told(whole, state=back))

    in_owner_scene(test, trigger={"every": "60s"}, retries={"attempts": 2, "delay": "5s"})


@pytest.mark.parametrize("trigger", [{"every": "60s"}, {"cron": "* * * * *"}])
def test_an_instant_that_an_owner_forgot_is_missing(
    trigger: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in the owner itself: it numbered and sealed everything, and left one out."""

    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 70)
        right = schedule.next_due

        def forgetful(*args: Any, **options: Any) -> datetime | None:
            due = right(*args, **options)
            return due + timedelta(seconds=60) if due == at(120) else due

        monkeypatch.setattr(timetable, "next_due", forgetful)
        await until_wall(scene, 190)
        state, raw = await scene.ledger.whole(JOB)
        whole = node.catalog.jobs[JOB], state, raw, scene.world.wall()
        said = told(whole)
        assert any("12:02:00+00:00 is missing before" in one for one in said), said

    in_owner_scene(test, trigger=trigger)


def test_instants_that_nobody_serves_are_overdue_unless_there_is_a_reason() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        await until_wall(scene, 70)
        await node.die()
        state, raw = await scene.ledger.whole(JOB)
        job = node.catalog.jobs[JOB]
        now = scene.world.wall()
        assert prove(JOB, job, state, raw, now + timedelta(seconds=60)).findings == ()
        assert prove(JOB, job, state, raw, now + timedelta(seconds=180)).findings == (
            Finding("instant 2026-03-01T12:02:00+00:00 is overdue: nobody owns the job?", ()),
        )

    in_owner_scene(test, trigger={"every": "60s"})


def test_a_run_under_way_a_clock_set_back_and_trimming_break_nothing() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        async def holds() -> None:
            state, raw = await scene.ledger.whole(JOB)
            whole = node.catalog.jobs[JOB], state, raw, scene.world.wall()
            assert told(whole) == []

        scene.source.run_s = 0.2
        await until_wall(scene, KEPT_RUNS + 40)
        assert KEPT_RUNS <= len(await scene.runs()) <= KEPT_RUNS + TRIM_EVERY
        await holds()
        scene.world.set_wall(-86_400)
        await scene.sleep(120)
        await holds()
        scene.source.run_s = 30
        await running(node)
        await holds()
        whole = await scene.ledger.whole(JOB)
        assert whole[0].trimmed[0] > 40
        assert isinstance(whole[1], Iterable)

    in_owner_scene(test, trigger={"every": "1s"})


def test_a_proof_while_the_ledger_is_written_sees_one_moment() -> None:
    async def test(scene: OwnerScene, node: OwnerNode) -> None:
        scene.source.run_s = 0.01
        for _ in range(60):
            state, raw = await scene.ledger.whole(JOB)
            whole = node.catalog.jobs[JOB], state, raw, scene.world.wall()
            assert told(whole) == []
            await asyncio.sleep(0.05)

    in_owner_scene(test, trigger={"every": "1s"})
