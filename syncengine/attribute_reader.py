"""Reads what entries have beside mode and times, for scans: most files have nothing, cheaply.

One look at a name tells that there is nothing. A directory in which nothing had any attributes is
remembered by the fingerprints of its entries, and while those stay the same, not even that look is
needed: whoever changes an attribute changes the ctime.
"""

import errno
import os
import time

import msgspec

from syncengine.attributes import MAX_PACKED, NO_ID, Acl, Attributes, decode, encode
from syncengine.kernel import can_give_away, own_working_directory
from syncengine.model import Entry, Kind
from syncengine.owners import GROUPS, USERS
from syncengine.posix_acl import ACCESS, DEFAULT, from_kernel
from syncengine.stretches import Item, Stretch

_HARMLESS = frozenset({errno.EOPNOTSUPP, errno.ENOENT, errno.ENOTDIR})
"""There is nothing to read here, or not any more."""

_USER = "user."
_SETTLED_NS = 3_000_000_000
"""What changed later than this before a scan may change again without its ctime showing it."""
_MAX_REMEMBERED = 65_536

_bare: dict[int, int] = {}
"""Directories, as hashes of (device, inode), in which nothing had attributes -> what was there."""

Plain = dict[tuple[int, int], bytes]
"""(uid, gid) -> packed attributes of entries that have nothing but their owner."""


def forget() -> None:
    """Forget which directories were bare."""
    _bare.clear()


def remembered() -> int:
    """Return how many directories are remembered as bare."""
    return len(_bare)


