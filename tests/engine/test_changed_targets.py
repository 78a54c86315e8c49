"""I6: a target that is not what the plan saw is neither overwritten nor deleted silently."""

# Bytes, descriptors and bare system calls are what is tested.

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from syncengine import places
from syncengine.model import RunOptions, Safety
from tests.engine.trees import T0, Pair, grow, temporaries, trashed


def edit(path: Path) -> Callable[[], None]:
    def act() -> None:
        path.write_bytes(b"a local edit")

    return act


def replace_by_rename(path: Path) -> Callable[[], None]:
    def act() -> None:
        other = path.with_name("editor-temporary")
        other.write_bytes(b"a local edit")
        other.rename(path)

    return act


def become_directory(path: Path) -> Callable[[], None]:
    def act() -> None:
        path.unlink()
        path.mkdir()
        (path / "inside").write_bytes(b"a local edit")

    return act


@pytest.mark.parametrize("how", [edit, replace_by_rename, become_directory])
@pytest.mark.parametrize("size", [10, 300_000])
def test_i6_a_file_edited_after_the_plan_is_not_overwritten(
    pair: Pair, how: Callable[[Path], Callable[[], None]], size: int
) -> None:
    grow(pair.source, {"d/a": b"n" * size, "d/b": b"n"}, T0 + 1)
    grow(pair.target, {"d/a": b"old"})
    result = pair.run(before_push=how(pair.target / "d/a"))
    assert result.retry == [b"d/a"]
    assert result.counts.files_copied == 1
    assert b"a local edit" in {p.read_bytes() for p in pair.target.rglob("*") if p.is_file()}
    assert temporaries(pair.target) == []
    assert pair.run().retry == []
    pair.check_equal()


@pytest.mark.parametrize("how", [edit, replace_by_rename, become_directory])
def test_i6_a_file_edited_after_the_plan_is_not_deleted(
    pair: Pair, how: Callable[[Path], Callable[[], None]]
) -> None:
    grow(pair.target, {"d/a": b"old"})
    result = pair.run(before_push=how(pair.target / "d/a"))
    assert b"d/a" in result.retry
    assert b"d" in result.retry, "the directory is not empty, so it stays too"
    assert b"a local edit" in {p.read_bytes() for p in pair.target.rglob("*") if p.is_file()}
    assert trashed(pair.target) == {}


@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_i6_what_appears_where_something_new_is_to_be_stays(pair: Pair, what: str) -> None:
    grow(pair.source, {"new": b"x", "dir/in": b"y", "sym": "to"})

    def appear() -> None:
        for name in ("new", "dir", "sym"):
            path = pair.target / name
            if what == "file":
                path.write_bytes(b"mine")
            elif what == "directory":
                path.mkdir()
            else:
                path.symlink_to("/etc")

    result = pair.run(before_push=appear)
    assert sorted(result.retry) == [b"dir", b"new", b"sym"]
    assert temporaries(pair.target) == []
    if what == "file":
        assert {(pair.target / n).read_bytes() for n in ("new", "dir", "sym")} == {b"mine"}
    pair.run()
    pair.check_equal()


@pytest.mark.parametrize("how", [edit, replace_by_rename, become_directory])
def test_i7_an_edit_between_look_and_exchange_is_kept(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, how: Callable[[Path], Callable[[], None]]
) -> None:
    pair.options = RunOptions(safety=Safety(trash_s=None))
    grow(pair.source, {"a": b"new"}, T0 + 1)
    grow(pair.target, {"a": b"old"})
    real = places.exchange

    def late(fd: int, temporary: bytes, name: bytes) -> None:
        how(pair.target / "a")()
        real(fd, temporary, name)

    monkeypatch.setattr("syncengine.publish.exchange", late)
    pair.run()
    assert (pair.target / "a").read_bytes() == b"new"
    assert b"a local edit" in trashed(pair.target).values()
    assert temporaries(pair.target) == []


def test_i7_an_edit_between_look_and_delete_is_kept_even_without_a_trash(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.options = RunOptions(safety=Safety(trash_s=None))
    grow(pair.target, {"a": b"old"})
    real = places.put_new

    def late(fd: int, source: bytes, name: bytes) -> None:
        edit(pair.target / "a")()
        real(fd, source, name)

    monkeypatch.setattr("syncengine.publish.put_new", late)
    pair.run()
    assert trashed(pair.target) == {"a": b"a local edit"}


def test_metadata_is_not_set_on_what_changed(pair: Pair) -> None:
    grow(pair.source, {"a": b"same"})
    grow(pair.target, {"a": b"same"})
    os.chmod(pair.source / "a", 0o777)
    result = pair.run(before_push=edit(pair.target / "a"))
    assert result.retry == [b"a"]
    assert (pair.target / "a").stat().st_mode & 0o777 != 0o777


def test_a_directory_that_was_swapped_after_the_plan_keeps_its_metadata(pair: Pair) -> None:
    grow(pair.source, {"d/a": b"x"})
    grow(pair.target, {"d/a": b"x"})
    os.chmod(pair.source / "d", 0o711)

    def swap() -> None:
        (pair.target / "d").rename(pair.target.parent / "elsewhere")
        (pair.target / "d").mkdir(0o700)

    result = pair.run(before_push=swap)
    assert result.retry == [b"d"]
    assert (pair.target / "d").stat().st_mode & 0o777 == 0o700


def test_what_is_gone_already_needs_no_delete(pair: Pair) -> None:
    grow(pair.target, {"d/a": b"old", "b": b"old"})

    def vanish() -> None:
        (pair.target / "d/a").unlink()
        (pair.target / "d").rmdir()

    result = pair.run(before_push=vanish)
    assert result.retry == []
    assert result.counts.files_deleted == 1


def test_trash_never_overwrites_what_it_holds(pair: Pair) -> None:
    for content in (b"first", b"second", b"third"):
        grow(pair.target, {"d/a": content})
        pair.run()
    grow(pair.target, {"d": b"a file by the name of a directory in the trash"})
    pair.run()
    grow(pair.target, {"e": b"file"})
    pair.run()
    grow(pair.target, {"e/now": b"a directory"})
    pair.run()
    assert trashed(pair.target) == {
        "d/a": b"first",
        "d/a~2": b"second",
        "d/a~3": b"third",
        "d~2": b"a file by the name of a directory in the trash",
        "e": b"file",
        "e~2/now": b"a directory",
    }
