"""Real workers with members that nobody would wish for: trees in trees, changes under a run's hands,
clocks that are hours wrong."""

import contextlib
import dataclasses
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from syncengine.model import Rule as JobRule
from syncengine.model import RunOptions, Safety, What
from tests.faults.members import Members
from tests.faults.oracles import differences
from wire.orders import Outcome, RunEnded
from worker.n_way import NWayRun
from worker.one_way import OneWayRun

SAFETY = Safety(max_delete=None, max_delete_files=None)
SYNC = RunOptions(rule=JobRule.SYNC, safety=SAFETY, keep_hardlinks=True)
MIRROR = RunOptions(rule=JobRule.MIRROR, safety=SAFETY, keep_hardlinks=True)


@contextlib.asynccontextmanager
async def workers(
    base: Path, options: RunOptions, places: dict[str, Path] | None = None
) -> AsyncIterator[Members]:
    """Two members a and b; each with a root of its own unless `places` says otherwise."""
    members = Members(base, ["a", "b"], options, places or {})
    try:
        await members.open()
        yield members
    finally:
        await members.close()


def whole(ended: RunEnded) -> None:
    assert (ended.outcome, ended.problems) == (Outcome.SUCCEEDED, ())


# Trees that share files


@pytest.mark.parametrize("options", [SYNC, MIRROR], ids=["sync", "mirror"])
@pytest.mark.parametrize("shape", ["inside", "above", "inside-by-a-link", "to-be-inside"])
async def test_members_in_one_another_are_refused_and_nothing_is_written(
    tmp_path: Path, options: RunOptions, shape: str
) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "deep" / "inner"
    inner.mkdir(parents=True)
    (outer / "file").write_bytes(b"content")
    places = {"a": outer, "b": inner}
    if shape == "above":
        places = {"a": inner, "b": outer}
    elif shape == "inside-by-a-link":
        (tmp_path / "link").symlink_to(inner)
        places["b"] = tmp_path / "link"
    async with workers(tmp_path / "w", options, places) as members:
        if shape == "to-be-inside":
            inner.rmdir()
            inner.mkdir()
        before = sorted(outer.rglob("*"))
        ended = await members.run()
        assert ended.outcome is Outcome.FAILED
        (problem,) = [one for one in ended.problems if "share nothing" in one.detail]
        assert "a:data" in problem.detail
        assert "b:data" in problem.detail
        assert sorted(outer.rglob("*")) == before


# What changes while a run goes on


