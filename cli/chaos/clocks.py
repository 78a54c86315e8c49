"""Wall clocks that can be set while a process runs, by libfaketime and a file it reads."""

import shutil
from pathlib import Path


def library() -> Path | None:
    """Return where libfaketime is, None when it is not installed."""
    if shutil.which("faketime") is None:
        return None
    places = ("/usr/lib/*/faketime", "/usr/lib64/faketime", "/usr/lib/faketime")
    found = [
        one for place in places for one in sorted(Path("/").glob(place[1:] + "/libfaketime.so.1"))
    ]
    return found[0] if found else None


class WallClock:
    """The wall clock of one process; what counts leases and deadlines stays true."""

    def __init__(self, file: Path) -> None:
        """Keep what it is set to in `file`."""
        self._file = file
        self.set(0)

    def set(self, ahead_s: int) -> None:
        """Set it so many seconds ahead, or back when negative."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{ahead_s:+d}\n")
        fresh.replace(self._file)

    @property
    def ahead_s(self) -> int:
        """What it is set to."""
        return int(self._file.read_text())

    def environment(self, found: Path) -> dict[str, str]:
        """Return what has a process look at it."""
        return {
            "LD_PRELOAD": str(found),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
