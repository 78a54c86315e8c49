"""Hard links, special files, refused symlinks, read-only directories, immutable files."""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncengine import frames as wire
from syncengine.changes import WriteFile
from syncengine.details import leads_out
from syncengine.errors import MalformedFrame
from syncengine.model import Kind, Often, RunOptions, Symlinks, What
from syncengine.phases import Plan
from syncengine.sender import SendResult
from syncengine.tree import Tree
from tests.engine.test_attributes import FULL, check
from tests.engine.test_hostile_sender import Attack, seen
from tests.engine.trees import FAST, T0, Pair, grow, picture, trashed


@pytest.fixture
def full(pair: Pair) -> Pair:
    pair.options = FULL
    return pair


def groups(root: Path) -> set[frozenset[str]]:
    """Which names are one file, of those that have several."""
    found: dict[int, set[str]] = {}
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink() and ".baton" not in str(path):
            found.setdefault(path.lstat().st_ino, set()).add(str(path.relative_to(root)))
    return {frozenset(names) for names in found.values() if len(names) > 1}


# Hard links


def link(root: Path, name: str, *others: str) -> None:
    for other in others:
        (root / other).parent.mkdir(parents=True, exist_ok=True)
        (root / other).unlink(missing_ok=True)
        os.link(root / name, root / other)


def test_hard_links_arrive_as_links_with_one_content(full: Pair) -> None:
    grow(full.source, {"a": b"x" * 1000, "big": b"y" * 300_000, "single": b"s"})
    link(full.source, "a", "b", "new/deep/c", "aa")
    link(full.source, "big", "new/big2")
    result = full.run()
    assert result.problems == []
    assert result.counts.files_copied == 3
    assert result.counts.bytes_copied == 301_001
    assert groups(full.target) == groups(full.source) != set()
    check(full)


def test_links_follow_what_becomes_of_them(full: Pair) -> None:
    grow(full.source, {"a": b"one", "b": b"second", "c": b"third one"})
    link(full.source, "a", "a2", "a3")
    full.run()
    # A name leaves a group, another joins one; a new content for all names; a lone file joins.
    link(full.source, "b", "a2")
    link(full.source, "c", "c2")
    (full.source / "a").write_bytes(b"changed")
    os.utime(full.source / "a", ns=(T0, T0 + 1))
    os.chmod(full.source / "c", 0o600)
    for _ in range(2):
        result = full.run()
    assert result.problems == []
    assert groups(full.target) == groups(full.source)
    check(full)
    (full.source / "a3").unlink()
    (full.source / "c").unlink()
    full.run()
    check(full)
    assert full.run().counts == type(result.counts)(bytes_sent=full.run().counts.bytes_sent)


def test_what_is_linked_only_at_the_target_is_parted(full: Pair) -> None:
    grow(full.source, {"a": b"same", "b": b"same"})
    full.run()
    link(full.target, "a", "b")
    os.utime(full.target, ns=(T0, T0))
    full.run()
    assert groups(full.target) == set()
    check(full)


def test_links_into_what_makes_way(full: Pair) -> None:
    grow(full.source, {"a": b"content", "z": b"other"})
    link(full.source, "a", "was-dir", "m")
    grow(full.target, {"was-dir/in": b"kept", "a/in": b"kept too"})
    for _ in range(2):
        result = full.run()
    assert result.problems == []
    assert groups(full.target) == {frozenset({"a", "was-dir", "m"})}
    check(full)
    assert set(trashed(full.target).values()) == {b"kept", b"kept too"}


def test_links_wait_for_a_file_that_is_put_off(full: Pair) -> None:
    grow(full.source, {"a": b"x"})
    full.run()
    link(full.source, "a", "b")
    grow(full.source, {"a": b"second"})
    full.run(before_push=lambda: grow(full.source, {"a": b"edited in the middle"}))
    assert (full.target / "b").read_bytes() == b"edited in the middle"
    assert groups(full.target) == {frozenset({"a", "b"})}
    check(full)


@pytest.mark.parametrize("delta", [Often.ON, Often.OFF])
def test_links_wait_for_a_large_file_that_is_asked_about(full: Pair, delta: Often) -> None:
    full.options = replace(FULL, delta=delta)
    content = os.urandom(20 << 20)
    grow(full.source, {"a": content})
    full.run()
    link(full.source, "a", "b", "d/c")
    grow(full.source, {"a": content[: 10 << 20] + b"new" + content[10 << 20 :]}, T0 + 1)
    result = full.run()
    assert (result.problems, result.retry) == ([], [])
    assert groups(full.target) == {frozenset({"a", "b", "d/c"})}
    check(full)


