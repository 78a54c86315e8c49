"""Listings as if renames had been done, and the renames themselves."""

import os
from pathlib import Path

import pytest

from syncengine.agreed import Graft
from syncengine.changes import Change, Rename
from syncengine.listing import decode_entries, encode_entries
from syncengine.model import PRETENDED, Entry, Kind, Problem, RunOptions
from syncengine.phases import Plan
from syncengine.scan import scan
from syncengine.sender import SendResult
from syncengine.tree import Tree
from tests.engine.renames import push, renaming
from tests.engine.trees import T0, Pair, entries_of, grow, picture


def listed(root: Path, *grafts: tuple[bytes, bytes]) -> dict[bytes, Entry]:
    """Scan with grafts (path, to), through the packing of a listing."""
    problems: list[Problem] = []
    with Tree.open(os.fsencode(root), read_only=True) as tree:
        found = scan(
            tree, problems=problems, member="m", grafts=[Graft(path, to) for path, to in grafts]
        )
        entries = list(decode_entries(encode_entries(found)))
    assert problems == []
    return {entry.path: entry for entry in entries}


def contents(root: Path) -> dict[bytes, tuple[int, int, int, bytes]]:
    return {e.path: (e.kind, e.size, e.seen, e.link) for e in entries_of(root)}


SPEC: dict[str, bytes | str | None] = {
    "a/in/x": b"x",
    "a/in/deep/y": b"yy",
    "a/z": b"zzz",
    "b/one": b"1",
    "c": b"cc",
    "l": "to",
}


def test_a_file_and_a_tree_are_shown_where_they_are_to_be(tmp_path: Path) -> None:
    grow(tmp_path, SPEC)
    before = listed(tmp_path)
    after = listed(tmp_path, (b"a/in", b"b/moved"), (b"c", b"a/c2"), (b"l", b"b/l"))
    assert b"a/in" not in after
    assert b"c" not in after
    assert after[b"b/moved"].came_from == b"a/in"
    assert after[b"a/c2"] == before[b"c"]._replace(path=b"a/c2", came_from=b"c")
    assert after[b"b/l"].link == b"to"
    assert after[b"b/moved/deep/y"] == before[b"a/in/deep/y"]._replace(path=b"b/moved/deep/y")


def test_missing_directories_are_pretended(tmp_path: Path) -> None:
    grow(tmp_path, SPEC)
    after = listed(tmp_path, (b"c", b"new/er/c"), (b"a/z", b"new/z"))
    assert after[b"new"].seen == after[b"new/er"].seen == PRETENDED
    assert after[b"new"].kind is Kind.DIRECTORY
    assert after[b"new/er/c"].came_from == b"c"
    assert after[b"new/z"].came_from == b"a/z"


def test_a_rename_within_a_renamed_tree(tmp_path: Path) -> None:
    grow(tmp_path, SPEC)
    after = listed(tmp_path, (b"a", b"e"), (b"a/in/x", b"e/in/w"), (b"a/z", b"z"))
    assert sorted(after) == [
        b"",
        b"b",
        b"b/one",
        b"c",
        b"e",
        b"e/in",
        b"e/in/deep",
        b"e/in/deep/y",
        b"e/in/w",
        b"l",
        b"z",
    ]
    assert after[b"e/in/w"].came_from == b"a/in/x"


def test_what_goes_below_where_a_renamed_tree_was_is_shown(tmp_path: Path) -> None:
    """Into a directory that has gone elsewhere with the one that holds it, and into its place."""
    grow(tmp_path, SPEC)
    after = listed(tmp_path, (b"a", b"b/a"), (b"c", b"a/in/deep/y"), (b"l", b"a/in/l"))
    assert after[b"a/in/deep/y"].came_from == b"c"
    assert after[b"a/in/l"].came_from == b"l"
    assert after[b"a/in"].seen == after[b"a"].seen == PRETENDED
    assert after[b"b/a/in/deep/y"].size == 2
    assert not {b"c", b"l"} & after.keys()


def test_a_chain_of_names_moves_on_together(tmp_path: Path) -> None:
    grow(tmp_path, {"log": b"0", "log.1": b"11", "log.2": b"222"})
    after = listed(tmp_path, (b"log", b"log.1"), (b"log.1", b"log.2"), (b"log.2", b"log.3"))
    assert {path: e.size for path, e in after.items() if path} == {
        b"log.1": 1,
        b"log.2": 2,
        b"log.3": 3,
    }


