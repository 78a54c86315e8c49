"""Sync when members are away, die, come back old, or lose what they agreed to."""

import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.embedded_etcd import EtcdCluster
from tests.cluster.harness import Scene, paused, scene_on, until
from tests.cluster.test_sync import DAY, check_all_equal, check_still
from tests.cluster.trees import T0, grow, picture, put

pytestmark = pytest.mark.timeout(180)

JOB = "sync"


@pytest.fixture
async def three(etcd: EtcdCluster, tmp_path: Path) -> AsyncIterator[Scene]:
    """Two coordinators, and workers a, b and c whose roots a job keeps equal; nothing has run yet."""
    async with scene_on(etcd, tmp_path / "s", coordinators=2, workers=("a", "b", "c")) as scene:
        await scene.apply(name=JOB, rule="sync", members=["a:data", "b:data", "c:data"])
        yield scene


def roots(scene: Scene) -> list[Path]:
    return [scene.roots[worker] for worker in "abc"]


def agreed(scene: Scene, worker: str) -> list[Path]:
    """The files of a worker's agreed states."""
    return sorted((scene.directory / f"worker-{worker}" / "state" / "agreed").iterdir())


async def test_a_member_that_was_away_catches_up_and_loses_nothing(three: Scene) -> None:
    a, b, c = every = roots(three)
    for number in range(20):
        put(a / f"d{number % 3}" / f"f{number}", f"first {number}", T0)
    await three.run_ok(JOB)
    away = three.cluster.members["c"]
    await away.kill()
    put(a / "d0/f0", "edited at a", T0 + DAY)
    os.unlink(b / "d1/f1")
    put(b / "new at b", "of b", T0)
    put(b / "short-lived", "of b", T0)
    # What its users do meanwhile, at home.
    put(c / "d2/f2", "edited at c", T0 + 2 * DAY)
    put(c / "d1/f1", "edited at c, deleted at b", T0 + 2 * DAY)
    put(c / "d0/f0", "also edited at c", T0 + 3 * DAY)
    put(c / "new at c", "of c", T0)
    run = await three.run(JOB)
    assert run["outcome"] == "failed"
    assert {one["member"] for one in run["errors"]} == {"c:data"}
    assert {one["what"] for one in run["errors"]} == {"unreachable"}
    check_all_equal([a, b])
    assert not (a / "d1/f1").exists()
    os.unlink(a / "short-lived")
    await three.run(JOB)
    assert not (b / "short-lived").exists(), "those that are there agree without it"
    await three.cluster.start("c")
    run = await three.run_ok(JOB)
    assert run["conflicts"] == 2, run
    check_all_equal(every)
    assert (a / "d2/f2").read_text() == "edited at c"
    assert (a / "d1/f1").read_text() == "edited at c, deleted at b"
    assert (a / "d0/f0").read_text() == "also edited at c"
    (copy,) = [path for path in (a / "d0").iterdir() if ".conflict-" in path.name]
    assert copy.read_text() == "edited at a"
    assert (a / "new at c").read_text() == "of c"
    assert (c / "new at b").read_text() == "of b"
    await check_still(three, JOB)


async def test_i3_agreed_states_that_are_lost_delete_and_overwrite_nothing(three: Scene) -> None:
    a, b, c = every = roots(three)
    for number in range(6):
        put(a / f"f{number}", f"first {number}", T0)
    await three.run_ok(JOB)
    os.unlink(a / "f0")
    put(b / "f1", "edited at b", T0 + DAY)
    for worker in "abc":
        for path in agreed(three, worker):
            path.write_bytes(b"no database at all" * 100)
    run = await three.run_ok(JOB)
    assert run["files_deleted"] == 0
    check_all_equal(every)
    assert (a / "f0").read_text() == "first 0", "nobody knows that it was deleted"
    contents = {path.read_text() for path in a.iterdir() if path.name.startswith("f1")}
    assert contents == {"edited at b", "first 1"}, "nobody knows which of them is the older"
    dropped = three.cluster.members["a"].events("agreed_state_dropped")
    assert "damaged" in str(dropped[0]["why"])
    await check_still(three, JOB)
    os.unlink(c / "f2")
    assert (await three.run_ok(JOB))["files_deleted"] == 2, "and then deletes travel again"
    check_all_equal(every)


async def test_a_restored_backup_is_held_and_when_approved_counts_as_older(three: Scene) -> None:
    a, b, c = every = roots(three)
    for number in range(6):
        put(a / f"f{number}", f"first {number}", T0)
    await three.run_ok(JOB)
    backup = three.directory / "backup"
    shutil.copytree(c, backup, symlinks=True)
    put(a / "f0", "second", T0 + DAY)
    os.unlink(b / "f1")
    put(b / "later", "of b", T0)
    await three.run_ok(JOB)
    check_all_equal(every)
    for child in list(c.iterdir()):
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    shutil.copytree(backup, c, symlinks=True, dirs_exist_ok=True)
    before = [picture(root) for root in every]
    run = await three.run(JOB)
    assert run["outcome"] == "blocked", run
    assert {hold["reason"] for hold in run["holds"]} == {"marker-set-back"}
    assert [picture(root) for root in every] == before
    approved = await three.baton("run", "approve", JOB, run["id"], "--wait", "-o", "json")
    assert approved.code == 0, approved
    assert json.loads(approved.out)["files_deleted"] == 0, "nothing is deleted because of it"
    check_all_equal(every)
    assert (a / "f0").read_text() == "second", "its old version did not win"
    assert (a / "later").read_text() == "of b"
    await check_still(three, JOB)


