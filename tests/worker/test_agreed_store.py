"""What members agreed to, on disk: what is read back, what a listing says with it, and its losses."""

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncengine.agreed import Agreed, Agreement, Graft, Sighting
from syncengine.details import Details
from syncengine.directories import Directories
from syncengine.model import Entry, Kind, RunOptions
from syncengine.names import order_key
from syncengine.scan import scan
from syncengine.scope import Scope
from syncengine.tree import Tree
from worker.agreed_store import AgreedStore, AgreedStoreLost, AgreedStores, Whose, sightings
from worker.agreements import borne_out

WHOSE = Whose("job", "w1:data", "root-1")


def opened(stores: AgreedStores, whose: Whose = WHOSE) -> AgreedStore:
    store = stores.open(whose)
    assert store is not None
    return store


@pytest.fixture
def stores(tmp_path: Path) -> AgreedStores:
    return AgreedStores(tmp_path / "agreed")


def file(path: bytes, *, mtime: int = 5, size: int = 3, inode: int = 1 << 63) -> Entry:
    return Entry(path, Kind.FILE, 0o644, mtime, size, seen=(1 << 64) - 1, inode=inode, ctime_ns=-7)


def directory(path: bytes) -> Entry:
    return Entry(path, Kind.DIRECTORY, 0o755, 5, 0, seen=7, inode=2)


paths = st.lists(
    st.binary(min_size=1, max_size=3).filter(lambda name: not {0, 47} & set(name)),
    min_size=1,
    max_size=3,
).map(b"/".join)
entries = st.builds(
    Entry,
    path=st.just(b""),
    link=st.just(b""),
    links=st.just(1),
    came_from=st.just(b""),
    kind=st.sampled_from([Kind.FILE, Kind.DIRECTORY, Kind.FIFO]),
    mode=st.integers(0, 0o7777),
    mtime_ns=st.integers(-(2**63) + 1, 2**63 - 1),
    size=st.integers(0, 2**63 - 1),
    seen=st.integers(1, 2**64 - 1),
    digest=st.binary(min_size=32, max_size=32) | st.just(b""),
    attributes=st.binary(max_size=9),
    inode=st.integers(0, 2**64 - 1),
    device=st.integers(0, 2**64 - 1),
    ctime_ns=st.integers(-(2**63) + 1, 2**63 - 1),
)


@settings(max_examples=10, deadline=None)
@given(st.dictionaries(paths, st.tuples(st.none() | entries, st.integers(1, 2**62)), max_size=8))
def test_what_was_written_is_read_in_tree_order(
    tmp_path_factory: pytest.TempPathFactory, records: dict[bytes, tuple[Entry | None, int]]
) -> None:
    written = {
        path: (entry and entry._replace(path=path), number)
        for path, (entry, number) in records.items()
    }
    stores = AgreedStores(tmp_path_factory.mktemp("agreed"))
    with opened(stores) as store:
        store.write((path, entry, number) for path, (entry, number) in written.items())
    with opened(stores) as store:
        found = list(sightings([], store))
        assert store.number == max((number for _, number in written.values()), default=0)
    assert [one.path for one in found] == sorted(written, key=order_key)
    for path, now, agreed, came_from in found:
        entry, number = written[path]
        assert (now, came_from) == (None, b"")
        assert agreed == Agreed(number, entry)


def test_a_listing_says_what_is_as_agreed_what_changed_what_is_new_and_what_is_gone(
    stores: AgreedStores,
) -> None:
    with opened(stores) as store:
        was = [directory(b""), file(b"a"), file(b"b"), file(b"gone"), directory(b"dir")]
        store.write((entry.path, entry, 4) for entry in was)
        store.write([(b"long gone", None, 3)])
        now = [directory(b""), file(b"a"), file(b"b", size=4), directory(b"dir"), file(b"dir/new")]
        found = {one.path: one for one in sightings(now, store)}
    assert found[b"a"] == Sighting(b"a", now[1], Agreed(4, now[1]))
    assert found[b"b"] == Sighting(b"b", now[2], Agreed(4, file(b"b")))
    assert found[b"dir/new"] == Sighting(b"dir/new", now[4])
    assert found[b"gone"] == Sighting(b"gone", None, Agreed(4, file(b"gone")))
    assert found[b"long gone"] == Sighting(b"long gone", None, Agreed(3, None))
    assert list(found) == sorted(found, key=order_key)


