"""Renames at the source of a mirror arrive as renames, on real processes and files."""

from pathlib import Path

from tests.cluster.harness import Scene
from tests.cluster.test_main_path import is_nothing, job_of
from tests.cluster.trees import T0, check_equal, put


async def moved(scene: Scene, job: str, source: Path, target: Path) -> tuple[int, int, int]:
    """Run, check that both sides are equal, and return what was renamed, copied, deleted."""
    run = await scene.run_ok(job)
    check_equal(source, target)
    assert is_nothing(await scene.run_ok(job)), "I10"
    return run["files_renamed"], run["files_copied"], run["files_deleted"]


async def test_what_the_source_renamed_is_renamed_at_the_target(steady: Scene) -> None:
    source, target = await job_of(steady, "moves")
    for number in range(80):
        put(source / f"old/deep/f{number:02}", f"content {number}", T0 + number)
    put(source / "single", "alone", T0)
    await steady.run_ok("moves")
    inode = (target / "old/deep/f07").stat().st_ino

    (source / "new").mkdir()
    (source / "old").rename(source / "new/name")
    (source / "single").rename(source / "other")
    assert await moved(steady, "moves", source, target) == (2, 0, 0)
    assert (target / "new/name/deep/f07").stat().st_ino == inode, "the very same file"

    # Renamed again, with changes inside, and something within it renamed as well.
    (source / "new/name").rename(source / "again")
    (source / "again/deep/f01").rename(source / "again/deep/g01")
    put(source / "again/deep/f02", "edited", T0 + 500)
    (source / "again/deep/f03").unlink()
    assert await moved(steady, "moves", source, target) == (2, 1, 1)
    assert (target / "again/deep/g01").read_text() == "content 1"


async def test_a_chain_of_renames_arrives_whole(steady: Scene) -> None:
    source, target = await job_of(steady, "chain")
    for name in "abc":
        put(source / name / "x", f"of {name}", T0)
        put(source / f"{name}.txt", f"text {name}", T0 + ord(name))
    await steady.run_ok("chain")
    for end in ("", ".txt"):
        (source / f"c{end}").rename(source / f"d{end}")
        (source / f"b{end}").rename(source / f"c{end}")
        (source / f"a{end}").rename(source / f"b{end}")
    await moved(steady, "chain", source, target)
    assert (target / "d.txt").read_text() == "text c"
    assert not (target / "a").exists()
