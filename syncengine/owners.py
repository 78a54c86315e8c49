"""User and group names of this machine, looked up once: they may come from a directory service.

Lookups block, so they belong into the threads that scan and publish. Kept for a few minutes, since
people are added and renamed while a worker runs.
"""

import grp
import os
import pwd
import threading
import time

_KEPT_S = 300.0
_MAX_KEPT = 10_000


class Names:
    """Numbers to names and back, of users or of groups; safe between threads."""

    def __init__(self, *, groups: bool) -> None:
        self._groups = groups
        self._lock = threading.Lock()
        self._names: dict[int, bytes] = {}
        self._numbers: dict[bytes, int | None] = {}
        self._since = time.monotonic()

    def name(self, number: int) -> bytes:
        """Return the name of a number, empty when it has none."""
        known = self._names.get(number)
        if known is None:
            known = self._look_up_name(number)
            with self._lock:
                self._forget_old()
                self._names[number] = known
        return known

    def number(self, name: bytes) -> int | None:
        """Return the number of a name, None when nobody here has it."""
        try:
            return self._numbers[name]
        except KeyError:
            found = self._look_up_number(name)
            with self._lock:
                self._forget_old()
                self._numbers[name] = found
            return found

    def refresh(self) -> None:
        """Forget what was looked up long ago: called at the beginning of a scan or a push."""
        with self._lock:
            self._forget_old()

    def forget(self) -> None:
        """Forget everything."""
        with self._lock:
            self._names.clear()
            self._numbers.clear()

    def _forget_old(self) -> None:
        now = time.monotonic()
        if now - self._since > _KEPT_S or len(self._names) + len(self._numbers) > _MAX_KEPT:
            self._names.clear()
            self._numbers.clear()
            self._since = now

    def _look_up_name(self, number: int) -> bytes:
        try:
            found = grp.getgrgid(number)[0] if self._groups else pwd.getpwuid(number)[0]
        except (KeyError, OverflowError, OSError):
            return b""
        return os.fsencode(found)

    def _look_up_number(self, name: bytes) -> int | None:
        text = os.fsdecode(name)
        try:
            return grp.getgrnam(text)[2] if self._groups else pwd.getpwnam(text)[2]
        except (KeyError, ValueError, OSError):
            return None


USERS = Names(groups=False)
GROUPS = Names(groups=True)