@pytest.mark.parametrize("who", ["owner", "runner", "other"])
async def test_i9_i10_a_kill_in_the_middle_loses_nothing(three: Scene, who: str) -> None:
    a, b, c = every = roots(three)
    for place, root in enumerate(every):
        grow(root / f"of{place}", 1500, seed=place)
    wrote = {
        path.relative_to(root): path.read_bytes()
        for root in every
        for path in root.rglob("f*")
        if path.is_file()
    }
    run = await three.request_run(JOB)
    await until(lambda: (a / "of1").exists() or (b / "of0").exists(), "the beginning", 60)
    if who == "owner":
        owner = await three.owner(JOB)
        assert owner is not None
        victim = three.cluster.members[owner[0]]
    else:
        victim = three.cluster.members["a" if who == "runner" else "b"]
    await victim.kill()
    record = await three.run_ended(JOB, run, 90)
    if who == "owner":
        assert record.outcome.value == "succeeded", record
        assert len(record.attempts) == 2
    else:
        assert record.outcome.value == "failed", record
        assert victim.name in record.reason
        check_all_equal(
            [root for root, worker in zip(every, "abc", strict=True) if worker != victim.name]
        )
    await three.cluster.start(victim.name)
    await three.run_ok(JOB)
    check_all_equal(every)
    for path, content in wrote.items():
        assert (c / path).read_bytes() == content
    assert not [path for path in c.rglob("*") if ".conflict-" in path.name]
    await check_still(three, JOB)


async def test_a_runner_that_hangs_is_replaced_and_does_no_harm_when_it_wakes(
    three: Scene,
) -> None:
    a, b, _ = every = roots(three)
    grow(b / "of b", 2500, seed=7)
    put(a / "of a", "a", T0)
    run = await three.request_run(JOB)
    await until((a / "of b").exists, "the beginning", 60)
    with paused(three.cluster.members["a"]):
        record = await three.run_ended(JOB, run, 90)
        assert record.outcome.value == "failed", record
        assert "a" in record.reason
    await three.run_ok(JOB)
    check_all_equal(every)
    await check_still(three, JOB)


async def test_two_that_meet_after_the_others_met_without_them(
    etcd: EtcdCluster, tmp_path: Path
) -> None:
    """I7: two halves of a job go on alone, one after the other; neither overwrites the other's work."""
    names = ("a", "b", "c", "d")
    async with scene_on(etcd, tmp_path / "h", coordinators=1, workers=names) as scene:
        await scene.apply(name=JOB, rule="sync", members=[f"{name}:data" for name in names])
        every = [scene.roots[name] for name in names]
        put(every[0] / "text", "base", T0)
        await scene.run_ok(JOB)
        for half, content, when in (("ab", "of c and d", 2), ("cd", "of a and b", 1)):
            for name in half:
                scene.cluster.members[name].signal(signal.SIGKILL)
                await scene.cluster.members[name].wait()
            at = scene.roots["c" if half == "ab" else "a"]
            put(at / "text", content, T0 + when * DAY)
            assert (await scene.run(JOB))["outcome"] == "failed"
            for name in half:
                await scene.cluster.start(name)
        assert (await scene.run_ok(JOB))["conflicts"] == 1
        check_all_equal(every)
        contents = {path.read_text() for path in every[3].iterdir() if path.is_file()}
        assert contents == {"of c and d", "of a and b"}
        await check_still(scene, JOB)


async def test_i6_i7_an_edit_in_the_middle_of_a_run_is_never_lost(three: Scene) -> None:
    a, b, c = every = roots(three)
    put(b / "zz/text", "base", T0)
    await three.run_ok(JOB)
    grow(a / "first", 2500, seed=3)
    put(a / "zz/text", "edited at a", T0 + DAY)
    run = await three.request_run(JOB)
    await until((b / "first").exists, "the beginning of the push", 60)
    with paused(three.cluster.members["b"]):
        was_early = (b / "zz/text").read_text() == "base"
        put(b / "zz/text", "edited at b meanwhile", T0 + 2 * DAY)
    record = await three.run_ended(JOB, run, 90)
    assert record.outcome.value == "succeeded", record
    await three.run_ok(JOB)
    check_all_equal(every)
    assert (c / "zz/text").read_text() == "edited at b meanwhile"
    kept = {path.read_text() for path in (c / "zz").iterdir()}
    assert kept == ({"edited at a", "edited at b meanwhile"} if was_early else kept)
    await check_still(three, JOB)
