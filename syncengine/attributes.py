"""What an entry has beside mode and times: owner, `user.` extended attributes, POSIX ACLs. Pure.

Packed, they travel as `Entry.attributes`. A part that is None was not asked for, does not exist for
this kind of entry, or cannot be held by the file system that was looked at: it is equal to anything.
Owners go by name, with the number for where the name is unknown; so do those in ACLs.
"""

from collections.abc import Iterable
from functools import lru_cache

import msgspec

from syncengine.errors import MalformedFrame

MAX_PACKED = 256 * 1024
"""What the packed attributes of one entry come to at most; ext4 keeps far less."""

NOBODY = 65_534
"""Who gets what would be root's by accident: the kernel's own overflow id."""

NO_ID = -1
"""As an id: not known, or not to be touched."""

_MAX_ID = (1 << 32) - 2
_MAX_NAME = 255
_MAX_XATTR_VALUE = 65_536
_USER_PREFIX = b"user."
_CACHED_BYTES = 1_024

AclEntry = tuple[int, int, int, bytes]
"""Tag, permissions, id and name, as the kernel orders them; id and name where the tag has one."""

Acl = tuple[AclEntry, ...]

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_TAGS = frozenset({USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER})


class Attributes(msgspec.Struct, frozen=True, array_like=True):
    """The attributes of one entry."""

    uid: int = NO_ID
    user: bytes = b""
    """The user's name; empty where the number has none."""
    gid: int = NO_ID
    group: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] | None = None
    """Names with `user.` and values, sorted."""
    acl: Acl | None = None
    """The access ACL; empty where mode says it all."""
    default_acl: Acl | None = None
    """Of directories: what new entries get."""


def encode(attributes: Attributes) -> bytes:
    """Pack attributes, the same ones always into the same bytes."""
    return _encode(attributes)


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Attributes)
_NOTHING = Attributes()


def decode(packed: bytes) -> Attributes:
    """Unpack what a peer sent, empty for nothing known; raises MalformedFrame."""
    if not packed:
        return _NOTHING
    if len(packed) <= _CACHED_BYTES:
        return _decode_cached(packed)
    return _decode(packed)


def _decode(packed: bytes) -> Attributes:
    if len(packed) > MAX_PACKED:
        raise MalformedFrame(f"attributes of {len(packed)} bytes")
    try:
        attributes = _decoder.decode(packed)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise MalformedFrame(f"no attributes: {error}") from error
    _check_owner(attributes.uid, attributes.user)
    _check_owner(attributes.gid, attributes.group)
    if attributes.xattrs is not None:
        _check_xattrs(attributes.xattrs)
    for acl in (attributes.acl, attributes.default_acl):
        if acl:
            _check_acl(acl)
    return attributes


_decode_cached = lru_cache(maxsize=1_024)(_decode)


def _check_owner(number: int, name: bytes) -> None:
    # (uid_t) -1 is no user: to the kernel it means "leave it".
    if not NO_ID <= number <= _MAX_ID or len(name) > _MAX_NAME or b"\0" in name:
        raise MalformedFrame(f"an impossible owner: {number} {name[:300]!r}")


def _check_xattrs(xattrs: Iterable[tuple[bytes, bytes]]) -> None:
    last = b""
    for name, value in xattrs:
        if (
            not name.startswith(_USER_PREFIX)
            or name <= last
            or len(name) > _MAX_NAME
            or b"\0" in name
            or len(value) > _MAX_XATTR_VALUE
        ):
            raise MalformedFrame(f"an impossible extended attribute: {name[:300]!r}")
        last = name


def _check_acl(acl: Acl) -> None:
    tags = [tag for tag, _, _, _ in acl]
    named = any(tag in {USER, GROUP} for tag in tags)
    if (
        not _TAGS.issuperset(tags)
        or tags != sorted(tags)
        or any(tags.count(tag) != 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER))
        or tags.count(MASK) not in ({1} if named else {0, 1})
    ):
        raise MalformedFrame("an impossible ACL")
    for tag, permissions, number, name in acl:
        if not 0 <= permissions <= 7 or (tag in {USER, GROUP}) != (number != NO_ID):
            raise MalformedFrame("an impossible entry of an ACL")
        _check_owner(number, name)


def same(ours: bytes, theirs: bytes) -> bool:
    """Say whether nothing that both sides know differs."""
    return ours == theirs or not differing(ours, theirs)


