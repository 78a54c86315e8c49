"""I14, A3: every single operation of a push, while its parent changes places with a link to outside.

Each operation is tried as an attacker would want it: with the fingerprints of what lies outside, as
well as with those of what lies inside. The same attacks succeed against a build that looks before it
opens, which is what shows that they can.
"""

import contextlib
import functools
import itertools
import os
import random
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from syncengine import attributes, chunks
from syncengine import frames as wire
from syncengine.errors import PeerError
from syncengine.frames import Record
from syncengine.model import Durability, Kind, RunOptions, Safety
from syncengine.phases import Phase
from syncengine.receiver import OpenGate, Receiver
from syncengine.scan import fingerprint
from syncengine.tree import Tree
from tests.engine.test_races import flipping
from tests.engine.trees import RUN_STAMP, grow
from tests.faults.test_fuzz import witness

RACE_S = 0.7
NAIVE_S = 30.0

Marks = dict[str, int]
"""Names below `d` -> fingerprints, of what lies inside, or outside."""

GIVEN = attributes.encode(
    attributes.Attributes(uid=12_345, gid=12_345, xattrs=((b"user.x", b"v"),))
)


def _file(name: bytes, seen: int) -> wire.SmallFile:
    return wire.SmallFile(name, seen, 0o600, 0, blake3(b"new").digest(), memoryview(b"new"))


def _parts(name: bytes, seen: int) -> list[Record]:
    digest = blake3(b"new\0").digest()
    opened = wire.OpenFile(name, seen, 4)
    data = wire.Data(memoryview(b"new"))
    return [opened, data, wire.Hole(1), wire.CloseFile(0o600, 0, digest)]


SECRET = random.Random(1).randbytes(300_000)
"""What lies outside, long enough to be cut into chunks."""


@functools.cache
def secret_chunks() -> chunks.Chunks:
    with tempfile.TemporaryFile() as file:
        file.write(SECRET)
        file.flush()
        return chunks.cut_whole(file.fileno(), len(SECRET), chunks.LEAST_BITS)


def _delta(name: bytes, seen: int) -> list[Record]:
    """Offer what lies outside, chunk by chunk, and send none of it."""
    cut = secret_chunks()
    shorts = [cut.id(n)[: chunks.WIRE_ID_BYTES] for n in range(len(cut))]
    offer = wire.Offer(1, cut.lengths.tobytes(), b"".join(shorts))
    ask = wire.Ask(1, name, seen, len(SECRET), 7, chunks.LEAST_BITS, b"", wire.Offers.ALWAYS)
    return [ask, offer, wire.Whole(1, 0o600, 0, cut.digest())]


def _make(*records: Record) -> list[Record]:
    return [wire.Begin(Phase.MAKE), wire.Enter(b"d"), *records]


OPERATIONS: dict[str, Callable[[Marks], list[Record]]] = {
    "create": lambda _: _make(_file(b"fresh", 0)),
    "create in parts": lambda _: _make(*_parts(b"fresh", 0)),
    "replace": lambda seen: _make(_file(b"f1", seen["f1"])),
    "replace in parts": lambda seen: _make(*_parts(b"f1", seen["f1"])),
    "replace by delta": lambda seen: _make(*_delta(b"big", seen["big"])),
    "mkdir": lambda _: _make(
        wire.NewDirectory(b"new", 0o755), wire.Enter(b"d/new"), _file(b"in", 0)
    ),
    "symlink": lambda _: _make(wire.Symlink(b"sym", 0, b"x", 0)),
    "fifo": lambda _: _make(wire.Special(b"fifo", 0, Kind.FIFO, 0o600, 0, 0)),
    "chmod": lambda seen: _make(wire.Metadata(b"f1", seen["f1"], Kind.FILE, 0o777, 5)),
    "chown and setxattr": lambda seen: _make(
        wire.Attributes(GIVEN), wire.Metadata(b"f1", seen["f1"], Kind.FILE, 0o777, 5)
    ),
    "link into": lambda _: _make(wire.Link(b"also", 0, b"mine")),
    "link from": lambda _: [
        wire.Begin(Phase.MAKE),
        wire.Enter(b""),
        wire.Link(b"also", 0, b"d/f1"),
    ],
    "unlink": lambda seen: [
        wire.Begin(Phase.DELETE),
        wire.Enter(b"d"),
        wire.Delete(b"f1", seen["f1"], Kind.FILE),
    ],
    "rmdir": lambda seen: [
        wire.Begin(Phase.DELETE),
        wire.Enter(b"d"),
        wire.Delete(b"empty", seen["empty"], Kind.DIRECTORY),
    ],
    "rename away": lambda seen: [
        wire.Begin(Phase.RENAME),
        wire.Move(b"d/f1", b"stolen", Kind.FILE, seen["f1"]),
    ],
    "rename into": lambda seen: [
        wire.Begin(Phase.RENAME),
        wire.Move(b"mine", b"d/planted", Kind.FILE, seen["mine"]),
    ],
    "settle": lambda seen: [
        wire.Begin(Phase.DIRECTORIES),
        wire.Attributes(GIVEN),
        wire.DirectoryMetadata(b"d", seen["d"], 0o777, 5, differs=True),
        wire.DirectoryMetadata(b"d/empty", seen["empty"], 0o777, 5, differs=True),
    ],
}


