"""Every fault of the kit bites, and what it hit works again after it was healed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli.chaos.disks import SIZE_BYTES
from cli.chaos.fault import EVERYTHING, Fault
from cli.chaos.faults import FAULTS
from cli.chaos.local import COORDINATORS, ETCD, WORKERS, Local, local
from cli.chaos.schedule import Queue, Strike, strikes
from tests.cluster.harness import until

if TYPE_CHECKING:
    from cli.chaos import history as h

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Local]:
    noted: list[h.Any] = []
    directory = tmp_path_factory.mktemp("faults") / "cluster"
    async with local(directory, now=lambda: 0.0, note=noted.append) as made:
        yield made


def target_of(fault: Fault) -> str:
    """One of them, another for each fault."""
    return fault.targets[len(fault.name) % len(fault.targets)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_fault_bites_and_heals(cluster: Local, fault: Fault) -> None:
    if why := fault.available(cluster):
        pytest.skip(why)
    target = target_of(fault)
    await cluster.start(EVERYTHING)
    before = {name: cluster.identity(name) for name in EVERYTHING}
    try:
        await fault.inject(cluster, target)
        await until(lambda: fault.verify(cluster, target), f"{fault.name} {target} to bite", 30)
    finally:
        await fault.heal(cluster, target)
    if fault.name == "rolling-upgrade":
        assert not set(before.values()) & {cluster.identity(name) for name in EVERYTHING}
    else:

        async def is_over() -> bool:
            return not await fault.verify(cluster, target)

        await until(is_over, f"{fault.name} {target} to be over", 30)
    await cluster.start(EVERYTHING)  # a guardian may have ended what hung
    assert all(cluster.is_running(name) for name in EVERYTHING)
    assert len(await cluster.api.proofs()) == 0, "a coordinator answers, and etcd answers it"


async def test_what_is_sent_one_way_is_cut_and_nothing_else(cluster: Local) -> None:
    if cluster.why_no_network:
        pytest.skip(cluster.why_no_network)
    net = cluster.net
    await net.cut("w1", "w2")
    try:
        # No handshake succeeds when half of it is lost; who loses what is counted where it arrives.
        assert await net.reach("w1", "w2") is None
        assert await net.lost("w2") > 0
        assert await net.lost("w1") == 0
        assert await net.reach("w1", "w3", 10) is not None
        assert await net.reach("c1", "w2", 10) is not None
    finally:
        await net.mend("w1", "w2")
    assert await net.reach("w1", "w2", 10) is not None


async def test_a_full_disk_takes_nothing_until_it_is_freed(cluster: Local) -> None:
    if cluster.why_no_disks:
        pytest.skip(cluster.why_no_disks)
    file = cluster.scratch("w1") / "more"
    cluster.disks.fill("w1")
    try:
        with pytest.raises(OSError, match="No space left"):
            file.write_bytes(bytes(1 << 20))
    finally:
        file.unlink(missing_ok=True)
        cluster.disks.free("w1")
    assert SIZE_BYTES / 2 < cluster.disks.room("w1") <= SIZE_BYTES


async def test_a_root_that_is_unmounted_is_empty_and_has_everything_when_it_is_back(
    cluster: Local,
) -> None:
    if cluster.why_no_disks:
        pytest.skip(cluster.why_no_disks)
    root, name = cluster.disks.root("w2"), "kept"
    (cluster.files("w2") / name).write_text("still here")
    assert (root / name).read_text() == "still here"
    await cluster.disks.detach("w2")
    try:
        assert list(root.iterdir()) == []
    finally:
        await cluster.disks.attach("w2")
    assert (root / name).read_text() == "still here"
    (root / name).unlink()


async def test_nothing_of_a_run_is_left_behind(tmp_path: Path) -> None:
    async with local(tmp_path / "cluster", now=lambda: 0.0, note=lambda _: None) as made:
        places = [made.disks.disk(name) for name in WORKERS] + [
            made.disks.root(name) for name in WORKERS
        ]
        spaces = [made.net.prefix(name)[1] for name in EVERYTHING] if made.network else []
    assert not any(place.is_mount() for place in places)
    left = [one for one in spaces if await asyncio.to_thread(Path(one.partition("=")[2]).exists)]
    assert left == []


# In which order they come


def drawn(count: int, seed: int = 1) -> list[Strike]:
    coming = strikes(seed, FAULTS)
    return [next(coming) for _ in range(count)]


def test_a_seed_says_which_faults_come() -> None:
    assert drawn(200) == drawn(200)
    assert drawn(200) != drawn(200, seed=2)
    assert {strike.fault.name for strike in drawn(2_000)} == {fault.name for fault in FAULTS}


def test_no_fault_hits_a_kind_of_member_that_is_hit_already() -> None:
    queue = Queue(drawn(50))
    for kind in (ETCD, COORDINATORS, WORKERS):
        strike = queue.next([kind[0]], 0.0)
        assert strike is not None
        assert not strike.kinds & {kind[0][0]}
    assert queue.next([ETCD[0], COORDINATORS[0], WORKERS[0]], 0.0) is None


def test_the_first_lets_others_pass_for_a_while_and_every_strike_comes_once() -> None:
    everything = next(strike for strike in drawn(2_000) if strike.fault.name == "power-cut")
    small = [strike for strike in drawn(100) if strike.kinds == {"w"}][:5]
    queue = Queue([everything, *small])
    assert queue.next(["c1"], 0.0) is small[0]
    assert queue.next(["c1"], 19.0) is small[1]
    assert queue.next(["c1"], 21.0) is None, "it has waited long enough"
    assert queue.next([], 22.0) is everything
    assert [queue.next([], 23.0) for _ in range(4)] == [*small[2:], None]