@pytest.mark.parametrize(
    "graft",
    [
        (b"nothing", b"new"),
        (b"c", b"a/z"),
        (b"c", b"l/x"),
        (b"c", b"b/one/x"),
        (b"a", b"a/in/a"),
        (b"", b"x"),
    ],
)
def test_what_cannot_be_renamed_so_stays_where_it_is(
    tmp_path: Path, graft: tuple[bytes, bytes]
) -> None:
    grow(tmp_path, SPEC)
    assert listed(tmp_path, graft) == listed(tmp_path)


def test_what_stays_is_in_the_way_of_what_would_have_followed(tmp_path: Path) -> None:
    grow(tmp_path, {"log": b"0", "log.1": b"11", "taken": b"x"})
    after = listed(tmp_path, (b"log", b"log.1"), (b"log.1", b"taken"))
    assert after == listed(tmp_path)


def test_renames_move_no_content_and_leave_all_times_right(pair: Pair) -> None:
    grow(pair.source, SPEC)
    pair.run()
    inodes = {
        e.path: os.lstat(pair.target / os.fsdecode(e.path)).st_ino for e in entries_of(pair.target)
    }
    (pair.source / "new/er").mkdir(parents=True)
    os.rename(pair.source / "a/in", pair.source / "new/er/in")
    os.rename(pair.source / "c", pair.source / "b/c")
    (pair.source / "b/c").write_bytes(b"and edited")
    os.rename(pair.source / "l", pair.source / "new/l")
    os.utime(pair.source / "b/c", ns=(T0, T0 + 5))
    with renaming(pair, (b"a/in", b"new/er/in"), (b"c", b"b/c"), (b"l", b"new/l")) as plan:
        result = push(pair, plan)
    assert result.problems == []
    assert result.retry == []
    assert result.counts.files_renamed == 3
    assert result.counts.files_copied == 1
    assert result.counts.bytes_copied == len(b"and edited")
    assert result.counts.files_deleted == 0
    assert os.lstat(pair.target / "new/er/in/deep/y").st_ino == inodes[b"a/in/deep/y"]
    pair.check_equal()


def rename_only(pair: Pair, path: bytes, to: bytes, *, seen: int | None = None) -> SendResult:
    """Push one rename, whatever the source has."""
    entry = {e.path: e for e in entries_of(pair.target)}.get(path)
    kind = entry.kind if entry is not None else Kind.FILE
    mark = seen if seen is not None else (entry.seen if entry is not None else 1)
    with Plan(pair.options) as plan:
        changes: list[Change] = [Rename(path, to, kind, mark)]
        for change in changes:
            plan.renames.append(change)
        plan.seal(is_complete=True)
        return push(pair, plan)


@pytest.mark.parametrize("to", [b"a/z", b"b"])
def test_i6_nothing_is_renamed_over_what_is_there(pair: Pair, to: bytes) -> None:
    grow(pair.target, SPEC)
    before = picture(pair.target)
    assert rename_only(pair, b"c", to).retry == [to]
    assert picture(pair.target) == before


def test_i6_what_changed_since_the_plan_is_not_renamed(pair: Pair) -> None:
    grow(pair.target, SPEC)
    before = picture(pair.target)
    assert rename_only(pair, b"c", b"d", seen=12_345).retry == [b"d"]
    assert rename_only(pair, b"nothing", b"d").retry == [b"d"]
    assert picture(pair.target) == before


def test_renames_are_durable_in_both_directories(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(pair.target, SPEC)
    flushed: list[str] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    assert rename_only(pair, b"a/z", b"b/z").counts.files_renamed == 1
    assert sorted(flushed) == ["a", "b"]


def test_read_only_directories_are_renamed_too(pair: Pair) -> None:
    pair.options = RunOptions()
    grow(pair.target, SPEC)
    os.chmod(pair.target / "a/in", 0o500)
    assert rename_only(pair, b"a/in", b"b/in").counts.files_renamed == 1
    assert os.lstat(pair.target / "b/in").st_mode & 0o777 == 0o500
    assert os.lstat(pair.target / "b").st_mtime_ns == T0, "the plan decides about times"


def test_a_place_that_is_taken_after_it_was_free_is_shown_once(tmp_path: Path) -> None:
    grow(tmp_path, SPEC)
    problems: list[Problem] = []
    with Tree.open(os.fsencode(tmp_path), read_only=True) as tree:
        found = scan(tree, problems=problems, member="m", grafts=[Graft(b"c", b"b/one~")])
        paths = [next(found).path]
        (tmp_path / "b" / "one~").write_text("came meanwhile")
        paths += [entry.path for entry in found]
    assert paths.count(b"b/one~") == 1
    assert len(set(paths)) == len(paths)
