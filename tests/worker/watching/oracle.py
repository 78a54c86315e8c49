"""What a tree looks like, found by nothing but lstat: what a journal must have told of."""

import os
import stat
from pathlib import Path

from worker.watching.pending import PendingBatch

_Look = tuple[int, ...]


class Snapshot:
    """Every entry below a root, but Baton's own."""

    def __init__(self, root: Path) -> None:
        self.looks: dict[bytes, _Look] = {}
        self._walk(bytes(root), b"")

    def _walk(self, root: bytes, path: bytes) -> None:
        status = os.lstat(os.path.join(root, path) if path else root)
        is_directory = stat.S_ISDIR(status.st_mode)
        times = () if is_directory else (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        self.looks[path] = (status.st_ino, status.st_mode, status.st_uid, *times)
        if not is_directory:
            return
        for name in os.listdir(os.path.join(root, path) if path else root):
            if name == b".baton" or name.startswith(b".baton~"):
                continue
            self._walk(root, path + b"/" + name if path else name)

    def differences(self, after: "Snapshot") -> list[bytes]:
        paths = self.looks.keys() | after.looks.keys()
        return sorted(path for path in paths if self.looks.get(path) != after.looks.get(path))

    def missed(self, after: "Snapshot", batch: PendingBatch | None) -> list[bytes]:
        """Return what differs and is not in a batch."""
        shallow = {path for path, _ in batch.paths} if batch is not None else set()
        deep = {path for path, is_deep in batch.paths if is_deep} if batch is not None else set()
        return [
            path
            for path in self.differences(after)
            if path not in shallow and not any(above in deep for above in _ancestors(path))
        ]


def _ancestors(path: bytes) -> list[bytes]:
    found = [b""]
    at = path
    while at:
        found.append(at)
        at = at.rpartition(b"/")[0]
    return found
