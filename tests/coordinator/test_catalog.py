"""What a coordinator knows of the cluster, and what it leaves out."""

import asyncio
from collections.abc import Awaitable, Callable

from coordinator.catalog import Catalog
from coordinator.job_file import spec_to_plain
from coordinator.records import JobRecord, encode
from tests.coordinator.worlds import JOB, START, Etcd, job_spec, until
from tests.etcd.virtual_time import run_virtual


def followed(test: Callable[[Etcd, Catalog], Awaitable[None]]) -> None:
    async def main() -> None:
        world = Etcd()
        await world.define(job_spec())
        await world.register("w1")
        catalog = Catalog(world.store(), world.keys)
        following = asyncio.create_task(catalog.follow())
        try:
            await catalog.ready()
            await test(world, catalog)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    run_virtual(main())


def test_what_is_there_and_what_comes_and_goes() -> None:
    async def test(world: Etcd, catalog: Catalog) -> None:
        assert set(catalog.jobs) == {JOB}
        assert catalog.workers["w1"].address == "w1.example:7000"
        await world.define(job_spec(name="job-2"))
        await world.register("w2")
        await until(lambda: set(catalog.jobs) == {JOB, "job-2"})
        await until(lambda: set(catalog.workers) == {"w1", "w2"})
        await world.store().delete(world.keys.job(JOB))
        await until(lambda: set(catalog.jobs) == {"job-2"})

    followed(test)


def test_a_change_is_told_after_it_can_be_seen() -> None:
    async def test(world: Etcd, catalog: Catalog) -> None:
        seen: list[int] = []
        catalog.on_change(lambda: seen.append(catalog.jobs[JOB].generation))
        await world.define(job_spec(lease_ttl="9s"), generation=2)
        await until(lambda: bool(seen))
        assert seen == [2]
        assert catalog.jobs[JOB].spec.lease_ttl.seconds == 9

    followed(test)


def test_an_untouched_job_is_not_read_again() -> None:
    async def test(world: Etcd, catalog: Catalog) -> None:
        before = catalog.jobs[JOB]
        await world.define(job_spec(name="job-2"))
        await until(lambda: "job-2" in catalog.jobs)
        assert catalog.jobs[JOB] is before

    followed(test)


def test_a_job_that_this_version_does_not_understand_is_left_out() -> None:
    async def test(world: Etcd, catalog: Catalog) -> None:
        newer = {**spec_to_plain(job_spec(name="job-2")), "quantum": True}
        record = JobRecord(spec=newer, generation=1, changed_by="me", changed_at=START)
        await world.store().put(world.keys.job("job-2"), encode(record))
        await world.store().put(world.keys.job("job-3"), b"{nonsense")
        await world.define(job_spec(name="job-4"))
        await until(lambda: "job-4" in catalog.jobs)
        assert set(catalog.jobs) == {JOB, "job-4"}
        newer.pop("quantum")
        record = JobRecord(spec=newer, generation=2, changed_by="me", changed_at=START)
        await world.store().put(world.keys.job("job-2"), encode(record))
        await until(lambda: "job-2" in catalog.jobs)

    followed(test)


def test_a_job_that_becomes_unreadable_is_known_no_more() -> None:
    async def test(world: Etcd, catalog: Catalog) -> None:
        await world.store().put(world.keys.job(JOB), b"\xff")
        await until(lambda: not catalog.jobs)
        await world.define(job_spec())
        await until(lambda: JOB in catalog.jobs)

    followed(test)


def test_i13_after_a_compaction_the_view_begins_anew() -> None:
    async def test(world: Etcd, catalog: Catalog) -> None:
        world.etcd.has_quorum = False
        world.etcd.txn((), (), ())
        world.etcd.has_quorum = True
        store = world.store()
        await world.define(job_spec(name="job-2"))
        await store.delete(world.keys.job(JOB))
        await store.compact(world.etcd.revision)
        await until(lambda: set(catalog.jobs) == {"job-2"})

    followed(test)
