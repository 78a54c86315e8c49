"""A reader of files that are being replaced: sees complete old or complete new content, or says so."""

import hashlib
import random
import threading
from pathlib import Path
from typing import Self

_LINE = b"0123456789abcdef" * 64


def content_of(name: str, version: int, blocks: int) -> bytes:
    """Content that proves itself: who it is of, which version, and a digest over all of it."""
    body = b"%s %d\n" % (name.encode(), version) + _LINE * blocks
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


class Reader:
    """Reads the named files below `root` in a thread, all the time, until it is stopped.

    `oldest` and `newest` bound the versions that may be seen; the test moves them.
    """

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root = root
        self.names = names
        self.oldest = 0
        self.newest = 0
        self.reads = 0
        self.versions: set[int] = set()
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_all, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read_all(self) -> None:
        dice = random.Random(5)
        while not self._stop.wait(0.001):  # leaves the processor to those who are tested
            name = dice.choice(self.names)
            oldest = self.oldest
            try:
                data = (self.root / name).read_bytes()
            except FileNotFoundError:
                self.wrong.append(f"{name} was missing")
                continue
            newest = self.newest
            self.reads += 1
            digest, _, body = data.partition(b"\n")
            if hashlib.sha256(body).hexdigest().encode() != digest:
                self.wrong.append(f"{name} was neither old nor new: {len(data)} bytes")
                continue
            told, version = body.partition(b"\n")[0].rsplit(b" ", 1)
            self.versions.add(int(version))
            if told != name.encode() or not oldest <= int(version) <= newest:
                self.wrong.append(f"{name} was {told!r} {version!r}: not {oldest} to {newest}")