def test_without_the_option_every_name_is_a_file(pair: Pair) -> None:
    grow(pair.source, {"a": b"x"})
    link(pair.source, "a", "b")
    assert pair.run().counts.files_copied == 2
    assert groups(pair.target) == set()
    assert pair.run().counts.files_copied == 0


@pytest.mark.parametrize("to", [b"ln", b"d", b"ln/sentinel", b"missing", b"fifo"])
def test_i14_a10_only_files_of_the_tree_are_linked(tmp_path: Path, to: bytes) -> None:
    outside = tmp_path / "outside"
    grow(outside, {"sentinel": b"secret"})
    root = tmp_path / "root"
    grow(root, {"d/a": b"x", "ln": "../outside"})
    os.mkfifo(root / "fifo")
    with Attack(root) as attack:
        replies = attack.feed(
            wire.Begin(2), wire.Enter(b""), wire.Link(b"new", 0, to), wire.Finish()
        )
    assert any(isinstance(r, wire.Failed) for r in replies)
    assert not (root / "new").exists()
    assert (outside / "sentinel").lstat().st_nlink == 1


def test_i6_a_link_does_not_replace_what_changed(tmp_path: Path) -> None:
    grow(tmp_path / "root", {"a": b"x", "b": b"mine"})
    with Attack(tmp_path / "root") as attack:
        replies = attack.feed(
            wire.Begin(2),
            wire.Enter(b""),
            wire.Link(b"b", 12_345, b"a"),
            wire.Link(b"b", 0, b"a"),
            wire.Finish(),
        )
    assert sum(isinstance(r, wire.Failed) for r in replies) == 2
    assert (tmp_path / "root/b").read_bytes() == b"mine"


# Special files


