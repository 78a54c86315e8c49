"""I2: the order of flushes and renames, and file systems that lack the calls it is made of."""

import errno
import os

# Bytes, descriptors and bare system calls are what is tested.
import msgspec
import pytest

from syncengine import kernel
from syncengine.errors import MalformedFrame
from syncengine.frames import Failed, Full, Published
from syncengine.model import Durability, RunOptions, Safety
from syncengine.sender import Sender
from syncengine.tree import Tree
from tests.engine.trees import T0, Pair, grow, temporaries, trashed


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is called, in its order: write, fsync FILE, fsync DIR, syncfs, rename NAME."""
    seen: list[str] = []
    write, fsync, syncfs, rename = os.write, os.fsync, kernel.syncfs, kernel.renameat2

    def noted_write(fd: int, data: bytes) -> int:
        seen.append("write")
        return write(fd, data)

    def noted_fsync(fd: int) -> None:
        is_directory = os.path.isdir(os.readlink(f"/proc/self/fd/{fd}"))
        seen.append("fsync dir" if is_directory else "fsync file")
        fsync(fd)

    def noted_syncfs(fd: int) -> None:
        seen.append("syncfs")
        syncfs(fd)

    def noted_rename(from_fd: int, source: bytes, to_fd: int, target: bytes, flags: int) -> None:
        seen.append("rename")
        rename(from_fd, source, to_fd, target, flags)

    monkeypatch.setattr(os, "write", noted_write)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr("syncengine.flush.syncfs", noted_syncfs)
    for module in ("places", "trash"):
        monkeypatch.setattr(f"syncengine.{module}.renameat2", noted_rename)
    return seen


def test_i2_few_files_are_flushed_one_by_one_before_and_their_directory_after(
    pair: Pair, calls: list[str]
) -> None:
    grow(pair.source, {"a": b"new", "b": b"new"}, T0 + 1)
    grow(pair.target, {"a": b"old"})
    pair.run()
    assert calls == [
        *["write"] * 2,
        *["fsync file"] * 2,
        *["rename"] * 2,
        "fsync dir",
        "fsync dir",
    ], "the second time for the top's own time"


def test_i2_many_files_share_one_flush(pair: Pair, calls: list[str]) -> None:
    grow(pair.source, {f"d{n}/a": b"new" for n in range(30)})
    pair.run()
    assert calls == [*["write"] * 30, "syncfs", *["rename"] * 30, "syncfs", "syncfs"]


def test_i2_deletes_are_durable_on_both_sides(pair: Pair, calls: list[str]) -> None:
    grow(pair.target, {"d/a": b"old", "k": b"old"})
    grow(pair.source, {"k": b"old"})
    pair.run()
    renamed = calls.index("rename")
    assert calls[renamed:].count("fsync dir") >= 3, "where it was, where it is, and the top"


def test_fast_does_not_flush(pair: Pair, calls: list[str]) -> None:
    pair.options = RunOptions(durability=Durability.FAST, safety=Safety(trash_s=None))
    grow(pair.source, {f"d{n}/a": b"new" for n in range(30)})
    grow(pair.target, {"extra": b"", "d1/a": b"older"})
    pair.run()
    assert not {c for c in calls if "sync" in c}


def test_i2_what_could_not_be_flushed_is_not_acknowledged(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    grow(pair.source, {f"d{n}/a": b"new" for n in range(30)})
    monkeypatch.setattr("syncengine.flush.syncfs", broken)
    result = pair.run()
    assert result.counts.files_copied == 0
    assert len(result.problems) >= 30
    assert temporaries(pair.target) == []
    assert not (pair.target / "d1").exists()


@pytest.fixture(params=["no renameat2", "no renameat2, no links"])
def poor_file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> None:
        raise kernel.Unsupported(errno.EINVAL, "Invalid argument")

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for module in ("places", "trash"):
        monkeypatch.setattr(f"syncengine.{module}.renameat2", lacking)
    if "links" in request.param:
        monkeypatch.setattr(os, "link", no_links)


@pytest.mark.usefixtures("poor_file_system")
def test_file_systems_without_the_newer_renames_are_served_too(pair: Pair) -> None:
    grow(pair.source, {"a": b"new", "d/b": b"new", "e": b"new", "l": "to"}, T0 + 1)
    grow(pair.target, {"a": b"old", "x/y": b"extra", "e/f": b"in the way", "l": "old"})
    assert pair.run().problems == []
    pair.check_equal()
    for content in (b"again", b"and again"):
        grow(pair.target, {"x/y": content})
        pair.run()
    assert trashed(pair.target) == {
        "e/f": b"in the way",
        "x/y": b"extra",
        "x/y~2": b"again",
        "x/y~3": b"and again",
    }


@pytest.mark.usefixtures("poor_file_system")
def test_i6_what_appears_is_not_overwritten_there_either(pair: Pair) -> None:
    grow(pair.source, {"new": b"x", "dir/in": b"y"})

    def appear() -> None:
        (pair.target / "new").write_bytes(b"mine")
        (pair.target / "dir").mkdir()

    result = pair.run(before_push=appear)
    assert sorted(result.retry) == [b"dir", b"new"]
    assert (pair.target / "new").read_bytes() == b"mine"
    assert temporaries(pair.target) == []


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x91\x92\x63\x00",
        b"\xdd\xff\xff\xff\xff",
        msgspec.msgpack.encode([Published(-1, 0, 0, 0)]),
        msgspec.msgpack.encode([Published(0, 1 << 63, 0, 0)]),
        msgspec.msgpack.encode([Full(b"", -1)]),
        msgspec.msgpack.encode([Failed(b"a", "no such problem", "")]),
        msgspec.msgpack.encode([Failed(b"../x", "not-written", "")]),
    ],
)
def test_i14_a_sender_believes_no_nonsense(pair: Pair, frame: bytes) -> None:
    with (
        Tree.open(os.fsencode(pair.source), read_only=True) as source,
        Tree.open(os.fsencode(pair.target), read_only=True) as target,
        pair.plan(source, target) as plan,
    ):
        sender = Sender(source, plan, member="s")
        with pytest.raises(MalformedFrame):
            sender.on_reply(frame)
        assert not sender.result().is_complete


def test_the_calls_are_noted_at_all(calls: list[str]) -> None:
    """A fixture that saw nothing would let every test above pass."""
    read_end, write_end = os.pipe()
    os.write(write_end, b"x")
    os.close(read_end)
    os.close(write_end)
    assert calls == ["write"]
