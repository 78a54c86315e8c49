"""POSIX ACLs between the kernel's form, with numbers, and ours, with names.

The kernel's form is the value of `system.posix_acl_access` and `system.posix_acl_default`: a
version, then entries of tag, permissions and id, ordered by tag and id.
"""

import struct
from collections.abc import Callable

from syncengine.attributes import GROUP, NO_ID, USER, Acl, AclEntry
from syncengine.owners import GROUPS, USERS

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"

_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_UNDEFINED = (1 << 32) - 1

Resolve = Callable[[int, bytes], int]
"""Number and name, as the source has them -> the number here, NO_ID for nobody."""


def from_kernel(value: bytes) -> Acl:
    """Return an ACL with the names that this machine has; raises ValueError for another form."""
    if len(value) < _VERSION.size or _VERSION.unpack_from(value)[0] != 2:
        raise ValueError("an ACL of an unknown version")
    if (len(value) - _VERSION.size) % _ENTRY.size:
        raise ValueError("an ACL that ends in the middle")
    return tuple(
        _named(tag, permissions, number)
        for tag, permissions, number in _ENTRY.iter_unpack(value[_VERSION.size :])
    )


def _named(tag: int, permissions: int, number: int) -> AclEntry:
    if tag == USER:
        return (tag, permissions, number, USERS.name(number))
    if tag == GROUP:
        return (tag, permissions, number, GROUPS.name(number))
    return (tag, permissions, NO_ID, b"")


def to_kernel(acl: Acl, user: Resolve, group: Resolve) -> bytes:
    """Return the kernel's form; entries of whom nobody here is are left out."""
    found: dict[tuple[int, int], int] = {}
    for tag, permissions, number, name in acl:
        there = _UNDEFINED
        if tag in {USER, GROUP}:
            there = user(number, name) if tag == USER else group(number, name)
            if there == NO_ID:
                continue
        # Two names of the source may be one here: then the narrower right holds.
        key = (tag, there)
        found[key] = found.get(key, 7) & permissions
    entries = b"".join(
        _ENTRY.pack(tag, permissions, number)
        for (tag, number), permissions in sorted(found.items())
    )
    return _VERSION.pack(2) + entries
