# Bytes, descriptors and bare system calls are what is tested.


import os
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from syncengine.errors import MarkerError, RootReadOnly
from syncengine.marker import (
    KnownRoot,
    advance_marker,
    check_marker,
    file_system_id,
    is_same_file_system,
)
from syncengine.model import HoldReason
from syncengine.reserved import open_reserved
from syncengine.trash import Trash, expire_trash
from syncengine.tree import Tree
from tests.engine.trees import T0, grow, picture


def run(root: Path, known: KnownRoot | None, *, accept: bool = False) -> KnownRoot:
    with Tree.open(os.fsencode(root)) as tree:
        return advance_marker(tree, check_marker(tree, known), known, accept=accept)


def doubts(root: Path, known: KnownRoot | None, *, read_only: bool = False) -> list[HoldReason]:
    with Tree.open(os.fsencode(root), read_only=read_only) as tree:
        return [hold.reason for hold in check_marker(tree, known, member="w:r").holds]


def test_a_generation_grows_with_every_run_and_the_root_keeps_its_time(tmp_path: Path) -> None:
    grow(tmp_path / "root", {"a": b"x"})
    before = picture(tmp_path / "root")
    known = run(tmp_path / "root", None)
    assert (known.generation, len(known.root_id)) == (1, 32)
    assert picture(tmp_path / "root") == before
    for generation in (2, 3):
        known = run(tmp_path / "root", known)
        assert known.generation == generation
    assert doubts(tmp_path / "root", known) == []
    assert picture(tmp_path / "root")[b"."][2] == T0
    assert os.listdir(tmp_path / "root/.baton") == ["root.json"]


