"""A writer that makes every kind of change and knows what it took away, and a reader that never stops.

What a writer displaces it displaces in one step of the kernel (renameat2) and looks at afterwards: what
it did not see is not its doing, and must be kept by whoever replicates.
"""

import contextlib
import ctypes
import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cli.chaos import history as h
from cli.chaos.trees import files_below
from cli.chaos.versions import make_version, version_of
from syncengine.kernel import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

_DIRECTORIES = ("", "a", "b", "a/deep", "c/deeper/still", "été")
_NAMES = 12
_MAY_HAPPEN = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOSPC}
"""Others write here as well, and disks are filled."""
_APART = 16
_READ_EVERY_S = 0.01

Note = Callable[[h.Any], None]


class Writer:
    """Changes one member's tree, in a thread, until stopped; by seed the same choices."""

    def __init__(
        self,
        job: str,
        member: str,
        top: Path,
        scratch: Path,
        *,
        number: int,
        seed: int,
        rate: float,
        note: Note,
        now: Callable[[], float],
    ) -> None:
        """Write below `top`; `scratch` lies on the same file system, outside of every job.

        `number` is that of no other writer of the run.
        """
        self._number = number
        self._job = job
        self._member = member
        self._top = top
        self._scratch = scratch
        self._dice = random.Random(f"{seed} {job} {member}")  # noqa: S311 - replayable is the point
        self._pause_s = 1 / rate
        self._note = note
        self._now = now
        self._made = 0
        self._stop = threading.Event()
        self._may = threading.Event()
        self._may.set()
        self._thread = threading.Thread(
            target=self._write_all, name=f"writer {member}", daemon=True
        )
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._top.mkdir(parents=True, exist_ok=True)
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self) -> None:
        """End; raises what ended it before."""
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _write_all(self) -> None:
        try:
            while not self._stop.wait(self._dice.uniform(0, 2 * self._pause_s)):
                try:
                    self._change()
                except OSError as error:
                    if error.errno not in _MAY_HAPPEN:
                        raise
        except BaseException as failure:  # noqa: BLE001 - told by stop
            self.failure = failure

    def _path(self) -> str:
        directory = self._dice.choice(_DIRECTORIES)
        name = f"f{self._dice.randrange(_NAMES)}.txt"
        return f"{directory}/{name}" if directory else name

    def _change(self) -> None:
        path = self._path()
        what = self._dice.choices(
            ("write", "delete", "rename", "mode", "rename directory", "remove directory"),
            (60, 12, 12, 8, 4, 2),
        )[0]
        match what:
            case "write":
                self._write(path)
            case "delete":
                self._delete(path)
            case "rename":
                self._rename(path, self._path())
            case "mode":
                (self._top / path).chmod(self._dice.choice((0o600, 0o640, 0o644, 0o755)))
            case "rename directory":
                self._rename(self._dice.choice(("a", "b", "c/deeper")), self._dice.choice("xyz"))
            case _:
                self._remove_directory(self._dice.choice(("x", "y", "z", "b")))

    def _write(self, path: str) -> None:
        self._made += 1
        version = f"{self._member}.{self._made}"
        (self._top / path).parent.mkdir(parents=True, exist_ok=True)
        fresh = self._scratch / version
        try:
            fresh.write_bytes(make_version(version, self._dice))
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        # The kernel's clock for files ticks every few milliseconds: two writers of one machine must not
        # make files of one size and time, which `compare: mtime` takes for the same.
        time_ns = time.time_ns() // _APART * _APART + self._number
        os.utime(fresh, ns=(time_ns, time_ns))
        displaced = ""
        try:
            self._move(fresh, self._top / path, RENAME_NOREPLACE)
        except FileExistsError:
            self._move(fresh, self._top / path, RENAME_EXCHANGE)
            displaced = self._taken(fresh)
        self._tell(path, "write", version=version, displaced=displaced)

    def _delete(self, path: str) -> None:
        self._take(self._top / path, path)

    def _rename(self, path: str, to: str) -> None:
        self._move(self._top / path, self._top / to, RENAME_NOREPLACE)
        self._tell(to, "rename", origin=path)

    def _remove_directory(self, path: str) -> None:
        tree = self._scratch / "tree"
        self._move(self._top / path, tree, RENAME_NOREPLACE)
        # Whoever was at work in it goes on there: its names vanish and appear until the tree is gone.
        while tree.exists():
            for directory, _, names in os.walk(tree, topdown=False):
                below = Path(directory).relative_to(tree)
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        self._take(Path(directory, name), str(Path(path, below, name)))
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()

    def _take(self, file: Path, path: str) -> None:
        taken = self._scratch / "taken"
        self._move(file, taken, RENAME_NOREPLACE)
        self._tell(path, "delete", displaced=self._taken(taken))

    def _move(self, one: Path, other: Path, flags: int) -> None:
        try:
            renameat2(-100, os.fsencode(one), -100, os.fsencode(other), flags)
        finally:
            ctypes.set_errno(0)

    def _taken(self, file: Path) -> str:
        if file.is_dir():
            shutil.rmtree(file)
            return ""
        version = version_of(file.read_bytes()) or ""
        file.unlink()
        return version

    def _tell(
        self, path: str, what: str, *, version: str = "", displaced: str = "", origin: str = ""
    ) -> None:
        self._note(
            h.Changed(
                at=self._now(),
                job=self._job,
                member=self._member,
                path=path,
                what=what,  # type: ignore[arg-type]
                version=version,
                displaced=displaced,
                origin=origin,
            )
        )


class Reader:
    """Reads a member's files, in a thread, until stopped: each is a complete version, or noted."""

    def __init__(self, member: str, top: Path, *, note: Note, now: Callable[[], float]) -> None:
        """Read below `top`."""
        self._member = member
        self._top = top
        self._note = note
        self._now = now
        self._files = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_all, name=f"reader {member}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join()
        self._note(h.ReadMany(at=self._now(), member=self._member, files=self._files))

    def _read_all(self) -> None:
        while not self._stop.wait(0.02):
            for file in files_below(self._top):
                if self._stop.wait(_READ_EVERY_S):  # leaves the processor to those who are tested
                    return
                try:
                    content = file.read_bytes()
                except OSError:
                    continue
                if version_of(content) is None:
                    path = str(file.relative_to(self._top))
                    self._note(
                        h.Read(at=self._now(), member=self._member, path=path, size=len(content))
                    )
                self._files += 1
