"""Rules copy and move on real processes and files."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.embedded_etcd import EtcdCluster
from tests.cluster.harness import Scene, scene_on
from tests.cluster.test_sync import DAY
from tests.cluster.trees import T0, check_equal, grow, picture, put

pytestmark = pytest.mark.timeout(180)


def tops(scene: Scene, job: str) -> list[Path]:
    found = [scene.roots[worker] / job for worker in "abc"]
    for top in found:
        top.mkdir()  # a name that another test took would find its files
    return found


async def apply(scene: Scene, job: str, **spec: object) -> None:
    targets = [f"b:data/{job}", f"c:data/{job}"]
    await scene.apply(name=job, source=f"a:data/{job}", targets=targets, **spec)


async def check_still(scene: Scene, job: str) -> None:
    again = await scene.run_ok(job)
    moved = {name: again[name] for name in again if name.startswith(("files_", "bytes_copied"))}
    moved.pop("files_scanned")
    assert set(moved.values()) == {0}, again


async def test_copy_makes_what_differs_and_removes_nothing(steady: Scene) -> None:
    job = "copies"
    a, b, c = tops(steady, job)
    grow(a, 100)
    put(b / "extra/of b", "kept", T0)
    put(b / "d000/f000000", "differing", T0)
    await apply(steady, job, rule="copy")
    await steady.run_ok(job)
    check_equal(a, c)
    assert (b / "extra/of b").read_text() == "kept"
    assert (b / "d000/f000000").read_bytes() == (a / "d000/f000000").read_bytes()
    await check_still(steady, job)
    os.unlink(a / "d001/f000001")
    assert (await steady.run_ok(job))["files_deleted"] == 0
    assert (b / "d001/f000001").exists()


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("differing", {"later": "a", "earlier": "a", "same": "a"}),
        ("newer", {"later": "a", "earlier": "b", "same": "a"}),
        ("always", {"later": "a", "earlier": "a", "same": "a"}),
    ],
)
async def test_when_copy_replaces(steady: Scene, when: str, expected: dict[str, str]) -> None:
    job = f"copy-{when}"
    a, b, c = tops(steady, job)
    for name, theirs in (("later", T0 - DAY), ("earlier", T0 + DAY), ("same", T0)):
        put(a / name, "a" if name == "same" else f"{name} of a"[-1], T0)
        put(b / name, "a" if name == "same" else "b", theirs)
    await apply(steady, job, rule="copy", copy_when=when)
    run = await steady.run_ok(job)
    assert {name: (b / name).read_text() for name in expected} == expected
    check_equal(a, c)
    again = await steady.run_ok(job)
    assert again["files_copied"] == (6 if when == "always" else 0), (run, again)


async def test_copy_names_a_directory_in_the_way_and_does_the_rest(steady: Scene) -> None:
    job = "in-the-way"
    a, b, c = tops(steady, job)
    put(a / "file", "a file", T0)
    put(a / "directory/below", "below", T0)
    put(a / "rest", "rest", T0)
    put(b / "file/below", "in the way", T0)
    put(b / "directory", "in the way", T0)
    await apply(steady, job, rule="copy")
    run = await steady.run(job)
    assert run["outcome"] == "failed"
    named = {(one["path"], one["member"]) for one in run["errors"]}
    assert named == {("file", f"b:data/{job}"), ("directory", f"b:data/{job}")}
    assert (b / "rest").read_text() == "rest"
    assert (b / "file/below").read_text() == (b / "directory").read_text() == "in the way"
    check_equal(a, c)


async def test_move_takes_away_what_every_target_has(steady: Scene) -> None:
    job = "moves-all"
    a, b, c = tops(steady, job)
    grow(a, 120)
    before = picture(a)
    put(b / "d000/f000000", "differing", T0)
    put(c / "extra", "kept", T0)
    await apply(steady, job, rule="move", transfer={"durability": "fast"})
    await steady.run_ok(job)
    assert [path for path in a.rglob("*") if not path.is_dir()] == []
    assert len([path for path in a.iterdir() if path.is_dir()]) == 40, "directories stay"
    for path, (kind, *rest) in before.items():
        for target in (b, c):
            if kind == "file":
                assert picture_of(target, path) == rest
    assert (c / "extra").read_text() == "kept"
    await check_still(steady, job)
    put(a / "next", "of a later run", T0)
    await steady.run_ok(job)
    assert not (a / "next").exists()
    assert (b / "next").read_text() == "of a later run"


async def test_a_preview_of_move_names_what_goes_at_the_source(steady: Scene) -> None:
    job = "moves-previewed"
    a, b, _ = tops(steady, job)
    for name in ("here", "d/there", "barred/x"):
        put(a / name, "content", T0)
    os.symlink("here", a / "link")
    put(b / "d/there", "content", T0)
    put(b / "barred", "in the way", T0)
    await apply(steady, job, rule="move")
    ended = await steady.baton("job", "preview", job, "-o", "json")
    gone = [one for one in ended.json["changes"] if one["member"] == f"a:data/{job}"]
    assert {(one["action"], one["kind"], one["path"]) for one in gone} == {
        ("delete", "file", "here"),
        ("delete", "symlink", "link"),
        ("delete", "file", "d/there"),
    }
    assert len([path for path in a.rglob("*") if not path.is_dir()]) == 4
    await steady.baton("job", "run", job, "--wait")
    assert [path.name for path in a.rglob("*") if not path.is_dir()] == ["x"]


def picture_of(top: Path, path: bytes) -> list[object]:
    file = top / os.fsdecode(path)
    status = file.stat()
    return [status.st_mode, status.st_mtime_ns, file.read_bytes()]


async def test_move_leaves_what_is_open_for_writing_until_a_later_run(steady: Scene) -> None:
    job = "moves-open"
    a, b, _ = tops(steady, job)
    put(a / "open", "half of it", T0)
    put(a / "done", "all of it", T0)
    await apply(steady, job, rule="move")
    with (a / "open").open("ab") as writer:
        run = await steady.run_ok(job)
        assert [(one["path"], one["what"]) for one in run["errors"]] == [("open", "skipped")]
        assert (a / "open").read_text() == "half of it"
        assert not (a / "done").exists()
        writer.write(b", and the rest")
    await steady.run_ok(job)
    assert not (a / "open").exists()
    assert (b / "open").read_text() == "half of it, and the rest"


async def test_move_trusts_no_time_and_size(steady: Scene) -> None:
    job = "moves-checked"
    a, b, c = tops(steady, job)
    put(a / "file", "right", T0)
    put(b / "file", "wrong", T0)
    put(c / "file", "right", T0)
    await apply(steady, job, rule="move")
    await steady.run_ok(job)
    assert (b / "file").read_text() == "right"
    assert not (a / "file").exists()


@pytest.fixture
async def three(etcd: EtcdCluster, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_on(etcd, tmp_path / "s", coordinators=1, workers=("a", "b", "c")) as scene:
        yield scene


async def test_move_keeps_the_source_while_a_target_is_away(three: Scene) -> None:
    a, b, c = tops(three, "moves")
    grow(a, 50)
    before = picture(a)
    await apply(three, "moves", rule="move")
    away = three.cluster.members["c"]
    await away.kill()
    run = await three.run("moves")
    assert run["outcome"] == "failed"
    assert {one["member"] for one in run["errors"]} == {"c:data/moves"}
    assert picture(a) == before
    assert picture(b) == before
    await three.cluster.start("c")
    await three.run_ok("moves")
    assert [path for path in a.rglob("*") if not path.is_dir()] == []
    assert picture(b) == picture(c) == before
