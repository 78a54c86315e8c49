# Bytes, descriptors and bare system calls are what is tested.


import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from syncengine.details import Details
from syncengine.directories import Directories
from syncengine.errors import (
    MalformedFrame,
    NotADirectory,
    PathMissing,
    RootMissing,
    RootReadOnly,
    TreeError,
)
from syncengine.model import Entry, Kind, Problem, RunOptions, What
from syncengine.names import MAX_PATH, order_key
from syncengine.receiver import OpenGate, Receiver
from syncengine.scan import fingerprint, scan, scan_is_complete
from syncengine.scope import Scope
from syncengine.tree import Tree, remove_tree
from tests.engine.trees import RUN_STAMP, T0, Spec, entries_of, grow


def test_a_missing_root_a_missing_path_and_no_directory_are_told_apart(tmp_path: Path) -> None:
    grow(tmp_path / "root", {"file": b"", "d/e": None, "link": "d"})
    root = os.fsencode(tmp_path / "root")
    for path, sub, error in (
        (root + b"x", b"", RootMissing),
        (root + b"/file", b"", NotADirectory),
        (b"relative", b"", NotADirectory),
        (root, b"nothing", PathMissing),
        (root, b"d/nothing", PathMissing),
        (root, b"file", NotADirectory),
        (root, b"file/x", NotADirectory),
        (root, b"link", NotADirectory),
        (root, b"link/e", NotADirectory),
        (root, b"../outside", MalformedFrame),
        (root, b".baton", MalformedFrame),
    ):
        with pytest.raises(error):
            Tree.open(path, sub)
    assert issubclass(RootMissing, TreeError)


def test_a_missing_path_is_made_when_asked_for(tmp_path: Path) -> None:
    with Tree.open(os.fsencode(tmp_path), b"a/b", create_sub=True) as tree:
        assert os.fstat(tree.top_fd).st_ino == (tmp_path / "a/b").stat().st_ino
        assert tree.root_id == (tmp_path.stat().st_dev, tmp_path.stat().st_ino)
        assert tree.device == tmp_path.stat().st_dev
        assert tree.free_bytes() > 0
    with pytest.raises(PathMissing):
        Tree.open(os.fsencode(tmp_path), b"c", create_sub=True, read_only=True)
    tree.close()


def test_what_is_opened_to_be_read_is_neither_cleaned_nor_written(tmp_path: Path) -> None:
    with Tree.open(os.fsencode(tmp_path), read_only=True) as tree:
        with pytest.raises(RootReadOnly):
            scan(tree, problems=[], member="m", clean_temporaries=True)
        with pytest.raises(RootReadOnly):
            Receiver(tree, RunOptions(), member="m", gate=OpenGate(), run_stamp=RUN_STAMP)
    with Tree.open(os.fsencode(tmp_path)) as tree, pytest.raises(ValueError, match="YYYYMMDD"):
        Receiver(tree, RunOptions(), member="m", gate=OpenGate(), run_stamp="../../x")


def test_the_order_is_that_of_the_tuples_of_components(tmp_path: Path) -> None:
    names = ["a", "a-", "a/b", "a/b/c", "a0", "a/\x01", "a\x01/x", "é", "z/z", "Z"]
    grow(tmp_path / "root", dict.fromkeys(names))
    paths = [entry.path for entry in entries_of(tmp_path / "root")]
    assert paths[0] == b""
    assert paths[1:] == sorted(paths[1:], key=lambda p: p.split(b"/"))
    assert paths == sorted(paths, key=order_key)
    assert len(paths) == len(set(paths)) == 13


