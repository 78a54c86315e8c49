"""Independent eyes on trees: they know nothing of the engine."""

import subprocess
from pathlib import Path


def differences(one: Path, other: Path, *, options: str = "-aHAXni") -> str:
    """Return what rsync would still change to make another tree equal to one, in every respect."""
    return subprocess.run(
        ["rsync", options, "--delete", "--checksum", "--exclude=/.baton", f"{one}/", f"{other}/"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
