"""Comparing the listings of members: what is a difference, by rule and options."""

import os
from collections.abc import Iterable

import pytest

from syncengine.attributes import Attributes, encode
from syncengine.compare import Comparison
from syncengine.model import CopyWhen, Entry, Kind, Rule, RunOptions

TOP = Entry(b"", Kind.DIRECTORY, 0o755, 0, 0, seen=1)
DIGEST, OTHER = b"1" * 32, b"2" * 32


def f(path: str, **other: int | bytes) -> Entry:
    entry = Entry(os.fsencode(path), Kind.FILE, 0o644, 100, 5, seen=1, digest=DIGEST)
    return entry._replace(**other)  # type: ignore[arg-type]


def d(path: str, **other: int | bytes) -> Entry:
    entry = Entry(os.fsencode(path), Kind.DIRECTORY, 0o755, 100, 0, seen=1)
    return entry._replace(**other)  # type: ignore[arg-type]


def k(path: str, kind: Kind, **other: int | bytes) -> Entry:
    entry = Entry(os.fsencode(path), kind, 0, 100, 0, seen=1)
    return entry._replace(**other)  # type: ignore[arg-type]


def found(
    *listings: Iterable[Entry], options: RunOptions | None = None
) -> list[tuple[str, int, str]]:
    comparison = Comparison([[TOP, *entries] for entries in listings], options or RunOptions())
    return [(os.fsdecode(one.path), one.member, one.what) for one in comparison]


def test_equal_listings_have_no_differences_and_files_are_counted_once() -> None:
    both = [d("a"), f("a/b"), k("l", Kind.SYMLINK, link=b"to"), f("z")]
    comparison = Comparison([[TOP, *both]] * 3, RunOptions())
    assert list(comparison) == []
    assert comparison.files == 2


def test_every_kind_of_difference_has_a_name() -> None:
    owned = encode(Attributes(uid=1_000, user=b"u", gid=0, group=b"root", xattrs=()))
    tagged = encode(
        Attributes(uid=1_001, user=b"v", gid=0, group=b"root", xattrs=((b"user.x", b"1"),))
    )
    ours = [
        *(f("content"), f("gone"), f("kind"), k("link", Kind.SYMLINK, link=b"a"), f("mode")),
        *(f("owner", attributes=owned), f("size"), f("time"), f("unread", digest=b"")),
        k("zdev", Kind.BLOCK_DEVICE, device=1),
    ]
    theirs = [
        *(f("content", digest=OTHER), f("extra"), d("kind"), f("kind/below")),
        *(k("link", Kind.SYMLINK, link=b"b"), f("mode", mode=0o600), f("owner", attributes=tagged)),
        *(f("size", size=6, mtime_ns=101), f("time", mtime_ns=101), f("unread")),
        k("zdev", Kind.BLOCK_DEVICE, device=2),
    ]
    assert found(ours, theirs) == [
        ("content", 1, "content"),
        ("extra", 1, "extra"),
        ("gone", 1, "missing"),
        ("kind", 1, "kind"),
        ("kind/below", 1, "extra"),
        ("link", 1, "link"),
        ("mode", 1, "mode"),
        ("owner", 1, "owner, user.x"),
        ("size", 1, "content, mtime"),
        ("time", 1, "mtime"),
        ("unread", 1, "unread"),
        ("zdev", 1, "device"),
    ]


def test_options_say_which_metadata_count() -> None:
    ours = [f("f", mode=0o6755), k("l", Kind.SYMLINK, link=b"x")]
    assert found([d("d")], [d("d", mtime_ns=7)]) == [], "what is left alone changes these times"
    theirs = [f("f", mode=0o755, mtime_ns=7), k("l", Kind.SYMLINK, link=b"x", mtime_ns=8)]
    assert found(ours, theirs) == [("f", 1, "mtime"), ("l", 1, "mtime")]
    assert found(ours, theirs, options=RunOptions(keep_times=False)) == []
    both = RunOptions(keep_times=False, keep_setuid=True)
    assert found(ours, theirs, options=both) == [("f", 1, "mode")]
    assert found(theirs, ours, options=RunOptions(keep_times=False)) == [("f", 1, "mode")]
    sync = RunOptions(rule=Rule.SYNC, keep_times=False)
    assert found(ours, theirs, options=sync) == []
    no_mode = RunOptions(keep_times=False, keep_setuid=True, keep_mode=False)
    assert found(ours, theirs, options=no_mode) == []


def test_what_is_left_alone_at_any_member_is_left_out_with_all_below() -> None:
    ours = [d("a"), f("a/x"), k("b", Kind.EXCLUDED), f("b-"), k("c", Kind.SPECIAL)]
    theirs = [k("a", Kind.EXCLUDED), d("b"), f("b/y"), f("b-", digest=OTHER), f("c")]
    assert found(ours, theirs) == [("b-", 1, "content")]


@pytest.mark.parametrize("rule", [Rule.COPY, Rule.MOVE])
def test_targets_of_copy_and_move_may_have_more(rule: Rule) -> None:
    options = RunOptions(rule=rule)
    ours = [d("a"), f("a/x")]
    theirs = [d("a", mtime_ns=7), f("a/x", digest=OTHER), f("a/y"), d("b"), f("b/z")]
    assert found(ours, theirs, options=options) == [("a/x", 1, "content")]
    assert found(theirs, ours, options=options) == [
        ("a/x", 1, "content"),
        ("a/y", 1, "missing"),
        ("b", 1, "missing"),
        ("b/z", 1, "missing"),
    ]


def test_copy_when_newer_promises_nothing_of_younger_targets() -> None:
    options = RunOptions(rule=Rule.COPY, copy_when=CopyWhen.NEWER)
    assert found([f("f")], [f("f", mtime_ns=101, digest=OTHER, size=9)], options=options) == []
    assert found([f("f")], [f("f", digest=OTHER)], options=options) == [("f", 1, "content")]
    older = [f("f", mtime_ns=99, digest=OTHER)]
    assert found([f("f")], older, options=options) == [("f", 1, "content, mtime")]


def test_members_of_sync_are_compared_with_the_first_that_has_it() -> None:
    options = RunOptions(rule=Rule.SYNC)
    listings = ([f("a"), f("b")], [f("a", digest=OTHER), f("c")], [f("a"), f("b"), f("c", size=6)])
    assert found(*listings, options=options) == [
        ("a", 1, "content"),
        ("b", 1, "missing"),
        ("c", 0, "missing"),
        ("c", 2, "content"),
    ]
