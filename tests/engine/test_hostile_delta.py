"""I14: what a peer may not do with questions, offers and answers (A8, A13, A14, A17, A18)."""

import contextlib
import os
import random
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncengine import frames as wire
from syncengine.chunks import Chunks, bits_for, cut_whole, limits_of
from syncengine.errors import MalformedFrame, PeerError
from syncengine.frames import Record
from syncengine.model import What
from syncengine.sender import Sender
from syncengine.tree import Tree
from tests.engine.test_hostile_sender import Attack, contents, seen
from tests.engine.trees import T0, Pair, grow, picture, temporaries

SIZE = 600_000
OLD = random.Random(1).randbytes(SIZE)
NEW = OLD[:200_000] + b"new" + OLD[200_000:]
BITS = bits_for(len(NEW))
SECRET = random.Random(9).randbytes(SIZE)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A root with a sentinel outside of it, that nothing may have touched afterwards."""
    grow(tmp_path / "outside", {"sentinel": b"untouched", "secret": SECRET})
    before = picture(tmp_path / "outside")
    grow(tmp_path / "root", {"f": OLD, "g": b"other"}, T0)
    yield tmp_path / "root"
    assert picture(tmp_path / "outside") == before
    assert temporaries(tmp_path) == []


def chunks_of(tmp_path: Path, content: bytes) -> Chunks:
    path = tmp_path / "content"
    path.write_bytes(content)
    with path.open("rb") as file:
        return cut_whole(file.fileno(), len(content), bits_for(len(content)))


def ask(place: Path, **more: Any) -> wire.Ask:
    plain = {"number": 1, "name": b"f", "seen": seen(place / "f"), "size": len(NEW), "mark": 5}
    plain |= {"bits": BITS, "head": b"", "offers": 1}
    return wire.Ask(**{**plain, **more})


def offer(chunks: Chunks, **more: Any) -> wire.Offer:
    ids = b"".join(chunks.id(n)[:16] for n in range(len(chunks)))
    plain = {"number": 1, "lengths": chunks.lengths.tobytes(), "ids": ids}
    return wire.Offer(**{**plain, **more})


def sizes(*numbers: int) -> bytes:
    return array("I", numbers).tobytes()


BEGIN: tuple[Record, ...] = (wire.Begin(2), wire.Enter(b""))


@pytest.mark.parametrize(
    "more",
    [
        {"bits": 0},
        {"bits": 63},
        {"bits": -1},
        {"size": -1},
        {"size": 1 << 63},
        {"name": b".."},
        {"name": b"a/b"},
        {"name": b".baton"},
        {"seen": -1},
    ],
)
def test_a14_impossible_questions(place: Path, more: dict[str, Any]) -> None:
    before = contents(place)
    with Attack(place) as attack, pytest.raises(PeerError):
        attack.feed(*BEGIN, ask(place, **more))
    assert contents(place) == before


def test_a17_so_many_questions_and_no_more(place: Path) -> None:
    with Attack(place) as attack, pytest.raises(MalformedFrame):
        attack.feed(*BEGIN, *(ask(place, number=n, name=b"n%d" % n) for n in range(1, 1_000)))


def test_a_question_twice(place: Path) -> None:
    with Attack(place) as attack, pytest.raises(MalformedFrame):
        attack.feed(*BEGIN, ask(place), ask(place))


LEAST, _, MOST = limits_of(BITS)


@pytest.mark.parametrize(
    ("lengths", "ids"),
    [
        (b"", b""),
        (b"\1\2\3", bytes(16)),
        (sizes(LEAST, LEAST), bytes(16)),
        (sizes(MOST + 1), bytes(16)),
        (sizes(0), bytes(16)),
        (sizes(*[1] * 1_000), bytes(16_000)),
        (sizes(*[MOST] * 1_000), bytes(16_000)),
        (sizes(2**32 - 1), bytes(16)),
    ],
)
def test_a14_impossible_offers(place: Path, lengths: bytes, ids: bytes) -> None:
    with Attack(place) as attack:
        attack.feed(*BEGIN, ask(place))
        with pytest.raises(MalformedFrame):
            attack.feed(wire.Offer(1, lengths, ids))
    assert (place / "f").read_bytes() == OLD


@pytest.mark.parametrize(
    "record",
    [
        wire.Offer(7, sizes(LEAST), bytes(16)),
        wire.Piece(7, 0, memoryview(b"x")),
        wire.Piece(1, 0, memoryview(b"x")),
        wire.Whole(7, 0o644, 0, bytes(32)),
        wire.Whole(1, 0o644, 0, bytes(32)),
        wire.OpenFile(b"f", 0, 5, 7, 0),
        wire.OpenFile(b"g", 0, len(NEW), 1, 0),
        wire.OpenFile(b"f", 0, len(NEW), 1, 100),
        wire.OpenFile(b"f", 0, 5, 1, -1),
    ],
)
def test_records_that_answer_to_nothing(place: Path, record: Record) -> None:
    with Attack(place) as attack:
        attack.feed(*BEGIN, ask(place))
        with pytest.raises(MalformedFrame):
            attack.feed(record)
    assert (place / "f").read_bytes() == OLD


def test_a18_a_chunk_that_is_another(place: Path, tmp_path: Path) -> None:
    chunks = chunks_of(tmp_path, NEW)
    with Attack(place) as attack:
        attack.feed(*BEGIN, ask(place))
        (missing,) = attack.feed(offer(chunks))
        assert isinstance(missing, wire.Missing)
        wanted = [n for n in range(len(chunks)) if missing.bitmap[n >> 3] & 1 << (n & 7)]
        assert 0 < len(wanted) < 4
        lie = memoryview(bytes(chunks.lengths[wanted[0]]))
        with pytest.raises(MalformedFrame):
            attack.feed(wire.Piece(1, wanted[0], lie))
    assert (place / "f").read_bytes() == OLD


def test_a18_an_end_that_is_too_early_or_a_digest_that_is_wrong(
    place: Path, tmp_path: Path
) -> None:
    chunks = chunks_of(tmp_path, NEW)
    with Attack(place) as attack:
        attack.feed(*BEGIN, ask(place))
        attack.feed(offer(chunks))
        with pytest.raises(MalformedFrame):
            attack.feed(wire.Whole(1, 0o644, 0, chunks.digest()))
    old = chunks_of(tmp_path, OLD)
    with Attack(place) as attack:
        attack.feed(*BEGIN, ask(place, size=len(OLD), bits=bits_for(len(OLD))))
        (missing,) = attack.feed(offer(old))
        assert isinstance(missing, wire.Missing)
        assert not any(missing.bitmap), "all of it is there"
        replies = attack.feed(wire.Whole(1, 0o644, 0, blake3(b"lie").digest()), wire.Finish())
    failed = [reply for reply in replies if isinstance(reply, wire.Failed)]
    assert [(one.path, one.what) for one in failed] == [(b"f", What.TARGET_CHANGED)]
    assert (place / "f").read_bytes() == OLD


def test_a8_an_answer_says_nothing_of_files_elsewhere(place: Path, tmp_path: Path) -> None:
    """Chunks of a file outside, of a link's target and of `.baton` are missing, like any others."""
    (place / "link").symlink_to(tmp_path / "outside" / "secret")
    grow(place, {".baton/trash/secret": SECRET})
    chunks = chunks_of(tmp_path, SECRET)
    for name in (b"link", b"new"):
        path = place / name.decode()
        there = seen(path) if path.is_symlink() else 0
        with Attack(place) as attack:
            question = ask(place, name=name, seen=there, size=SIZE, offers=2)
            (answer,) = attack.feed(*BEGIN, question)
            assert isinstance(answer, wire.Answer)
            assert answer.have == 0
    with Attack(place) as attack:
        attack.feed(*BEGIN, ask(place, size=SIZE, bits=bits_for(SIZE)))
        (missing,) = attack.feed(offer(chunks))
        assert isinstance(missing, wire.Missing)
        assert sum(byte.bit_count() for byte in missing.bitmap) == len(chunks)


