"""I14: whatever arrives from a peer ends in a refusal, or inside the root; no record is left out.

The records are drawn from the protocol's own types, so one that is added is fuzzed as well.
"""

import contextlib
import functools
import os
import shutil
import stat
import tempfile
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from syncengine import attributes
from syncengine import frames as wire
from syncengine.changes import TO_TRASH
from syncengine.compression import unpack
from syncengine.errors import MalformedFrame, PeerError
from syncengine.listing import decode_entries, encode_entries
from syncengine.model import Durability, Entry, Kind, RunOptions, Safety
from syncengine.phases import Phase
from syncengine.receiver import OpenGate, Receiver
from syncengine.scan import fingerprint, scan_stretches
from syncengine.sender import Sender
from syncengine.tree import Tree
from tests.engine.trees import RUN_STAMP, Pair, grow, temporaries

RECORDS = typing.get_args(wire.Record)
REPLIES = typing.get_args(wire.Reply)

NAMES = st.sampled_from(
    [b"a", b"b", b"d", b"e", b"new", b"ln", b"..", b".", b"", b".baton", b"a/b"]
)
PATHS = st.one_of(
    NAMES,
    st.sampled_from(
        [b"d/a", b"d/e", b"d/e/f", b"ln/sentinel", b"d/out", b"d/out/in", b"../x", b"/x"]
    ),
    st.lists(NAMES, max_size=3).map(b"/".join),
)
NUMBERS = st.one_of(
    st.integers(-1, 4),
    st.sampled_from([0o644, 0o6755, 0o17777, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
)
CONTENTS = st.one_of(st.just(b""), st.binary(max_size=20), st.sampled_from([b"x" * 700, bytes(64)]))
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["not-written", "user.x", "security.x"]))


def values(kind: object, seen: st.SearchStrategy[int]) -> st.SearchStrategy[object]:
    """Draw what a field of this type may hold, and now and then what it may not."""
    base = typing.get_origin(kind)
    if base is typing.Annotated:
        return values(typing.get_args(kind)[0], seen)
    if base in {list, tuple}:
        inner = [values(part, seen) for part in typing.get_args(kind) if part is not ...]
        if base is tuple and ... not in typing.get_args(kind):
            return st.tuples(*inner)
        return st.lists(st.one_of(*inner), max_size=4)
    if base is not None:  # a union
        return st.one_of(*[values(part, seen) for part in typing.get_args(kind)])
    if kind is bytes:
        return st.one_of(PATHS, CONTENTS)
    if kind is memoryview:
        return CONTENTS
    if kind is bool:
        return st.booleans()
    if isinstance(kind, type) and issubclass(kind, Kind):
        return st.sampled_from(list(Kind)).map(int)
    if isinstance(kind, type) and issubclass(kind, int):
        return st.one_of(NUMBERS, seen)
    if kind is str:
        return TEXTS
    if kind is None or kind is type(None):
        return st.none()
    return st.from_type(kind)  # type: ignore[arg-type]


NONE_SEEN = st.just(0)


def shaped(
    struct: type[msgspec.Struct], seen: st.SearchStrategy[int] = NONE_SEEN
) -> st.SearchStrategy[list[object]]:
    """Draw one record as it lies in a frame."""
    hints = typing.get_type_hints(struct, include_extras=True)
    fields = [field.name for field in msgspec.structs.fields(struct)]
    tag = typing.cast("int", struct.__struct_config__.tag)

    def fit(drawn: tuple[object, ...]) -> list[object]:
        record = list(drawn)
        named = dict(zip(fields, record, strict=True))
        if "digest" in named and isinstance(named.get("content"), bytes):
            # Else nothing with content would ever get further than its digest.
            record[fields.index("digest")] = blake3(typing.cast("bytes", named["content"])).digest()
        return [tag, *record]

    return st.tuples(*[values(hints[name], seen) for name in fields]).map(fit)


MARKS = {
    -1001: "a",
    -1002: "b",
    -1003: "d",
    -1004: "d/a",
    -1005: "ln",
    -1006: "d/e",
    -1007: "d/e/f",
}
"""What stands for the fingerprint of an entry, which is only known in the arena."""

SEEN = st.sampled_from([*MARKS, 0])
RIGHT = -1000
"""What stands for the fingerprint, and the kind, of the very entry that the record is about."""