def differing(ours: bytes, theirs: bytes) -> list[str]:
    """Return what differs: "owner", "group", "acl", "default_acl", or the name of an xattr.

    `theirs` is the side that would be changed. Raises MalformedFrame.
    """
    mine, other = decode(ours), decode(theirs)
    found: list[str] = []
    if not is_same_owner((mine.uid, mine.user), (other.uid, other.user)):
        found.append("owner")
    if not is_same_owner((mine.gid, mine.group), (other.gid, other.group)):
        found.append("group")
    if mine.xattrs is not None and other.xattrs is not None and mine.xattrs != other.xattrs:
        differing_items = set(mine.xattrs) ^ set(other.xattrs)
        found += sorted({name.decode(errors="surrogateescape") for name, _ in differing_items})
    if not _is_same_acl(mine.acl, other.acl):
        found.append("acl")
    if not _is_same_acl(mine.default_acl, other.default_acl):
        found.append("default_acl")
    return found


def is_same_owner(ours: tuple[int, bytes], theirs: tuple[int, bytes]) -> bool:
    """Say whether two owners (number, name) are one: by name, else by number.

    Two names with one number are one owner too: where ours is unknown, the number is what it got.
    And what would have become root's by its bare number is nobody's there.
    """
    (number, name), (their_number, their_name) = ours, theirs
    if NO_ID in {number, their_number}:
        return True
    if name and name == their_name:
        return True
    if number == 0 != their_number:
        return their_number == NOBODY and name != b"root"
    return number == their_number


def _is_same_acl(ours: Acl | None, theirs: Acl | None) -> bool:
    if ours is None or theirs is None or ours == theirs:
        return True
    if len(ours) != len(theirs):
        return False
    return all(
        one[:2] == other[:2] and is_same_owner(one[2:], other[2:])
        for one, other in zip(_by_name(ours), _by_name(theirs), strict=True)
    )


def _by_name(acl: Acl) -> list[AclEntry]:
    """Sort by what is the same on both sides: the kernel's order is by number."""
    return sorted(acl, key=lambda entry: (entry[0], entry[3], entry[2]))


def merge(base: bytes, mine: bytes, other: bytes, *, prefer_mine: bool) -> bytes:
    """Return attributes with the changes that both sides made since `base`, each part by itself.

    A part that both changed, differently, is taken from mine if `prefer_mine`. Raises
    MalformedFrame.
    """
    old, ours, theirs = decode(base), decode(mine), decode(other)
    uid, user = _merge_owner(
        (old.uid, old.user), (ours.uid, ours.user), (theirs.uid, theirs.user), prefer_mine
    )
    gid, group = _merge_owner(
        (old.gid, old.group), (ours.gid, ours.group), (theirs.gid, theirs.group), prefer_mine
    )
    return encode(
        Attributes(
            uid,
            user,
            gid,
            group,
            _merge_xattrs(old.xattrs, ours.xattrs, theirs.xattrs, prefer_mine),
            _merge_acl(old.acl, ours.acl, theirs.acl, prefer_mine),
            _merge_acl(old.default_acl, ours.default_acl, theirs.default_acl, prefer_mine),
        )
    )


def _merge_owner(
    old: tuple[int, bytes],
    ours: tuple[int, bytes],
    theirs: tuple[int, bytes],
    prefer_mine: bool,  # noqa: FBT001 - as everywhere in a merge
) -> tuple[int, bytes]:
    if NO_ID in {ours[0], theirs[0]}:
        return theirs if ours[0] == NO_ID else ours
    if old[0] != NO_ID:
        if is_same_owner(old, ours):
            return theirs
        if is_same_owner(old, theirs):
            return ours
    return ours if prefer_mine else theirs


def _merge_xattrs(
    old: tuple[tuple[bytes, bytes], ...] | None,
    ours: tuple[tuple[bytes, bytes], ...] | None,
    theirs: tuple[tuple[bytes, bytes], ...] | None,
    prefer_mine: bool,  # noqa: FBT001
) -> tuple[tuple[bytes, bytes], ...] | None:
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    before, mine, other = dict(old or ()), dict(ours), dict(theirs)
    merged: dict[bytes, bytes] = {}
    for name in before.keys() | mine.keys() | other.keys():
        was, here, there = before.get(name), mine.get(name), other.get(name)
        if here == was:
            value = there
        elif there == was:
            value = here
        else:
            value = here if prefer_mine else there
        if value is not None:
            merged[name] = value
    return tuple(sorted(merged.items()))


def _merge_acl(
    old: Acl | None,
    ours: Acl | None,
    theirs: Acl | None,
    prefer_mine: bool,  # noqa: FBT001
) -> Acl | None:
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    if old is not None:
        if _is_same_acl(old, ours):
            return theirs
        if _is_same_acl(old, theirs):
            return ours
    return ours if prefer_mine else theirs
