"""What lies in the trash: told, brought back, never over anything, never through a link."""

import contextlib
import os
import stat
from pathlib import Path

import pytest

from syncengine.errors import MalformedFrame, RootReadOnly
from syncengine.model import Kind
from syncengine.trash import Trash, numbered, read_numbered
from syncengine.trashed import (
    NotInTrash,
    Restored,
    SomethingThere,
    list_trash,
    purge,
    restore,
)
from syncengine.tree import Tree
from tests.engine.trees import FAST, T0, Pair, grow

DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")


def throw_away(root: Path, day: str, *names: str) -> None:
    """Move things into the trash as a run does."""
    with Tree.open(os.fsencode(root)) as tree, Trash(tree, day) as trash:
        with contextlib.closing(tree.directories()) as directories:
            for name in names:
                parent, _, leaf = os.fsencode(name).rpartition(b"/")
                trash.keep(directories.fd(parent), leaf, os.fsencode(name))
        trash.sync()


def put(root: Path, name: str, content: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, ns=(T0, T0))


def told(root: Path, date: str = "", below: bytes = b"") -> list[tuple[str, str, Kind, int]]:
    with Tree.open(os.fsencode(root), read_only=True) as tree:
        found = list(list_trash(tree, date=date, below=below))
    assert all(one.mtime_ns > 0 for one in found)
    return [(one.date, os.fsdecode(one.path), one.kind, one.size) for one in found]


def bring_back(root: Path, path: str, date: str = "", to: str | None = None) -> Restored:
    with Tree.open(os.fsencode(root)) as tree:
        target = None if to is None else os.fsencode(to)
        return restore(tree, os.fsencode(path), date=date, to=target)


def test_a_root_without_trash_has_none(tmp_path: Path) -> None:
    assert told(tmp_path) == []
    (tmp_path / ".baton").mkdir()
    assert told(tmp_path) == []
    with pytest.raises(NotInTrash, match="no version of a is in the trash"):
        bring_back(tmp_path, "a")
    assert not (tmp_path / ".baton/trash").exists()


def test_the_list_is_by_day_and_name_with_the_latest_day_first(tmp_path: Path) -> None:
    put(tmp_path, "sub/b", "bb")
    put(tmp_path, "a", "a")
    throw_away(tmp_path, DAYS[0], "sub/b", "a")
    (tmp_path / "sub/link").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe")
    throw_away(tmp_path, DAYS[2], "sub/link", "pipe")
    assert told(tmp_path) == [
        (DAYS[2], "pipe", Kind.FIFO, 0),
        (DAYS[2], "sub/link", Kind.SYMLINK, 0),
        (DAYS[0], "a", Kind.FILE, 1),
        (DAYS[0], "sub/b", Kind.FILE, 2),
    ]
    assert told(tmp_path, DAYS[0], b"sub") == [(DAYS[0], "sub/b", Kind.FILE, 2)]
    assert told(tmp_path, below=b"sub/link") == [(DAYS[2], "sub/link", Kind.SYMLINK, 0)]
    assert told(tmp_path, below=b"su") == []


def test_the_latest_version_comes_back_as_it_was(tmp_path: Path) -> None:
    for content, day in (("1", DAYS[0]), ("2", DAYS[1]), ("3", DAYS[1])):
        put(tmp_path, "d/f", content)
        (tmp_path / "d/f").chmod(0o640)
        throw_away(tmp_path, day, "d/f")
    assert [one[:2] for one in told(tmp_path)] == [(DAYS[1], "d/f")] * 2 + [(DAYS[0], "d/f")]
    (tmp_path / "d").rmdir()
    result = bring_back(tmp_path, "d/f")
    assert (result.paths, result.date, result.in_the_way) == ([b"d/f"], DAYS[1], [])
    status = (tmp_path / "d/f").stat()
    assert (tmp_path / "d/f").read_text() == "3"
    assert (status.st_mtime_ns, stat.S_IMODE(status.st_mode)) == (T0, 0o640)
    (tmp_path / "d/f").unlink()
    # What was trashed later is the latest, though its number is free again and so is less.
    assert bring_back(tmp_path, "d/f", to="second").paths == [b"second"]
    put(tmp_path, "d/f", "4")
    throw_away(tmp_path, DAYS[1], "d/f")
    bring_back(tmp_path, "d/f", to="e/g")
    assert (tmp_path / "e/g").read_text() == "4"
    bring_back(tmp_path, "d/f", date=DAYS[0])
    assert (tmp_path / "d/f").read_text() == "1"
    with pytest.raises(NotInTrash, match="of 2026-01-03"):
        bring_back(tmp_path, "d/f", date=DAYS[2])


