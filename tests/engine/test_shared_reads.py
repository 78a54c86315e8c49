"""Several targets from one reading: each file is read once, and nobody waits for a slow target."""

import functools
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from syncengine import chunks, data_frames, offering, shared_reads
from syncengine.chunk_index import ChunkIndex
from syncengine.errors import PushAborted
from syncengine.model import Often
from syncengine.receiver import OpenGate, Receiver
from syncengine.sender import Sender, SendResult
from syncengine.shared_reads import Content, SharedReads
from syncengine.source_files import SourceFiles
from syncengine.tree import Tree
from tests.engine.trees import FAST, RUN_STAMP, T0, Pair, grow

MIB = 1024 * 1024
OPTIONS = replace(FAST, compression=Often.OFF)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def _nothing(_: int) -> None:
    """Let a frame pass."""


def _same(content: Content) -> Content:
    return content


class Fan:
    """One source tree and several targets, each pushed to in a thread."""

    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = pairs
        self.before: dict[int, Callable[[int], None]] = {}
        """Called before a target takes a frame, with the frame's number."""
        self.results: dict[int, SendResult] = {}
        self._together = threading.Barrier(len(pairs))

    def run(self) -> None:
        with Tree.open(os.fsencode(self.pairs[0].source), read_only=True) as source:
            threads = [
                threading.Thread(target=self._push, args=(number, source))
                for number in range(len(self.pairs))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(50)
                assert not thread.is_alive()

    def _push(self, number: int, source: Tree) -> None:
        pair = self.pairs[number]
        with Tree.open(os.fsencode(pair.target)) as target, pair.plan(source, target) as plan:
            if pair.target_index is not None:
                target.chunks = pair.target_index.of("t")
            sender = Sender(source, plan, member="s", target_member="t")
            receiver = Receiver(
                target, pair.options, member="t", gate=OpenGate(), run_stamp=RUN_STAMP
            )
            frames = sender.frames()
            try:
                first = True
                for at, frame in enumerate(frames):
                    if first:
                        self._together.wait(30)  # all have joined before anybody goes on
                        first = False
                    self.before.get(number, _nothing)(at)
                    for reply in receiver.feed(frame):
                        sender.on_reply(reply)
                for reply in receiver.finish():
                    sender.on_reply(reply)
                self.results[number] = sender.result()
            except PushAborted:
                pass
            finally:
                frames.close()
                receiver.abort()


@pytest.fixture
def fan(tmp_path: Path) -> Fan:
    source = tmp_path / "source"
    source.mkdir()
    pairs = [Pair(source, tmp_path / f"target{number}", OPTIONS) for number in range(4)]
    for pair in pairs:
        pair.target.mkdir()
    return Fan(pairs)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often content was read from the source."""
    counts = {"small": 0, "parts": 0, "cuts": 0}
    lock = threading.Lock()
    content, read_frame, cut = SourceFiles.content, data_frames.read_frame, chunks.cut

    def count(what: str) -> None:
        with lock:
            counts[what] += 1

    def counted_content(files: SourceFiles, path: bytes, size: int) -> Content | None:
        count("small")
        return content(files, path, size)

    def counted_frame(fd: int, size: int, offset: int | None = None) -> tuple[bytes, memoryview]:
        count("parts")
        return read_frame(fd, size, offset)

    def counted_cut(fd: int, size: int, bits: int) -> Iterator[chunks.Window]:
        count("cuts")
        return cut(fd, size, bits)

    monkeypatch.setattr(SourceFiles, "content", counted_content)
    monkeypatch.setattr("syncengine.streams.read_frame", counted_frame)
    monkeypatch.setattr(shared_reads, "read_frame", counted_frame)
    monkeypatch.setattr(shared_reads, "cut", counted_cut)
    monkeypatch.setattr(offering, "cut", counted_cut)
    return counts


def test_each_file_is_read_once_for_all_targets(fan: Fan, reads: dict[str, int]) -> None:
    files = {f"d{n % 5}/f{n}": noise(n * 31, n) for n in range(400)}
    grow(fan.pairs[0].source, {"a": noise(40 * MIB + 5), **files}, T0)
    fan.run()
    for pair in fan.pairs:
        pair.check_equal()
    assert reads["parts"] <= 20 + 4
    # The first frame of whoever comes first may be read again: by then it may not know of others.
    assert reads["small"] < 2 * 400


def test_a_slow_target_delays_nobody_and_gets_everything(fan: Fan) -> None:
    files = {f"d{n % 5}/f{n}": noise(50_000, n) for n in range(1_200)}
    grow(fan.pairs[0].source, {"a": noise(60 * MIB), **files, "z": noise(50 * MIB + 1)}, T0)
    others = threading.Semaphore(0)

    def wait_for_the_others(at: int) -> None:
        if at == 1:
            for _ in range(3):
                assert others.acquire(timeout=40)

    fan.before[0] = wait_for_the_others
    push = fan._push

    def push_and_tell(number: int, source: Tree) -> None:
        push(number, source)
        others.release()

    fan._push = push_and_tell  # type: ignore[method-assign]
    fan.run()
    assert set(fan.results) == {0, 1, 2, 3}
    for pair in fan.pairs:
        pair.check_equal()


def test_a_target_that_dies_takes_nobody_along(fan: Fan) -> None:
    grow(fan.pairs[0].source, {"a": noise(80 * MIB), "b": b"small", "c": noise(3 * MIB)}, T0)

    def die(at: int) -> None:
        if at == 3:
            raise PushAborted("it is gone")

    fan.before[1] = die
    fan.run()
    assert set(fan.results) == {0, 2, 3}
    for number in (0, 2, 3):
        fan.pairs[number].check_equal()


def test_a_file_is_cut_once_for_all_targets(fan: Fan, reads: dict[str, int]) -> None:
    source = fan.pairs[0].source
    content = noise(20 * MIB)
    grow(source, {"f": content}, T0)
    fan.run()
    grow(source, {"f": content[: 9 * MIB] + b"new" + content[9 * MIB :]}, T0 + 1)
    reads["cuts"] = 0
    fan._together = threading.Barrier(4)
    fan.run()
    for pair in fan.pairs:
        pair.check_equal()
        assert pair.target_index is None
    assert reads["cuts"] <= 2
    assert all(result.counts.bytes_sent < MIB for result in fan.results.values())


def test_a_file_that_changes_while_it_is_read_for_all_arrives_as_it_is_then(fan: Fan) -> None:
    path = fan.pairs[0].source / "f"
    grow(fan.pairs[0].source, {"f": noise(30 * MIB)}, T0)
    changed = threading.Event()

    def change(at: int) -> None:
        if at == 4 and not changed.is_set():
            changed.set()
            with path.open("r+b") as file:
                file.truncate(11 * MIB)

    for number in range(4):
        fan.before[number] = change
    fan.run()
    for pair in fan.pairs:
        assert (pair.target / "f").read_bytes() == path.read_bytes()


def test_what_stays_for_those_behind_is_bounded() -> None:
    reads = SharedReads()
    reads.join()
    reads.join()
    status = os.stat("/")
    for number in range(10_000):
        path = b"%d" % number
        content = Content(bytes(20_000), b"", status)
        assert reads.small(path, functools.partial(_same, content)) is content
    assert reads._small_bytes <= shared_reads.SMALL_BYTES
    assert len(reads._small) < 2_000
    late = Content(b"late", b"", status)
    assert reads.small(b"0", lambda: late) is late
    assert reads.small(b"9999", lambda: late) is not late
    reads.leave()
    assert reads._small == {}


def test_what_cannot_be_read_is_tried_by_everybody() -> None:
    reads = SharedReads()
    reads.join()
    reads.join()
    tries = []
    for _ in range(2):
        assert reads.small(b"f", lambda: tries.append(1)) is None
    assert len(tries) == 2

    def broken() -> Content | None:
        raise PermissionError

    for _ in range(2):
        with pytest.raises(PermissionError):
            reads.small(b"g", broken)


def test_indexes_do_not_mix_with_sharing(fan: Fan) -> None:
    for pair in fan.pairs:
        pair.target_index = ChunkIndex(None)
    content = noise(4 * MIB)
    grow(fan.pairs[0].source, {"f": content}, T0)
    fan.run()
    grow(fan.pairs[0].source, {"copy": content}, T0 + 1)
    fan._together = threading.Barrier(4)
    fan.run()
    for number, pair in enumerate(fan.pairs):
        pair.check_equal()
        assert fan.results[number].counts.bytes_sent < MIB
        assert pair.target_index is not None
        pair.target_index.close()
