"""Gives entries their attributes at a target: owner, extended attributes, ACLs.

Nobody becomes root by accident: not by an unknown name, not by a missing one, not by a bare number.
What this machine or its file system cannot do is reported, by the first path for owners and by
every path for the rest, and is no reason to do without the file.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from syncengine.attributes import NO_ID, NOBODY, Acl, decode
from syncengine.frames import Failed
from syncengine.kernel import can_give_away, chown_handle
from syncengine.model import RunOptions, What
from syncengine.owners import GROUPS, USERS
from syncengine.posix_acl import ACCESS, DEFAULT, to_kernel

_ROOT = b"root"
_USER_PREFIX = "user."
_CANNOT = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.EPERM,
        errno.EACCES,
        errno.EINVAL,
        errno.E2BIG,
        errno.ERANGE,
        # What one inode may hold is full, and not the disk.
        errno.ENOSPC,
        errno.EDQUOT,
    }
)
_MAX_GIVEN = 256
_MAX_NOTES = 1_000


@dataclass(slots=True, eq=False)
class Given:
    """What entries are to get here: numbers of this machine, values for its kernel."""

    uid: int
    gid: int
    xattrs: dict[str, bytes] | None
    acl: bytes | None
    """The kernel's form; empty for none, None to leave it."""
    default_acl: bytes | None

    @property
    def is_plain(self) -> bool:
        """Whether a new entry has all of this but the owner by itself."""
        return not self.xattrs and not self.acl and not self.default_acl


