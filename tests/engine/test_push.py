"""A push from end to end, in one process: what arrives, what is counted, what is left alone."""

# Bytes, descriptors and bare system calls are what is tested.

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from syncengine.model import Compare, RunOptions, Safety, What
from syncengine.scope import Scope
from syncengine.tree import Tree
from tests.engine.trees import FAST, T0, Pair, Spec, grow, picture, temporaries, trashed

RICH: Spec = {
    "a": b"one",
    "b/c": b"two" * 1000,
    "b/d/e": b"",
    "b/d/f": b"x" * 300_000,
    "b-": b"sorts between b and b/c only for strings",
    "empty": None,
    "deep/er/and/deeper": None,
    "link": "b/c",
    "dangling": "/nowhere/at/all",
    "b/up": "../../..",
    "big": os.urandom(1_500_000),
}


@pytest.mark.parametrize("options", [RunOptions(), FAST], ids=["strict", "fast"])
def test_a_first_run_makes_the_target_equal_and_a_second_does_nothing(
    pair: Pair, options: RunOptions
) -> None:
    pair.options = options
    grow(pair.source, RICH)
    result = pair.run(frame_bytes=64 * 1024)
    files = [content for content in RICH.values() if isinstance(content, bytes)]
    assert result.is_complete
    assert result.problems == []
    assert result.counts.files_copied == len(files)
    assert result.counts.bytes_copied == sum(map(len, files))
    pair.check_equal()
    again = pair.run()
    assert again.counts.files_copied == again.counts.files_updated == 0
    assert again.is_complete


@pytest.mark.parametrize("frame_bytes", [1, 1_100, 5_000, 131_072, 131_100, 40_000_000])
def test_frames_of_any_size_carry_files_of_any_size(pair: Pair, frame_bytes: int) -> None:
    pair.options = FAST
    sizes = [0, 1, 500, 1_000, 131_071, 131_072, 131_073, 400_000, 131_072 - 90, 90, 131_500]
    grow(pair.source, {f"d{n}/{n}-{size}": b"x" * size for n, size in enumerate(sizes)})
    grow(pair.source, {f"f{n}": b"y" * (n * 9_973) for n in range(30)})
    assert pair.run(frame_bytes=frame_bytes).problems == []
    pair.check_equal()


def test_everything_that_can_differ_is_made_equal(pair: Pair) -> None:
    grow(pair.source, RICH)
    pair.run()
    grow(pair.target, {"b/extra": b"gone soon", "extra/deep/er": b"too", "link2": "x"})
    (pair.source / "a").write_bytes(b"another one")
    os.chmod(pair.source / "b/c", 0o600)
    os.utime(pair.source / "b/d/e", ns=(T0, T0 + 5))
    (pair.source / "link").unlink()
    (pair.source / "link").symlink_to("elsewhere")
    os.utime(pair.source / "dangling", ns=(T0, T0 + 1), follow_symlinks=False)
    os.chmod(pair.source / "empty", 0o500)
    result = pair.run()
    assert result.problems == []
    assert result.is_complete
    pair.check_equal()
    assert trashed(pair.target) == {
        "b/extra": b"gone soon",
        "extra/deep/er": b"too",
        "link2": b"->",
    }
    # b/extra, extra, extra/deep, extra/deep/er, link2
    assert result.counts.files_deleted == 5
    assert result.counts.files_copied == 2


def test_kinds_change_into_each_other(pair: Pair) -> None:
    grow(
        pair.source,
        {"f2d/x": b"1", "d2f": b"2", "l2f": b"3", "f2l": "to", "d2l": "to", "l2d/y": b"4"},
    )
    grow(
        pair.target,
        {"f2d": b"old", "d2f/in/side": b"old", "l2f": "old", "f2l": b"old", "d2l/z": b"old"},
    )
    (pair.target / "l2d").symlink_to("old")
    result = pair.run()
    assert result.problems == []
    pair.check_equal()
    assert trashed(pair.target) == {
        "f2d": b"old",
        "d2f/in/side": b"old",
        "d2l/z": b"old",
        "l2d": b"->",
    }


def test_metadata_alone_travels_without_content(pair: Pair) -> None:
    pair.options = replace(pair.options, compare=Compare.CHECKSUM)
    pair.digests = True
    grow(pair.source, {"a": b"x" * 50_000, "b": b"same"})
    pair.run()
    os.chmod(pair.source / "a", 0o604)
    os.utime(pair.source / "b", ns=(T0, T0 + 7))
    result = pair.run()
    assert result.counts.files_copied == 0
    assert result.counts.files_updated == 2
    assert result.counts.bytes_sent < 1_000
    pair.check_equal()