def test_special_files_travel_when_asked_for(full: Pair) -> None:
    grow(full.source, {"d/file": b"x"})
    os.mkfifo(full.source / "pipe", 0o640)
    os.mkfifo(full.source / "d/pipe", 0o600)
    os.mknod(full.source / "sock", stat.S_IFSOCK | 0o755)
    if os.geteuid() == 0:
        os.mknod(full.source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(full.source / "disk", stat.S_IFBLK | 0o660, os.makedev(7, 250))
    for name in ("pipe", "d/pipe", "sock"):
        os.utime(full.source / name, ns=(T0, T0 + 3))
    for name in ("null", "disk"):
        if (full.source / name).exists():
            os.utime(full.source / name, ns=(T0, T0 + 3))
    result = full.run()
    assert result.problems == []
    assert result.counts.files_copied == 1
    check(full)
    os.chmod(full.source / "pipe", 0o600)
    (full.source / "sock").unlink()
    os.mkfifo(full.source / "sock")
    result = full.run()
    assert result.problems == []
    assert result.counts.files_updated >= 1
    check(full)
    (full.source / "pipe").unlink()
    grow(full.source, {"pipe": b"a file now"})
    full.run()
    check(full)
    (full.source / "pipe").unlink()
    full.run()
    check(full)


def test_i14_a11_no_special_file_arrives_unasked(tmp_path: Path) -> None:
    grow(tmp_path / "root", {"a": b"x"})
    for kind in (Kind.FIFO, Kind.SOCKET, Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE):
        record = wire.Special(b"x", 0, kind, 0o666, 0, os.makedev(1, 1))
        with Attack(tmp_path / "root", FAST) as attack, pytest.raises(MalformedFrame):
            attack.feed(wire.Begin(2), wire.Enter(b""), record)
        touch = wire.Metadata(b"a", 1, kind, 0o777, 0)
        with Attack(tmp_path / "root", FAST) as attack, pytest.raises(MalformedFrame):
            attack.feed(wire.Begin(2), wire.Enter(b""), touch)
    keeps = replace(FAST, keep_devices=True)
    for kind in (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.SPECIAL, Kind.EXCLUDED):
        with Attack(tmp_path / "root", keeps) as attack, pytest.raises(MalformedFrame):
            attack.feed(wire.Begin(2), wire.Enter(b""), wire.Special(b"x", 0, kind, 0, 0, 0))
    assert os.listdir(tmp_path / "root") == ["a"]


@pytest.mark.timeout(90)
def test_i14_a11_a_fifo_in_the_way_hangs_nobody(pair: Pair) -> None:
    """A file becomes a FIFO under the source's and under the target's hands."""
    grow(pair.source, {"a": b"x", "b": b"y" * 200_000})
    grow(pair.target, {"a": b"old", "b": b"old"})
    os.chmod(pair.source / "a", 0o600)

    def swap() -> None:
        for root in (pair.source, pair.target):
            for name in ("a", "b"):
                (root / name).unlink()
                os.mkfifo(root / name)

    result = pair.run(before_push=swap)
    assert {p.what for p in result.problems} <= {What.UNSTABLE, What.UNREADABLE}
    assert stat.S_ISFIFO((pair.target / "a").lstat().st_mode)


# Symlinks


@pytest.mark.parametrize(
    ("path", "target", "out"),
    [
        (b"l", b"a", False),
        (b"l", b"./a/b", False),
        (b"l", b"..", True),
        (b"l", b"/etc", True),
        (b"d/l", b"..", False),
        (b"d/l", b"../..", True),
        (b"d/e/l", b"../../x", False),
        (b"d/l", b"../x/../../y", True),
        (b"d/l", b"x/..", True),
        (b"d/l", b".././../x", True),
        (b"d/l", b"..//x", False),
    ],
)
def test_a9_which_symlinks_lead_out(path: bytes, target: bytes, out: bool) -> None:
    assert leads_out(path, target) is out


@given(
    st.dictionaries(
        st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=3).map(b"/".join),
        st.lists(st.sampled_from([b"a", b"b", b"..", b".", b""]), min_size=1, max_size=5).map(
            b"/".join
        ),
        max_size=6,
    )
)
def test_a9_no_chain_of_links_that_pass_gets_out(links: dict[bytes, bytes]) -> None:
    """Every link is resolved as a kernel would, in a tree where every other name is a directory."""
    passed = {path: to for path, to in links.items() if to and not leads_out(path, to)}
    # Below a symlink nothing is ever put.
    passed = {
        path: to
        for path, to in passed.items()
        if not any(path.startswith(other + b"/") for other in passed)
    }
    for path in passed:
        at: list[bytes] = []
        left = path.split(b"/")
        for _ in range(100):
            if not left:
                break
            name = left.pop(0)
            if name in {b"", b"."}:
                continue
            if name == b"..":
                assert at, f"{path!r} leads out by {passed}"
                at.pop()
                continue
            to = passed.get(b"/".join([*at, name]))
            if to is None:
                at.append(name)
            else:
                left = to.split(b"/") + left


def test_symlinks_that_lead_out_are_refused_and_named(pair: Pair) -> None:
    pair.options = RunOptions(symlinks=Symlinks.INSIDE)
    spec: dict[str, bytes | str | None] = {"in": "d/x", "d/x": b"x", "d/up": "../in"}
    grow(pair.source, spec | {"abs": "/etc/passwd", "d/out": "../../x", "changed": "/out"})
    grow(pair.target, {"changed": "in", "extra": "/etc"})
    os.utime(pair.source / "d", ns=(T0, T0))
    result = pair.run()
    assert result.problems == []
    assert {p.path for p in pair.problems} == {b"abs", b"d/out", b"changed"}
    assert {p.what for p in pair.problems} == {What.SKIPPED}
    there = {path for path, what in picture(pair.target).items() if what[0] == "link"}
    assert there == {b"in", b"d/up", b"changed"}
    assert os.readlink(pair.target / "changed") == "in", "left alone"


def test_i14_a9_a_sender_cannot_bypass_it(tmp_path: Path) -> None:
    inside = replace(FAST, symlinks=Symlinks.INSIDE)
    grow(tmp_path / "root", {"d/a": b"x"})
    for parent, to in ((b"", b"/etc"), (b"d", b"../.."), (b"d", b"a/../../..")):
        with Attack(tmp_path / "root", inside) as attack, pytest.raises(MalformedFrame):
            attack.feed(wire.Begin(2), wire.Enter(parent), wire.Symlink(b"l", 0, to, 0))


# Keeping what is displaced


