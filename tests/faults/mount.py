"""A LiveDisk mounted in a process of its own, for the time of a test."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, cast

from tests.faults.disk import Nodes, Record
from tests.faults.live_disk import Fault, Traits

_START_S = 60.0


class FaultyMount:
    """The test's end of it: `root` is the mounted directory."""

    def __init__(self, root: Path, connection: Connection) -> None:
        self.root = root
        self._connection = connection

    def _call(self, name: str, *arguments: object) -> Any:
        self._connection.send((name, arguments))
        return self._connection.recv()

    def begin(self) -> None:
        """Take what is there as flushed, forget faults, begin a new log."""
        self._call("begin")

    def arm(self, *faults: Fault) -> None:
        """Replace the faults and count from the beginning."""
        self._call("arm", list(faults))

    def become(self, traits: Traits) -> None:
        """Change what the file system can do."""
        self._call("=traits", traits)

    def counts(self) -> dict[str, int]:
        """How often each call came since the counting began."""
        return dict(self._call("counts"))

    def base(self) -> Nodes:
        """What there was when the log began."""
        return cast("Nodes", self._call("base"))

    def log(self) -> list[Record]:
        """Every change since then."""
        return cast("list[Record]", self._call("log"))

    def note(self, text: str) -> int:
        """Put a remark into the log; returns its step."""
        return cast("int", self._call("note", text))

    def reboot(self, nodes: Nodes) -> None:
        """Become what a power cut left."""
        self._call("reboot", nodes)

    def syncfs(self) -> None:
        """Flush everything: what syncfs(2) would do if it reached a FUSE server."""
        self._call("flush_all")

    def clear(self) -> None:
        """Become empty."""
        from tests.faults.disk import new_nodes

        self._call("=traits", Traits())
        self.reboot(new_nodes())


def why_not() -> str:
    """Say why nothing can be mounted here; empty when it can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "needs /dev/fuse, readable and writable"
    try:
        import mfusepy  # noqa: F401 - whether libfuse is there
    except OSError as error:
        return f"needs libfuse (Debian: fuse3): {error}"
    return ""


@contextmanager
def mounted(base: Path) -> Iterator[FaultyMount]:
    """Mount an empty LiveDisk below `base`, and unmount it whatever happens."""
    root, socket = base / "mount", base / "socket"
    root.mkdir()
    outside = root.stat().st_dev
    server = subprocess.Popen(
        [sys.executable, "-X", "utf8", "-m", "tests.faults.fuse_server", root, socket],
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + _START_S
        while root.stat().st_dev == outside:
            assert server.poll() is None, "the file system's process ended"
            assert time.monotonic() < deadline, "nothing was mounted"
            time.sleep(0.01)
        with Client(str(socket), family="AF_UNIX") as connection:
            yield FaultyMount(root, connection)
    finally:
        unmount = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        subprocess.run([*unmount, root], check=False, stderr=subprocess.DEVNULL)
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