HONEST: dict[str, st.SearchStrategy[object]] = {
    "name": st.sampled_from([b"a", b"b", b"d", b"e", b"f", b"new", b"ln", b"out"]),
    "path": st.sampled_from([b"a", b"b", b"d", b"d/a", b"d/e", b"d/e/f", b"ln", b"new", b"d/out"]),
    "to": st.sampled_from(
        [b"a", b"d/b", b"new", b"new/deep", b"ln/in", b"d/out/in", b"d/e/f", b"z"]
    ),
    "seen": st.sampled_from([0, RIGHT, RIGHT, RIGHT, *MARKS]),
    "mode": st.sampled_from([0o644, 0o755, 0o6755, 0]),
    "mtime_ns": st.integers(-5, 5),
    "size": st.integers(0, 3),
    "phase": st.integers(0, 4),
    "kind": st.sampled_from([1, 1, 1, 1, 2, 2, 3, 3, *map(int, Kind)]),
    "packed": st.builds(
        attributes.Attributes,
        uid=st.sampled_from([-1, 0, 12_345]),
        user=st.sampled_from([b"", b"root", b"nobody"]),
        gid=st.sampled_from([-1, 0, 12_345]),
        xattrs=st.sampled_from([None, (), ((b"user.x", b"v"),), ((b"security.x", b"v"),)]),
        acl=st.sampled_from([None, ()]),
    ).map(attributes.encode),
    "keep": st.sampled_from([TO_TRASH, b"kept", b"d/kept"]),
    "link": st.sampled_from([b"../outside", b"../../outside/dir", b"a", b"/"]),
    "device": st.sampled_from([0, os.makedev(1, 3)]),
    "content": CONTENTS,
}
"""What an honest peer could send, by the name of the field, for a tree like this."""


def plausible(struct: type[msgspec.Struct]) -> st.SearchStrategy[list[object]]:
    """Draw a record of which every single field could be right."""
    hints = typing.get_type_hints(struct, include_extras=True)
    fields = [field.name for field in msgspec.structs.fields(struct)]
    tag = typing.cast("int", struct.__struct_config__.tag)

    def fit(drawn: tuple[object, ...]) -> list[object]:
        named = dict(zip(fields, drawn, strict=True))
        if "digest" in named:
            content = named.get("content", b"")
            named["digest"] = blake3(typing.cast("bytes", content)).digest()
        return [tag, *named.values()]

    parts = [HONEST[n] if n in HONEST else values(hints[n], SEEN) for n in fields]
    return st.tuples(*parts).map(fit)


PHASES: dict[type, Phase | None] = {
    wire.Move: Phase.RENAME,
    wire.DirectoryMetadata: Phase.DIRECTORIES,
    wire.Enter: None,
    wire.Begin: None,
    wire.Finish: None,
    wire.Data: None,
    wire.CloseFile: None,
    wire.DropFile: None,
}
"""Where a record belongs that does not make anything; None for none of its own."""


@st.composite
def in_parts(draw: st.DrawFn) -> list[list[object]]:
    """Draw a file in two parts, whole or given up."""
    parts = [draw(CONTENTS), draw(CONTENTS)]
    opened = draw(plausible(wire.OpenFile))
    opened[-1] = len(b"".join(parts))
    data: list[list[object]] = [[wire.Data.__struct_config__.tag, part] for part in parts]
    close = [wire.CloseFile.__struct_config__.tag, 0o644, 0, blake3(b"".join(parts)).digest()]
    if draw(st.integers(0, 3)) == 0:
        close = [wire.DropFile.__struct_config__.tag]
    return [opened, *data, typing.cast("list[object]", close)]