def test_a17_a_huge_size_costs_nothing(place: Path) -> None:
    free = os.statvfs(place).f_bavail
    with Attack(place) as attack:
        attack.feed(*BEGIN, ask(place, size=(1 << 63) - 1, bits=20, offers=2, seen=0, name=b"n"))
        attack.feed(wire.OpenFile(b"n", 0, (1 << 63) - 1, 1, 0), wire.Data(memoryview(b"x" * 9)))
        assert free - os.statvfs(place).f_bavail < 10_000


record_strategy = st.one_of(
    st.builds(
        wire.Ask,
        number=st.integers(-1, 3),
        name=st.sampled_from([b"f", b"g", b"new", b"..", b""]),
        seen=st.sampled_from([0, 1, -1]),
        size=st.sampled_from([0, 5, SIZE, 1 << 62]),
        mark=st.integers(0, 2),
        bits=st.integers(13, 21),
        head=st.sampled_from([b"", bytes(16)]),
        offers=st.integers(-1, 3),
    ),
    st.builds(
        wire.Offer,
        number=st.integers(0, 3),
        lengths=st.sampled_from([b"", sizes(LEAST), sizes(5), sizes(MOST, MOST)]),
        ids=st.sampled_from([b"", bytes(16), bytes(32)]),
    ),
    st.builds(
        wire.Piece,
        number=st.integers(0, 3),
        position=st.integers(-1, 2),
        content=st.sampled_from([memoryview(b""), memoryview(bytes(LEAST)), memoryview(b"five5")]),
    ),
    st.builds(
        wire.Whole,
        number=st.integers(0, 3),
        mode=st.sampled_from([0o644, -1]),
        mtime_ns=st.just(0),
        digest=st.sampled_from([b"", bytes(32)]),
    ),
    st.builds(
        wire.OpenFile,
        name=st.sampled_from([b"f", b"g", b"new"]),
        seen=st.sampled_from([0, 1]),
        size=st.sampled_from([0, 5, SIZE]),
        number=st.integers(0, 3),
        have=st.sampled_from([0, 5, -1]),
    ),
    st.builds(wire.Data, st.sampled_from([memoryview(b""), memoryview(b"five5")])),
    st.builds(wire.CloseFile, st.just(0o644), st.just(0), st.just(blake3(b"five5").digest())),
    st.builds(wire.Forget, st.integers(0, 3)),
    st.just(wire.DropFile()),
    st.just(wire.Finish()),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(record_strategy, max_size=8))