def test_a_record_with_number_0_is_forgotten(stores: AgreedStores) -> None:
    with opened(stores) as store:
        store.write([(b"a", file(b"a"), 2), (b"b", None, 2)])
        store.write([(b"a", None, 0), (b"b", None, 0)])
        assert len(store) == 0
        assert store.number == 2, "the number never goes back"


def test_digests_stand_on_the_fingerprint(stores: AgreedStores) -> None:
    known = file(b"a")._replace(digest=b"d" * 32)
    touched = file(b"a")._replace(seen=99)
    with opened(stores) as store:
        store.write([(b"a", known, 1)])
        assert next(iter(sightings([file(b"a")], store))).now == known
        assert next(iter(sightings([touched], store))).now == touched


def real(top: Path) -> list[Entry]:
    tree = Tree.open(os.fsencode(top))
    try:
        return list(scan(tree, problems=[], member="m", details=Details(inodes=True)))
    finally:
        tree.close()


def test_a_renamed_tree_is_recognized_by_its_inodes(stores: AgreedStores, tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "old/sub").mkdir(parents=True)
    for number in range(3):
        (top / f"old/sub/f{number}").write_text(f"content {number}")
    with opened(stores) as store:
        store.write((entry.path, entry, 1) for entry in real(top))
        (top / "old").rename(top / "new")
        (top / "new/sub/f1").write_text("changed, so it is another file")

        def is_gone(entry: Entry, path: bytes) -> bool:
            return not (top / os.fsdecode(path)).exists()

        found = {one.path: one for one in sightings(real(top), store, is_gone=is_gone)}
        came_from = {path: one.came_from for path, one in found.items() if one.came_from}
        assert came_from == {
            b"new": b"old",
            b"new/sub": b"old/sub",
            b"new/sub/f0": b"old/sub/f0",
            b"new/sub/f2": b"old/sub/f2",
        }
        grafted = list(sightings(real(top), store, grafts=[Graft(b"old", b"new")]))
    assert not [one for one in grafted if one.path.startswith(b"old")]
    assert {one.path for one in grafted if one.agreed is not None} == {
        one.path for one in grafted
    }, "records are shown where the renames take them"


@pytest.mark.parametrize(
    "other",
    [
        Whose("job", "w1:data", "root-2"),
        Whose("job", "w1:data", ""),
        Whose("job", "w1:data", "root-1", "made again"),
    ],
)
def test_the_store_of_another_root_is_dropped(stores: AgreedStores, other: Whose) -> None:
    with opened(stores) as store:
        store.write([(b"a", file(b"a"), 1)])
    assert stores.open(other, reading=True) is None, "its member is new"
    with opened(stores, other) as store:
        assert len(store) == 0


def test_members_and_jobs_have_stores_of_their_own(stores: AgreedStores) -> None:
    others = [Whose("job", "w1:data/sub", "root-1"), Whose("other", "w1:data", "root-1")]
    with opened(stores) as store:
        store.write([(b"a", file(b"a"), 1)])
    assert [stores.open(whose, reading=True) for whose in others] == [None, None]
    with opened(stores) as store:
        assert len(store) == 1