class Site:
    """A root with `d` and, beside it, `ln`, a link to a tree outside that looks the same."""

    def __init__(self, base: Path) -> None:
        self.root, self.outside = base / "root", base / "outside"
        for place in (self.root / "d", self.outside):
            grow(place, {"f1": b"old", "empty": None})
        (self.outside / "big").write_bytes(SECRET)
        (self.root / "d/big").write_bytes(b"harmless" * 40_000)
        (self.root / "ln").symlink_to("../outside")
        (self.root / "mine").write_bytes(b"mine")
        self.inside = os.open(self.root / "d", os.O_RDONLY | os.O_DIRECTORY)
        self.beyond = os.open(self.outside, os.O_RDONLY | os.O_DIRECTORY)
        self.before = witness(self.outside)
        self.is_told = False
        """Whether a reply gave away what lies outside."""

    def is_led_outside(self) -> bool:
        """Say whether anything got there, or came from there."""
        if self.is_told or witness(self.outside) != self.before:
            return True
        fd = os.open("big", os.O_RDONLY, dir_fd=self.inside)
        try:
            return os.read(fd, len(SECRET)) == SECRET
        finally:
            os.close(fd)

    def close(self) -> None:
        os.close(self.inside)
        os.close(self.beyond)

    def marks(self, fd: int) -> Marks:
        names = ("f1", "big", "empty", ".")
        found = {name: fingerprint(os.stat(name, dir_fd=fd)) for name in names}
        found["d"] = found["."]
        found["mine"] = fingerprint((self.root / "mine").lstat())
        return found

    def renew(self) -> None:
        """Put back what the last turn took away, by descriptors that the flipper cannot move."""
        for name in ("stolen", "also"):
            (self.root / name).unlink(missing_ok=True)
        (self.root / "mine").write_bytes(b"mine")
        for name in ("f1", "also", "fresh", "sym", "fifo", "planted"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.inside)
        os.close(os.open("f1", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=self.inside))
        with contextlib.suppress(FileExistsError):
            os.mkdir("empty", dir_fd=self.inside)

    def attack(self, operation: str, options: RunOptions, *, from_outside: bool) -> None:
        marks = self.marks(self.beyond if from_outside else self.inside)
        with Tree.open(os.fsencode(self.root)) as tree:
            receiver = Receiver(tree, options, member="t", gate=OpenGate(), run_stamp=RUN_STAMP)
            try:
                records = [*OPERATIONS[operation](marks), wire.Finish()]
                with contextlib.suppress(PeerError):
                    replies = receiver.feed(msgspec.msgpack.encode(records))
                    self._look(replies + receiver.finish())
            finally:
                receiver.abort()

    def _look(self, replies: list[bytes]) -> None:
        for reply in itertools.chain.from_iterable(map(wire.ReplyDecoder().decode, replies)):
            if isinstance(reply, wire.Missing):
                count = sum(byte.bit_count() for byte in reply.bitmap)
                self.is_told |= count < len(secret_chunks())


def options_of(turn: int) -> RunOptions:
    return RunOptions(
        durability=Durability.FAST,
        keep_owner=True,
        keep_xattrs=True,
        keep_devices=True,
        keep_hardlinks=True,
        safety=Safety(trash_s=86_400 if turn % 4 < 2 else None),
    )


def turns(seconds: float) -> Iterator[int]:
    deadline = time.monotonic() + seconds
    for turn in itertools.count():
        if time.monotonic() > deadline:
            return
        yield turn


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_i14_a3_no_operation_is_led_outside(site: Site, operation: str) -> None:
    done = 0
    with flipping(site.root):
        for turn in turns(RACE_S):
            site.renew()
            site.attack(operation, options_of(turn), from_outside=turn % 2 == 0)
            done += 1
    assert done > 5
    assert not site.is_led_outside()
    for name in ("f1", "also"):
        with contextlib.suppress(FileNotFoundError):
            assert os.stat(name, dir_fd=site.inside).st_ino != (site.outside / "f1").stat().st_ino


@contextmanager
def looking_before_opening(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Open directories as a naive build would: after a look, and then by whatever is there."""
    honest = os.open

    def naive(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_DIRECTORY and flags & os.O_NOFOLLOW:
            status = os.lstat(path, dir_fd=dir_fd)
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(20, "Not a directory")
            flags &= ~os.O_NOFOLLOW
        return honest(path, flags, mode, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr("syncengine.directories.os.open", naive)
        yield


@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_a3_the_same_attack_succeeds_against_a_naive_build(
    site: Site, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flipping(site.root), looking_before_opening(monkeypatch):
        for turn in turns(NAIVE_S):
            site.renew()
            site.attack(operation, options_of(turn), from_outside=turn % 2 == 0)
            if site.is_led_outside():
                return
    pytest.fail("the race was never won: the test above proves nothing")


def test_every_operation_that_a_peer_can_ask_for_is_raced() -> None:
    """A record that is added needs its race."""
    marks = dict.fromkeys(("f1", "big", "empty", "d", "mine"), 1)
    raced = {type(record) for make in OPERATIONS.values() for record in make(marks)}
    neutral = {wire.Finish, wire.DropFile, wire.Keep, wire.Piece, wire.Forget}
    assert {*raced, *neutral} >= set(wire.Record.__args__), "add it to OPERATIONS"