@st.composite
def honest_looking(draw: st.DrawFn) -> list[list[object]]:
    """Draw a push in which most is in order, and one field perhaps is not."""
    push: list[list[object]] = []
    for phase in Phase:
        deletes = phase in {Phase.MAKE_WAY, Phase.DELETE}
        kinds = [
            kind
            for kind in RECORDS
            if (kind is wire.Delete if deletes else PHASES.get(kind, Phase.MAKE) is phase)
        ]
        push.append([wire.Begin.__struct_config__.tag, int(phase)])
        for _ in range(draw(st.integers(0, 4 if phase is Phase.MAKE else 2))):
            enter: list[object] = [
                wire.Enter.__struct_config__.tag,
                draw(st.sampled_from([b"", b"d", b"d/e", b"new"])),
            ]
            kind = draw(st.sampled_from(kinds))
            push += [
                enter,
                *(draw(in_parts()) if kind is wire.OpenFile else [draw(plausible(kind))]),
            ]
    push.append([wire.Finish.__struct_config__.tag])
    if draw(st.integers(0, 2)) == 0:
        record = draw(st.sampled_from(push))
        kind = next(k for k in RECORDS if k.__struct_config__.tag == record[0])
        record[:] = draw(shaped(kind, SEEN))
    return push


@contextmanager
def arena() -> Iterator[Path]:
    """A root with all kinds of entries, and a tree outside that nobody may read or touch."""
    base = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        grow(base / "outside", {"sentinel": b"untouched", "dir/in": b"untouched"})
        grow(
            base / "root",
            {"a": b"old", "b": b"old", "d/a": b"old", "d/e/f": b"x", "ln": "../outside"},
        )
        (base / "root/d/out").symlink_to("../../outside/dir")
        before = witness(base / "outside")
        yield base / "root"
        assert witness(base / "outside") == before
        assert sorted(os.listdir(base)) == ["outside", "root"]
    finally:
        shutil.rmtree(base)


def witness(root: Path) -> dict[str, object]:
    """Everything that can be told of a tree, also what a link from elsewhere would change."""
    shown: dict[str, object] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        s = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        told = s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_mtime_ns, s.st_ctime_ns, s.st_ino
        shown[str(path)] = (*told, content, os.listxattr(path, follow_symlinks=False))
    return shown


ALL_ON = RunOptions(
    durability=Durability.FAST,
    keep_owner=True,
    keep_xattrs=True,
    keep_acls=True,
    keep_hardlinks=True,
    keep_devices=True,
    keep_setuid=True,
    safety=Safety(trash_s=86_400, keep_replaced=True),
)
OPTIONS = st.sampled_from(
    [ALL_ON, RunOptions(durability=Durability.FAST, safety=Safety(trash_s=None))]
)


@st.composite
def anything(draw: st.DrawFn) -> list[list[object]]:
    """Draw a push in which nothing need be in order."""
    return [
        draw(shaped(draw(st.sampled_from(RECORDS)), SEEN)) for _ in range(draw(st.integers(0, 8)))
    ]


FIELDS = {
    kind.__struct_config__.tag: [field.name for field in msgspec.structs.fields(kind)]
    for kind in RECORDS
}


def with_fingerprints(root: Path, records: list[list[object]]) -> list[list[object]]:
    """Put fingerprints in the place of what stands for them."""
    marks = {mark: fingerprint((root / name).lstat()) for mark, name in MARKS.items()}
    at = b""
    done: list[list[object]] = []
    for record in records:
        named = dict(zip(FIELDS.get(typing.cast("int", record[0]), []), record[1:], strict=False))
        if record[0] == wire.Enter.__struct_config__.tag and isinstance(record[1], bytes):
            at = record[1]
        if named.get("seen") == RIGHT:
            _make_right(root, at, named)
        done.append(
            [record[0], *[marks.get(x, x) if type(x) is int else x for x in named.values()]]
        )
    return done


def _make_right(root: Path, at: bytes, named: dict[str, object]) -> None:
    name = named.get("name", named.get("path", b""))
    path = os.path.join(
        os.fsencode(root), at if "name" in named else b"", typing.cast("bytes", name)
    )
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        named["seen"] = 7 if "kind" in named else 0
        return
    named["seen"] = fingerprint(status)
    if "kind" in named:
        kinds = {stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}
        named["kind"] = int(kinds.get(stat.S_IFMT(status.st_mode), Kind.FILE))


@settings(max_examples=350, deadline=None)
@given(
    what=st.integers(0, 4).flatmap(lambda n: honest_looking() if n else anything()),
    options=OPTIONS,
    cut=st.integers(1, 5),
)
def test_i14_any_push_stays_inside_and_leaves_nothing_unfinished(
    what: list[list[object]], options: RunOptions, cut: int
) -> None:
    with arena() as root, Tree.open(os.fsencode(root)) as tree:
        records = with_fingerprints(root, what)
        receiver = Receiver(tree, options, member="t", gate=OpenGate(), run_stamp=RUN_STAMP)
        try:
            with contextlib.suppress(PeerError):
                for at in range(0, len(records), cut):
                    receiver.feed(encoded(records[at : at + cut]))
                receiver.finish()
        finally:
            receiver.abort()
        assert temporaries(root) == []