def test_entries_say_what_there_is(tmp_path: Path) -> None:
    root = tmp_path / "root"
    grow(root, {"f": b"12345", "l": "to/where", "d": None})
    os.mkfifo(root / "p")
    os.chmod(root / "f", 0o640)
    found = {entry.path: entry for entry in entries_of(root)}
    status = (root / "f").lstat()
    assert found[b"f"] == Entry(b"f", Kind.FILE, 0o640, T0, 5, b"", fingerprint(status), b"")
    assert found[b"l"][1:6] == (Kind.SYMLINK, 0, T0, 0, b"to/where")
    assert found[b"d"].kind is Kind.DIRECTORY
    assert found[b"p"].kind is Kind.SPECIAL
    assert all(0 < entry.seen < 1 << 64 for entry in found.values())


def test_reserved_names_are_skipped_at_every_depth(tmp_path: Path) -> None:
    root = tmp_path / "root"
    grow(
        root,
        {".baton/x": b"", "d/.baton/x": b"", "d/.baton~t": b"", ".batonx": b"", "d/.bato": b""},
    )
    assert [e.path for e in entries_of(root)] == [b"", b".batonx", b"d", b"d/.bato"]


def test_the_target_scan_cleans_up_and_leaves_the_times(tmp_path: Path) -> None:
    root = tmp_path / "root"
    grow(root, {"d/.baton~n~1": b"", "d/.baton~n~2/deep/er": b"", "d/f": b"", ".baton/keep": b""})
    (root / "d/.baton~n~3").symlink_to("/etc")
    os.chmod(root / "d/.baton~n~2/deep", 0o500)
    os.utime(root / "d", ns=(T0, T0))
    with Tree.open(os.fsencode(root)) as tree:
        list(scan(tree, problems=[], member="m", clean_temporaries=True))
    assert os.listdir(root / "d") == ["f"]
    assert (root / "d").stat().st_mtime_ns == T0
    assert (root / ".baton/keep").exists()


def test_a_scan_in_a_scope_sees_that_and_the_way_to_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    grow(root, dict.fromkeys(("a/b/c/d", "a/b/x", "a/y", "z", "k/l/m", "k/o", "q/r"), b""))

    def within(*deep: bytes, shallow: tuple[bytes, ...] = ()) -> list[bytes]:
        problems: list[Problem] = []
        scope = Scope(deep=deep, shallow=shallow)
        with Tree.open(os.fsencode(root)) as tree:
            found = [e.path for e in scan(tree, problems=problems, member="m", scope=scope)]
        assert problems == []
        return found

    everything = [entry.path for entry in entries_of(root)]
    assert within(b"") == within(b"", b"a/b") == within(b"a/b", b"") == everything
    assert within() == within(shallow=(b"",)) == [b""]
    assert within(b"a/b/c") == [b"", b"a", b"a/b", b"a/b/c", b"a/b/c/d"]
    assert within(b"a/b/c", b"a/b") == [b"", b"a", b"a/b", b"a/b/c", b"a/b/c/d", b"a/b/x"]
    assert within(b"k/l/m", b"a/y") == [b"", b"a", b"a/y", b"k", b"k/l", b"k/l/m"]
    assert within(b"gone/x", b"q/gone", b"z/x") == [b"", b"q", b"z"]
    assert within(shallow=(b"a/b", b"k/o")) == [b"", b"a", b"a/b", b"k", b"k/o"]
    assert within(b"k", shallow=(b"a", b"k/l")) == [b"", b"a", b"k", b"k/l", b"k/l/m", b"k/o"]
    assert within(shallow=(b"a/b", b"a/b/c/d")) == [b"", b"a", b"a/b", b"a/b/c", b"a/b/c/d"]