def test_nothing_is_put_over_anything(tmp_path: Path) -> None:
    put(tmp_path, "f", "old")
    throw_away(tmp_path, DAYS[0], "f")
    put(tmp_path, "f", "new")
    with pytest.raises(SomethingThere, match=r"f is there already: .* --to"):
        bring_back(tmp_path, "f")
    (tmp_path / "f").unlink()
    (tmp_path / "f").symlink_to("nowhere")
    with pytest.raises(SomethingThere):
        bring_back(tmp_path, "f")
    with pytest.raises(SomethingThere):
        bring_back(tmp_path, "f", to="f/g")
    assert told(tmp_path) == [(DAYS[0], "f", Kind.FILE, 3)]


def test_a_directory_comes_back_with_the_latest_of_each(tmp_path: Path) -> None:
    for name in ("d/a", "d/e/b", "d/c"):
        put(tmp_path, name, f"{name} 1")
    throw_away(tmp_path, DAYS[0], "d/a", "d/e/b", "d/c")
    put(tmp_path, "d/a", "d/a 2")
    throw_away(tmp_path, DAYS[1], "d/a")
    put(tmp_path, "d/c", "here")
    result = bring_back(tmp_path, "d")
    assert sorted(result.paths) == [b"d/a", b"d/e/b"]
    assert result.in_the_way == [b"d/c"]
    assert (tmp_path / "d/a").read_text() == "d/a 2"
    assert (tmp_path / "d/e/b").read_text() == "d/e/b 1"
    assert (tmp_path / "d/c").read_text() == "here"
    assert [one[:2] for one in told(tmp_path)] == [(DAYS[0], "d/a"), (DAYS[0], "d/c")]
    assert bring_back(tmp_path, "d", to="elsewhere", date=DAYS[0]).in_the_way == []
    assert (tmp_path / "elsewhere/c").read_text() == "d/c 1"


def test_a_file_and_a_directory_of_one_name_are_told_apart(tmp_path: Path) -> None:
    put(tmp_path, "x", "a file")
    throw_away(tmp_path, DAYS[0], "x")
    (tmp_path / "x").mkdir()
    put(tmp_path, "x/y", "below")
    throw_away(tmp_path, DAYS[0], "x/y")
    (tmp_path / "x").rmdir()
    assert [one[1] for one in told(tmp_path)] == ["x", "x/y"]
    bring_back(tmp_path, "x")
    assert (tmp_path / "x/y").read_text() == "below"
    bring_back(tmp_path, "x", to="z")
    assert (tmp_path / "z").read_text() == "a file"


@pytest.mark.parametrize("name", ["f~2", "f~1", "f~2~1", "f~", "~3", "n" * 254, "f~02", "f~10"])
def test_names_that_look_numbered_are_never_taken_for_versions(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, "named so")
    throw_away(tmp_path, DAYS[0], name)
    put(tmp_path, "f", "f")
    throw_away(tmp_path, DAYS[0], "f")
    assert {one[1] for one in told(tmp_path)} == {name, "f"}
    bring_back(tmp_path, name)
    assert (tmp_path / name).read_text() == "named so"
    bring_back(tmp_path, "f")
    assert (tmp_path / "f").read_text() == "f"
    assert read_numbered(numbered(os.fsencode(name[:200]), 7)) == (os.fsencode(name[:200]), 7)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", ".baton/root.json", "a//b"])
