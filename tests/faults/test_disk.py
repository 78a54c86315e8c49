"""The disk of the tests itself: what it forgets, what it refuses, and that a mount shows it so."""

import ctypes
import errno
import os
import stat
from pathlib import Path

import pytest

from syncengine import kernel
from tests.engine.trees import Spec, grow, picture
from tests.faults import disk
from tests.faults.disk import ROOT, Node, Nodes, after_cut, unfold
from tests.faults.live_disk import EXCHANGE, NOREPLACE, Fault, LiveDisk, Traits
from tests.faults.mount import FaultyMount


def make(live: LiveDisk, path: bytes, content: bytes = b"") -> int:
    ino = live.make("create", path, Node(0, stat.S_IFREG | 0o644)).ino
    if content:
        live.write(ino, content, 0)
    return ino


def left(live: LiveDisk, choose: disk.Chooser = disk.nothing) -> dict[bytes, bytes]:
    nodes = after_cut(live.base, live.log, len(live.log), choose)
    return {path: bytes(n.data) for path, n in disk.walk(nodes) if stat.S_ISREG(n.mode)}


def test_what_is_not_flushed_is_lost() -> None:
    live = LiveDisk()
    make(live, b"a", b"content")
    assert left(live) == {}
    assert left(live, disk.everything) == {b"a": b"content"}
    assert left(live, disk.names_only) == {b"a": b""}
    assert left(live, disk.lengths_only) == {b"a": bytes(7)}


def test_content_and_name_are_flushed_apart() -> None:
    live = LiveDisk()
    ino = make(live, b"a", b"content")
    live.flush("fsync", ino)
    assert left(live) == {}, "the directory was not"
    live.flush("fsyncdir", ROOT)
    assert left(live) == {b"a": b"content"}
    live.write(ino, b"C", 0)
    live.rename(b"a", b"b", 0)
    assert left(live) == {b"a": b"content"}
    assert left(live, disk.contents_only) == {b"a": b"Content"}
    assert left(live, disk.names_only) == {b"b": b"content"}
    live.flush_all()
    assert left(live) == {b"b": b"Content"}


def test_a_rename_between_directories_is_kept_or_lost_as_a_whole() -> None:
    live = LiveDisk()
    folder = live.make("mkdir", b"d", Node(0, stat.S_IFDIR | 0o755)).ino
    make(live, b"a", b"x")
    live.begin()
    live.rename(b"a", b"d/a", 0)
    live.flush("fsyncdir", folder)
    assert left(live) == {b"a": b"x"}
    assert left(live, disk.everything) == {b"d/a": b"x"}
    live.flush("fsyncdir", ROOT)
    assert left(live) == {b"d/a": b"x"}


def test_chances_keep_and_lose_each_by_itself() -> None:
    live = LiveDisk()
    for number in range(8):
        make(live, b"%d" % number, b"0123456789" * 9)
    outcomes = [left(live, disk.by_chance(seed)) for seed in range(30)]
    assert len({frozenset(o) for o in outcomes}) > 20
    torn = {content for o in outcomes for content in o.values()}
    assert any(0 < len(content) < 90 for content in torn)
    assert outcomes[3] == left(live, disk.by_chance(3)), "a seed replays"


def test_flags_faults_and_room() -> None:
    live = LiveDisk(Traits(capacity=10))
    make(live, b"a", b"12345")
    make(live, b"b")
    with pytest.raises(FileExistsError):
        live.rename(b"a", b"b", NOREPLACE)
    live.rename(b"a", b"b", EXCHANGE)
    assert left(live, disk.everything) == {b"a": b"", b"b": b"12345"}
    ino = live.resolve(b"a").ino
    assert live.write(ino, b"1234567", 0) == 5, "a disk that fills up writes what it can"
    with pytest.raises(OSError, match="No space"):
        live.write(ino, b"6", 5)
    live.arm([Fault("change", 2, errno.EIO), Fault("unlink", 2, errno.EROFS, lasting=True)])
    live.remove("unlink", b"a")
    with pytest.raises(OSError, match="Input/output"):
        make(live, b"c")
    make(live, b"c")
    for _ in range(2):
        with pytest.raises(OSError, match="Read-only"):
            live.remove("unlink", b"c")
    live.arm([])
    live.remove("unlink", b"c")
    live.traits = Traits(links=False, symlinks=False, xattrs=False, rename_flags=False)
    for refused in (
        lambda: live.link(b"b", b"e"),
        lambda: live.make("symlink", b"e", Node(0, stat.S_IFLNK)),
        lambda: live.set_xattr(ROOT, "user.a", b""),
        lambda: live.rename(b"b", b"e", NOREPLACE),
    ):
        with pytest.raises(OSError, match=r"not permitted|not supported|Invalid"):
            refused()


@pytest.mark.parametrize(
    ("fold", "first", "second"),
    [("case", "Straße", "STRASSE"), ("form", "e\u0301", "\u00e9"), ("case", "a", "A")],
)
def test_names_fold(mount: FaultyMount, fold: str, first: str, second: str) -> None:
    mount.become(Traits(fold=fold))
    (mount.root / first).write_bytes(b"x")
    assert (mount.root / second).read_bytes() == b"x"
    assert os.listdir(mount.root) == [first], "the name stays as it was made"
    with pytest.raises(FileExistsError):
        (mount.root / second).mkdir()
    (mount.root / second).rename(mount.root / "else")
    assert os.listdir(mount.root) == ["else"]


def test_a_mount_is_a_file_system_like_others(mount: FaultyMount, tmp_path: Path) -> None:
    spec: Spec = {"a": b"x" * 300_000, "d/e/f": b"y", "l": "d/e", "empty": None, "\udcff": b"z"}
    grow(mount.root, spec)
    grow(tmp_path / "same", spec)
    os.link(mount.root / "a", mount.root / "d/also")
    assert (mount.root / "a").stat().st_nlink == 2
    (mount.root / "d/also").unlink()
    os.utime(mount.root / "d", ns=((tmp_path / "same/d").stat().st_mtime_ns,) * 2)
    assert picture(mount.root) == picture(tmp_path / "same")
    os.setxattr(mount.root / "a", "user.x", b"v")
    assert os.listxattr(mount.root / "a") == ["user.x"]
    nodes: Nodes = after_cut(mount.base(), mount.log(), len(mount.log()), disk.everything)
    unfold(nodes, tmp_path / "unfolded")
    assert picture(tmp_path / "unfolded") == picture(mount.root)
    mount.reboot(after_cut(mount.base(), mount.log(), 0, disk.everything))
    assert os.listdir(mount.root) == []


def test_syncfs_is_believed_only_where_it_is_carried_out(
    mount: FaultyMount, tmp_path: Path
) -> None:
    """I2: the kernel does not pass syncfs(2) on to a FUSE server, and says that all went well."""
    (mount.root / "a").write_bytes(b"x")
    fd = os.open(mount.root, os.O_RDONLY)
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        before = len(mount.log())
        kernel.syncfs(fd)
        assert kernel.syncfs_reaches_disk(fd) is False or len(mount.log()) > before
        os.fsync(fd)
        assert mount.log()[-1] == disk.Flushed(ROOT)
        assert kernel.syncfs_reaches_disk(here), "tests run on a file system that is known"
    finally:
        os.close(fd)
        os.close(here)
    assert ctypes.sizeof(ctypes.c_long) == 8
