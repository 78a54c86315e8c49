"""The stack of compose/ as a user meets it: a job that runs, an owner that dies, what it may do."""

import asyncio
import os
import urllib.request
from collections.abc import AsyncIterator

import pytest

from tests.cluster.harness import until
from tests.compose.stack import Stack, build, call, missing

pytestmark = [pytest.mark.timeout(600), pytest.mark.root]

MEMBERS = ("etcd1", "etcd2", "etcd3", "c1", "c2", "c3", "nas1", "nas2", "nas3")


@pytest.fixture(scope="module")
async def stack() -> AsyncIterator[Stack]:
    if why := missing():
        pytest.skip(why)
    await asyncio.to_thread(build)
    stack = Stack()
    try:
        await stack.up()
        yield stack
    finally:
        await stack.down()


async def test_what_is_written_is_on_both_targets_and_goes_on_when_the_owner_dies(
    stack: Stack,
) -> None:
    source, *targets = [
        await stack.volume(f"{nas}-data") / "projects" for nas in ("nas1", "nas2", "nas3")
    ]
    source.mkdir()

    def put(name: str) -> None:
        (source / name).write_text(name)
        os.chown(source / name, 4711, 4712)

    def is_there(name: str) -> bool:
        copies = [target / name for target in targets]
        return all(copy.exists() for copy in copies) and all(
            (copy.read_text(), copy.stat().st_uid, copy.stat().st_gid) == (name, 4711, 4712)
            for copy in copies
        )

    put("one")
    await until(lambda: is_there("one"), "one", 90)
    owner = str((await stack.baton("job", "show", "projects"))["owner"])
    await call("docker", "kill", await stack.container(owner))
    try:
        put("two")
        await until(lambda: is_there("two"), "two", 90)
        assert (await stack.baton("job", "show", "projects"))["owner"] != owner
        assert (await stack.baton("ledger", "verify"))["ok"]
    finally:
        await call("docker", "start", await stack.container(owner))


async def test_no_container_may_more_than_it_needs(stack: Stack) -> None:
    for name in MEMBERS:
        found = await stack.inspect(name)
        assert found["HostConfig"]["ReadonlyRootfs"], name
        assert not found["HostConfig"]["Privileged"], name
        assert found["HostConfig"]["CapDrop"] == ["ALL"], name
        is_worker = name.startswith("nas")
        assert (found["Config"]["User"] in {"root", "0"}) == is_worker, name
        assert bool(found["HostConfig"]["CapAdd"]) == is_worker, name
        assert found["State"]["Health"]["Status"] in {"healthy", "starting"}, name
    # Nobody finds another's key, and nobody but the one that made them finds the authorities'.
    for name in ("c1", "nas1"):
        keys = await stack.sh(name, "find / -xdev -name '*.key' 2>/dev/null || true")
        assert keys == ""


async def test_the_status_page_is_published_on_the_loopback_only(stack: Stack) -> None:
    ports = (await stack.inspect("c2"))["NetworkSettings"]["Ports"]
    assert {one["HostIp"] for found in ports.values() if found for one in found} == {"127.0.0.1"}

    def read(path: str) -> str:
        with urllib.request.urlopen(stack.http["c2"] + path, timeout=30) as answer:
            return str(answer.read(200_000).decode())

    assert "projects" in await asyncio.to_thread(read, "/")
    assert "baton_" in await asyncio.to_thread(read, "/metrics")
