"""What the rules do, exactly: conflicts of sync and exchange, on real processes and files."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import Scene
from tests.cluster.test_sync import DAY, check_all_equal, check_still, members, tops
from tests.cluster.trees import T0, put

pytestmark = pytest.mark.timeout(180)


async def agreed_upon(scene: Scene, job: str, files: dict[str, str], **spec: Any) -> list[Path]:
    """Three members that have agreed to these files."""
    every = tops(scene, job)
    for name, content in files.items():
        put(every[0] / name, content, T0)
    await scene.apply(name=job, **{"rule": "sync", "members": members(job), **spec})
    await scene.run_ok(job)
    return every


def trash_of(scene: Scene, worker: str, job: str) -> list[str]:
    root = scene.roots[worker] / ".baton" / "trash"
    found = [path for path in root.rglob("*") if path.is_file() and job in path.parts]
    return sorted(path.read_text() for path in found)


async def test_i7_newest_puts_the_other_version_into_the_trash_where_it_was(steady: Scene) -> None:
    job = "newest"
    a, b, c = every = await agreed_upon(steady, job, {"text": "base"}, conflict="newest")
    put(a / "text", "older, of a", T0 + DAY)
    put(b / "text", "newer, of b", T0 + 2 * DAY)
    run = await steady.run_ok(job)
    assert run["conflicts"] == 1
    check_all_equal(every)
    assert (c / "text").read_text() == "newer, of b"
    assert [path.name for path in c.iterdir()] == ["text"]
    assert trash_of(steady, "a", job) == ["older, of a"]
    assert trash_of(steady, "b", job) == trash_of(steady, "c", job) == []
    await check_still(steady, job)


async def test_suppress_changes_nothing_and_says_so_until_members_agree(steady: Scene) -> None:
    job = "suppress"
    a, b, c = every = await agreed_upon(
        steady, job, {"text": "base", "other": "base"}, conflict="suppress"
    )
    put(a / "text", "of a", T0 + DAY)
    put(b / "text", "of b", T0 + 2 * DAY)
    put(c / "other", "edited", T0 + DAY)
    for _ in range(2):
        run = await steady.run_ok(job)
        assert run["conflicts"] == 1, run
        assert [(path / "text").read_text() for path in every] == ["of a", "of b", "base"]
        assert [(path / "other").read_text() for path in every] == ["edited"] * 3
    put(a / "text", "of b", T0 + 2 * DAY)
    assert (await steady.run_ok(job))["conflicts"] == 0
    check_all_equal(every)
    assert (c / "text").read_text() == "of b"


async def test_an_edit_outlives_a_delete_and_is_counted(steady: Scene) -> None:
    job = "delete-edit"
    a, b, _ = every = await agreed_upon(steady, job, {"d/text": "base", "d/more": "base"})
    os.unlink(a / "d/text")
    put(b / "d/text", "edited", T0 + DAY)
    run = await steady.run_ok(job)
    assert run["conflicts"] == 1, run
    check_all_equal(every)
    assert (a / "d/text").read_text() == "edited"
    await check_still(steady, job)


async def test_the_same_edit_on_two_sides_is_no_conflict(steady: Scene) -> None:
    job = "same"
    a, b, _ = every = await agreed_upon(steady, job, {"text": "base"})
    put(a / "text", "the same", T0 + DAY)
    put(b / "text", "the same", T0 + 2 * DAY)
    run = await steady.run_ok(job)
    assert run["conflicts"] == 0, run
    check_all_equal(every)
    await check_still(steady, job)


async def test_a_directory_keeps_the_name_and_the_file_becomes_a_copy(steady: Scene) -> None:
    job = "file-directory"
    a, b, _ = every = await agreed_upon(steady, job, {"rest": "base"})
    put(a / "name.txt", "a file", T0 + DAY)
    put(b / "name.txt/below", "below", T0)
    run = await steady.run_ok(job)
    assert run["conflicts"] == 1, run
    check_all_equal(every)
    assert (a / "name.txt/below").read_text() == "below"
    (copy,) = [path for path in b.iterdir() if ".conflict-" in path.name]
    assert copy.read_text() == "a file"
    await check_still(steady, job)


async def test_metadata_of_one_and_content_of_another_merge(steady: Scene) -> None:
    job = "merge"
    a, b, _ = every = await agreed_upon(steady, job, {"text": "base"})
    (a / "text").chmod(0o600)
    put(b / "text", "edited", T0 + DAY)
    run = await steady.run_ok(job)
    assert run["conflicts"] == 0, run
    check_all_equal(every)
    assert (a / "text").read_text() == "edited"
    assert (b / "text").stat().st_mode & 0o777 == 0o600
    await check_still(steady, job)


async def test_filters_that_change_delete_nothing(steady: Scene) -> None:
    job = "filters"
    a, b, c = every = await agreed_upon(steady, job, {"keep": "1", "x.tmp": "2", "d/y.tmp": "3"})
    await steady.apply(name=job, rule="sync", members=members(job), filters=["*.tmp"])
    os.unlink(a / "x.tmp")
    put(b / "d/y.tmp", "changed while hidden", T0 + DAY)
    run = await steady.run_ok(job)
    assert run["files_deleted"] == run["files_copied"] == 0
    assert not (a / "x.tmp").exists()
    assert (c / "d/y.tmp").read_text() == "3"
    await steady.apply(name=job, rule="sync", members=members(job))
    run = await steady.run_ok(job)
    assert run["files_deleted"] == 0
    check_all_equal(every)
    assert (a / "x.tmp").read_text() == "2", "compared as if new"
    assert {path.read_text() for path in (a / "d").iterdir()} == {"3", "changed while hidden"}
    await check_still(steady, job)


async def test_members_that_share_files_are_refused(steady: Scene) -> None:
    for one, other in (
        ("a:data/x", "a:data/x"),
        ("a:data/x", "a:data/x/y"),
        ("a:data", "a:data/x"),
    ):
        document = {"name": "shared", "rule": "sync", "members": [one, other]}
        ended = await steady.baton("job", "apply", "-f", "-", stdin=repr(document).encode())
        assert ended.code == 2, ended
        assert "overlaps" in ended.err


async def test_too_many_deletes_are_held_at_the_member_that_would_lose_them(steady: Scene) -> None:
    job = "held"
    a, b, c = await agreed_upon(steady, job, {f"f{n}": str(n) for n in range(10)})
    for number in range(6):
        os.unlink(a / f"f{number}")
    run = await steady.run(job)
    assert run["outcome"] == "blocked", run
    held = {(hold["member"], hold["reason"]) for hold in run["holds"]}
    assert held == {(f"b:data/{job}", "max-delete"), (f"c:data/{job}", "max-delete")}
    assert len(list(b.iterdir())) == len(list(c.iterdir())) == 10
    approved = await steady.baton("run", "approve", job, run["id"], "--wait", "-o", "json")
    assert approved.code == 0, approved
    assert approved.json["files_deleted"] == 12
    check_all_equal([a, b, c])
