"""What conflict copies are called: STEM.conflict-YYYYMMDD-HHMMSS-WORKER.EXT, in the same directory."""

import re

from syncengine.names import MAX_NAME, join

_CONFLICT = b".conflict-"
_LABEL = re.compile(rb"(.*)\.conflict-\d{8}-\d{6}-[a-z0-9-]+(.*)", re.DOTALL)


class ConflictNames:
    """Gives out the names of one run, each once.

    Tell `note` every path that is there at any member: it remembers only those that look like a
    name of this very run.
    """

    def __init__(self, stamp: str) -> None:
        self._stamp = stamp
        self._mark = _CONFLICT + stamp.encode() + b"-"
        self._taken: set[bytes] = set()

    def note(self, path: bytes) -> None:
        """Take note of a path that is there."""
        if self._mark in path:
            self._taken.add(path)

    def give(self, path: bytes, worker: str) -> bytes:
        """Return the path of the copy of what `worker` has at `path`, where nothing is."""
        parent, _, name = path.rpartition(b"/")
        stem, extension = _split(name)
        label = self._mark + worker.encode()
        number = 1
        while True:
            suffix = label if number == 1 else label + b"-%d" % number
            copy = join(parent, _fitting(stem, suffix, extension))
            if copy not in self._taken:
                self._taken.add(copy)
                return copy
            number += 1


def is_copy_of(path: bytes, original: bytes) -> bool:
    """Say whether a path is one that a conflict copy of what was at another gets, in any run."""
    parent, _, name = path.rpartition(b"/")
    original_parent, _, original_name = original.rpartition(b"/")
    labelled = _LABEL.fullmatch(name)
    if parent != original_parent or labelled is None:
        return False
    return labelled[1] + labelled[2] == original_name or (
        len(name) >= MAX_NAME - 3 and original_name.startswith(labelled[1])
    )


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Split a name at its last dot that is not its first character; the dot goes with the end."""
    dot = name.rfind(b".")
    return (name, b"") if dot <= 0 else (name[:dot], name[dot:])


def _fitting(stem: bytes, suffix: bytes, extension: bytes) -> bytes:
    """Join the parts, with as much of the stem as a name has room for."""
    room = MAX_NAME - len(suffix) - len(extension)
    if room < 1:
        # An extension of such a length is none.
        stem, extension = stem + extension, b""
        room = MAX_NAME - len(suffix)
    return shortened(stem, room) + suffix + extension


def shortened(text: bytes, room: int) -> bytes:
    """Return at most `room` bytes of a name, not ending in the middle of a character of UTF-8."""
    if len(text) <= room:
        return text
    for end in range(room, max(room - 4, 0), -1):
        if text[end] & 0xC0 != 0x80:
            return text[:end]
    return text[:room]  # this is no UTF-8
