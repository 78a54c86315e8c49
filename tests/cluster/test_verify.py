"""`baton verify`: what differs is found by content, named, and left as it is."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import Scene
from tests.cluster.trees import grow, picture, put

pytestmark = pytest.mark.timeout(180)


async def verify(scene: Scene, job: str, *, code: int) -> Any:
    ended = await scene.baton("verify", job, "-o", "json")
    assert ended.code == code, ended
    return {**json.loads(ended.out), "said": ended.err}


def flip(path: Path) -> None:
    """Change one byte and nothing that a listing shows."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_a_flipped_byte_among_thousands_is_found_and_nothing_is_changed(
    steady: Scene,
) -> None:
    job = "flipped"
    source, *targets = [steady.roots[worker] / job for worker in "abc"]
    grow(source, 3_000)
    put(source / "cache/skipped", "1")
    names = [f"{worker}:data/{job}" for worker in "abc"]
    fields = {"name": job, "source": names[0], "targets": names[1:], "filters": ["/cache/"]}
    await steady.apply(**fields)
    await steady.run_ok(job)
    put(targets[0] / "cache/other", "2")
    assert await verify(steady, job, code=0) == {
        "equal": True,
        "files_compared": 3_000,
        "differences": [],
        "said": "",
    }
    flip(targets[1] / "d007/f001007")
    before = [picture(root) for root in (source, *targets)]
    found = await verify(steady, job, code=1)
    assert (found["equal"], found["files_compared"]) == (False, 3_000)
    assert found["differences"] == [{"path": "d007/f001007", "member": names[2], "what": "content"}]
    assert [picture(root) for root in (source, *targets)] == before
    # A run that compares times sees nothing of it; one that compares content mends it.
    run = await steady.run_ok(job)
    assert run["files_copied"] == 0
    await steady.apply(**fields, transfer={"compare": "checksum"})
    run = await steady.run_ok(job)
    assert run["files_copied"] == 1
    assert (await verify(steady, job, code=0))["equal"]


async def test_members_of_sync_are_verified_alike(steady: Scene) -> None:
    job = "alike"
    tops = [steady.roots[worker] / job for worker in "abc"]
    for top in tops:
        top.mkdir()
    put(tops[2] / "only", "c")
    put(tops[1] / os.fsdecode(b"caf\xe9"), "b")
    names = [f"{worker}:data/{job}" for worker in "abc"]
    await steady.apply(name=job, rule="sync", members=names)
    found = await verify(steady, job, code=1)
    assert [one for one in found["differences"] if one["path"]] == [
        {"path": "caf\udce9", "member": names[0], "what": "missing"},
        {"path": "caf\udce9", "member": names[2], "what": "missing"},
        {"path": "only", "member": names[0], "what": "missing"},
        {"path": "only", "member": names[1], "what": "missing"},
    ]
    await steady.run_ok(job)
    assert (await verify(steady, job, code=0))["files_compared"] == 2
    flip(tops[0] / "only")
    found = await verify(steady, job, code=1)
    assert found["differences"] == [
        {"path": "only", "member": member, "what": "content"} for member in names[1:]
    ]


async def test_a_member_that_is_not_there_is_no_equal_one(steady: Scene) -> None:
    root = steady.spare.pop()
    source, target = steady.root("a", root), steady.root("b", root)
    put(source / "f", "1")
    await steady.apply(name="away", source=f"a:{root}", targets=[f"b:{root}"])
    await steady.run_ok("away")
    target.rename(target.with_name("gone-away"))
    found = await verify(steady, "away", code=1)
    assert not found["equal"]
    assert f"b:{root}: unreachable: the root" in found["said"]
    assert "not all of away could be compared" in found["said"]
    target.with_name("gone-away").rename(target)
    assert (await verify(steady, "away", code=0))["equal"]
    ended = await steady.baton("verify", "no-such-job")
    assert ended.code == 2