def test_i8_a_missing_marker_holds(tmp_path: Path) -> None:
    known = run(tmp_path, None)
    shutil.rmtree(tmp_path / ".baton")
    assert doubts(tmp_path, known) == [HoldReason.MARKER_MISSING]
    with pytest.raises(MarkerError):
        run(tmp_path, known)
    again = run(tmp_path, known, accept=True)
    assert again.root_id != known.root_id
    assert again.generation > known.generation
    assert doubts(tmp_path, again) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]", b'{"root_id": 5}', b"{" * 4_000])
def test_i8_a_damaged_marker_holds(tmp_path: Path, content: bytes) -> None:
    known = run(tmp_path, None)
    (tmp_path / ".baton/root.json").write_bytes(content)
    assert doubts(tmp_path, known) == [HoldReason.MARKER_MISSING]
    assert doubts(tmp_path, None) == [HoldReason.MARKER_MISSING]


def test_i8_a_marker_that_is_no_file_holds(tmp_path: Path) -> None:
    known = run(tmp_path, None)
    (tmp_path / ".baton/root.json").unlink()
    os.mkfifo(tmp_path / ".baton/root.json")
    assert doubts(tmp_path, known) == [HoldReason.MARKER_MISSING]
    (tmp_path / ".baton/root.json").unlink()
    (tmp_path / ".baton/root.json").symlink_to("/etc/passwd")
    with Tree.open(os.fsencode(tmp_path)) as tree, pytest.raises(MarkerError):
        check_marker(tree, known)


def test_i8_a_foreign_marker_holds(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    known = run(ours, None)
    run(theirs, None)
    shutil.copytree(theirs / ".baton", ours / ".baton", dirs_exist_ok=True)
    assert doubts(ours, known) == [HoldReason.MARKER_FOREIGN]


def test_i8_a_marker_set_back_holds(tmp_path: Path) -> None:
    known = run(tmp_path, run(tmp_path, None))
    backup = (tmp_path / ".baton/root.json").read_bytes()
    known = run(tmp_path, known)
    (tmp_path / ".baton/root.json").write_bytes(backup)
    assert doubts(tmp_path, known) == [HoldReason.MARKER_SET_BACK]
    again = run(tmp_path, known, accept=True)
    assert again.generation == known.generation + 1


def test_a_marker_ahead_of_what_is_known_is_no_reason(tmp_path: Path) -> None:
    """A worker whose journal is lost or older costs a scan, nothing more (I3)."""
    first = run(tmp_path, None)
    run(tmp_path, first)
    assert doubts(tmp_path, first) == []
    assert doubts(tmp_path, None) == []
    assert run(tmp_path, None).root_id == first.root_id


def test_i8_another_file_system_holds(tmp_path: Path) -> None:
    known = run(tmp_path, None)
    moved = replace(known, file_system="uuid=00112233;fsid=1;dev=1")
    assert doubts(tmp_path, moved) == [HoldReason.FILE_SYSTEM_CHANGED]
    path = tmp_path / ".baton/root.json"
    marker = msgspec.json.decode(path.read_bytes())
    marker["file_system"] = "fsid=1;dev=1"
    path.write_bytes(msgspec.json.encode(marker))
    assert doubts(tmp_path, known) == [HoldReason.FILE_SYSTEM_CHANGED]


def test_i8_a_root_to_be_read_gets_no_marker_and_is_known_by_its_inode(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with Tree.open(os.fsencode(root), read_only=True) as tree:
        known = advance_marker(tree, check_marker(tree, None), None)
        with pytest.raises(RootReadOnly):
            open_reserved(tree, create=True)
    assert os.listdir(root) == []
    assert known.root_id == ""
    assert doubts(root, known, read_only=True) == []
    root.rename(tmp_path / "away")
    root.mkdir()
    assert doubts(root, known, read_only=True) == [HoldReason.FILE_SYSTEM_CHANGED]


def test_file_systems_are_compared_by_the_most_lasting_name_that_both_have(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert is_same_file_system(file_system_id(fd), file_system_id(fd))
    finally:
        os.close(fd)
    assert is_same_file_system("uuid=a;fsid=1;dev=1", "uuid=a;fsid=2;dev=2")
    assert not is_same_file_system("uuid=a;fsid=1;dev=1", "uuid=b;fsid=1;dev=1")
    assert is_same_file_system("uuid=a;fsid=1;dev=1", "fsid=1;dev=2"), "another kernel"
    assert is_same_file_system("dev=1", "uuid=a;dev=1")
    assert not is_same_file_system("dev=1", "dev=2")
    assert not is_same_file_system("", "dev=2")


def test_old_days_leave_the_trash_and_nothing_else_does(tmp_path: Path) -> None:
    days = ["2026-01-01", "2026-01-02", "2026-01-03", "notes", "2026-99-99"]
    grow(tmp_path, {f".baton/trash/{day}/d/f": b"x" for day in days})
    noon = 1_767_528_000.0  # 2026-01-04 12:00 UTC
    with Tree.open(os.fsencode(tmp_path)) as tree:
        assert expire_trash(tree, 86_400 * 3, noon) == []
        assert expire_trash(tree, 86_400 * 2, noon) == ["2026-01-01"]
        assert expire_trash(tree, 0, noon) == ["2026-01-02", "2026-01-03"]
    assert sorted(os.listdir(tmp_path / ".baton/trash")) == ["2026-99-99", "notes"]


def test_a_trash_that_is_not_there_has_nothing_to_expire(tmp_path: Path) -> None:
    with Tree.open(os.fsencode(tmp_path)) as tree:
        assert expire_trash(tree, 0, 1e12) == []
    grow(tmp_path, {".baton": None})
    with Tree.open(os.fsencode(tmp_path)) as tree:
        assert expire_trash(tree, 0, 1e12) == []
    with Tree.open(os.fsencode(tmp_path), read_only=True) as tree, pytest.raises(RootReadOnly):
        expire_trash(tree, 0, 1e12)


def test_long_names_are_shortened_when_they_are_taken(tmp_path: Path) -> None:
    name = "n" * 255
    with Tree.open(os.fsencode(tmp_path)) as tree, Trash(tree, "2026-01-02") as trash:
        for content in (b"1", b"2"):
            (tmp_path / name).write_bytes(content)
            trash.keep(tree.top_fd, os.fsencode(name), os.fsencode(name))
        trash.sync()
    kept = sorted((tmp_path / ".baton/trash/2026-01-02").iterdir())
    assert [(len(p.name), p.read_bytes()) for p in kept] == [(255, b"1"), (255, b"2")]