def test_a_scan_of_one_path_lists_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else a directory holds costs nothing: neither listed nor looked at."""
    root = tmp_path / "root"
    grow(root, dict.fromkeys([f"d/e/f{number}" for number in range(50)], b""))
    listed: list[object] = []
    looked: list[bytes] = []
    lstat, listdir = os.lstat, os.listdir

    def counted_lstat(path: bytes, *, dir_fd: int) -> os.stat_result:
        looked.append(path)
        return lstat(path, dir_fd=dir_fd)

    def counted_listdir(fd: int) -> list[str]:
        listed.append(fd)
        return listdir(fd)

    monkeypatch.setattr(os, "lstat", counted_lstat)
    monkeypatch.setattr(os, "listdir", counted_listdir)
    scope = Scope(shallow=[b"d/e/f7", b"d/e/gone"])
    with Tree.open(os.fsencode(root)) as tree:
        assert [e.path for e in scan(tree, problems=[], member="m", scope=scope)] == [
            b"",
            b"d",
            b"d/e",
            b"d/e/f7",
        ]
    assert (listed, looked) == ([], [b"d", b"e", b"gone", b"f7"])


def test_fingerprints_tell_versions_apart_and_directories_by_identity(tmp_path: Path) -> None:
    file, folder = tmp_path / "f", tmp_path / "d"
    file.write_bytes(b"one")
    folder.mkdir()
    seen, seen_folder = fingerprint(file.lstat()), fingerprint(folder.lstat())
    assert seen == fingerprint(file.lstat())

    def replace_alike() -> None:
        (tmp_path / "other").write_bytes(b"two")
        os.utime(tmp_path / "other", ns=(T0, T0))
        (tmp_path / "other").rename(file)

    changes: list[object] = [
        lambda: file.write_bytes(b"two"),
        lambda: file.chmod(0o600),
        lambda: os.utime(file, ns=(T0, T0)),
        replace_alike,
    ]
    for change in changes:
        assert callable(change)
        before = fingerprint(file.lstat())
        change()
        assert fingerprint(file.lstat()) != before
    (folder / "x").mkdir()
    assert fingerprint(folder.lstat()) == seen_folder


def test_digests_are_read_and_empty_for_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blake3 import blake3

    grow(tmp_path / "root", {"a": b"content", "d/b": b"x" * 3_000_000, "empty": b"", "l": "a"})
    problems: list[Problem] = []
    with Tree.open(os.fsencode(tmp_path / "root")) as tree:
        found = {e.path: e.digest for e in scan(tree, problems=problems, member="m", digests=True)}
        assert found[b"a"] == blake3(b"content").digest()
        assert found[b"d/b"] == blake3(b"x" * 3_000_000).digest()
        assert found[b"empty"] == blake3(b"").digest()
        assert found[b"l"] == found[b"d"] == b""
        real = os.read

        def disturbed(fd: int, length: int) -> bytes:
            (tmp_path / "root/a").write_bytes(os.urandom(7))
            return real(fd, length)

        monkeypatch.setattr(os, "read", disturbed)
        found = {e.path: e.digest for e in scan(tree, problems=problems, member="m", digests=True)}
        assert found[b"a"] == b""
    assert problems == []


def test_i8_a_directory_swapped_during_the_scan_makes_it_incomplete(tmp_path: Path) -> None:
    root = tmp_path / "root"
    grow(root, {"a/x": b"", "b/y": b"", "c/z": b""})
    problems: list[Problem] = []
    with Tree.open(os.fsencode(root)) as tree:
        entries = scan(tree, problems=problems, member="m")
        while next(entries).path != b"a":
            pass
        (root / "b").rename(tmp_path / "away")
        (root / "b").mkdir()
        (root / "c").rename(tmp_path / "away2")
        (root / "c").symlink_to("/etc")
        rest = [entry.path for entry in entries]
    assert rest == [b"a/x", b"b", b"c"]
    assert [(p.path, p.what) for p in problems] == [
        (b"b", What.UNREADABLE),
        (b"c", What.UNREADABLE),
    ]
    assert not scan_is_complete(problems)


def test_a_path_beyond_the_limit_makes_the_scan_incomplete(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    depth = MAX_PATH // 256 + 2
    for _ in range(depth):
        os.mkdir("d" * 255, dir_fd=fd)
        below = os.open("d" * 255, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    problems: list[Problem] = []
    with Tree.open(os.fsencode(tmp_path)) as tree:
        found = list(scan(tree, problems=problems, member="m"))
        assert len(found) == (MAX_PATH + 1) // 256 + 1
        assert not scan_is_complete(problems)
        remove_tree(tree.top_fd, b"d" * 255)
    assert os.listdir(tmp_path) == []


def test_a_scan_holds_few_descriptors_however_deep(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(400):
        # Siblings after the deep one: every level is come back to.
        os.mkdir("z", dir_fd=fd)
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    most = 0
    with Tree.open(os.fsencode(tmp_path)) as tree:
        found = 0
        for _ in scan(tree, problems=[], member="m"):
            found += 1
            if found % 50 == 0:
                most = max(most, len(os.listdir("/proc/self/fd")))
        remove_tree(tree.top_fd, b"d")
    assert found == 801
    assert most - before < 80


def test_a_very_large_directory_is_looked_at_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec: Spec = {f"f{number:03}": b"x" * (number % 7) for number in range(100)}
    spec |= {f"f{number:03}-d/below": b"y" for number in range(0, 100, 9)}
    spec["f050-link"] = "f001"
    grow(tmp_path, spec)
    options = RunOptions(keep_owner=True, keep_xattrs=True, keep_acls=True)
    for name in ("f003", "f088"):
        os.setxattr(tmp_path / name, "user.baton", name.encode())
    looks: list[str] = []

    def look(name: str | bytes, *args: object, **more: object) -> os.stat_result:
        looks.append(os.fsdecode(name))
        return real(name, *args, **more)  # type: ignore[arg-type]

    with Tree.open(os.fsencode(tmp_path)) as tree:
        whole = list(scan(tree, problems=[], member="m", details=Details.of(options)))
        monkeypatch.setattr("syncengine.scan._PART", 10)
        real = os.lstat
        monkeypatch.setattr(os, "lstat", look)
        for _ in range(2):  # what was found bare is not looked at again the second time
            entries = scan(tree, problems=[], member="m", details=Details.of(options))
            assert [next(entries) for _ in range(5)] == whole[:5]
            assert len(looks) < 25, "no more is looked at than is about to be told"
            assert list(entries) == whole[5:]
            looks.clear()


def test_an_unfinished_scan_lets_go_of_its_descriptors(tmp_path: Path) -> None:
    grow(tmp_path, {"a/b/c/d": b""})
    with Tree.open(os.fsencode(tmp_path)) as tree:
        before = len(os.listdir("/proc/self/fd"))
        entries = iter(scan(tree, problems=[], member="m"))
        for _ in range(4):
            next(entries)
        entries.close()  # type: ignore[attr-defined]
        assert len(os.listdir("/proc/self/fd")) == before


def test_held_directories_are_few_and_never_reached_through_links(tmp_path: Path) -> None:
    grow(tmp_path, {f"d{n}/e/f": b"" for n in range(20)})
    (tmp_path / "ln").symlink_to("d1")
    with Tree.open(os.fsencode(tmp_path)) as tree:
        held = Directories(tree.top_fd, limit=5)
        before = len(os.listdir("/proc/self/fd"))
        for n in range(20):
            assert stat.S_ISDIR(os.fstat(held.fd(b"d%d/e" % n)).st_mode)
        assert len(os.listdir("/proc/self/fd")) - before == 5
        for path in (b"ln", b"ln/e", b"d1/e/f"):
            with pytest.raises(NotADirectoryError):
                held.fd(path)
        held.forget(b"d19")
        assert len(os.listdir("/proc/self/fd")) - before < 5
        held.close()


def test_i8_scans_of_one_tree_at_once_each_see_all_of_it(tmp_path: Path) -> None:
    for number in range(3_000):
        (tmp_path / f"f{number:04}").touch()
    with Tree.open(os.fsencode(tmp_path)) as tree, ThreadPoolExecutor(4) as pool:
        counts = pool.map(lambda _: sum(1 for _ in scan(tree, problems=[], member="m")), range(40))
        assert set(counts) == {3_001}