class Giver:
    """Applies attributes in one tree, for one push and its thread."""

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self._gives_away = can_give_away()
        self._uid = os.geteuid()
        self._gids = {os.getegid(), *os.getgroups()}
        self._known: dict[bytes, Given | None] = {}
        self._told: set[str] = set()
        self._noted = 0
        self.notes: list[Failed] = []
        """What could not be given, to be told to the other side."""
        USERS.refresh()
        GROUPS.refresh()

    def resolve(self, packed: bytes) -> Given | None:
        """Return what packed attributes come to here, None for nothing; raises MalformedFrame."""
        if packed in self._known:
            return self._known[packed]
        if len(self._known) >= _MAX_GIVEN:
            self._known.clear()
        given = self._known[packed] = self._resolve(packed)
        return given

    def _resolve(self, packed: bytes) -> Given | None:
        attributes = decode(packed)
        options = self._options
        uid = gid = NO_ID
        if options.keep_owner:
            uid = self._user(attributes.uid, attributes.user)
            gid = self._group(attributes.gid, attributes.group)
        xattrs = None
        if options.keep_xattrs and attributes.xattrs is not None:
            xattrs = {os.fsdecode(name): value for name, value in attributes.xattrs}
        acl = default_acl = None
        if options.keep_acls:
            acl, default_acl = self._acl(attributes.acl), self._acl(attributes.default_acl)
        if uid == gid == NO_ID and xattrs is None and acl is None and default_acl is None:
            return None
        return Given(uid, gid, xattrs, acl, default_acl)

    def _acl(self, acl: Acl | None) -> bytes | None:
        if acl is None:
            return None
        return to_kernel(acl, self._user, self._group) if acl else b""

    def _user(self, number: int, name: bytes) -> int:
        return _here(number, name, USERS.number(name) if name else None)

    def _group(self, number: int, name: bytes) -> int:
        return _here(number, name, GROUPS.number(name) if name else None)

    def needs_nothing(self, given: Given, uid: int, gid: int) -> bool:
        """Say whether a new entry that has these owners by itself is as it is to be."""
        return given.is_plain and given.uid in {NO_ID, uid} and given.gid in {NO_ID, gid}

    def owner(self, handle: int, given: Given, path: bytes) -> bool:
        """Give an entry its owner and group, as far as we may; returns whether anything changed.

        `handle` may be O_PATH. Raises OSError.
        """
        if given.uid == given.gid == NO_ID:
            return False
        status = os.fstat(handle)
        uid = NO_ID if given.uid == status.st_uid else given.uid
        gid = NO_ID if given.gid == status.st_gid else given.gid
        if uid == gid == NO_ID:
            return False
        if not self._gives_away:
            if uid != NO_ID or gid not in self._gids:
                detail = f"owners are not kept: user {self._uid} here may not give files away"
                self._tell_once("owner", path, detail)
            uid = NO_ID
            if gid not in self._gids or status.st_uid != self._uid:
                return False
        try:
            chown_handle(handle, uid, gid)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            self._tell_once("owner", path, f"owners are not kept: {error.strerror}")
            return False
        return True

    def rest(self, place: int | bytes, given: Given, path: bytes, *, is_new: bool) -> bool:
        """Give a file or directory its extended attributes and ACLs; whether anything changed.

        The mode has to be set afterwards. Raises OSError for what is not the entry's own fault.
        """
        changed = False
        if given.xattrs is not None and not (is_new and not given.xattrs):
            changed |= self._xattrs(place, given.xattrs, path, is_new=is_new)
        for name, value in ((ACCESS, given.acl), (DEFAULT, given.default_acl)):
            if value is not None:
                changed |= self._set_acl(place, name, value, path)
        return changed

    def _xattrs(
        self, place: int | bytes, wanted: dict[str, bytes], path: bytes, *, is_new: bool
    ) -> bool:
        changed = False
        try:
            present = [] if is_new else os.listxattr(place)
            for name in present:
                if name.startswith(_USER_PREFIX) and name not in wanted:
                    _writable(place, lambda name=name: os.removexattr(place, name))  # type: ignore[misc]
                    changed = True
        except OSError as error:
            self._cannot(error, path, "extended attributes", any_value=bool(wanted))
            return changed
        for name, value in wanted.items():
            try:
                if name in present and os.getxattr(place, name) == value:
                    continue
                _writable(place, lambda n=name, v=value: os.setxattr(place, n, v))  # type: ignore[misc]
                changed = True
            except OSError as error:
                self._cannot(error, path, f"the extended attribute {name}", any_value=True)
        return changed

    def _set_acl(self, place: int | bytes, name: str, value: bytes, path: bytes) -> bool:
        try:
            if os.getxattr(place, name) == value:
                return False
        except OSError as error:
            if error.errno == errno.ENODATA and not value:
                return False
        try:
            if value:
                os.setxattr(place, name, value)
            else:
                os.removexattr(place, name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                self._cannot(error, path, "its ACL", any_value=bool(value))
            return False
        return True

    def _cannot(self, error: OSError, path: bytes, what: str, *, any_value: bool) -> None:
        """Note that something is not kept; that there is no attribute to remove is none."""
        if error.errno not in _CANNOT:
            raise error
        if any_value and self._noted == _MAX_NOTES:
            self._noted += 1
            self.notes.append(Failed(b"", What.NOT_KEPT, "more attributes were not kept"))
        if any_value and self._noted < _MAX_NOTES:
            self._noted += 1
            why = error.strerror or str(error)
            if error.errno == errno.EOPNOTSUPP:
                why = "the file system here keeps none"
            self.notes.append(Failed(path, What.NOT_KEPT, f"{what} not kept: {why}"))

    def _tell_once(self, about: str, path: bytes, detail: str) -> None:
        if about not in self._told:
            self._told.add(about)
            self.notes.append(Failed(path, What.NOT_KEPT, detail))


def _here(number: int, name: bytes, found: int | None) -> int:
    """Return who is here what another machine calls by this number and name."""
    if number == NO_ID:
        return NO_ID
    if found is not None and (found != 0 or (number == 0 and name == _ROOT)):
        return found
    # INVARIANT: root's number alone makes nobody root.
    return number or NOBODY


def _writable(place: int | bytes, change: Callable[[], None]) -> None:
    """Change an extended attribute, for which even an owner needs the right to write."""
    try:
        change()
    except PermissionError as error:
        mode = stat.S_IMODE(os.stat(place).st_mode)  # noqa: PTH116 - an open file
        if error.errno != errno.EACCES or mode & stat.S_IWUSR:
            raise
        os.chmod(place, mode | stat.S_IWUSR)  # noqa: PTH101 - an open file
        try:
            change()
        finally:
            with contextlib.suppress(OSError):
                os.chmod(place, mode)  # noqa: PTH101 - the same
