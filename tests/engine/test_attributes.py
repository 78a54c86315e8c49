"""Owners, extended attributes and ACLs: packed, compared, merged, and carried to real files."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncengine import attribute_reader
from syncengine.attributes import (
    GROUP,
    GROUP_OBJ,
    MASK,
    NO_ID,
    NOBODY,
    OTHER,
    USER,
    USER_OBJ,
    Attributes,
    decode,
    differing,
    encode,
    merge,
    same,
)
from syncengine.errors import MalformedFrame
from syncengine.model import RunOptions, What
from tests.engine.trees import T0, Pair, grow, rsync_differences

FULL = RunOptions(
    keep_owner=True, keep_xattrs=True, keep_acls=True, keep_hardlinks=True, keep_devices=True
)
BASE_ACL = ((USER_OBJ, 6, NO_ID, b""), (GROUP_OBJ, 4, NO_ID, b""), (OTHER, 0, NO_ID, b""))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: needs root")
needs_acl = pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs Debian's acl")


def named(user: bytes, number: int = 1) -> tuple[tuple[int, int, int, bytes], ...]:
    return (
        (USER_OBJ, 6, NO_ID, b""),
        (USER, 4, number, user),
        (GROUP_OBJ, 4, NO_ID, b""),
        (MASK, 4, NO_ID, b""),
        (OTHER, 0, NO_ID, b""),
    )


# Packing, comparing, merging

IDS = st.sampled_from([NO_ID, 0, 1, 1000, 65_534])
XATTRS = st.none() | st.dictionaries(
    st.sampled_from([b"user.a", b"user.b", b"user.\xff"]), st.binary(max_size=9)
).map(lambda d: tuple(sorted(d.items())))
ACLS = st.sampled_from([None, (), BASE_ACL, named(b"alice"), named(b"bob", 2), named(b"", 2)])
ATTRIBUTES = st.builds(
    Attributes,
    IDS,
    st.sampled_from([b"", b"alice", b"root"]),
    IDS,
    st.sampled_from([b"", b"staff"]),
    XATTRS,
    ACLS,
    ACLS,
)


@given(ATTRIBUTES)
def test_attributes_go_there_and_back(attributes: Attributes) -> None:
    packed = encode(attributes)
    assert decode(packed) == attributes
    assert same(packed, packed)
    assert same(packed, b"")
    assert merge(packed, packed, packed, prefer_mine=True) == packed


@given(ATTRIBUTES, ATTRIBUTES)
def test_a_change_on_one_side_is_the_merge(base: Attributes, changed: Attributes) -> None:
    was, now = encode(base), encode(changed)
    for prefer in (True, False):
        assert same(merge(was, now, was, prefer_mine=prefer), now)
        assert same(merge(was, was, now, prefer_mine=prefer), now)


def test_changes_to_different_attributes_merge() -> None:
    base = Attributes(1, b"a", 1, b"g", ((b"user.x", b"1"), (b"user.y", b"1")), (), None)
    mine = Attributes(2, b"b", 1, b"g", ((b"user.x", b"2"), (b"user.y", b"1")), (), None)
    other = Attributes(1, b"a", 3, b"h", ((b"user.x", b"3"), (b"user.z", b"9")), BASE_ACL, None)
    merged = decode(merge(encode(base), encode(mine), encode(other), prefer_mine=True))
    assert merged == Attributes(
        2, b"b", 3, b"h", ((b"user.x", b"2"), (b"user.z", b"9")), BASE_ACL, None
    )
    merged = decode(merge(encode(base), encode(mine), encode(other), prefer_mine=False))
    assert merged.xattrs == ((b"user.x", b"3"), (b"user.z", b"9"))


@pytest.mark.parametrize(
    ("ours", "theirs", "is_same"),
    [
        ((1000, b"alice"), (1001, b"alice"), True),
        ((1000, b"alice"), (1000, b""), True),
        ((1000, b"alice"), (1000, b"bob"), True),  # alice is unknown there: the number
        ((1000, b"alice"), (1001, b"bob"), False),
        ((1000, b""), (1001, b""), False),
        ((1000, b""), (NO_ID, b""), True),
        ((0, b"root"), (0, b"root"), True),
        ((0, b"root"), (65_534, b"nobody"), False),
        ((0, b"admin"), (65_534, b"nobody"), True),
        ((0, b""), (65_534, b""), True),
        ((1000, b"alice"), (0, b"root"), False),
    ],
)
def test_owners_are_compared_by_name_then_by_number(
    ours: tuple[int, bytes], theirs: tuple[int, bytes], is_same: bool
) -> None:
    one, two = encode(Attributes(*ours)), encode(Attributes(*theirs))
    assert differing(one, two) == ([] if is_same else ["owner"])


def test_what_differs_is_named() -> None:
    one = Attributes(1, b"a", 1, b"g", ((b"user.x", b"1"), (b"user.y", b"1")), named(b"alice"), ())
    two = Attributes(2, b"b", 2, b"h", ((b"user.x", b"2"),), (), BASE_ACL)
    assert differing(encode(one), encode(two)) == [
        "owner",
        "group",
        "user.x",
        "user.y",
        "acl",
        "default_acl",
    ]
    other_number = Attributes(acl=named(b"alice", 77))
    assert same(encode(Attributes(acl=named(b"alice", 5))), encode(other_number))


@pytest.mark.parametrize(
    "hostile",
    [
        b"\xc1",
        b"x" * 300_000,
        encode(Attributes(uid=-2)),
        encode(Attributes(gid=(1 << 32) - 1)),
        encode(Attributes(uid=1 << 40)),
        encode(Attributes(user=b"a\0b")),
        encode(Attributes(group=b"n" * 300)),
        encode(Attributes(xattrs=((b"security.capability", b"x"),))),
        encode(Attributes(xattrs=((b"trusted.x", b"x"),))),
        encode(Attributes(xattrs=((b"system.posix_acl_access", b"x"),))),
        encode(Attributes(xattrs=((b"user.b", b"x"), (b"user.a", b"x")))),
        encode(Attributes(xattrs=((b"user.a\0", b"x"),))),
        encode(Attributes(xattrs=((b"user.a", b"v" * 70_000),))),
        encode(Attributes(acl=BASE_ACL[:2])),
        encode(Attributes(acl=(BASE_ACL[1], BASE_ACL[0], BASE_ACL[2]))),
        encode(Attributes(acl=(*BASE_ACL, (OTHER, 7, NO_ID, b"")))),
        encode(Attributes(acl=((USER_OBJ, 9, NO_ID, b""), *BASE_ACL[1:]))),
        encode(Attributes(acl=((USER_OBJ, 7, 5, b""), *BASE_ACL[1:]))),
        encode(Attributes(acl=(BASE_ACL[0], (USER, 7, NO_ID, b""), *BASE_ACL[1:]))),
        encode(Attributes(acl=(*BASE_ACL[:2], (GROUP, 7, 5, b""), BASE_ACL[2]))),
        encode(Attributes(acl=((64, 7, NO_ID, b""), *BASE_ACL))),
    ],
)
def test_i14_a11_hostile_attributes_are_refused(hostile: bytes) -> None:
    with pytest.raises(MalformedFrame):
        decode(hostile)


# Real files


@pytest.fixture
def full(pair: Pair) -> Pair:
    pair.options = FULL
    attribute_reader.forget()
    return pair


def check(pair: Pair) -> None:
    """Equal to rsync's eye, with everything on, and nothing left to do."""
    pair.check_equal()
    assert rsync_differences(pair.source, pair.target, "-HAX") == ""