def test_no_order_of_records_does_harm(place: Path, records: list[Record]) -> None:
    with Attack(place) as attack, contextlib.suppress(PeerError):
        attack.feed(*BEGIN, *records)
    assert (place / "f").read_bytes() in {OLD, b"", b"five5"}
    (place / "f").write_bytes(OLD)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.one_of(
            st.builds(wire.Answer, st.integers(0, 3), st.integers(-5, SIZE * 2)),
            st.builds(wire.Missing, st.integers(0, 3), st.binary(max_size=9)),
        ),
        max_size=6,
    )
)
def test_a_sender_survives_any_answers(pair: Pair, replies: list[wire.Reply]) -> None:
    grow(pair.source, {"f": NEW * 3, "g": OLD * 2}, T0 + 1)
    grow(pair.target, {"f": OLD * 3}, T0)
    with (
        Tree.open(os.fsencode(pair.source), read_only=True) as source,
        Tree.open(os.fsencode(pair.target)) as target,
        pair.plan(source, target) as plan,
    ):
        sender = Sender(source, plan, member="s", target_member="t")
        frames = sender.frames()
        try:
            next(frames)
            sender.on_reply(msgspec.msgpack.encode(replies))
            sender.on_reply(msgspec.msgpack.encode([wire.Full(b"f", 0)]))
            for _ in frames:
                pass
        except PeerError:
            pass
        finally:
            frames.close()
