"""Rules sync and exchange on real processes and files."""

import os
from pathlib import Path

import pytest

from tests.cluster.harness import Scene
from tests.cluster.trees import T0, check_equal, grow, put

DAY = 86_400 * 10**9


def members(job: str, workers: str = "abc") -> list[str]:
    return [f"{worker}:data/{job}" for worker in workers]


def tops(scene: Scene, job: str, workers: str = "abc") -> list[Path]:
    found = [scene.roots[worker] / job for worker in workers]
    for top in found:
        top.mkdir(exist_ok=True)
    return found


def check_all_equal(paths: list[Path]) -> None:
    for other in paths[1:]:
        check_equal(paths[0], other)


async def check_still(scene: Scene, job: str) -> None:
    """I10: one more run moves nothing."""
    again = await scene.run_ok(job)
    moved = {name: again[name] for name in again if name.startswith(("files_", "bytes_copied"))}
    moved.pop("files_scanned")
    assert set(moved.values()) == {0}, again
    assert again["conflicts"] == 0


async def test_i10_changes_of_all_members_meet(steady: Scene) -> None:
    job = "meet"
    a, b, c = every = tops(steady, job)
    grow(a, 300, seed=1)
    put(b / "only-b", "of b", T0)
    put(c / "deep/er/only-c", "of c", T0 + 5)
    await steady.apply(name=job, rule="sync", members=members(job))
    first = await steady.run_ok(job)
    assert first["conflicts"] == 0
    check_all_equal(every)
    await check_still(steady, job)

    put(a / "only-b", "edited at a", T0 + DAY)
    os.unlink(b / "deep/er/only-c")
    put(c / "new/file", "new at c", T0 + 2 * DAY)
    second = await steady.run_ok(job)
    assert second["files_deleted"] == 2, second
    assert (b / "new/file").read_text() == "new at c"
    assert (c / "only-b").read_text() == "edited at a"
    assert not (a / "deep/er/only-c").exists()
    check_all_equal(every)
    await check_still(steady, job)


async def test_i7_both_versions_of_a_conflict_live(steady: Scene) -> None:
    job = "both"
    a, b, c = every = tops(steady, job)
    put(a / "text.txt", "base", T0)
    await steady.apply(name=job, rule="sync", members=members(job))
    await steady.run_ok(job)
    put(a / "text.txt", "older, of a", T0 + DAY)
    put(b / "text.txt", "newer, of b", T0 + 2 * DAY)
    run = await steady.run_ok(job)
    assert run["conflicts"] == 1, run
    assert [one["path"] for one in run["conflict_paths"]] == ["text.txt"]
    assert (run["errors"], run["errors_total"]) == ([], 0)
    check_all_equal(every)
    assert (c / "text.txt").read_text() == "newer, of b"
    (copy,) = [path for path in c.iterdir() if ".conflict-" in path.name]
    assert copy.name.startswith("text.conflict-")
    assert copy.name.endswith("-a.txt")
    assert copy.read_text() == "older, of a"
    await check_still(steady, job)


@pytest.mark.parametrize(("rule", "stays"), [("sync", False), ("exchange", True)])
async def test_a_delete_travels_or_does_not(steady: Scene, rule: str, *, stays: bool) -> None:
    job = f"gone-{rule}"
    a, b, _ = every = tops(steady, job)
    for number in range(5):
        put(a / f"f{number}", f"content {number}", T0 + number)
    await steady.apply(name=job, rule=rule, members=members(job))
    await steady.run_ok(job)
    os.unlink(b / "f3")
    await steady.run_ok(job)
    check_all_equal(every)
    assert (a / "f3").exists() is stays
    await check_still(steady, job)


async def test_a_renamed_tree_is_renamed_everywhere_and_edits_follow(steady: Scene) -> None:
    job = "renamed"
    a, b, c = every = tops(steady, job)
    for number in range(60):
        put(a / f"old/deep/f{number}", f"content {number}", T0 + number)
    await steady.apply(name=job, rule="sync", members=members(job))
    await steady.run_ok(job)

    (b / "new").mkdir()
    (b / "old").rename(b / "new/name")
    put(c / "old/deep/f7", "edited at c", T0 + DAY)
    moved = await steady.run_ok(job)
    check_all_equal(every)
    assert (a / "new/name/deep/f7").read_text() == "edited at c"
    assert not (c / "old").exists()
    assert moved["files_renamed"] == 2, "at each of the others, one rename"
    assert moved["files_copied"] == 2, "the edit alone is sent"
    assert (moved["files_deleted"], moved["conflicts"]) == (0, 0)
    await check_still(steady, job)

    # What changes places arrives too, though its content is sent.
    for one, two in (("f1", "t"), ("f2", "f1"), ("t", "f2")):
        (a / "new/name/deep" / one).rename(a / "new/name/deep" / two)
    await steady.run_ok(job)
    check_all_equal(every)
    assert (c / "new/name/deep/f1").read_text() == "content 2"
    await check_still(steady, job)


async def test_what_was_renamed_is_agreed_to_at_its_new_place(steady: Scene) -> None:
    job = "settled"
    a, b, c = every = tops(steady, job)
    put(a / "old/kept", "kept", T0)
    put(a / "old/edited", "as it was", T0)
    put(a / "old/deleted", "to go", T0)
    put(a / "other", "beside it", T0)
    await steady.apply(name=job, rule="sync", members=members(job))
    await steady.run_ok(job)
    (b / "old").rename(b / "new")
    assert (await steady.run_ok(job))["files_renamed"] == 2
    # At once, with no run between that could put records right.
    put(c / "new/edited", "edited at c", T0 + DAY)
    os.unlink(a / "new/deleted")
    after = await steady.run_ok(job)
    assert (after["conflicts"], after["files_deleted"], after["files_copied"]) == (0, 2, 2), after
    check_all_equal(every)
    assert sorted(path.name for path in (b / "new").iterdir()) == ["edited", "kept"]
    await check_still(steady, job)


async def test_names_of_one_file_stay_names_of_one_file(steady: Scene) -> None:
    job = "linked"
    a, b, c = every = tops(steady, job)
    put(a / "d/first", "one content", T0)
    (a / "d/second").hardlink_to(a / "d/first")
    put(c / "z", "of c", T0 + 1)
    (c / "also").hardlink_to(c / "z")
    await steady.apply(name=job, rule="sync", members=members(job))
    first = await steady.run_ok(job)
    assert first["conflicts"] == 0
    check_all_equal(every)
    for top in every:
        assert (top / "d/first").samefile(top / "d/second")
        assert (top / "also").samefile(top / "z")
    await check_still(steady, job)

    (b / "d/third").hardlink_to(b / "d/first")
    put(b / "z", "edited in its place", T0 + DAY)
    await steady.run_ok(job)
    check_all_equal(every)
    for top in every:
        assert (top / "d/third").samefile(top / "d/first")
        assert (top / "also").read_text() == (b / "also").read_text()
    await check_still(steady, job)


@pytest.mark.parametrize("there", ["a", "b"])
async def test_a_path_that_never_was_is_a_member_with_nothing(steady: Scene, there: str) -> None:
    job = f"never-{there}"
    put(steady.roots[there] / job / "d/file", "content", T0)
    await steady.apply(name=job, rule="sync", members=members(job))
    await steady.run_ok(job)
    check_all_equal([steady.roots[worker] / job for worker in "abc"])
    await check_still(steady, job)
