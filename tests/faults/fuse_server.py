"""The process behind a mount: FUSE's calls to a LiveDisk, and a socket by which the test steers it.

python -m tests.faults.fuse_server MOUNTPOINT SOCKET
"""

import os
import stat
import sys
import threading
from collections.abc import Iterable
from multiprocessing.connection import Connection, Listener
from typing import Any

from mfusepy import FUSE, Operations

from tests.faults.disk import Node
from tests.faults.live_disk import LiveDisk

_FORM = {"st_nlink": "links", "st_uid": "uid", "st_gid": "gid", "st_rdev": "rdev"}


class _Fuse(FUSE):  # type: ignore[misc]
    """The library's own, with what it drops: the flags of renameat2, and open files to truncate."""

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        self.operations.rename_with(old, new, flags)
        return 0

    def truncate_fuse_3(self, path: bytes | None, length: int, fip: Any) -> int:
        shown = None if path is None else os.fsdecode(path)
        self.operations.truncate(shown, length, fip.contents.fh if fip else None)
        return 0


class Mounted(Operations):  # type: ignore[misc]
    """One LiveDisk as a mounted file system; open files and directories are inode numbers."""

    use_ns = True
    flag_nopath = True
    flag_nullpath_ok = True

    def __init__(self, disk: LiveDisk, lock: threading.Lock) -> None:
        self.disk = disk
        self._lock = lock
        self.opened: dict[int, int] = {}

    def _node(self, path: str | None, fh: int | None = None) -> Node:
        if fh is not None and fh in self.disk.nodes:
            return self.disk.nodes[fh]
        assert path is not None
        return self.disk.resolve(os.fsencode(path))

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, Any]:
        with self._lock:
            self.disk.meet("getattr")
            node = self._node(path, fh)
            found = {name: getattr(node, field) for name, field in _FORM.items()}
            size = len(node.data) or len(node.link)
            return found | {
                "st_ino": node.ino,
                "st_mode": node.mode,
                "st_size": size,
                "st_blocks": (size + 511) // 512,
                "st_blksize": 4096,
                "st_atime": node.atime_ns,
                "st_mtime": node.mtime_ns,
                "st_ctime": node.ctime_ns,
            }

    def readdir(self, path: str | None, fh: int) -> Any:
        with self._lock:
            self.disk.meet("readdir")
            folder = self._node(path, fh)
            found = [(".", folder), ("..", folder)]
            found += [(os.fsdecode(n), self.disk.nodes[i]) for n, i in folder.entries.items()]
            return [(n, {"st_ino": x.ino, "st_mode": x.mode}, 0) for n, x in found]

    def opendir(self, path: str) -> int:
        with self._lock:
            self.disk.meet("opendir")
            return self._node(path).ino

    def releasedir(self, path: str | None, fh: int) -> int:
        return 0

    def open(self, path: str, flags: int) -> int:
        with self._lock:
            self.disk.meet("open")
            node = self._node(path)
            if flags & os.O_TRUNC:
                self.disk.truncate(node.ino, 0)
            return node.ino

    def release(self, path: str | None, fh: int) -> int:
        return 0

    def flush(self, path: str | None, fh: int) -> int:
        with self._lock:
            self.disk.meet("close")
        return 0

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        with self._lock:
            return self.disk.read(fh, size, offset)

    def readlink(self, path: str) -> str:
        with self._lock:
            self.disk.meet("readlink")
            return os.fsdecode(self._node(path).link)

    def _make(self, call: str, path: str, mode: int, **more: Any) -> int:
        from mfusepy import fuse_get_context

        uid, gid, _ = fuse_get_context()
        with self._lock:
            node = Node(0, mode, uid, gid, **more)
            return self.disk.make(call, os.fsencode(path), node).ino

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return self._make("create", path, stat.S_IFREG | stat.S_IMODE(mode))

    def mkdir(self, path: str, mode: int) -> int:
        self._make("mkdir", path, stat.S_IFDIR | stat.S_IMODE(mode))
        return 0

    def mknod(self, path: str, mode: int, dev: int) -> int:
        self._make("mknod", path, mode, rdev=dev)
        return 0

    def symlink(self, target: str, source: str) -> int:
        self._make("symlink", target, stat.S_IFLNK | 0o777, link=os.fsencode(source))
        return 0

    def link(self, target: str, source: str) -> int:
        with self._lock:
            self.disk.link(os.fsencode(source), os.fsencode(target))
        return 0

    def unlink(self, path: str) -> int:
        with self._lock:
            self.disk.remove("unlink", os.fsencode(path))
        return 0

    def rmdir(self, path: str) -> int:
        with self._lock:
            self.disk.remove("rmdir", os.fsencode(path))
        return 0

    def rename_with(self, old: bytes, new: bytes, flags: int) -> None:
        with self._lock:
            self.disk.rename(old, new, flags)

    def rename(self, old: str, new: str) -> int:
        raise NotImplementedError("rename_with is called in its place")

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        with self._lock:
            return self.disk.write(fh, data, offset)

    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        with self._lock:
            self.disk.truncate(self._node(path, fh).ino, length)
        return 0

    def chmod(self, path: str | None, mode: int) -> int:
        with self._lock:
            node = self._node(path)
            mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
            self.disk.set("chmod", node.ino, mode=mode)
        return 0

    def chown(self, path: str | None, uid: int, gid: int) -> int:
        with self._lock:
            node = self._node(path)
            owner = {"uid": uid, "gid": gid}
            self.disk.set("chown", node.ino, **{k: v for k, v in owner.items() if v >= 0})
        return 0

    def utimens(self, path: str | None, times: tuple[int, int] | None = None) -> int:
        with self._lock:
            node = self._node(path)
            assert times is not None
            self.disk.set("utimens", node.ino, atime_ns=times[0], mtime_ns=times[1])
        return 0

    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        with self._lock:
            self.disk.flush("fsync", fh)
        return 0

    def fsyncdir(self, path: str | None, datasync: int, fh: int) -> int:
        with self._lock:
            self.disk.flush("fsyncdir", fh)
        return 0

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        import errno

        with self._lock:
            found = self.disk.xattrs(self._node(path).ino)
            if name not in found:
                raise OSError(errno.ENODATA, "no such attribute")
            return found[name]

    def listxattr(self, path: str) -> Iterable[str]:
        with self._lock:
            return list(self.disk.xattrs(self._node(path).ino))

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        with self._lock:
            self.disk.set_xattr(self._node(path).ino, name, value)
        return 0

    def removexattr(self, path: str, name: str) -> int:
        with self._lock:
            self.disk.set_xattr(self._node(path).ino, name, None)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        with self._lock:
            free = self.disk.free() // 4096
            total = self.disk.traits.capacity // 4096
        blocks = {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": total, "f_bfree": free}
        return blocks | {"f_bavail": free, "f_files": 1 << 20, "f_ffree": 1 << 20, "f_namemax": 255}


def _serve(connection: Connection, disk: LiveDisk, lock: threading.Lock) -> None:
    """Carry out what the test asks for: (method or attribute of the disk, arguments)."""
    with connection:
        while True:
            try:
                name, arguments = connection.recv()
            except EOFError:
                return
            with lock:
                if name.startswith("="):
                    setattr(disk, name[1:], arguments[0])
                    answer = None
                else:
                    answer = getattr(disk, name)
                    if callable(answer):
                        answer = answer(*arguments)
                connection.send(answer)


def _steer(listener: Listener, disk: LiveDisk, lock: threading.Lock) -> None:
    while True:
        _serve(listener.accept(), disk, lock)


def main() -> None:
    mount_point, socket = sys.argv[1:]
    disk, lock = LiveDisk(), threading.Lock()
    listener = Listener(socket, family="AF_UNIX")
    threading.Thread(target=_steer, args=(listener, disk, lock), daemon=True).start()
    _Fuse(
        Mounted(disk, lock),
        mount_point,
        foreground=True,
        nothreads=True,
        default_permissions=True,
        fsname="baton-faults",
        # The test must see every call, and the inodes as they are.
        hard_remove=True,
        use_ino=True,
        entry_timeout=0,
        attr_timeout=0,
        negative_timeout=0,
        ac_attr_timeout=0,
    )


if __name__ == "__main__":
    main()
