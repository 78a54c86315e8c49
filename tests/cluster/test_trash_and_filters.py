"""The trash by its commands, and filters that change, with real processes."""

import json
import os
from typing import Any

import pytest

from tests.cluster.harness import Scene
from tests.cluster.test_guards import Mirrored, mirrored
from tests.cluster.trees import T0, check_equal, picture, put

__all__ = ["mirrored"]

pytestmark = pytest.mark.timeout(180)


async def trash(scene: Scene, *arguments: str, code: int = 0) -> Any:
    ended = await scene.baton("trash", *arguments, "-o", "json")
    assert ended.code == code, ended
    return json.loads(ended.out) if ended.out.strip() else ended.err


async def test_what_a_run_deleted_is_listed_brought_back_and_removed(mirrored: Mirrored) -> None:
    scene, root = mirrored.scene, f"b:{mirrored.target.name}"
    (mirrored.source / "sub/f01").unlink()
    (mirrored.source / "sub/f02").unlink()
    put(mirrored.target / os.fsdecode(b"caf\xe9"), "odd")
    await mirrored.run_ok()
    listed = await trash(scene, "list", root)
    assert sorted(one["path"] for one in listed) == ["caf\udce9", "sub/f01", "sub/f02"]
    assert {one["kind"] for one in listed} == {"file"}
    assert {*listed[0]} == {"date", "path", "kind", "size", "mtime"}
    assert [one["path"] for one in await trash(scene, "list", f"{root}/sub/f02")] == ["sub/f02"]

    done = await trash(scene, "restore", root, "sub/f01")
    assert (done["restored"], done["paths"]) == (1, ["sub/f01"])
    assert (mirrored.target / "sub/f01").read_text() == "content 1"
    done = await trash(scene, "restore", root, os.fsdecode(b"caf\xe9"), "--to", "back/x")
    assert (mirrored.target / "back/x").read_bytes() == b"odd"

    put(mirrored.target / "sub/f02", "mine")
    said = await trash(scene, "restore", root, "sub/f02", code=1)
    assert "is there already" in said
    assert (mirrored.target / "sub/f02").read_text() == "mine"
    assert "--yes" in await trash(scene, "purge", root, code=2)
    assert (await trash(scene, "purge", root, "--older-than", "1d", "--yes"))["days"] == []
    assert (await trash(scene, "purge", root, "--yes"))["days"] == [listed[0]["date"]]
    assert await trash(scene, "list", root) == []
    await mirrored.run_ok()
    check_equal(mirrored.source, mirrored.target)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "nobody:root"), "there is no worker nobody"),
        (("list", "b:no-such-root"), "exports no root 'no-such-root'"),
        (("list", "b"), "WORKER:ROOT"),
        (("list", "b:{root}", "--date", "yesterday"), "YYYY-MM-DD"),
        (("list", "b:{root}", "--date", "2026-02-30"), "YYYY-MM-DD"),
        (("restore", "b:{root}", "../outside"), "below the root"),
        (("restore", "b:{root}", "sub/none"), "no version of sub/none"),
        (("restore", "b:{root}/sub", "f"), "path after a space"),
        (
            ("purge", "b:{root}", "--yes", "--older-than", "old"),
            "--older-than: 'old' is no duration",
        ),
    ],
)
async def test_what_makes_no_sense_is_said(
    mirrored: Mirrored, arguments: tuple[str, ...], said: str
) -> None:
    words = [word.format(root=mirrored.target.name) for word in arguments]
    assert said in await trash(mirrored.scene, *words, code=2)


async def test_no_deletes_come_from_a_change_of_filters(mirrored: Mirrored) -> None:
    put(mirrored.source / "a.tmp", "1")
    put(mirrored.source / "cache/x", "2")
    put(mirrored.source / "large", "3" * 2_000)
    await mirrored.run_ok()
    before = picture(mirrored.target)
    for name in ("a.tmp", "cache/x", "large"):
        (mirrored.source / name).unlink()
    put(mirrored.source / "b.tmp", "4")
    put(mirrored.source / "large", "5" * 3_000)
    await mirrored.apply(filters=["*.tmp", "/cache/"], limits={"max_size": "1kB"})
    run = await mirrored.run_ok()
    assert (run["files_copied"], run["files_deleted"]) == (0, 0)
    after = picture(mirrored.target)
    assert {path: what for path, what in after.items() if what[0] == "file"} == {
        path: what for path, what in before.items() if what[0] == "file"
    }
    await mirrored.apply()
    await mirrored.run_ok()
    check_equal(mirrored.source, mirrored.target)


async def test_members_of_sync_forget_what_filters_hide_and_find_it_new(steady: Scene) -> None:
    job = "filtered"
    a, b = tops = [steady.roots[worker] / job for worker in "ab"]
    put(a / "a.tmp", "1")
    put(a / "cache/c", "2")
    put(a / "plain", "3")
    b.mkdir()
    fields = {"name": job, "rule": "sync", "members": [f"{w}:data/{job}" for w in "ab"]}
    await steady.apply(**fields)
    await steady.run_ok(job)
    check_equal(a, b)
    (a / "a.tmp").unlink()
    (a / "cache/c").unlink()
    (a / "cache").rmdir()
    put(a / "plain", "changed")
    put(b / "b.tmp", "4")
    await steady.apply(**fields, filters=["*.tmp", "/cache/"])
    run = await steady.run_ok(job)
    assert (run["files_copied"], run["files_deleted"], run["conflicts"]) == (1, 0, 0)
    assert sorted(os.listdir(a)) == ["plain"]
    assert sorted(os.listdir(b)) == ["a.tmp", "b.tmp", "cache", "plain"]
    assert (b / "plain").read_text() == "changed"
    verified = await steady.baton("verify", job, "-o", "json")
    assert (verified.code, verified.json["files_compared"]) == (0, 1)
    # Shown again, what was deleted while nobody looked is new at the member that has it.
    await steady.apply(**fields)
    run = await steady.run_ok(job)
    assert (run["files_copied"], run["files_deleted"]) == (3, 0)
    check_equal(*tops)


async def test_a_preview_names_conflicts_and_renames(steady: Scene) -> None:
    job = "foreseen"
    a, b = tops = [steady.roots[worker] / job for worker in "ab"]
    put(a / "both", "0")
    put(a / "before", "content that is recognized")
    b.mkdir()
    members = [f"{worker}:data/{job}" for worker in "ab"]
    await steady.apply(name=job, rule="sync", members=members)
    await steady.run_ok(job)
    put(a / "both", "one", T0)
    put(b / "both", "other", T0 + 1)
    (a / "before").rename(a / "after")
    shown = (await steady.ok("job", "preview", job, "-o", "json")).json
    assert [one["path"] for one in shown["errors"] if one["what"] == "conflict"] == ["both"]
    renames = [one for one in shown["changes"] if one["action"] == "rename"]
    assert [(one["origin"], one["path"], one["member"]) for one in renames] == [
        ("before", "after", members[1])
    ]
    text = (await steady.ok("job", "preview", job)).out
    assert "before -> after" in text
    assert "conflict: both: changed differently" in text
    assert [sorted(os.listdir(top)) for top in tops] == [["after", "both"], ["before", "both"]]