@needs_root
def test_owners_travel_and_follow_changes(full: Pair) -> None:
    grow(full.source, {"a": b"x", "big": b"y" * 200_000, "d/in": b"z", "l": "to"})
    numbers = {"a": (1, 2), "big": (3, 3), "d": (4, 4), "d/in": (54_321, 54_322), "l": (5, 6)}
    for name, (uid, gid) in numbers.items():
        os.lchown(full.source / name, uid, gid)
    os.chmod(full.source / "a", 0o640)
    assert full.run().problems == []
    check(full)
    for name in numbers:
        os.lchown(full.source / name, 7, 8)
    os.chown(full.source, 9, 9)
    result = full.run()
    assert result.problems == []
    assert result.counts.files_copied == 0
    assert result.counts.files_updated == 6
    check(full)
    full.options = replace(FULL, keep_owner=False)
    os.lchown(full.source / "a", 1, 1)
    assert full.run().counts.files_updated == 0


@needs_root
def test_i14_a12_nobody_becomes_root_by_accident(
    full: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is root's here, a name that nobody has, no name at all."""
    root = pwd.getpwuid(0)
    names = {0: "admin-there", 12_345: "toor"}

    def users(number: int) -> object:
        return (names[number],) if number in names else pwd_getpwuid(number)

    def numbers(name: str) -> object:
        if name == "toor":
            return root
        return pwd_getpwnam(name)

    pwd_getpwuid, pwd_getpwnam = pwd.getpwuid, pwd.getpwnam
    from syncengine.owners import USERS

    USERS.forget()
    monkeypatch.setattr(pwd, "getpwuid", users)
    monkeypatch.setattr(pwd, "getpwnam", numbers)
    grow(full.source, {"of-root": b"x", "of-toor": b"y"})
    os.chown(full.source / "of-toor", 12_345, 0)
    full.run()
    monkeypatch.undo()
    USERS.forget()
    assert (full.target / "of-root").stat().st_uid == NOBODY
    assert (full.target / "of-toor").stat().st_uid == 12_345
    assert (full.target / "of-toor").stat().st_gid == 0


@needs_root
def test_names_decide_and_numbers_only_where_there_is_none(
    full: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from syncengine.owners import USERS

    USERS.forget()
    looked_up = pwd.getpwnam

    def moved(name: str) -> object:
        return (name, "x", 40_000) if name == "games" else looked_up(name)

    monkeypatch.setattr(pwd, "getpwnam", moved)
    games = looked_up("games").pw_uid
    grow(full.source, {"named": b"x", "numbered": b"y"})
    os.chown(full.source / "named", games, 0)
    os.chown(full.source / "numbered", 33_333, 44_444)
    full.run()
    monkeypatch.undo()
    USERS.forget()
    assert (full.target / "named").stat().st_uid == 40_000
    assert (full.target / "numbered").stat().st_uid == 33_333
    assert (full.target / "numbered").stat().st_gid == 44_444


def test_extended_attributes_travel(full: Pair) -> None:
    grow(full.source, {"a": b"x", "ro": b"r", "big": b"y" * 200_000, "d/in": b"z", "bare": b""})
    for name in ("a", "ro", "big", "d", "d/in"):
        os.setxattr(full.source / name, "user.tag", name.encode())
        os.setxattr(full.source / name, b"user.\xff\xfe", b"\0\1\2")
    os.setxattr(full.source, "user.top", b"t")
    os.chmod(full.source / "ro", 0o444)
    assert full.run().problems == []
    check(full)
    os.setxattr(full.source / "a", "user.tag", b"other")
    os.removexattr(full.source / "d", "user.tag")
    os.removexattr(full.source / "ro", b"user.\xff\xfe")
    os.setxattr(full.source / "bare", "user.new", b"")
    os.setxattr(full.target / "big", "user.extra", b"goes away")
    result = full.run()
    assert result.problems == []
    assert result.counts.files_copied == 0
    assert result.counts.files_updated == 5
    check(full)


def test_an_edit_brings_the_attributes_of_the_moment(full: Pair) -> None:
    """What changed between scan and read is read anew, attributes too."""
    grow(full.source, {"a": b"x", "big": b"y" * 200_000})

    def edit() -> None:
        for name in ("a", "big"):
            (full.source / name).write_bytes(b"z" * (5 if name == "a" else 300_000))
            os.setxattr(full.source / name, "user.tag", b"late")

    assert full.run(before_push=edit).problems == []
    assert os.getxattr(full.target / "a", "user.tag") == b"late"
    assert os.getxattr(full.target / "big", "user.tag") == b"late"


def test_only_user_attributes_travel(full: Pair) -> None:
    grow(full.source, {"a": b"x"})
    try:
        os.setxattr(full.source / "a", "trusted.x", b"1")
    except OSError:
        pytest.skip("trusted attributes need root")
    full.run()
    assert os.listxattr(full.target / "a") == []
    os.setxattr(full.target / "a", "trusted.y", b"2")
    os.setxattr(full.source / "a", "user.x", b"1")
    full.run()
    assert sorted(os.listxattr(full.target / "a")) == ["trusted.y", "user.x"]


def setfacl(path: Path, *arguments: str) -> None:
    subprocess.run(["setfacl", *arguments, path], check=True, capture_output=True)


@needs_acl
def test_acls_travel(full: Pair) -> None:
    grow(full.source, {"a": b"x", "big": b"y" * 200_000, "d/in": b"z", "plain": b"p"})
    setfacl(full.source / "a", "-m", "u:games:rw,g:games:r")
    setfacl(full.source / "big", "-m", "u:54321:r")
    setfacl(full.source / "d", "-m", "u:games:rwx,d:u:games:rwx,d:g:games:rx")
    os.utime(full.source / "d", ns=(T0, T0))
    assert full.run().problems == []
    check(full)
    setfacl(full.source / "a", "-b")
    setfacl(full.source / "plain", "-m", "u:games:r")
    setfacl(full.source / "d", "-k")
    os.chmod(full.source / "big", 0o600)
    result = full.run()
    assert result.problems == []
    assert result.counts.files_copied == 0
    check(full)


@needs_acl
def test_what_a_default_acl_would_add_is_taken_away(full: Pair) -> None:
    grow(full.source, {"d/a": b"x", "d/sub/b": b"y", "d/big": b"z" * 200_000})
    (full.target / "d").mkdir()
    setfacl(full.target / "d", "-m", "d:u:games:rwx")
    assert full.run().problems == []
    check(full)
    setfacl(full.source / "d", "-m", "d:u:games:rwx")
    full.run()
    grow(full.source, {"d/later": b"x", "d/new/deep": b"n"})
    full.run()
    check(full)


@needs_acl
def test_acls_stay_at_home_when_the_job_says_so(full: Pair) -> None:
    full.options = replace(FULL, keep_acls=False, keep_xattrs=False)
    grow(full.source, {"a": b"x"})
    setfacl(full.source / "a", "-m", "u:games:rw")
    os.setxattr(full.source / "a", "user.x", b"1")
    full.run()
    assert os.listxattr(full.target / "a") == []
    with full.preview() as plan:
        assert plan.is_empty


def test_a_bare_directory_is_remembered_until_something_changes(
    full: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribute_reader, "_SETTLED_NS", -1_000_000_000)
    grow(full.source, {f"f{n}": b"x" for n in range(5)} | {"d": None})
    full.run()
    looks: list[bytes] = []
    listed = os.listxattr

    def noted(place: bytes | int, **options: bool) -> list[str]:
        if isinstance(place, bytes):
            looks.append(place)
        return listed(place, **options)

    monkeypatch.setattr(os, "listxattr", noted)
    full.run()
    looks.clear()
    full.run()
    assert looks == []
    os.setxattr(full.source / "f3", "user.x", b"1")
    assert full.run().counts.files_updated == 1
    os.setxattr(full.source / "d", "user.x", b"1")
    assert full.run().counts.files_updated == 1
    check(full)


def test_what_changed_just_now_is_not_taken_for_settled(full: Pair) -> None:
    """Within one tick of the clock a ctime shows nothing: such directories are looked at again."""
    grow(full.source, {"a": b"x"})
    full.run()
    full.run()
    assert attribute_reader.remembered() == 0


def refused(code: int) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


def test_file_systems_without_attributes_get_the_files_and_are_named(
    full: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    grow(full.source, {"a": b"x", "plain": b"y"})
    os.setxattr(full.source / "a", "user.x", b"1")
    monkeypatch.setattr(os, "setxattr", refused(errno.EOPNOTSUPP))
    result = full.run()
    assert [(p.path, p.what) for p in result.problems] == [(b"a", What.NOT_KEPT)]
    assert result.counts.files_copied == 2
    assert result.is_complete