def under_the_run(monkeypatch: pytest.MonkeyPatch, edit: Callable[[], None]) -> None:
    """Let somebody edit once, when a joint run has been planned and nothing is done yet."""
    honest, edits = NWayRun._do, [edit]

    async def edited(run: NWayRun, *arguments: object) -> None:
        if edits:
            edits.pop()()
        await honest(run, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(NWayRun, "_do", edited)


def altered(edit: str) -> bytes:
    return b"grown " * 50_000 if edit == "grows" else b"s"


def alter(at: Path, edit: str) -> None:
    """Change a file's size or kind, or remove it."""
    if edit in {"grows", "shrinks"}:
        at.write_bytes(altered(edit))
        return
    at.unlink()
    if edit == "directory":
        at.mkdir()
        (at / "below").write_bytes(b"below")
    elif edit == "symlink":
        at.symlink_to("other")
    elif edit == "fifo":
        os.mkfifo(at)


async def test_i10_what_is_gone_when_it_is_fetched_is_planned_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with workers(tmp_path, SYNC) as members:
        a, b = members.roots
        for name in ("kept", "doomed"):
            (a / name).write_bytes(b"old")
        whole(await members.run())
        (b / "doomed").write_bytes(b"newer, of b")

        def rename() -> None:
            (b / "doomed").rename(b / "elsewhere")

        under_the_run(monkeypatch, rename)
        whole(await members.run())
        assert not differences(a, b)
        assert (a / "elsewhere").read_bytes() == b"newer, of b"
        assert sorted(path.name for path in a.iterdir()) == [".baton", "elsewhere", "kept"]


@pytest.mark.parametrize("edit", ["grows", "shrinks", "vanishes", "directory", "symlink", "fifo"])
@pytest.mark.parametrize("who", ["runner", "other"])
async def test_i7_i10_files_that_change_size_or_kind_under_a_joint_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str, edit: str
) -> None:
    """At the member that has what is new, and at the one that gets it."""
    async with workers(tmp_path, SYNC) as members:
        a, b = members.roots
        holder, taker = (a, b) if who == "runner" else (b, a)
        for name in ("new", "old"):
            (holder / name).write_bytes(b"first")
        (holder / "other").write_bytes(b"other")
        whole(await members.run())
        (holder / "new").write_bytes(b"second version " * 20_000)
        (taker / "old").write_bytes(b"of the taker")

        def change() -> None:
            for at in (holder / "new", taker / "old"):
                alter(at, edit)

        under_the_run(monkeypatch, change)
        await members.run()
        ended = await members.run()
        assert ended.outcome is Outcome.SUCCEEDED, ended
        assert {one.what for one in ended.problems} <= {What.SKIPPED}
        if edit != "fifo":
            assert not differences(a, b)
        again = await members.run()
        assert (again.counts.files_copied, again.counts.files_deleted) == (0, 0)
        match edit:
            case "grows" | "shrinks":
                assert (b / "new").read_bytes() == (a / "old").read_bytes() == altered(edit)
            case "vanishes":
                assert sorted(path.name for path in a.iterdir()) == [".baton", "other"]
            case "directory":
                assert (a / "old/below").read_bytes() == (b / "new/below").read_bytes() == b"below"
            case "symlink":
                assert (a / "old").readlink() == (b / "new").readlink() == Path("other")
            case "fifo":
                assert (holder / "new").is_fifo()
                assert (taker / "old").is_fifo()


