"""Turns of the processes of one test run: a test that is marked `alone` has the machine to itself.

What is promised within seconds is promised on a machine that can keep up. Under `pytest -n`, the tests
of other processes are load that no operator has, and an etcd that gets no turn for half a second elects
anew: so whoever asks for promised times waits until the others have ended the test they are in.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """A lock between processes: many ordinary tests at once, or one that is alone."""

    def __init__(self, run: str) -> None:
        self._paths = [
            Path(tempfile.gettempdir(), f"baton-test-{run}.{name}") for name in ("door", "room")
        ]
        self._door, self._room = (
            os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600) for path in self._paths
        )
        self._is_kept = False

    @contextmanager
    def turn(self, *, alone: bool, keep: bool) -> Iterator[None]:
        """Wait for a turn, as long as it takes; `keep` it for the next test, which is alone too."""
        if not self._is_kept:
            # Who is to be alone closes the door behind it: else the others would never all be out.
            fcntl.flock(self._door, fcntl.LOCK_EX)
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            if not alone:
                fcntl.flock(self._door, fcntl.LOCK_UN)
        self._is_kept = alone and keep
        try:
            yield
        finally:
            if not self._is_kept:
                fcntl.flock(self._room, fcntl.LOCK_UN)
                fcntl.flock(self._door, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give up any turn."""
        os.close(self._door)
        os.close(self._room)

    def forget(self) -> None:
        """Remove the files; nobody may take a turn any more."""
        for path in self._paths:
            path.unlink(missing_ok=True)