@pytest.mark.parametrize("size", [10, 300_000])
def test_i7_a_losing_version_gets_its_conflict_name(tmp_path: Path, size: int) -> None:
    root = tmp_path / "root"
    grow(root, {"d/a": b"loses"})
    content = b"w" * size
    from blake3 import blake3

    digest = blake3(content).digest()
    mark = seen(root / "d/a")
    if size < 1_000:
        records: list[wire.Record] = [
            wire.SmallFile(b"a", mark, 0o644, T0, digest, memoryview(content))
        ]
    else:
        records = [
            wire.OpenFile(b"a", mark, size),
            wire.Data(memoryview(content)),
            wire.CloseFile(0o644, T0, digest),
        ]
    with Attack(root) as attack:
        replies = attack.feed(
            wire.Begin(2), wire.Enter(b"d"), wire.Keep(b"d/a.conflict"), *records, wire.Finish()
        )
    assert not any(isinstance(r, wire.Failed) for r in replies)
    assert (root / "d/a").read_bytes() == content
    assert (root / "d/a.conflict").read_bytes() == b"loses"


def test_i7_what_is_kept_never_takes_another_name(tmp_path: Path) -> None:
    root = tmp_path / "root"
    grow(root, {"a": b"loses", "taken": b"mine"})
    with Attack(root) as attack:
        replies = attack.feed(
            wire.Begin(2),
            wire.Enter(b""),
            wire.Keep(b"taken"),
            wire.Symlink(b"a", seen(root / "a"), b"to", T0),
            wire.Finish(),
        )
    assert any(isinstance(r, wire.Failed) for r in replies)
    assert (root / "a").read_bytes() == b"loses"
    assert (root / "taken").read_bytes() == b"mine"


@pytest.mark.parametrize("keep", [b"../x", b"d/x", b"", b".baton", b"/etc/x", b".baton~x"])
def test_i14_what_is_kept_stays_in_its_directory(tmp_path: Path, keep: bytes) -> None:
    grow(tmp_path / "root", {"a": b"loses", "d/b": b"x"})
    with Attack(tmp_path / "root") as attack, pytest.raises(MalformedFrame):
        attack.feed(wire.Begin(2), wire.Enter(b""), wire.Keep(keep))


@pytest.mark.parametrize(
    "record",
    [
        wire.Move(b"a", b"a/b", Kind.FILE, 1),
        wire.Move(b"a/b", b"a", Kind.FILE, 1),
        wire.Move(b"", b"x", Kind.DIRECTORY, 1),
        wire.Move(b"a", b"", Kind.FILE, 1),
        wire.Move(b"a", b"../x", Kind.FILE, 1),
        wire.Move(b"../a", b"x", Kind.FILE, 1),
        wire.Move(b".baton", b"x", Kind.DIRECTORY, 1),
        wire.Move(b"a", b".baton/x", Kind.FILE, 1),
        wire.Move(b"a", b"x", Kind.FILE, 0),
        wire.Move(b"a", b"x", Kind.SPECIAL, 1),
        wire.Move(b"a", b"x", Kind.FIFO, 1),
    ],
)
def test_i14_no_rename_leads_anywhere_else(tmp_path: Path, record: wire.Move) -> None:
    grow(tmp_path / "root", {"a": b"x"})
    with Attack(tmp_path / "root") as attack, pytest.raises(MalformedFrame):
        attack.feed(wire.Begin(0), record)
    with Attack(tmp_path / "root") as attack, pytest.raises(MalformedFrame):
        attack.feed(wire.Begin(2), wire.Move(b"a", b"b", Kind.FILE, 1))


def test_i14_a3_no_rename_goes_through_a_symlink(tmp_path: Path) -> None:
    grow(tmp_path / "outside", {"d/x": b"theirs"})
    grow(tmp_path / "root", {"a": b"x", "ln": "../outside"})
    before = picture(tmp_path / "outside")
    with Attack(tmp_path / "root") as attack:
        replies = attack.feed(
            wire.Begin(0),
            wire.Move(b"a", b"ln/a", Kind.FILE, seen(tmp_path / "root/a")),
            wire.Move(b"a", b"ln/new/a", Kind.FILE, seen(tmp_path / "root/a")),
            wire.Move(b"ln/d", b"d", Kind.DIRECTORY, seen(tmp_path / "outside/d")),
            wire.Finish(),
        )
    assert sum(isinstance(r, wire.Failed) for r in replies) == 3
    assert picture(tmp_path / "outside") == before