@pytest.mark.parametrize("edit", ["grows", "shrinks", "vanishes", "directory", "symlink", "fifo"])
@pytest.mark.parametrize("where", ["source", "target"])
async def test_i6_i10_files_that_change_size_or_kind_under_a_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, edit: str
) -> None:
    """Between plan and push. In the end the target is what the source is by then."""
    async with workers(tmp_path, MIRROR) as members:
        source, target = members.roots
        for name in ("changed", "doomed", "other"):
            (source / name).write_bytes(b"first")
        whole(await members.run())
        (source / "changed").write_bytes(b"second version " * 20_000)
        (source / "doomed").unlink()
        names = ["changed"] if where == "source" else ["changed", "doomed"]
        roots = {"source": source, "target": target}
        honest = OneWayRun._push

        async def edited(run: OneWayRun, *arguments: object) -> None:
            while names:
                alter(roots[where] / names.pop(), edit)
            await honest(run, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(OneWayRun, "_push", edited)
        first = await members.run()
        if where == "target" and edit == "fifo":
            # Left alone, as somebody's: and so in the way.
            assert (target / "changed").is_fifo()
            assert (target / "doomed").is_fifo()
            assert {b"changed", b"doomed"} <= {problem.path for problem in first.problems}
            return
        ended = await members.run()
        assert ended.outcome is Outcome.SUCCEEDED, (first, ended)
        if not (where == "source" and edit == "fifo"):
            assert not differences(source, target)
        again = (await members.run()).counts
        assert (again.files_copied, again.files_updated, again.files_deleted) == (0, 0, 0)
        if where == "target" and edit in {"grows", "shrinks"}:
            kept = {path.read_bytes() for path in target.glob(".baton/trash/*/doomed*")}
            assert kept == {altered(edit)}


# Members that know other things than they should


async def test_i11_a_job_made_anew_under_an_old_name_deletes_nothing(tmp_path: Path) -> None:
    """What the members agreed to in the old job is none of the new one's business."""
    async with workers(tmp_path, SYNC) as members:
        a, b = members.roots
        (a / "file").write_bytes(b"agreed")
        (a / "other").write_bytes(b"agreed")
        members.made = "first"
        whole(await members.run())
        (b / "file").unlink()
        (a / "other").write_bytes(b"changed since, at a")
        members.made = "second"
        ended = await members.run()
        assert (ended.outcome, ended.counts.files_deleted) == (Outcome.SUCCEEDED, 0)
        assert not differences(a, b)
        assert (b / "file").read_bytes() == b"agreed"
        assert {path.read_bytes() for path in b.glob("other*")} == {
            b"agreed",
            b"changed since, at a",
        }


@pytest.mark.parametrize("hours", [-30, 30])
async def test_members_whose_clocks_are_hours_apart(tmp_path: Path, hours: int) -> None:
    """Only a conflict asks for the time: the wrong clock may win it, and nothing is lost."""
    skew_s = hours * 3_600
    async with workers(tmp_path, SYNC) as members:
        a, b = members.roots
        members.workers[1].skew_s = skew_s
        await members.workers[1].stop()
        await members.workers[1].start()

        def write(root: Path, name: str, content: bytes) -> None:
            (root / name).write_bytes(content)
            status = (root / name).stat()
            skewed = status.st_mtime_ns + (skew_s * 10**9 if root == b else 0)
            os.utime(root / name, ns=(skewed, skewed))

        for name in ("edited", "removed", "both"):
            write(a, name, b"first")
        whole(await members.run())
        write(b, "edited", b"by b")
        (b / "removed").unlink()
        write(a, "both", b"by a")
        write(b, "both", b"by b")
        ended = await members.run(runner=1)
        assert (ended.outcome, ended.counts.conflicts) == (Outcome.SUCCEEDED, 1)
        assert not differences(a, b)
        assert (a / "edited").read_bytes() == b"by b"
        assert not (a / "removed").exists()
        assert (a / "both").read_bytes() == (b"by b" if hours > 0 else b"by a")
        assert {path.read_bytes() for path in a.glob("both*")} == {b"by a", b"by b"}
        moved = (await members.run()).counts
        assert (moved.files_copied, moved.files_updated, moved.files_deleted) == (0, 0, 0)


@pytest.mark.parametrize("options", [SYNC, MIRROR], ids=["sync", "mirror"])
@pytest.mark.parametrize("holder", [0, 1])
async def test_i7_what_one_member_cannot_hold_is_named_and_taken_from_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: RunOptions, holder: int
) -> None:
    """An attribute larger than the file system of the other member can hold."""
    is_sync = options.rule is JobRule.SYNC
    if holder and not is_sync:
        return  # the source of a mirror is the first
    options = dataclasses.replace(options, keep_xattrs=True)
    async with workers(tmp_path, options) as members:
        here, there = members.roots[holder], members.roots[1 - holder]
        setxattr = os.setxattr

        def limited(place: int | str | bytes, name: str, value: bytes, *more: Any) -> None:
            at = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else str(place)
            if name == "user.big" and at.startswith(str(there)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            setxattr(place, name, value, *more)

        monkeypatch.setattr(os, "setxattr", limited)
        (here / "dir").mkdir()
        for at in (here / "file", here / "dir"):
            if at.name == "file":
                at.write_bytes(b"content")
            os.setxattr(at, "user.big", b"large")
            os.setxattr(at, "user.small", b"small")
        ended = await members.run()
        assert ended.outcome is Outcome.SUCCEEDED
        assert {(one.path, one.what) for one in ended.problems} == {
            (b"file", What.NOT_KEPT),
            (b"dir", What.NOT_KEPT),
        }
        again = (await members.run()).counts
        assert (again.files_updated, again.files_copied, again.bytes_copied) == (0, 0, 0)
        (here / "file").chmod(0o640)
        await members.run()
        if is_sync:
            (there / "file").write_bytes(b"written where it cannot be kept")
            os.setxattr(there / "file", "user.small", b"changed there")
            ended = await members.run()
            assert (ended.outcome, ended.counts.conflicts) == (Outcome.SUCCEEDED, 0)
            assert (here / "file").read_bytes() == b"written where it cannot be kept"
            assert os.getxattr(here / "file", "user.small") == b"changed there"
        for at in (here / "file", here / "dir"):
            assert os.getxattr(at, "user.big") == b"large"
        assert (there / "file").stat().st_mode & 0o777 == 0o640
        assert sorted(os.listxattr(there / "file")) == ["user.small"]
