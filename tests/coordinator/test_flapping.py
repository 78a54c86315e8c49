"""Coordinators that lose their jobs again and again: when they are held down, and for how long."""

import asyncio
from datetime import timedelta

import pytest

from coordinator.flapping import FlapLimits, Flapping, Hold, judge
from coordinator.records import LifeRecord, decode
from tests.coordinator.test_scheduler import Group, in_group
from tests.coordinator.worlds import START, Etcd, until
from tests.etcd.virtual_time import run_virtual

LIMITS = FlapLimits(losses=3, within_s=600, hold_s=300)


@pytest.mark.parametrize(
    ("ages_s", "left_s"),
    [
        ((), None),
        ((1,), None),
        ((1, 2), None),
        ((3, 2, 1), 299),
        ((601, 300, 1), 299),
        ((602, 300, 1), None),  # the first too long before the last
        ((400, 350, 299), 1),
        ((400, 350, 300), None),  # held down for long enough
        ((-5, 1, 2), None),  # of a clock that was ahead: not counted
        ((800, 300, 200, 100), 200),
    ],
)
def test_the_table(ages_s: tuple[float, ...], left_s: float | None) -> None:
    losses = [START - timedelta(seconds=age_s) for age_s in ages_s]
    hold = judge(losses, START, LIMITS)
    if left_s is None:
        assert hold is None
    else:
        assert hold is not None
        assert (hold.until - START).total_seconds() == left_s
        assert hold.losses == 3
        assert str(hold).endswith("UTC: it lost its jobs 3 times within 10 min")
    assert judge(losses, START, FlapLimits(losses=0)) is None


def flapping(world: Etcd) -> Flapping:
    return Flapping.of(world.store(), world.keys, world.clock, "c1", LIMITS, wall=world.wall)


def test_ends_out_of_order_count_and_orderly_ones_do_not() -> None:
    async def main() -> None:
        world = Etcd()
        for _ in range(3):
            life = flapping(world)
            await life.begin()
            assert life.hold is None
            await life.end()
        for number in range(4):
            life = flapping(world)
            await life.begin()  # and then nothing more: killed
            assert (life.hold is not None) == (number == 3)
            await asyncio.sleep(5)
        await asyncio.sleep(300)
        last = flapping(world)
        await last.end()  # one that has not begun says nothing: the name may be another's
        kv = world.etcd.get(world.keys.life("c1"))
        assert kv is not None
        assert decode(kv.value, LifeRecord).is_running

    run_virtual(main())


def test_losses_with_a_lease_count_once_each_and_the_hold_ends_by_itself() -> None:
    async def main() -> None:
        world = Etcd()
        told: list[Hold | None] = []
        life = flapping(world)
        await life.begin()
        running = asyncio.create_task(life.run(told.append))
        for number in range(3):
            assert not told, number
            for _ in range(50):
                life.jobs_lost()
            await asyncio.sleep(10)
        assert told == [life.hold]
        assert life.hold is not None
        world.set_wall(-86_400)  # no clock that is set back makes it longer
        began = world.clock.now()
        await until(lambda: told[-1] is None, 400)
        assert 280 < world.clock.now() - began < 301
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        kv = world.etcd.get(world.keys.life("c1"))
        assert kv is not None
        assert len(decode(kv.value, LifeRecord).losses) == 3

    run_virtual(main())


def test_one_that_is_held_down_takes_only_what_nobody_else_may_own() -> None:
    async def test(group: Group) -> None:
        held, other = group.add("c1", "c2")
        await asyncio.sleep(2)
        hold = Hold(START, 3, 600)
        held.scheduler.hold_down(hold)
        await held.say_held(str(hold))
        await group.define("home", placement={"nodes": ["c1"]})
        await group.define("only", placement={"nodes": ["c1"], "fallback": False})
        for number in range(6):
            await group.define(f"any-{number}")
        await until(lambda: held.jobs == {"only"} and len(other.jobs) == 7)
        reasons = held.scheduler.decide(held.catalog.jobs["home"]).reasons
        assert any("c1 is held down until" in reason for reason in reasons)
        await other.die()
        await until(lambda: len(held.jobs) == 8)

    in_group(test)
