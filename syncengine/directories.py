"""Held directory descriptors: the only way from a path to a file.

A `Directories` walks from one top descriptor, component by component, never through a symlink, and
keeps the most recent descriptors. It knows nothing of what is done with them.
"""

import errno
import os

from syncengine.names import join

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags to open one component: a symlink gives ENOTDIR."""

_HELD = 128


class Held:
    """One open directory; `hidden_in` tells what not yet visible directory it is or lies in."""

    __slots__ = ("bare_for", "fd", "gid", "hidden_in", "mask")

    def __init__(self, fd: int, hidden_in: object | None = None) -> None:
        self.fd = fd
        self.hidden_in = hidden_in
        self.mask: int | None = None
        self.gid = -1
        """The group that new entries get by themselves, once `mask` is known."""
        self.bare_for: object | None = None
        """The attributes that new entries here were found to have by themselves."""


class Barred(FileNotFoundError):
    """It lies in a directory that could not be made, which has been told."""


class Directories:
    """A bounded set of held directories below `top_fd`, which stays the caller's.

    A `Held` is good until the next call of `get`, which may close what was not used for long. Not
    safe to share between threads. RACE: a directory that somebody moves while it is held stays
    the same directory, wherever it is then; whoever can move it could have moved our file too.
    """

    def __init__(self, top_fd: int, *, limit: int = _HELD) -> None:
        self._top = Held(top_fd)
        self._limit = limit
        self._held: dict[bytes, Held] = {}
        self.aliases: dict[bytes, tuple[bytes, object]] = {}
        """Directories that lie under another name for now: path -> (name there, owner)."""
        self._barred: set[bytes] = set()
        """Directories that could not be made: whatever answers to their names is another."""
        self.devices: dict[int, int] = {}
        """File systems mounted below the top that were met: device -> a descriptor there."""

    def get(self, path: bytes) -> Held:
        """Return the directory at `path`, opening what is not held; raises OSError."""
        if not path:
            return self._top
        held = self._held.pop(path, None)
        if held is None:
            return self._walk(path)
        self._held[path] = held
        return held

    def fd(self, path: bytes) -> int:
        """Return the descriptor of the directory at `path`; raises OSError."""
        return self.get(path).fd

    def _walk(self, path: bytes) -> Held:
        missing: list[bytes] = []
        at, held = path, self._top
        while at:
            found = self._held.get(at)
            if found is not None:
                held = found
                break
            at, _, name = at.rpartition(b"/")
            missing.append(name)
        for name in reversed(missing):
            at = join(at, name)
            if at in self._barred:
                raise Barred(errno.ENOENT, "the directory could not be made", at)
            alias = self.aliases.get(at)
            if alias is None:
                fd, hidden_in = os.open(name, OPEN_DIRECTORY, dir_fd=held.fd), held.hidden_in
            else:
                fd, hidden_in = os.open(alias[0], OPEN_DIRECTORY, dir_fd=held.fd), alias[1]
            held = Held(fd, hidden_in)
            self._held[at] = held
            if len(self._held) > self._limit:
                oldest = next(iter(self._held))
                os.close(self._held.pop(oldest).fd)
        return held

    def forget(self, path: bytes) -> None:
        """Let go of `path` and of everything held below it."""
        below = path + b"/"
        for held_path in [p for p in self._held if p == path or p.startswith(below)]:
            os.close(self._held.pop(held_path).fd)

    def bar(self, path: bytes) -> None:
        """Let nothing enter `path` any more: it could not be made.

        What is found under its name all the same is somebody else's, or, where names are folded,
        the directory of another name: writing into that would merge the two.
        """
        self.forget(path)
        self.aliases.pop(path, None)
        self._barred.add(path)

    def reveal(self, owner: object) -> None:
        """Note that what lay hidden under `owner` can be seen now."""
        for held in self._held.values():
            if held.hidden_in is owner:
                held.hidden_in = None

    def note_device(self, held: Held, device: int, expected: int) -> None:
        """Remember the file system of a directory, if it is not the expected one."""
        if device != expected and device not in self.devices:
            self.devices[device] = os.dup(held.fd)

    def close(self) -> None:
        """Close everything held, except the top."""
        for fd in self.devices.values():
            os.close(fd)
        self.devices.clear()
        for held in self._held.values():
            os.close(held.fd)
        self._held.clear()
        self.aliases.clear()
