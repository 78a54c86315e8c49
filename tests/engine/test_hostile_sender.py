"""I14: a receiver against a peer that sends what no honest sender does (attacks A1 to A18)."""

# Bytes, descriptors and bare system calls are what is tested.

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncengine import frames as wire
from syncengine.errors import DeleteLimitExceeded, MalformedFrame, PeerError
from syncengine.frames import Record
from syncengine.model import Kind, RunOptions
from syncengine.receiver import OpenGate, Receiver
from syncengine.scan import fingerprint
from syncengine.tree import Tree
from tests.engine.trees import FAST, RUN_STAMP, grow, picture, temporaries

BAD_NAMES = [
    b"",
    b".",
    b"..",
    b"../x",
    b"/etc/passwd",
    b"a/b",
    b"a//b",
    b"a/",
    b"a\0b",
    b"n" * 256,
    b".baton",
    b".baton~x",
]
BAD_PATHS = [
    b"..",
    b"a/..",
    b"../a",
    b"/a",
    b"a//b",
    b"a/",
    b".",
    b"a/./b",
    b"a\0",
    b".baton/trash",
]
BAD_PATHS += [b"a/.baton", b".baton~n~1", b"x" * 256, b"d/" * 40_000 + b"e"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A root with a sentinel outside of it, that nothing may have touched afterwards."""
    outside = tmp_path / "outside"
    grow(outside, {"sentinel": b"untouched", "dir/in": b"untouched"})
    before = picture(outside)
    grow(tmp_path / "root", {"d/a": b"old", "b": b"old", "in/side": b"x"})
    yield tmp_path / "root"
    assert picture(outside) == before
    assert temporaries(tmp_path) == []


class Attack:
    """A receiver and a way to feed it records."""

    def __init__(
        self, root: Path, options: RunOptions = FAST, *, delete_limit: int | None = None
    ) -> None:
        self.tree = Tree.open(os.fsencode(root))
        self.receiver = Receiver(
            self.tree,
            options,
            member="t",
            gate=OpenGate(),
            run_stamp=RUN_STAMP,
            delete_limit=delete_limit,
        )

    def feed(self, *records: Record) -> list[wire.Reply]:
        replies = self.receiver.feed(msgspec.msgpack.encode(records))
        decoder = wire.ReplyDecoder()
        return [reply for frame in replies for reply in decoder.decode(frame)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.receiver.abort()
        self.tree.close()


def small(name: bytes, content: bytes = b"evil", *, seen: int = 0) -> wire.SmallFile:
    digest = blake3(content).digest()
    return wire.SmallFile(name, seen, 0o644, 0, digest, memoryview(content))


def seen(path: Path) -> int:
    return fingerprint(path.lstat())


def contents(root: Path) -> dict[bytes, tuple[object, ...]]:
    """A picture without the times of directories, which staging itself changes."""
    return {k: v[:2] if v[0] == "dir" else v for k, v in picture(root).items()}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_i14_a1_no_forbidden_name_reaches_a_system_call(place: Path, name: bytes) -> None:
    make, delete = wire.Begin(2), wire.Begin(3)
    for records in (
        (make, wire.Enter(b""), small(name)),
        (make, wire.Enter(b"d"), wire.NewDirectory(name, 0o755)),
        (make, wire.Enter(b"d"), wire.Symlink(name, 0, b"x", 0)),
        (make, wire.Enter(b"d"), wire.OpenFile(name, 0, 1)),
        (make, wire.Enter(b"d"), wire.Metadata(name, 1, Kind.FILE, 0o777, 0)),
        (delete, wire.Enter(b"d"), wire.Delete(name, 1, Kind.FILE)),
    ):
        before = picture(place)
        with Attack(place) as attack, pytest.raises(MalformedFrame):
            attack.feed(*records)
        assert picture(place) == before


@pytest.mark.parametrize("path", BAD_PATHS)
def test_i14_a1_no_forbidden_path_is_walked(place: Path, path: bytes) -> None:
    with Attack(place) as attack, pytest.raises(MalformedFrame):
        attack.feed(wire.Begin(2), wire.Enter(path))
    with Attack(place) as attack, pytest.raises(MalformedFrame):
        attack.feed(wire.Begin(4), wire.DirectoryMetadata(path, 0, 0o777, 0, True))


@pytest.mark.parametrize("link", [b"/tmp", b"../outside", b"../outside/dir"])
@pytest.mark.parametrize("hidden", [True, False])
def test_i14_a2_no_file_goes_through_a_symlink_that_came_before(
    place: Path, link: bytes, *, hidden: bool
) -> None:
    with Attack(place) as attack:
        parent = b"new" if hidden else b"d"
        start: list[Record] = [wire.Begin(2), wire.Enter(b"")]
        if hidden:
            start.append(wire.NewDirectory(b"new", 0o755))
        replies = attack.feed(
            *start,
            wire.Enter(parent),
            wire.Symlink(b"ln", 0, link, 0),
            wire.Enter(parent + b"/ln"),
            small(b"sentinel"),
            small(b"fresh"),
            wire.NewDirectory(b"sub", 0o777),
            wire.Symlink(b"sym", 0, b"x", 0),
            wire.OpenFile(b"part", 0, 0),
            wire.CloseFile(0o777, 0, blake3().digest()),
            wire.Metadata(b"sentinel", 1, Kind.FILE, 0o777, 0),
            wire.Begin(3),
            wire.Delete(b"sentinel", 1, Kind.FILE),
            wire.Begin(4),
            wire.DirectoryMetadata(parent + b"/ln", 0, 0o777, 0, True),
            wire.Finish(),
        )
    assert any(isinstance(r, wire.Failed) for r in replies)
    assert isinstance(replies[-1], wire.Finished)


def test_i14_a2_nor_through_one_published_before(place: Path) -> None:
    (place / "ln").symlink_to("../outside")
    with Attack(place) as attack:
        attack.feed(
            wire.Begin(2),
            wire.Enter(b"ln"),
            small(b"sentinel", seen=seen(place.parent / "outside/sentinel")),
            wire.Enter(b"ln/dir"),
            small(b"in2"),
            wire.Begin(3),
            wire.Enter(b"ln"),
            wire.Delete(b"sentinel", seen(place.parent / "outside/sentinel"), Kind.FILE),
            wire.Begin(4),
            wire.DirectoryMetadata(b"ln/dir", seen(place.parent / "outside/dir"), 0o777, 0, True),
            wire.Finish(),
        )


def test_i14_a2_the_trash_is_no_way_out_either(place: Path) -> None:
    """Trash and marker folders that somebody replaced by links are not followed."""
    (place / ".baton").symlink_to("../outside")
    with Attack(place, RunOptions()) as attack:
        replies = attack.feed(
            wire.Begin(3),
            wire.Enter(b""),
            wire.Delete(b"b", seen(place / "b"), Kind.FILE),
            wire.Finish(),
        )
    assert any(isinstance(r, wire.Failed) for r in replies)
    assert (place / "b").read_bytes() == b"old"


def test_i14_a6_planted_temporary_names_are_never_followed_or_reused(place: Path) -> None:
    """Names cannot be foretold; and were one hit, O_EXCL would refuse it."""
    with Attack(place) as first, Attack(place) as second:
        names = []
        for attack in (first, second):
            attack.feed(wire.Begin(2), wire.Enter(b""), small(b"x"))
            names.append({n for n in os.listdir(place) if n.startswith(".baton~")})
        assert len(names[0]) == 1
        assert len(names[1]) == 2
        one, two = names[1]
        assert one.rpartition("~")[0] != two.rpartition("~")[0], "each has its own random part"


def test_i14_a6_a_planted_name_in_a_hidden_directory_is_not_followed(place: Path) -> None:
    with Attack(place) as attack:
        attack.feed(wire.Begin(2), wire.Enter(b""), wire.NewDirectory(b"new", 0o777))
        hidden = next(n for n in os.listdir(place) if n.startswith(".baton~"))
        (place / hidden / "f").symlink_to("../../outside/sentinel")
        replies = attack.feed(wire.Enter(b"new"), small(b"f"), wire.Finish())
    assert any(isinstance(r, wire.Failed) for r in replies)


def test_i14_a7_more_deletes_than_agreed_end_the_push(place: Path) -> None:
    with Attack(place, delete_limit=1) as attack, pytest.raises(DeleteLimitExceeded):
        attack.feed(
            wire.Begin(3),
            wire.Enter(b"d"),
            wire.Delete(b"a", seen(place / "d/a"), Kind.FILE),
            wire.Enter(b""),
            wire.Delete(b"b", seen(place / "b"), Kind.FILE),
        )
    assert (place / "b").exists()
    assert (place / "d/a").exists(), "what was asked for in one breath is not done by half"


def test_i14_a7_a_full_directory_is_never_removed(place: Path) -> None:
    with Attack(place) as attack:
        replies = attack.feed(
            wire.Begin(3),
            wire.Enter(b""),
            wire.Delete(b"d", seen(place / "d"), Kind.DIRECTORY),
            wire.Finish(),
        )
    assert (place / "d/a").read_bytes() == b"old"
    assert any(isinstance(r, wire.Failed) for r in replies)


def test_i14_a7_deletes_need_the_right_fingerprint(place: Path) -> None:
    with Attack(place) as attack:
        attack.feed(
            wire.Begin(1), wire.Enter(b""), wire.Delete(b"b", 12_345, Kind.FILE), wire.Finish()
        )
    assert (place / "b").exists()
    for forbidden in (wire.Delete(b"b", 0, Kind.FILE), wire.Delete(b"b", 1, Kind.SPECIAL)):
        with Attack(place) as attack, pytest.raises(MalformedFrame):
            attack.feed(wire.Begin(3), wire.Enter(b""), forbidden)


def test_i14_a11_no_setuid_arrives_unasked(place: Path) -> None:
    with Attack(place) as attack:
        record = small(b"su")
        record.mode = 0o6777
        attack.feed(
            wire.Begin(2),
            wire.Enter(b""),
            record,
            wire.OpenFile(b"su2", 0, 0),
            wire.CloseFile(0o6777, 0, blake3().digest()),
            wire.Metadata(b"b", seen(place / "b"), Kind.FILE, 0o6777, 0),
            wire.Finish(),
        )
    for name in ("su", "su2", "b"):
        assert (place / name).stat().st_mode & 0o7777 == 0o777


@pytest.mark.parametrize(
    "records",
    [
        (wire.OpenFile(b"x", 0, 5), wire.Data(memoryview(b"123456"))),
        (wire.OpenFile(b"x", 0, 5), wire.Data(memoryview(b"1")), wire.CloseFile(0, 0, b"")),
        (wire.OpenFile(b"x", 0, -1),),
        (wire.OpenFile(b"x", 0, 1 << 63),),
        (wire.OpenFile(b"x", 0, 5), wire.OpenFile(b"y", 0, 5)),
        (wire.OpenFile(b"x", 0, 5), wire.Enter(b"d")),
        (wire.OpenFile(b"x", 0, 5), wire.Finish()),
        (wire.OpenFile(b"x", 0, 5), wire.Begin(3)),
        (wire.OpenFile(b"x", 0, 5), small(b"y")),
        (wire.Data(memoryview(b"x")),),
        (wire.CloseFile(0, 0, b""),),
        (wire.DropFile(),),
        (wire.Begin(2),),
        (wire.Begin(1),),
        (wire.Begin(5),),
        (wire.Delete(b"b", 1, Kind.FILE),),
        (wire.DirectoryMetadata(b"d", 0, 0, 0, True),),
        (wire.Finish(), wire.Finish()),
        (wire.Finish(), small(b"x")),
        (wire.NewDirectory(b"x", 0o17777),),
        (wire.NewDirectory(b"x", -1),),
        (wire.Symlink(b"x", 0, b"", 0),),
        (wire.Symlink(b"x", 0, b"a\0b", 0),),
        (wire.Symlink(b"x", 0, b"l" * 5_000, 0),),
        (wire.Symlink(b"x", 0, b"l", 1 << 63),),
        (wire.Metadata(b"b", 0, Kind.FILE, 0, 0),),
        (wire.Metadata(b"b", 1, Kind.DIRECTORY, 0, 0),),
    ],
)
def test_i14_a14_lies_about_lengths_numbers_and_order_end_the_push(
    place: Path, records: tuple[Record, ...]
) -> None:
    before = contents(place)
    with Attack(place) as attack, pytest.raises(MalformedFrame):
        attack.feed(wire.Begin(2), wire.Enter(b""), *records)
    assert contents(place) == before
    with pytest.raises(MalformedFrame):
        attack.feed(wire.Begin(3))


def test_i14_a14_a_sparse_claim_costs_nothing(place: Path) -> None:
    """Eight exbibytes are only believed when they arrive."""
    with Attack(place) as attack:
        attack.feed(wire.Begin(2), wire.Enter(b""), wire.OpenFile(b"x", 0, (1 << 63) - 1))
        assert sum(p.lstat().st_size for p in place.iterdir() if p.name.startswith(".b")) == 0


@pytest.mark.parametrize("replaces", [True, False])
def test_i14_a18_content_that_is_not_what_was_declared_is_never_published(
    place: Path, *, replaces: bool
) -> None:
    mark = seen(place / "b") if replaces else 0
    lie = wire.SmallFile(b"b", mark, 0o644, 0, blake3(b"honest").digest(), memoryview(b"lie"))
    with Attack(place) as attack, pytest.raises(MalformedFrame):
        attack.feed(wire.Begin(2), wire.Enter(b""), lie)
    with Attack(place) as attack, pytest.raises(MalformedFrame):
        attack.feed(
            wire.Begin(2),
            wire.Enter(b""),
            wire.OpenFile(b"b", mark, 3),
            wire.Data(memoryview(b"lie")),
            wire.CloseFile(0o644, 0, blake3(b"honest").digest()),
        )
    assert (place / "b").read_bytes() == b"old"


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\x7f\xff\xff\xff\x92\x02\x02",
        b"\x91" * 100_000,
        b"\x91\xc6\xff\xff\xff\xff",
        b"\x91\x92\x63\x00",
        msgspec.msgpack.encode([[4, "text", 0, 0, 0, b"", b""]]),
        msgspec.msgpack.encode({"a": 1}),
        b"\0" * (wire.MAX_FRAME_BYTES + 1),
    ],
)
def test_i14_a17_frames_of_nonsense_cost_no_memory_and_end_the_push(
    place: Path, frame: bytes
) -> None:
    with Attack(place) as attack, pytest.raises(MalformedFrame):
        attack.receiver.feed(frame)


def test_i14_a17_the_memory_of_a_receiver_is_bounded() -> None:
    """In a child whose address space is limited, arrays that claim four thousand million entries."""
    code = (
        "import resource\n"
        "from syncengine.errors import MalformedFrame\n"
        "from syncengine.frames import FrameDecoder\n"
        "limit = 2 << 30\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "for frame in (b'\\xdd\\xff\\xff\\xff\\xff', b'\\x91\\xdd\\xff\\xff\\xff\\xff'):\n"
        "    try:\n"
        "        FrameDecoder().decode(frame)\n"
        "    except MalformedFrame:\n"
        "        print('refused')\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=90
    )
    assert child.stdout.split() == ["refused", "refused"]


def test_long_lists_of_failures_come_in_frames_that_can_be_sent(place: Path) -> None:
    parent = b"/".join([b"p" * 255] * 200)
    with Attack(place) as attack:
        records = [wire.Begin(2), wire.Enter(parent)]
        frame = msgspec.msgpack.encode([*records, *(small(b"%d" % n) for n in range(300))])
        replies = attack.receiver.feed(frame)
        assert max(map(len, replies)) < 512 * 1024
        assert sum(len(wire.ReplyDecoder().decode(reply)) for reply in replies) == 300


def test_i14_a15_a_million_tiny_records_take_linear_time(place: Path) -> None:
    frame = msgspec.msgpack.encode([wire.Begin(2), *[wire.Enter(b"d")] * 200_000])
    with Attack(place) as attack:
        start = time.process_time()
        attack.receiver.feed(frame)
        assert time.process_time() - start < 2


Names = st.sampled_from([b"a", b"b", b"d", b"new", b"..", b"in", b"ln"])
Small = st.integers(min_value=-1, max_value=1 << 63)


def records() -> st.SearchStrategy[list[object]]:
    """Arbitrary records, by the shapes of the protocol and beyond."""
    numbers = st.one_of(st.integers(-2, 3), Small)
    blobs = st.one_of(Names, st.binary(max_size=40))
    anything = st.one_of(numbers, blobs, st.none(), st.booleans(), st.text(max_size=3))
    shaped = st.one_of(
        st.tuples(st.just(1), st.sampled_from([b"", b"d", b"new", b"ln", b"d/..", b"ln/dir"])),
        st.tuples(st.just(2), st.integers(0, 5)),
        st.tuples(st.just(3), Names, st.just(0o755)),
        st.tuples(st.just(4), Names, st.just(0), st.just(0o644), st.just(0)).flatmap(
            lambda head: st.binary(max_size=10).map(lambda c: (*head, blake3(c).digest(), c))
        ),
        st.tuples(st.just(5), Names, st.just(0), st.integers(0, 10)),
        st.tuples(st.just(6), st.binary(max_size=6)),
        st.tuples(st.just(8)),
        st.tuples(st.just(9), Names, st.just(0), st.just(b"../outside"), st.just(0)),
        st.tuples(st.just(13)),
        st.tuples(st.integers(0, 14), *[anything] * 4),
        st.lists(anything, max_size=8),
    )
    return st.lists(shaped, max_size=12).map(list)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(what=records(), raw=st.binary(max_size=60))
def test_i14_fuzzed_pushes_end_cleanly_and_stay_inside(
    place: Path, what: list[object], raw: bytes
) -> None:
    for frame in (msgspec.msgpack.encode(what), raw):
        with Attack(place) as attack:
            with contextlib.suppress(PeerError):
                attack.receiver.feed(frame)
            attack.receiver.finish()
        assert temporaries(place) == []