def test_checksums_find_what_size_and_time_hide(pair: Pair) -> None:
    grow(pair.source, {"a": b"right"})
    pair.run()
    (pair.target / "a").write_bytes(b"wrong")
    os.utime(pair.target / "a", ns=(T0, T0))
    os.utime(pair.target, ns=(T0, T0))
    assert pair.run().counts.files_copied == 0
    pair.options = replace(pair.options, compare=Compare.CHECKSUM)
    pair.digests = True
    assert pair.run().counts.files_copied == 1
    pair.check_equal()


def test_without_times_and_modes_a_second_run_still_does_nothing(pair: Pair) -> None:
    pair.options = replace(pair.options, keep_times=False, keep_mode=False)
    grow(pair.source, RICH)
    os.chmod(pair.source / "a", 0o600)
    pair.run()
    assert stat.S_IMODE((pair.target / "a").stat().st_mode) == 0o644
    with pair.preview() as plan:
        assert list(plan) == []
    (pair.source / "a").write_bytes(b"ONE")
    os.utime(pair.source / "a")
    os.chmod(pair.target / "a", 0o640)
    assert pair.run().counts.files_copied == 1
    assert (pair.target / "a").read_bytes() == b"ONE"
    assert stat.S_IMODE((pair.target / "a").stat().st_mode) == 0o640


def test_setuid_bits_travel_only_when_the_job_says_so(pair: Pair) -> None:
    grow(pair.source, {"su": b"#!", "plain": b"x"})
    os.chmod(pair.source / "su", 0o6755)
    os.chmod(pair.source, 0o2775)
    pair.run()
    assert stat.S_IMODE((pair.target / "su").stat().st_mode) == 0o755
    assert stat.S_IMODE(pair.target.stat().st_mode) == 0o2775
    assert [(p.path, p.what) for p in pair.problems] == [(b"su", What.SKIPPED)]
    os.chmod(pair.target / "plain", 0o4644)
    pair.run()
    assert stat.S_IMODE((pair.target / "plain").stat().st_mode) == 0o644
    with pair.preview() as plan:
        assert plan.is_empty


def test_special_files_are_left_alone_and_named(pair: Pair) -> None:
    grow(pair.source, {"a": b"x", "d/file": b"y"})
    os.mkfifo(pair.source / "pipe")
    os.mkfifo(pair.source / "was-dir")
    grow(pair.target, {"old/x": b"extra", "was-dir/keep": b"kept", "d2/x": b""})
    os.mkfifo(pair.target / "old/pipe")
    os.mkfifo(pair.target / "d")
    with pair.preview() as plan:
        named = {(p.path, p.member) for p in plan.problems}
    result = pair.run()
    assert named == {(b"pipe", b"s".decode()), (b"was-dir", "s"), (b"d", "t"), (b"old/pipe", "t")}
    assert result.problems == []
    assert sorted(os.listdir(pair.target)) == [".baton", "a", "d", "old", "was-dir"]
    assert os.listdir(pair.target / "old") == ["pipe"]
    assert (pair.target / "was-dir/keep").read_bytes() == b"kept"
    with pair.preview() as plan:
        assert plan.is_empty


def test_a_directory_with_a_special_file_does_not_make_way(pair: Pair) -> None:
    grow(pair.source, {"x": b"file"})
    grow(pair.target, {"x/y": b"1"})
    os.mkfifo(pair.target / "x/pipe")
    with pair.preview() as plan:
        assert b"x" in {p.path for p in plan.problems}
    pair.run()
    assert os.listdir(pair.target / "x") == ["pipe"]


@pytest.mark.parametrize("mode", [0o400, 0o000, 0o777, 0o666, 0o1777, 0o640])
def test_modes_arrive_exactly_whatever_the_umask(pair: Pair, mode: int) -> None:
    grow(pair.source, {"small": b"x", "big": b"y" * 200_000, "d/in": b"z"})
    for name in ("small", "big", "d"):
        os.chmod(pair.source / name, mode)
    before = os.umask(0o077)
    try:
        pair.run()
    finally:
        os.umask(before)
    for name in ("small", "big", "d"):
        assert stat.S_IMODE((pair.target / name).stat().st_mode) == mode


def test_names_of_any_bytes_and_of_any_length(pair: Pair) -> None:
    base = os.fsencode(pair.source)
    names = [b"\xff\xfe", b"new\nline", b"\x1b[31m", b"back\\slash", b"~", b" ", b"n" * 255]
    names += [bytes([n]) for n in range(1, 256) if n not in b"./"]
    for name in names:
        with open(os.path.join(base, name), "wb") as file:
            file.write(name)
    # Replaced as well: the temporary name carries the name, and must not become too long.
    assert pair.run().counts.files_copied == len(set(names))
    for name in names:
        os.utime(os.path.join(base, name), ns=(T0, T0))
    assert pair.run().counts.files_copied == len(set(names))
    pair.check_equal()


