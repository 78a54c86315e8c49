"""The journal: what was answered is still there when the file is opened again, or it says so."""

import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from syncengine.marker import KnownRoot
from wire.token import Token
from worker.errors import StartRefused
from worker.journal import Journal

T1, T2 = Token(7, 10), Token(2**64 - 1, 2**63 - 1)


def reopened(journal: Journal, path: Path) -> Journal:
    journal.close()
    return Journal(path)


def test_i5_tokens_survive_a_reopen(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.accept("job", ["a", "b"], T1)
    journal.accept("job", ["b"], T2)
    journal.accept("other", ["a"], T2)
    journal = reopened(journal, path)
    assert journal.tokens("job", ["a", "b", "c"]) == {"a": T1, "b": T2}
    assert journal.tokens("job", ["a"]) == {"a": T1}, "only of the roots that are asked for"
    assert journal.tokens("other", ["a", "b"]) == {"a": T2}
    assert journal.tokens("third", ["a"]) == {}
    journal.close()


def test_i5_what_was_accepted_is_there_for_whoever_reads_the_files_of_a_killed_worker(
    tmp_path: Path,
) -> None:
    """No close, no checkpoint: the copy is what a crash of the process leaves."""
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.accept("job", ["a"], T1)
    after = tmp_path / "after"
    after.mkdir()
    for file in tmp_path.glob("journal.db*"):
        (after / file.name).write_bytes(file.read_bytes())
    journal.close()
    found = Journal(after / "journal.db")
    assert found.tokens("job", ["a"]) == {"a": T1}
    found.close()


def test_i5_every_commit_is_flushed(tmp_path: Path) -> None:
    """What a power cut leaves cannot be seen here, but which flushes SQLite was told to make can."""
    journal = Journal(tmp_path / "journal.db")
    full = 2
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (full,)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    journal.close()


def test_roots_survive_a_reopen_with_paths_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    assert journal.known_root("data") is None
    known = KnownRoot("id", 4, "fs", 99)
    entries = {b"": 3, b"a/\xff\x00b": 5, "ü".encode(): 0}
    journal.remember_root("data", KnownRoot("id", 3, "fs", 99))
    for below, number in entries.items():
        journal.remember_entries("data", below, number + 1)
        journal.remember_entries("data", below, number)
    journal.remember_root("data", known)
    journal = reopened(journal, path)
    assert journal.known_root("data") == known
    assert journal.known_root("else") is None
    assert {below: journal.entries("data", below) for below in entries} == entries
    assert journal.entries("data", b"else") is None
    assert journal.entries("else", b"") is None
    journal.close()


def test_i8_of_a_root_that_is_taken_as_new_no_entries_are_remembered(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    for root in ("data", "else"):
        journal.remember_root(root, KnownRoot("id", 3, "fs", 99))
        journal.remember_entries(root, b"a", 7)
    journal.remember_root("data", KnownRoot("new", 1, "fs", 99), is_new=True)
    assert journal.entries("data", b"a") is None
    assert journal.entries("else", b"a") == 7
    journal.close()


def test_i8_entries_that_an_older_worker_remembered_still_count(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    Journal(path).close()
    # What the version before wrote; keys are base64.
    old = '{"root_id":"id","generation":4,"file_system":"fs","inode":99,"entries":{"":3,"Yf8=":5}}'
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO roots VALUES ('data', ?)", (old,))
    db.close()
    for _ in range(2):
        journal = Journal(path)
        assert journal.known_root("data") == KnownRoot("id", 4, "fs", 99)
        assert journal.entries("data", b"") == 3
        assert journal.entries("data", b"a\xff") == 5
        journal.close()


def test_i5_what_many_threads_write_at_once_is_all_there_in_fewer_flushes(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    together = threading.Barrier(16)

    def accept_some(thread: int) -> None:
        for number in range(40):
            job = f"job-{thread}-{number}"
            journal.accept(job, ["a"], Token(7, number + 1))
            assert journal.tokens(job, ["a"]) == {"a": Token(7, number + 1)}, "when it returns"

    def first_all_at_once(thread: int) -> None:
        with journal._lock:
            pass
        together.wait(10)
        accept_some(thread)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(first_all_at_once, range(16)))
    assert journal.commits < 16 * 40
    journal = reopened(journal, path)
    for thread in range(16):
        for number in range(40):
            found = journal.tokens(f"job-{thread}-{number}", ["a"])
            assert found == {"a": Token(7, number + 1)}
    journal.close()


def test_i5_a_write_that_cannot_be_made_is_told_to_all_who_wrote_with_it(tmp_path: Path) -> None:
    """And none of them is done by half."""
    journal = Journal(tmp_path / "journal.db")
    told: dict[str, BaseException] = {}

    def trying(write: Callable[[], None], name: str) -> None:
        try:
            write()
        except OverflowError as error:
            told[name] = error

    def good() -> None:
        journal.accept("job", ["a"], T1)

    def bad() -> None:
        journal.remember_entries("a", b"", 2**63)  # more than SQLite's integers hold

    writers = [threading.Thread(target=trying, args=(one, one.__name__)) for one in (good, bad)]
    with journal._lock:  # both wait for it, and then go together
        for one in writers:
            one.start()
        deadline = time.monotonic() + 10
        while len(journal._waiting) < len(writers):
            assert time.monotonic() < deadline
            time.sleep(0.001)
    for one in writers:
        one.join(10)
    assert set(told) == {"good", "bad"}
    assert journal.tokens("job", ["a"]) == {}
    good()
    assert journal.tokens("job", ["a"]) == {"a": T1}
    journal.close()


def damage_all(path: Path) -> None:
    path.write_bytes(b"this was a database once" * 400)


def damage_inside(path: Path) -> None:
    """Keep the header, so that only reading the tables shows the damage."""
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\xee" * (len(raw) - 4096)
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def other_tables(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE tokens (nonsense TEXT)")
    db.close()


@pytest.mark.parametrize("harm", [damage_all, damage_inside, cut, other_tables])
def test_i3_a_damaged_journal_is_refused_with_what_to_do(tmp_path: Path, harm: object) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.accept("job", [f"{number:060}" for number in range(200)], T1)
    journal.remember_root("data", KnownRoot("id", 4, "fs", 99))
    journal.remember_entries("data", b"x" * 3000, 1)
    journal.close()
    assert callable(harm)
    harm(path)
    with pytest.raises(StartRefused) as refused:
        Journal(path)
    said = str(refused.value)
    assert str(path) in said
    assert "move it away" in said
    path.unlink()
    fresh = Journal(path)
    assert fresh.tokens("job", [f"{1:060}"]) == {}, "and what it says to do helps"
    fresh.close()


def test_a_journal_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="cannot be used"):
        Journal(tmp_path / "missing" / "journal.db")
    with pytest.raises(StartRefused, match="cannot be used"):
        Journal(tmp_path)