def test_i14_no_path_leaves_the_root(tmp_path: Path, path: str) -> None:
    put(tmp_path, "f", "f")
    throw_away(tmp_path, DAYS[0], "f")
    with pytest.raises(MalformedFrame):
        bring_back(tmp_path, path)
    with pytest.raises(MalformedFrame):
        bring_back(tmp_path, "f", to=path)
    with pytest.raises(MalformedFrame):
        told(tmp_path, below=os.fsencode(path))


def test_i14_links_in_the_trash_and_in_the_tree_lead_nowhere(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    put(root, "d/f", "f")
    throw_away(root, DAYS[0], "d/f")
    (root / "d").rmdir()
    (root / "d").symlink_to(outside)
    with pytest.raises(SomethingThere):
        bring_back(root, "d/f")
    assert bring_back(root, "d").in_the_way == [b"d/f"]
    trash = root / ".baton/trash"
    (trash / DAYS[0] / "out").symlink_to(outside)
    (trash / DAYS[1]).symlink_to(outside)
    assert told(root) == [(DAYS[0], "d/f", Kind.FILE, 1), (DAYS[0], "out", Kind.SYMLINK, 0)]
    for path in ("secret", "out/secret"):
        with pytest.raises(NotInTrash):
            bring_back(root, path, to="x")
    with Tree.open(os.fsencode(root)) as tree:
        purge(tree, older_than_s=None, now=0)
    assert sorted(os.listdir(outside)) == ["secret"]


def test_i14_a_trash_that_is_a_link_is_no_trash(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    grow(outside, {f"{DAYS[0]}/f": b"f"})
    (root / ".baton").mkdir(parents=True)
    (root / ".baton/trash").symlink_to(outside)
    with Tree.open(os.fsencode(root)) as tree, pytest.raises(NotADirectoryError):
        list(list_trash(tree))
    with Tree.open(os.fsencode(root)) as tree, pytest.raises(NotADirectoryError):
        purge(tree, older_than_s=None, now=0)
    assert (outside / DAYS[0] / "f").exists()


def test_purge_removes_days(tmp_path: Path) -> None:
    for day in DAYS:
        put(tmp_path, "f", day)
        throw_away(tmp_path, day, "f")
    now = 1_767_528_000.0  # 2026-01-04 12:00 UTC
    with Tree.open(os.fsencode(tmp_path)) as tree:
        assert purge(tree, older_than_s=2 * 86_400, now=now) == [DAYS[0]]
        assert purge(tree, older_than_s=None, now=now) == list(DAYS[1:])
    assert told(tmp_path) == []
    with Tree.open(os.fsencode(tmp_path), read_only=True) as tree:
        with pytest.raises(RootReadOnly):
            purge(tree, older_than_s=None, now=now)
        with pytest.raises(RootReadOnly):
            restore(tree, b"f")


def test_a_run_goes_on_while_its_trash_is_emptied(tmp_path: Path) -> None:
    put(tmp_path, "d/a", "a")
    put(tmp_path, "d/b", "b")
    with Tree.open(os.fsencode(tmp_path)) as tree, Trash(tree, DAYS[0]) as trash:
        fd = os.open(tmp_path / "d", os.O_RDONLY)
        trash.keep(fd, b"a", b"d/a")
        purge(tree, older_than_s=None, now=0)
        trash.sync()
        trash.keep(fd, b"b", b"d/b")
        with pytest.raises(FileNotFoundError):
            trash.keep(fd, b"c", b"d/c")
        os.close(fd)
    assert told(tmp_path) == [(DAYS[0], "d/b", Kind.FILE, 1)]


def test_what_a_run_deletes_can_be_brought_back(tmp_path: Path) -> None:
    grow(tmp_path / "source", {"keep": b"k"})
    grow(tmp_path / "target", {"keep": b"k", "old/deep/f": b"1", "old/g": b"22"})
    pair = Pair(tmp_path / "source", tmp_path / "target", FAST)
    pair.run()
    assert [one[1:] for one in told(pair.target)] == [
        ("old/deep/f", Kind.FILE, 1),
        ("old/g", Kind.FILE, 2),
    ]
    assert sorted(bring_back(pair.target, "old").paths) == [b"old/deep/f", b"old/g"]
    assert (pair.target / "old/deep/f").read_bytes() == b"1"
    assert told(pair.target) == []