# What cannot be changed


@contextmanager
def pinned(flag: str, *paths: Path) -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("chattr") is None:
        pytest.skip("immutable files need root, and e2fsprogs")
    done = [
        p for p in paths if not subprocess.run(["chattr", f"+{flag}", p], check=False).returncode
    ]
    if len(done) < len(paths):
        pytest.skip("this file system has no such flag")
    try:
        yield
    finally:
        for path in paths:
            subprocess.run(["chattr", f"-{flag}", path], check=True)


@pytest.mark.parametrize("flag", ["i", "a"])
def test_immutable_files_are_named_and_the_rest_is_done(pair: Pair, flag: str) -> None:
    spec: dict[str, bytes | str | None] = {"pinned": b"1", "touched": b"2", "d/in": b"3"}
    grow(pair.source, spec | {"other": b"4"})
    pair.run()
    grow(pair.source, {"pinned": b"one", "other": b"four", "d/new": b"5"}, T0 + 1)
    os.chmod(pair.source / "touched", 0o600)
    (pair.target / "extra").write_bytes(b"x")
    with pinned(flag, *(pair.target / name for name in ("pinned", "touched", "extra"))):
        result = pair.run()
    named = {p.path: (p.what, p.detail) for p in result.problems if p.path}
    assert set(named) >= {b"pinned", b"touched"}
    assert {what for what, _ in named.values()} == {What.IMMUTABLE}
    assert all(f"chattr -{flag}" in detail for _, detail in named.values())
    assert (pair.target / "other").read_bytes() == b"four"
    assert (pair.target / "d/new").read_bytes() == b"5"
    assert (pair.target / "extra").exists()
    pair.run()
    pair.check_equal()


def test_an_immutable_directory_is_named(pair: Pair) -> None:
    grow(pair.source, {"d/in": b"3"})
    pair.run()
    grow(pair.source, {"d/new": b"n", "x": b"y"}, T0 + 1)
    with pinned("i", pair.target / "d"):
        result = pair.run()
    named = {p.path: p.what for p in result.problems}
    assert named[b"d/new"] is What.IMMUTABLE
    assert (pair.target / "x").read_bytes() == b"y"


def test_read_only_directories_are_filled_and_read_only_again(pair: Pair) -> None:
    grow(pair.source, {"d/e/in": b"1", "d/x": b"2"})
    os.chmod(pair.source / "d/e", 0o555)
    os.chmod(pair.source / "d", 0o500)
    pair.run()
    pair.check_equal()
    for name in ("d", "d/e"):
        os.chmod(pair.source / name, 0o755)
    grow(pair.source, {"d/e/more": b"3"}, T0 + 1)
    os.chmod(pair.source / "d/e", 0o555)
    pair.run()
    pair.check_equal()


# What a run itself made is read by size and time, and from another path where the plan says so


def pushed(pair: Pair, *changes: WriteFile) -> SendResult:
    with (
        Tree.open(os.fsencode(pair.source), read_only=True) as source,
        Tree.open(os.fsencode(pair.target)) as target,
        Plan(pair.options) as plan,
    ):
        for change in changes:
            plan.changes.append(change)
        plan.seal(is_complete=True)
        return pair.push(source, target, plan)


@pytest.mark.parametrize("size", [10, 300_000])
def test_content_is_read_where_the_plan_says(pair: Pair, size: int) -> None:
    grow(pair.source, {"d/here": b"c" * size})
    change = WriteFile(b"there", size, 0o600, T0, 0, 0, origin=b"d/here")
    result = pushed(pair, change)
    assert result.problems == []
    assert (pair.target / "there").read_bytes() == b"c" * size
    status = (pair.target / "there").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o600, T0)
    assert os.listdir(pair.target) == ["there"]


@pytest.mark.parametrize("size", [10, 300_000])
def test_what_is_not_as_the_plan_says_is_sent_as_it_is(pair: Pair, size: int) -> None:
    """Another time than the run gave it: somebody edited it since."""
    grow(pair.source, {"a": b"c" * size}, T0 + 9)
    result = pushed(pair, WriteFile(b"a", size, 0o600, T0, 0, 0))
    assert result.problems == []
    status = (pair.target / "a").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o644, T0 + 9)
