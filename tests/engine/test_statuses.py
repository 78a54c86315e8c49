"""Statuses in columns tell what lstat tells."""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncengine import statuses
from syncengine.details import Details
from syncengine.entries import EntryMaker, fingerprint
from syncengine.model import RunOptions
from syncengine.statuses import Statuses, StatusReader
from syncengine.stretch_scan import DirectoryLooker
from syncengine.stretches import Identities, unfolded
from tests.engine.trees import grow

pytestmark = pytest.mark.skipif(statuses._statx is None, reason="no statx(2) here")

NS = 10**9


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def names_in(fd: int) -> list[bytes]:
    return sorted(os.fsencode(name) for name in os.listdir(fd))


def require_same(read: Statuses | None, found: list[os.stat_result]) -> None:
    assert read is not None
    wanted = Statuses.of(found)
    for column in ("modes", "uids", "gids", "links", "inodes", "sizes", "mtimes", "ctimes"):
        assert list(getattr(read, column)) == list(getattr(wanted, column)), column
    assert list(read.devices) == list(wanted.devices)


def test_columns_are_what_lstat_tells(tmp_path: Path, directory: int) -> None:
    grow(tmp_path, {"a": b"x", "d/e": b"", "link": "a", "z" * 255: b"yy"})
    (tmp_path / os.fsdecode(b"\xff\x80")).write_bytes(b"")
    os.truncate(tmp_path / "a", (5 << 32) + 7)
    os.link(tmp_path / "a", tmp_path / "b")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "fifo").chmod(0o4751)
    os.utime(tmp_path / "a", ns=(5, 4_294_967_295 * NS + 999_999_999))
    os.utime(tmp_path / "link", ns=(5, 1), follow_symlinks=False)
    if os.geteuid() == 0:
        os.chown(tmp_path / "link", 70_000, 4_000_000_000, follow_symlinks=False)
    names = names_in(directory)
    require_same(
        StatusReader().read(directory, names), [os.lstat(n, dir_fd=directory) for n in names]
    )


def test_room_grows_with_the_names(tmp_path: Path, directory: int) -> None:
    reader = StatusReader()
    made = 0
    for count in (1, 31, 33, 2_000):
        for number in range(made, count):
            (tmp_path / f"{number:05}").write_bytes(b"x" * (number % 3))
        made = count
        names = names_in(directory)
        found = [os.lstat(name, dir_fd=directory) for name in names]
        require_same(reader.read(directory, names), found)
        require_same(reader.read(directory, names[-1:]), found[-1:])


@pytest.mark.parametrize("mtime_ns", [-1, -NS, (1 << 32) * NS - 1, (1 << 32) * NS])
def test_what_does_not_fit_is_left_to_lstat(tmp_path: Path, directory: int, mtime_ns: int) -> None:
    grow(tmp_path, {"a": b"", "b": b""})
    os.utime(tmp_path / "b", ns=(0, mtime_ns))
    is_kept = (tmp_path / "b").stat().st_mtime_ns == mtime_ns
    fits = 0 <= mtime_ns < (1 << 32) * NS
    read = StatusReader().read(directory, [b"a", b"b"])
    assert (read is not None) == (fits or not is_kept)
    require_same(StatusReader().read(directory, [b"a"]), [os.lstat(b"a", dir_fd=directory)])


def test_what_is_gone_is_left_to_lstat(tmp_path: Path, directory: int) -> None:
    grow(tmp_path, {"a": b"", "c": b""})
    reader = StatusReader()
    assert reader.read(directory, [b"a", b"b", b"c"]) is None
    require_same(reader.read(directory, [b"a"]), [os.lstat(b"a", dir_fd=directory)])


@pytest.mark.root
@pytest.mark.skipif(not os.path.ismount("/proc"), reason="needs another file system")
def test_names_on_several_file_systems_are_left_to_lstat() -> None:
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        others = [
            name
            for name in names_in(fd)
            if os.lstat(name, dir_fd=fd).st_dev != os.lstat(b"proc", dir_fd=fd).st_dev
        ]
        assert StatusReader().read(fd, [b"proc", *others]) is None
    finally:
        os.close(fd)


def test_fingerprints_are_those_of_entries(tmp_path: Path, directory: int) -> None:
    grow(tmp_path, {f"{number}": b"x" * number for number in range(50)})
    names = names_in(directory)
    found = [os.lstat(name, dir_fd=directory) for name in names]
    read = StatusReader().read(directory, names)
    assert read is not None
    kept = Identities(read.devices, read.inodes, read.ctimes)
    assert list(kept.fingerprints(read.sizes, read.mtimes)) == [fingerprint(one) for one in found]
    before = kept.mark(read.sizes, read.mtimes)
    for column in (read.sizes, read.mtimes):
        other = array("q", column)
        other[7] += 1
        pair = (other, read.mtimes) if column is read.sizes else (read.sizes, other)
        assert kept.mark(*pair) != before


def test_odd_ones_are_asked_for_alone_and_many_of_them_together(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RunOptions(keep_owner=True, keep_hardlinks=True)
    looker = DirectoryLooker(EntryMaker(Details.of(options), lambda *_: None, keep_setuid=True))
    asked: list[bytes] = []
    real = os.lstat

    def lstat(name: bytes, *, dir_fd: int) -> os.stat_result:
        asked.append(name)
        return real(name, dir_fd=dir_fd)

    def look() -> list[bytes]:
        asked.clear()
        items, newest = looker.look(b"", directory, names)
        assert [entry.path for entry in unfolded(items)] == names
        assert newest == max(real(name, dir_fd=directory).st_ctime_ns for name in names)
        return asked

    grow(tmp_path, {**{f"{number:02}": b"" for number in range(20)}, "link": "a", "d/e": b""})
    names = names_in(directory)
    monkeypatch.setattr(os, "lstat", lstat)
    assert look() == [b"d", b"link"]
    for number in range(20):
        os.link(tmp_path / f"{number:02}", tmp_path / f"{number:02}+")
    names = names_in(directory)
    look()
    assert look() == names
    for name in names:
        if name.endswith(b"+"):
            (tmp_path / os.fsdecode(name)).unlink()
    names = names_in(directory)
    look()
    assert look() == [b"d", b"link"]
