"""Workers that die at any moment: nothing half made is ever seen, and the next run finishes."""

import asyncio
import logging
import random
import signal
from pathlib import Path

import pytest

from tests.cluster.harness import Scene, until
from tests.cluster.reader import Reader, content_of
from tests.cluster.trees import check_equal, grow, put

log = logging.getLogger(__name__)

ROUNDS = 50
FILES = 600


def write_version(root: Path, version: int, dice: random.Random) -> list[str]:
    """Write every file anew, a few of them bigger than a frame; return their names."""
    names = []
    for number in range(FILES):
        name = f"d{number % 10}/f{number:04}"
        blocks = dice.randrange(900, 1500) if number % 40 == 0 else dice.randrange(8)
        put(root / name, content_of(name, version, blocks))
        names.append(name)
    return names


def content(root: Path, name: str) -> bytes:
    return (root / name).read_bytes()


@pytest.mark.timeout(480)
async def test_i1_i10_fifty_targets_killed_while_they_publish(pair: Scene) -> None:
    source, target = pair.roots["a"], pair.roots["b"]
    dice = random.Random(30)
    victim = pair.cluster.members["b"]
    names = write_version(source, 0, dice)
    await pair.apply(name="kills", source="a:data", targets=["b:data"])
    await pair.run_ok("kills")
    in_the_middle = 0
    with Reader(target, names) as reader:
        for number in range(1, ROUNDS + 1):
            reader.newest = number
            write_version(source, number, dice)
            run = await pair.request_run("kills")
            await asyncio.sleep(dice.uniform(0.02, 0.35))  # the moment of death: any
            await victim.kill()
            await victim.start()
            record = await pair.run_ended("kills", run, 40)
            if record.outcome.value == "failed":
                in_the_middle += 1
                assert [one.member for one in record.problems] == ["b:data"], record
            else:
                assert record.outcome.value == "succeeded", record
            await victim.wait_ready()
            if number % 10 == 0:
                differing = sum(content(source, name) != content(target, name) for name in names)
                ended = await pair.run_ok("kills")
                assert ended["files_copied"] == differing, "what had arrived was sent again"
                check_equal(source, target)
                reader.oldest = number
            assert reader.wrong == []
    assert reader.reads > 1000
    assert len(reader.versions) > ROUNDS // 10, "more than those that are made equal"
    assert in_the_middle >= ROUNDS * 0.3, in_the_middle
    check_equal(source, target)
    assert (await pair.run_ok("kills"))["files_copied"] == 0
    log.info("%d of %d in the middle; %d reads", in_the_middle, ROUNDS, reader.reads)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_source_worker_that_dies_and_returns_is_given_the_run_again(
    pair: Scene, number: signal.Signals
) -> None:
    source, target = pair.roots["a"], pair.roots["b"]
    grow(source, 6000)
    await pair.apply(name="source", source="a:data", targets=["b:data"])
    run = await pair.request_run("source")
    await until((target / "d000").exists, "the beginning")
    worker = pair.cluster.members["a"]
    worker.signal(number)
    await worker.wait()
    await pair.cluster.start("a")
    record = await pair.run_ended("source", run, 60)
    assert record.outcome.value == "succeeded", record
    check_equal(source, target)
    assert (await pair.run_ok("source"))["files_copied"] == 0


@pytest.mark.timeout(180)
async def test_a_source_worker_that_stays_away_fails_the_run_by_name(pair: Scene) -> None:
    source, target = pair.roots["a"], pair.roots["b"]
    grow(source, 6000)
    await pair.apply(name="away", source="a:data", targets=["b:data"])
    run = await pair.request_run("away")
    await until((target / "d000").exists, "the beginning")
    await pair.cluster.members["a"].kill()
    record = await pair.run_ended("away", run, 60)
    assert record.outcome.value == "failed"
    assert "worker a at 127.0.0.1" in record.reason
    assert "cannot be reached" in record.reason
    await pair.cluster.start("a")
    await pair.run_ok("away")
    check_equal(source, target)


@pytest.mark.timeout(180)
async def test_a_target_that_stops_in_order_loses_nothing(pair: Scene) -> None:
    source, target = pair.roots["a"], pair.roots["b"]
    grow(source, 6000)
    await pair.apply(name="order", source="a:data", targets=["b:data"])
    run = await pair.request_run("order")
    await until((target / "d000").exists, "the beginning")
    assert await pair.cluster.members["b"].stop() == 0
    record = await pair.run_ended("order", run, 60)
    assert record.outcome.value == "failed"
    await pair.cluster.start("b")
    await pair.run_ok("order")
    check_equal(source, target)


@pytest.mark.timeout(180)
async def test_a_target_that_hangs_delays_nobody_for_long(pair: Scene) -> None:
    """A stopped process still has its connections: only silence tells."""
    third = pair.worker("c")
    await pair.cluster.start("c")
    await pair.register("c")
    source = pair.roots["a"]
    grow(source, 3000)
    await pair.apply(name="hangs", source="a:data", targets=["b:data", "c:data"])
    await pair.run_ok("hangs")
    put(source / "new", "n")
    third.signal(signal.SIGSTOP)
    ended = await pair.baton("job", "run", "hangs", "--wait", "-o", "json")
    assert ended.code == 1
    assert {error["member"] for error in ended.json["errors"]} == {"c:data"}
    check_equal(source, pair.roots["b"])
    third.signal(signal.SIGCONT)
    await pair.run_ok("hangs")
    check_equal(source, pair.roots["c"])