def encoded(records: list[list[object]]) -> bytes:
    try:
        return msgspec.msgpack.encode(records)
    except (OverflowError, msgspec.MsgspecError):
        return b"\xc1"


@settings(max_examples=150, deadline=None)
@given(
    replies=st.lists(st.one_of(*[shaped(kind) for kind in REPLIES]), max_size=6),
    raw=st.binary(max_size=40),
)
def test_i14_any_reply_is_taken_or_refused(replies: list[list[object]], raw: bytes) -> None:
    with arena() as root:
        pair = Pair(root, root)
        with (
            Tree.open(os.fsencode(root), read_only=True) as source,
            Tree.open(os.fsencode(root), read_only=True) as target,
            pair.plan(source, target) as plan,
        ):
            sender = Sender(source, plan, member="s", target_member="t")
            for frame in (encoded(replies), raw):
                with contextlib.suppress(MalformedFrame):
                    sender.on_reply(frame)
            counts = sender.result().counts
            assert min(counts.files_copied, counts.bytes_copied, counts.files_deleted) >= 0


def test_the_protocol_is_drawn_from_its_own_types() -> None:
    assert {wire.SmallFile, wire.Delete, wire.Enter} <= set(RECORDS)
    assert {wire.Published, wire.Failed} <= set(REPLIES)
    for kind in (*RECORDS, *REPLIES):
        assert issubclass(kind, msgspec.Struct)
    assert len({kind.__struct_config__.tag for kind in RECORDS}) == len(RECORDS)


ENTRY = st.tuples(
    *[values(typing.get_type_hints(Entry)[name], st.integers(0, 1 << 64)) for name in Entry._fields]
)


@functools.cache
def honest_listing() -> bytes:
    with arena() as root, Tree.open(os.fsencode(root), read_only=True) as tree:
        return b"".join(encode_entries(scan_stretches(tree, problems=[], member="t")))


@settings(max_examples=250, deadline=None)
@given(entries=st.lists(ENTRY, max_size=6), raw=st.binary(max_size=60), flip=st.integers(0, 400))
def test_i14_any_listing_is_read_or_refused(
    entries: list[tuple[object, ...]], raw: bytes, flip: int
) -> None:
    frames = [encoded([[list(entry) for entry in entries], []]), raw]
    spoilt = bytearray(honest_listing())
    spoilt[flip % len(spoilt)] ^= 1 << flip % 8
    for frame in (*frames, bytes(spoilt)):
        with contextlib.suppress(MalformedFrame):
            found = list(decode_entries([frame]))
            paths = [entry.path for entry in found]
            assert paths == sorted(paths, key=lambda path: path.split(b"/") if path else [])
            assert not any(b".." in path.split(b"/") or b"\0" in path for path in paths)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=80), head=st.sampled_from([b"", b"\x28\xb5\x2f\xfd", b"\x00"]))
def test_i14_a13_anything_that_calls_itself_compressed(raw: bytes, head: bytes) -> None:
    with contextlib.suppress(MalformedFrame):
        assert len(unpack(head + raw, limit=1_000)) <= 1_000


def test_i14_the_fuzzing_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds the test above: with names unchecked, the same pushes get out."""
    from syncengine import position

    for name in ("check_name", "check_path"):
        monkeypatch.setattr(position, name, lambda _path: None)
    content = b"x"
    lie = wire.SmallFile(b"../out", 0, 0o644, 0, blake3(content).digest(), memoryview(content))
    push = [wire.Begin(Phase.MAKE), wire.Enter(b""), lie, wire.Finish()]

    def attack() -> None:
        with arena() as root, Tree.open(os.fsencode(root)) as tree:
            it = Receiver(tree, ALL_ON, member="t", gate=OpenGate(), run_stamp=RUN_STAMP)
            it.feed(msgspec.msgpack.encode(push))
            it.finish()

    with pytest.raises(AssertionError):
        attack()