@pytest.mark.parametrize("harm", ["garbage", "empty", "half", "middle"])
def test_i3_a_damaged_store_is_dropped_or_says_so_while_it_is_read(
    stores: AgreedStores, tmp_path: Path, harm: str
) -> None:
    with opened(stores) as store:
        store.write((b"f%06d" % n, file(b"f%06d" % n, inode=n), 1) for n in range(5000))
    (path,) = (tmp_path / "agreed").glob("*.db")
    data = path.read_bytes()
    harmed = {
        "garbage": random.Random(1).randbytes(len(data)),
        "empty": b"",
        "half": data[: len(data) // 2],
        "middle": data[:8192] + bytes(len(data) - 8192),
    }[harm]
    path.write_bytes(harmed)
    for left in path.parent.glob("*.db-*"):
        left.unlink()
    left_over = stores.open(WHOSE, reading=True)
    if left_over is not None:
        with left_over:
            try:
                assert len(list(sightings([], left_over))) in {0, 5000}
            except AgreedStoreLost as lost:
                stores.drop(WHOSE, str(lost))
    with opened(stores) as fresh:
        assert len(fresh) in {0, 5000}
        fresh.write([(b"new", file(b"new"), 2)])


def test_i3_what_was_written_outlives_a_kill(stores: AgreedStores, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from worker.agreed_store import AgreedStores, Whose\n"
        "store = AgreedStores(Path(sys.argv[1])).open(Whose('job', 'w1:data', 'root-1'))\n"
        "store.write((b'f%d' % n, None, 1) for n in range(50_000))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path / "agreed")], check=False)
    assert child.returncode == -9
    with opened(stores) as store:
        assert len(store) == 50_000


def test_a_disk_that_refuses_is_no_reason_to_forget(stores: AgreedStores, tmp_path: Path) -> None:
    with opened(stores) as store:
        store.write([(b"a", file(b"a"), 1)])
        store._db.execute("BEGIN EXCLUSIVE")
        (path,) = (tmp_path / "agreed").glob("*.db")
        with pytest.raises(sqlite3.OperationalError):
            sqlite3.connect(path, timeout=0).execute("BEGIN EXCLUSIVE")
        store._db.execute("ROLLBACK")
    with opened(stores) as store:
        assert len(store) == 1


def test_i3_only_what_the_tree_bears_out_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "there").write_bytes(b"")
    os.symlink("file", tmp_path / "link")
    (tmp_path / "sub").mkdir()
    mine = {entry.path: entry for entry in real(tmp_path)}
    told = [
        Agreement(b"file", 7, mine[b"file"]._replace(seen=1, mode=0o600)),
        Agreement(b"file", 7, mine[b"file"]._replace(size=4)),
        Agreement(b"file", 7, mine[b"file"]._replace(mtime_ns=4)),
        Agreement(b"file", 7, mine[b"file"]._replace(kind=Kind.SYMLINK)),
        Agreement(b"file", 7),
        Agreement(b"link", 7, mine[b"link"]),
        Agreement(b"link", 7, mine[b"link"]._replace(link=b"other")),
        Agreement(b"sub", 7, mine[b"sub"]._replace(mtime_ns=1)),
        Agreement(b"gone", 7),
        Agreement(b"gone", 7, mine[b"file"]._replace(path=b"gone")),
        Agreement(b"file/below", 7),
        Agreement(b"forgotten", 0),
    ]
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        directories = Directories(fd)
        found = list(borne_out(directories, told, RunOptions(), holds_modes=False))
        with_modes = list(borne_out(directories, told, RunOptions()))
        directories.close()
    finally:
        os.close(fd)
    assert [(path, number) for path, _, number in found] == [
        (b"file", 7),
        (b"link", 7),
        (b"sub", 7),
        (b"gone", 7),
        (b"file/below", 7),
        (b"forgotten", 0),
    ]
    recorded = found[0][1]
    assert recorded is not None
    assert (recorded.mode, recorded.seen) == (mine[b"file"].mode, mine[b"file"].seen), "its own"
    assert told[0].entry is not None
    assert with_modes[0][1] == recorded._replace(mode=told[0].entry.mode), "somebody changed it"


few = st.lists(st.sampled_from([b"a", b"b", b"a.", b"\xff"]), min_size=1, max_size=3).map(b"/".join)


@settings(max_examples=30, deadline=None)
@given(
    st.sets(few, max_size=12),
    st.lists(st.tuples(few, st.booleans()), max_size=4),
    st.lists(st.tuples(few, few), max_size=1),
)
def test_the_records_of_a_scope_are_those_and_no_others(
    tmp_path_factory: pytest.TempPathFactory,
    recorded: set[bytes],
    parts: list[tuple[bytes, bool]],
    renamed: list[tuple[bytes, bytes]],
) -> None:
    """As if all had been read and the rest been left out; grafts at both ends."""
    grafts = [Graft(*one) for one in renamed]
    scope = Scope.of(parts)
    wide = scope.deepened(path for graft in grafts for path in graft)
    on_the_way = wide.wanted()
    with opened(AgreedStores(tmp_path_factory.mktemp("agreed"))) as store:
        store.write((path, file(path), 1) for path in recorded)
        found = list(store.records(grafts, scope))
        every = list(store.records(grafts))
    assert found == [
        row
        for row in every
        if wide.covers(path := row[0].replace(b"\0", b"/")) or path in on_the_way
    ]


def test_what_two_grafts_lead_to_one_place_is_told_once(stores: AgreedStores) -> None:
    """A graft within another that leads where that one leads anyway: a listing twice would be none."""
    kept = [directory(b"b"), file(b"b/f"), file(b"b/g"), file(b"z")]
    with opened(stores) as store:
        store.write((entry.path, entry, 1) for entry in kept)
        grafts = [Graft(b"b", b"y"), Graft(b"b/f", b"y/f")]
        keys = [row[0] for row in store.records(grafts)]
    assert keys == [order_key(path) for path in (b"y", b"y/f", b"y/g", b"z")]