def test_depth_beyond_what_a_path_can_say(pair: Pair) -> None:
    fd = os.open(pair.source, os.O_RDONLY)
    for _ in range(230):
        os.mkdir("d" * 255, dir_fd=fd)
        deeper = os.open("d" * 255, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    with open(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "wb") as file:
        file.write(b"at the bottom")
    os.close(fd)
    result = pair.run()
    assert result.problems == []
    assert result.counts.files_copied == 1
    with pair.preview() as plan:
        assert plan.is_empty
        assert plan.summary.source_entries == plan.summary.target_entries == 231
    # And out again: everything below is extra now.
    source = Path(str(pair.source) + "2")
    source.mkdir()
    result = Pair(source, pair.target, RunOptions(safety=Safety(trash_s=None))).run()
    assert result.counts.files_deleted == 231
    assert os.listdir(pair.target) == []


def test_one_directory_of_very_many_files(pair: Pair) -> None:
    pair.options = FAST
    for number in range(10_000):
        os.close(os.open(pair.source / f"{number}", os.O_WRONLY | os.O_CREAT))
    assert pair.run().counts.files_copied == 10_000
    assert temporaries(pair.target) == []
    assert sorted(os.listdir(pair.target)) == sorted(os.listdir(pair.source))


def test_more_directories_than_descriptors_are_held(pair: Pair) -> None:
    pair.options = FAST
    spec: Spec = {f"d{n}/e{m}/f": b"%d" % n for n in range(100) for m in range(5)}
    grow(pair.source, spec)
    pair.run()
    pair.check_equal()
    for name in spec:
        (pair.source / name).write_bytes(b"changed")
    pair.run()
    pair.check_equal()


def test_plans_in_a_scope_touch_nothing_else(pair: Pair) -> None:
    grow(pair.source, {"d/a": b"1", "d/b": b"2", "e/f": b"3", "g": b"4"})
    pair.run()
    grow(pair.source, {"d/a": b"one", "d/new/x": b"n", "e/f": b"three"}, T0 + 1)
    (pair.source / "d/b").unlink()
    (pair.source / "g").unlink()
    with pair.preview() as plan:
        everything = {change.path for change in plan}
    pair.scope = Scope(deep=[b"d/a", b"d/new", b"d/b"])
    with pair.preview() as plan:
        some = {change.path for change in plan}
    assert some == {b"d/a", b"d/b", b"d/new", b"d/new/x", b"d", b""}
    assert everything - some == {b"e/f", b"e", b"g"}
    assert pair.run().counts.files_copied == 2
    assert (pair.target / "g").exists()
    pair.scope = None
    assert pair.run().counts.files_copied == 1
    pair.check_equal()


def test_replaced_versions_are_kept_when_the_job_says_so(pair: Pair) -> None:
    pair.options = RunOptions(safety=Safety(keep_replaced=True))
    grow(pair.source, {"d/a": b"new", "l": "new"})
    grow(pair.target, {"d/a": b"older", "l": "older"})
    pair.run()
    assert trashed(pair.target) == {"d/a": b"older", "l": b"->"}
    pair.check_equal()


def test_nothing_is_kept_when_there_is_no_trash(pair: Pair) -> None:
    pair.options = RunOptions(safety=Safety(trash_s=None))
    grow(pair.source, {"a": b"new"})
    grow(pair.target, {"a": b"older", "extra/x": b"y"})
    pair.run()
    assert not (pair.target / ".baton").exists()
    pair.check_equal()


def test_the_part_of_a_root_that_is_covered(tmp_path: Path) -> None:
    grow(tmp_path / "source", {"a": b"1"})
    grow(tmp_path / "root", {"other": b"untouched", "in/side/old": b"2"})
    before = picture(tmp_path / "root")
    pair = Pair(tmp_path / "source", tmp_path / "root" / "in" / "side")
    with (
        Tree.open(os.fsencode(pair.source), read_only=True) as source,
        Tree.open(os.fsencode(tmp_path / "root"), b"in/side") as target,
        pair.plan(source, target) as plan,
    ):
        assert pair.push(source, target, plan).is_complete
    assert trashed(tmp_path / "root") == {"in/side/old": b"2"}
    after = picture(tmp_path / "root")
    assert after[b"other"] == before[b"other"]
    assert after[b"."] == before[b"."], "making .baton is no change of the root"
    pair.check_equal()