class AttributeReader:
    """Reads attributes of the entries of one tree; for one thread at a time.

    With `applies`, for a target: what could not be given to entries here is not read either.
    """

    def __init__(self, *, owner: bool, xattrs: bool, acls: bool, applies: bool = False) -> None:
        self._owner = owner and (not applies or can_give_away())
        self._xattrs = xattrs
        self._acls = acls
        self._devices: dict[int, tuple[bool, bool]] = {}
        self._plain: dict[tuple[Kind, bool, bool], Plain] = {}
        self._here = (False, False)
        """Whether the file system of the directory at hand keeps xattrs, and ACLs."""
        self._key = 0
        USERS.refresh()
        GROUPS.refresh()

    def enter(self, fd: int, status: os.stat_result, part: bytes = b"") -> None:
        """Turn to a directory, given as its descriptor and status, or to a `part` of it."""
        device = status.st_dev
        known = self._devices.get(device)
        if known is None:
            xattrs = self._xattrs and _keeps(fd, "user.baton")
            known = self._devices[device] = (xattrs, self._acls and _keeps(fd, ACCESS))
        self._here = known
        self._key = hash((device, status.st_ino, *known, part))

    def plain(self, kind: Kind, uid: int, gid: int) -> bytes:
        """Return the attributes of an entry that has nothing but its owner."""
        plain = self._plain.setdefault((kind, *self._here), {})
        packed = plain.get((uid, gid))
        if packed is None:
            packed = plain[uid, gid] = self._pack(kind, uid, gid)
        return packed

    def _pack(self, kind: Kind, uid: int, gid: int) -> bytes:
        keeps_xattrs, keeps_acls = self._here
        owner = (uid, USERS.name(uid), gid, GROUPS.name(gid)) if self._owner else _NO_OWNER
        return encode(
            Attributes(
                *owner,
                () if keeps_xattrs and kind in {Kind.FILE, Kind.DIRECTORY} else None,
                () if keeps_acls and kind is not Kind.SYMLINK else None,
                () if keeps_acls and kind is Kind.DIRECTORY else None,
            )
        )

    def complete(self, fd: int, at: int, children: list[Item], marks: list[int]) -> list[bytes]:
        """Give those that have attributes theirs, among the plain children of a directory.

        `at` is where their names begin in their paths; `marks` are the ctimes of the directories
        among them, which no fingerprint shows, and the latest ctime of all at the end. Returns
        the paths of entries whose attributes cannot be read. Blocks on the disk.
        """
        if self._here == (False, False) or not children:
            return []
        digest = hash((*(_version(child) for child in children), *marks))
        if _bare.get(self._key) == digest:
            return []
        has_own = own_working_directory()
        if has_own:
            os.fchdir(fd)
        try:
            is_bare, failed = self._complete(
                b"" if has_own else b"/proc/self/fd/%d/" % fd, at, children
            )
        finally:
            if has_own:
                os.chdir("/")
        if is_bare and marks[-1] < time.time_ns() - _SETTLED_NS:
            if len(_bare) >= _MAX_REMEMBERED:
                _bare.pop(next(iter(_bare)), None)
            _bare[self._key] = digest
        return failed

    def _complete(self, prefix: bytes, at: int, children: list[Item]) -> tuple[bool, list[bytes]]:
        """Look at every entry; `prefix` goes before its name. Whether nobody had anything."""
        failed: list[bytes] = []
        is_bare = True
        listed, without = os.listxattr, _WITHOUT
        for number, entry in enumerate(children):
            if isinstance(entry, Stretch):
                is_bare &= self._complete_stretch(prefix, entry, failed)
                continue
            if entry[1] in without:
                continue
            try:
                place = prefix + entry[0][at:]
                names = listed(place, follow_symlinks=False)
                if names:
                    packed = self._with(entry.attributes, place, names)
                    if packed is not entry.attributes:
                        children[number] = entry._replace(attributes=packed)
                        is_bare = False
            except OSError as error:
                is_bare = False
                if error.errno not in _HARMLESS:
                    failed.append(entry.path)
        return is_bare, failed

    def _complete_stretch(self, prefix: bytes, stretch: Stretch, failed: list[bytes]) -> bool:
        """Look at every file of a stretch; whether none had anything."""
        is_bare = True
        listed = os.listxattr
        for number, name in enumerate(stretch.names):
            try:
                names = listed(prefix + name, follow_symlinks=False)
                if names:
                    plain = stretch.attributes_at(number)
                    packed = self._with(plain, prefix + name, names)
                    if packed is not plain:
                        stretch.set_attributes(number, packed)
                        is_bare = False
            except OSError as error:
                is_bare = False
                if error.errno not in _HARMLESS:
                    failed.append(stretch.below + name)
        return is_bare

    def of_name(self, fd: int, name: bytes, entry: Entry) -> bytes:
        """Return the attributes of one name in the directory entered; raises OSError."""
        if entry.kind is Kind.SYMLINK or self._here == (False, False):
            return entry.attributes
        place = b"/proc/self/fd/%d/" % fd + name
        names = os.listxattr(place, follow_symlinks=False)
        return self._with(entry.attributes, place, names) if names else entry.attributes

    def of(self, fd: int, status: os.stat_result, kind: Kind) -> bytes:
        """Return the attributes of what is open; raises OSError."""
        self.enter(fd, status)
        packed = self.plain(kind, status.st_uid, status.st_gid)
        if self._here == (False, False):
            return packed
        return self._with(packed, fd, os.listxattr(fd))

    def _with(self, plain: bytes, place: int | bytes, names: list[str]) -> bytes:
        """Add the attributes of these names, as far as they are wanted; raises OSError."""
        keeps_xattrs, keeps_acls = self._here
        wanted = sorted(name for name in names if name.startswith(_USER)) if keeps_xattrs else []
        access = keeps_acls and ACCESS in names
        default = keeps_acls and DEFAULT in names
        if not wanted and not access and not default:
            return plain
        attributes = decode(plain)
        if wanted and attributes.xattrs is not None:
            found = [(os.fsencode(name), _value(place, name)) for name in wanted]
            xattrs = tuple(sorted((name, value) for name, value in found if value is not None))
            attributes = msgspec.structs.replace(attributes, xattrs=xattrs)
        if access:
            attributes = msgspec.structs.replace(attributes, acl=_acl(place, ACCESS))
        if default:
            attributes = msgspec.structs.replace(attributes, default_acl=_acl(place, DEFAULT))
        packed = encode(attributes)
        if len(packed) > MAX_PACKED:
            raise OSError(errno.E2BIG, "more extended attributes than Baton carries")
        return packed


_WITHOUT = (Kind.SYMLINK, Kind.EXCLUDED)
_NO_OWNER = (NO_ID, b"", NO_ID, b"")


def _version(child: Item) -> int:
    return child.mark if isinstance(child, Stretch) else child.seen


def _keeps(place: int, name: str) -> bool:
    try:
        os.getxattr(place, name)
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def _value(place: int | bytes, name: str) -> bytes | None:
    try:
        if isinstance(place, int):
            return os.getxattr(place, name)
        return os.getxattr(place, name, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None  # removed since it was listed
        raise


def _acl(place: int | bytes, name: str) -> Acl:
    value = _value(place, name)
    if not value:
        return ()
    try:
        return from_kernel(value)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from error
