"""I8: what looks like an accident deletes nothing until an operator says so."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import Ended, Scene
from tests.cluster.trees import check_equal, picture, put

pytestmark = pytest.mark.timeout(180)


@dataclass
class Mirrored:
    """A job from a root at worker a to one at b, both of this test alone, run once on 20 files."""

    scene: Scene
    job: str
    source: Path
    target: Path

    def root(self, worker: str) -> Path:
        return {"a": self.source, "b": self.target}[worker]

    async def apply(self, **more: Any) -> None:
        source, target = f"a:{self.source.name}", f"b:{self.target.name}"
        await self.scene.apply(name=self.job, source=source, targets=[target], **more)

    async def run_ok(self) -> Any:
        return await self.scene.run_ok(self.job)

    async def show(self) -> Any:
        return await self.scene.show(self.job)

    async def show_run(self, run: Any) -> Any:
        return await self.scene.show_run(self.job, run["id"])

    async def held(self, reason: str) -> Any:
        """Run the job: a guard holds it, says so, and changes nothing."""
        before = picture(self.target) if self.target.exists() else None
        ended = await self.scene.baton("job", "run", self.job, "--wait", "-o", "json")
        assert ended.code == 3, ended
        run = ended.json
        assert run["outcome"] == "blocked"
        assert reason in {hold["reason"] for hold in run["holds"]}, run
        assert f"baton run approve {self.job}" in ended.err
        assert (await self.show())["phase"] == "blocked"
        if before is not None:
            assert picture(self.target) == before
        return run

    async def approve(self, run: Any) -> Ended:
        arguments = ("run", "approve", self.job, run["id"], "--wait", "-o", "json")
        return await self.scene.baton(*arguments)

    async def released(self, run: Any) -> Any:
        """Approve a held run: exactly it is carried out."""
        ended = await self.approve(run)
        assert ended.code == 0, ended.out
        assert (ended.json["id"], ended.json["outcome"]) == (run["id"], "succeeded")
        check_equal(self.source, self.target)
        assert (await self.show())["phase"] == "idle"
        return ended.json


@pytest.fixture
async def mirrored(steady: Scene) -> Mirrored:
    root = steady.spare.pop()
    one = Mirrored(steady, f"m-{root}", steady.root("a", root), steady.root("b", root))
    for number in range(20):
        put(one.source / "sub" / f"f{number:02}", f"content {number}")
    await one.apply()
    await one.run_ok()
    return one


async def test_i8_an_emptied_source_is_held_whatever_the_limits(mirrored: Mirrored) -> None:
    await mirrored.apply(safety={"max_delete": "off"})
    shutil.rmtree(mirrored.source / "sub")
    run = await mirrored.held("emptied")
    ended = await mirrored.released(run)
    assert ended["files_deleted"] == 21
    assert [one["why_ended"] for one in ended["attempts"]] == ["held by a guard", "succeeded"]


async def test_i8_a_missing_source_root_is_held_and_heals_by_itself(mirrored: Mirrored) -> None:
    root = mirrored.source
    root.rename(root.with_name(f"{root.name}-away"))
    run = await mirrored.held("root-missing")
    ended = await mirrored.scene.baton("run", "approve", mirrored.job, run["id"])
    assert ended.code == 1
    assert "no plan to approve" in ended.err
    root.with_name(f"{root.name}-away").rename(root)
    await mirrored.run_ok()
    check_equal(root, mirrored.target)


async def test_i8_a_missing_target_root_is_held(mirrored: Mirrored) -> None:
    root = mirrored.target
    root.rename(root.with_name(f"{root.name}-away"))
    await mirrored.held("root-missing")
    assert not root.exists(), "a run makes no root where a disk is not mounted"
    root.with_name(f"{root.name}-away").rename(root)
    await mirrored.run_ok()


async def test_i8_another_directory_in_place_of_the_target_root_is_held(mirrored: Mirrored) -> None:
    root = mirrored.target
    root.rename(root.with_name(f"{root.name}-away"))
    root.mkdir()
    await mirrored.held("marker-missing")
    assert sorted(os.listdir(root)) == []


def marker(root: Path) -> Path:
    return root / ".baton" / "root.json"


@pytest.mark.parametrize("where", ["a", "b"])
async def test_i8_a_missing_marker_is_held_until_approved(mirrored: Mirrored, where: str) -> None:
    marker(mirrored.root(where)).unlink()
    (mirrored.source / "sub" / "f00").unlink()
    run = await mirrored.held("marker-missing")
    await mirrored.released(run)
    assert marker(mirrored.root(where)).exists()


@pytest.mark.parametrize("where", ["a", "b"])
async def test_i8_a_foreign_marker_is_held_until_approved(mirrored: Mirrored, where: str) -> None:
    path = marker(mirrored.root(where))
    other = json.loads(path.read_text())
    path.write_text(json.dumps({**other, "root_id": "f" * 32}))
    run = await mirrored.held("marker-foreign")
    await mirrored.released(run)


@pytest.mark.parametrize("where", ["a", "b"])
async def test_i8_a_marker_set_back_is_held_until_approved(mirrored: Mirrored, where: str) -> None:
    path = marker(mirrored.root(where))
    old = path.read_text()
    put(mirrored.source / "more", "m")
    await mirrored.run_ok()
    assert path.read_text() != old
    path.write_text(old)
    run = await mirrored.held("marker-set-back")
    await mirrored.released(run)


async def test_i8_more_deletes_than_allowed_are_held_until_approved(mirrored: Mirrored) -> None:
    for number in range(11):
        (mirrored.source / "sub" / f"f{number:02}").unlink()
    run = await mirrored.held("max-delete")
    (hold,) = run["holds"]
    assert "11 of 21" in hold["detail"]
    text = (await mirrored.scene.ok("run", "show", mirrored.job, run["id"])).out
    assert "11 of 21" in text
    assert (await mirrored.released(run))["files_deleted"] == 11


async def test_i8_just_as_many_deletes_as_allowed_pass(mirrored: Mirrored) -> None:
    for number in range(10):
        (mirrored.source / "sub" / f"f{number:02}").unlink()
    run = await mirrored.run_ok()
    assert run["files_deleted"] == 10


async def test_i8_an_approval_is_for_that_plan_only(mirrored: Mirrored) -> None:
    source, target = mirrored.source, mirrored.target
    for number in range(11):
        (source / "sub" / f"f{number:02}").unlink()
    run = await mirrored.held("max-delete")
    (source / "sub" / "f12").unlink()
    before = picture(target)
    ended = await mirrored.approve(run)
    assert ended.code == 3, ended
    assert picture(target) == before
    assert "no longer match" in ended.json["reason"]
    assert "12 of 21" in ended.json["holds"][0]["detail"]
    assert ended.json["id"] == run["id"]
    assert (await mirrored.released(ended.json))["files_deleted"] == 12


async def test_i8_a_later_run_takes_the_place_of_a_held_one(mirrored: Mirrored) -> None:
    source = mirrored.source
    shutil.move(source / "sub", source.parent / "saved")
    first = await mirrored.held("emptied")
    second = await mirrored.held("emptied")
    assert second["id"] != first["id"]
    ended = await mirrored.approve(first)
    assert ended.code == 1
    assert "does not wait for an approval" in ended.err
    shown = await mirrored.show_run(first)
    assert shown["ended"] is not None
    assert "took its place" in shown["reason"]
    shutil.move(source.parent / "saved", source / "sub")
    await mirrored.run_ok()
    check_equal(source, mirrored.target)


async def test_i8_a_held_run_can_be_cancelled(mirrored: Mirrored) -> None:
    shutil.rmtree(mirrored.source / "sub")
    run = await mirrored.held("emptied")
    await mirrored.scene.ok("run", "cancel", mirrored.job, run["id"])
    shown = await mirrored.show_run(run)
    assert shown["outcome"] == "cancelled"
    job = await mirrored.show()
    assert job["phase"] == "idle"


async def test_i8_a_hold_and_its_approval_outlive_the_coordinator(mirrored: Mirrored) -> None:
    shutil.rmtree(mirrored.source / "sub")
    run = await mirrored.held("emptied")
    await mirrored.scene.cluster.members["c1"].kill()
    await mirrored.scene.cluster.start("c1")
    job = await mirrored.show()
    assert job["phase"] == "blocked"
    await mirrored.released(run)


async def test_i8_a_preview_says_that_it_would_be_held(mirrored: Mirrored) -> None:
    shutil.rmtree(mirrored.source / "sub")
    ended = await mirrored.scene.baton("job", "preview", mirrored.job, "-o", "json")
    assert ended.code == 3
    assert next(hold["reason"] for hold in ended.json["holds"]) == "emptied"
    assert len(ended.json["changes"]) >= 21
    assert len(picture(mirrored.target)) == 21
