"""The journal of changed paths: what is pending, since when, and what leaves it."""

from collections.abc import Iterator
from pathlib import Path
from time import process_time

import pytest

from worker.watching.coalesce import coalesced
from worker.watching.journal import Change, ChangeJournal, Rename
from worker.watching.pending import Consumer, PendingBatch, RenameHint
from worker.watching.store import Store

TARGET = Consumer("job", "b:root", b"")


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "root.db")
    yield store
    store.close()


@pytest.fixture
def journal(store: Store, time: Time) -> ChangeJournal:
    """A journal whose one consumer has made its first whole pass."""
    journal = ChangeJournal(store, monotonic=time)
    settled(journal, TARGET)
    return journal


def settled(journal: ChangeJournal, consumer: Consumer) -> None:
    assert journal.register(consumer, 1.0)
    journal.done(taken(journal, consumer))


def taken(journal: ChangeJournal, consumer: Consumer = TARGET, limit: int = 100) -> PendingBatch:
    batch = journal.pending(consumer, limit)
    assert batch is not None
    return batch


def paths(batch: PendingBatch) -> list[tuple[bytes, bool]]:
    return [(path, is_deep) for path, is_deep in batch.paths]


def test_a_new_consumer_has_everything_before_it(store: Store) -> None:
    journal = ChangeJournal(store)
    assert journal.register(TARGET, 7.0)
    batch = taken(journal)
    assert batch.everything
    assert paths(batch) == [(b"", True)]
    assert batch.oldest_change_at == 7.0
    journal.done(batch)
    assert journal.pending(TARGET) is None
    assert not journal.register(TARGET, 8.0), "known by now"
    assert journal.pending(TARGET) is None


def test_a_path_is_pending_once_and_since_its_first_change(journal: ChangeJournal) -> None:
    journal.add([Change(b"a", 10.0), Change(b"b/c", 11.0)])
    journal.add([Change(b"a", 12.0)])
    batch = taken(journal)
    assert paths(batch) == [(b"a", False), (b"b/c", False)]
    assert batch.everything is None
    assert batch.oldest_change_at == journal.oldest_change_at(TARGET) == 10.0
    journal.done(batch)
    assert journal.oldest_change_at(TARGET) is None
    assert not journal.has_pending(TARGET)


def test_what_changes_while_it_is_handed_out_stays_since_then(journal: ChangeJournal) -> None:
    journal.add([Change(b"a", 10.0), Change(b"b", 10.5)])
    batch = taken(journal)
    journal.add([Change(b"a", 20.0)])
    journal.add([Change(b"a", 21.0)])
    assert journal.oldest_change_at(TARGET) == 10.0, "nothing of it is at the target yet"
    journal.done(batch)
    assert journal.oldest_change_at(TARGET) == 20.0
    assert paths(taken(journal)) == [(b"a", False)]


def test_a_deep_path_stands_for_all_below_it(journal: ChangeJournal) -> None:
    journal.add([Change(b"d/x", 9.0), Change(b"d!", 10.0)])
    journal.add([Change(b"d", 11.0, is_deep=True)])
    journal.add([Change(b"d/y/z", 12.0)])
    assert journal.count(TARGET) == 2
    batch = taken(journal)
    assert paths(batch) == [(b"d", True), (b"d!", False)]
    assert batch.oldest_change_at == 9.0


def test_below_a_deep_path_that_is_handed_out_new_changes_count_by_themselves(
    journal: ChangeJournal,
) -> None:
    journal.add([Change(b"d", 11.0, is_deep=True)])
    batch = taken(journal)
    journal.add([Change(b"d/y", 12.0)])
    journal.done(batch)
    assert paths(taken(journal)) == [(b"d/y", False)]
    assert journal.oldest_change_at(TARGET) == 12.0


def test_below_what_is_handed_out_nothing_older_stands_for_a_new_change(
    journal: ChangeJournal,
) -> None:
    journal.add([Change(b"d", 10.0, is_deep=True)])
    taken(journal)
    journal.add([Change(b"d/e", 11.0, is_deep=True), Change(b"d/f", 11.0)])
    batch = taken(journal)
    journal.add([Change(b"d/e/g", 12.0), Change(b"d/f", 12.0)])
    journal.done(batch)
    assert paths(taken(journal)) == [(b"d/e/g", False), (b"d/f", False)]


@pytest.mark.parametrize("path", [b"", b"d"])
def test_of_a_deep_path_whose_own_entry_changes_while_it_is_handed_out_only_that_stays(
    journal: ChangeJournal, path: bytes
) -> None:
    journal.add([Change(path, 10.0, is_deep=True, reason="why")])
    batch = taken(journal)
    journal.add([Change(path, 20.0), Change(b"d/x", 21.0)])
    journal.done(batch)
    left = taken(journal)
    assert paths(left) == [(path, False), (b"d/x", False)]
    assert left.everything is None
    assert left.oldest_change_at == 20.0
    journal.add([Change(b"d/y", 22.0)])
    journal.done(left)
    assert paths(taken(journal)) == [(b"d/y", False)], "nothing stands for it any more"


@pytest.mark.parametrize("path", [b"", b"d"])
@pytest.mark.parametrize("is_deep", [(True, False), (False, True)])
def test_a_deep_path_that_is_deep_anew_while_it_is_handed_out_stays_so(
    journal: ChangeJournal, path: bytes, is_deep: tuple[bool, bool]
) -> None:
    journal.add([Change(path, 10.0, is_deep=True)])
    batch = taken(journal)
    journal.add([Change(path, 20.0 + number, one) for number, one in enumerate(is_deep)])
    journal.done(batch)
    assert paths(taken(journal)) == [(path, True)]
    assert journal.oldest_change_at(TARGET) == 20.0


def test_a_deep_path_whose_batch_is_not_done_stays_deep(
    journal: ChangeJournal, store: Store
) -> None:
    journal.add([Change(b"d", 10.0, is_deep=True)])
    batch = taken(journal)
    journal.add([Change(b"d", 20.0)])
    assert paths(taken(ChangeJournal(store))) == [(b"d", True)], "after a crash"
    journal.done(batch, failed=[(b"d", False)])
    assert paths(taken(journal)) == [(b"d", True)], "after it failed"


def test_a_deep_change_while_its_path_is_handed_out_keeps_what_it_took_up(
    journal: ChangeJournal,
) -> None:
    journal.add([Change(b"d", 10.0)])
    batch = taken(journal)
    journal.add([Change(b"d/x", 11.0)])
    journal.add([Change(b"d", 15.0, is_deep=True)])
    journal.done(batch)
    assert paths(taken(journal)) == [(b"d", True)]
    assert journal.oldest_change_at(TARGET) == 11.0


def test_what_failed_comes_back_behind_the_rest_and_later(
    journal: ChangeJournal, time: Time
) -> None:
    journal.add([Change(b"a", 10.0), Change(b"d", 11.0, is_deep=True)])
    batch = taken(journal)
    journal.add([Change(b"y", 11.5)])
    journal.done(batch, failed=[(b"a", False), (b"d/locked", False)], retry_after_s=5.0)
    rest = taken(journal)
    assert paths(rest) == [(b"y", False)]
    journal.done(rest)
    assert journal.pending(TARGET) is None
    assert not journal.has_pending(TARGET)
    assert journal.next_due_in_s(TARGET) == 5.0
    assert journal.oldest_change_at(TARGET) == 10.0, "it still counts"
    journal.add([Change(b"z", 12.0)])
    assert paths(taken(journal, limit=1)) == [(b"z", False)]
    time.now += 5.0
    assert paths(taken(journal)) == [(b"a", False), (b"d/locked", False), (b"z", False)]


def test_a_new_change_brings_back_at_once_what_failed(journal: ChangeJournal) -> None:
    journal.add([Change(b"a", 10.0)])
    journal.done(taken(journal), failed=[(b"a", False)], retry_after_s=500.0)
    journal.add([Change(b"a", 12.0)])
    assert paths(taken(journal)) == [(b"a", False)]


def test_a_failed_whole_pass_stays_whole(journal: ChangeJournal, time: Time) -> None:
    journal.add([Change(b"", 10.0, is_deep=True, reason="lost")])
    batch = taken(journal)
    assert batch.everything == "lost"
    journal.add([Change(b"a", 11.0)])
    journal.done(batch, failed=[(b"", True)], retry_after_s=1.0)
    assert journal.pending(TARGET) is None
    time.now += 1.0
    again = taken(journal)
    assert again.everything == "lost"
    journal.done(again)
    assert journal.count(TARGET) == 0


def test_a_superseded_batch_lets_nothing_go_that_changed_after_it(journal: ChangeJournal) -> None:
    journal.add([Change(b"a", 10.0), Change(b"b", 10.0)])
    first = taken(journal)
    journal.add([Change(b"a", 11.0)])
    taken(journal)
    journal.done(first)
    assert paths(taken(journal)) == [(b"a", False)]


def test_renames_are_told_with_both_paths_and_chained(journal: ChangeJournal) -> None:
    journal.add([Change(b"a", 1.0), Change(b"b", 1.0)], [Rename(b"a", b"b", False)])
    journal.add([Change(b"b", 2.0), Change(b"c", 2.0)], [Rename(b"b", b"c", False)])
    batch = taken(journal, limit=1)
    assert batch.renames == (RenameHint(b"a", b"c", False),)
    assert {path for path, _ in batch.paths} >= {b"a", b"c"}
    journal.done(batch)
    rest = journal.pending(TARGET)
    assert rest is None or rest.renames == ()


def test_everybody_has_a_journal_below_a_top_of_its_own(
    journal: ChangeJournal,
) -> None:
    below = Consumer("other", "c:root", b"in/side")
    settled(journal, below)
    news = journal.add([Change(b"in/side/x", 5.0), Change(b"in/sidekick", 5.0)])
    assert news == {TARGET, below}
    assert paths(taken(journal, below)) == [(b"x", False)]
    journal.add([Change(b"in", 6.0, is_deep=True)])
    assert taken(journal, below).everything is not None, "what leads to its top is another"
    assert paths(taken(journal)) == [(b"in", True)]
    journal.done(taken(journal))
    assert journal.has_pending(below), "each for itself"
    journal.forget(below)
    assert journal.consumers == [TARGET]


def test_another_top_makes_it_a_new_consumer(journal: ChangeJournal) -> None:
    assert journal.register(Consumer("job", "b:root", b"else"), 9.0)
    assert [one.top for one in journal.consumers] == [b"else"]


def test_too_many_paths_become_directories(store: Store) -> None:
    journal = ChangeJournal(store, most=100)
    settled(journal, TARGET)
    for number in range(300):
        journal.add([Change(b"full/%d" % number, 50.0 + number), Change(b"lone", 40.0)])
    assert journal.count(TARGET) <= 101
    batch = taken(journal, limit=1_000)
    assert (b"full", True) in paths(batch)
    assert (b"lone", False) in paths(batch)
    assert batch.everything is None
    assert journal.oldest_change_at(TARGET) == 40.0


def test_coalesced_covers_everything_with_few() -> None:
    many = {b"a/b/%d" % number: float(number) for number in range(50)}
    many |= {b"c%d/x" % number: 7.0 for number in range(50)}
    chosen = coalesced(many, 60)
    assert chosen == {b"a/b": 0.0}
    assert coalesced(many, 10) == {b"": 0.0}


def test_coalesced_is_quick_and_keeps_what_it_can() -> None:
    many = {b"d%d/e%d/f%d" % (n % 100, n // 2, n): float(n) for n in range(50_000)}
    began = process_time()
    chosen = coalesced(many, 25_000)
    assert process_time() - began < 5.0
    assert all(len(one.split(b"/")) in {1, 2} for one in chosen)
    left = [path for path in many if not {path.rsplit(b"/", n)[0] for n in (1, 2)} & chosen.keys()]
    assert len(left) + len(chosen) <= 25_000
    assert b"" not in chosen
    full = {b"full/%d" % n: 9.0 for n in range(100)} | {b"a/b/c/%d" % n: 3.0 for n in range(10)}
    assert coalesced(full, 50) == {b"full": 9.0}


def test_done_with_an_older_batch_keeps_what_changes_in_a_newer(journal: ChangeJournal) -> None:
    journal.add([Change(b"a", 10.0)])
    first = taken(journal)
    second = taken(journal)
    journal.done(first)
    journal.add([Change(b"a", 12.0)])
    journal.done(second)
    assert paths(taken(journal)) == [(b"a", False)]


def test_it_survives_being_closed(tmp_path: Path, time: Time) -> None:
    store = Store(tmp_path / "root.db")
    journal = ChangeJournal(store)
    settled(journal, TARGET)
    journal.add([Change(b"a", 10.0), Change(b"d", 11.0, is_deep=True)])
    before = taken(journal)
    store.close()
    again = Store(tmp_path / "root.db")
    journal = ChangeJournal(again)
    journal.add([Change(b"d/below", 12.0)])
    batch = taken(journal)
    assert batch.paths == before.paths
    assert batch.upto >= before.upto
    journal.add([Change(b"a", 13.0)])
    journal.done(batch)
    assert paths(taken(journal)) == [(b"a", False)]
    again.close()


def test_a_damaged_file_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "root.db").write_bytes(b"no database at all" * 500)
    store = Store(tmp_path / "root.db")
    assert ChangeJournal(store).register(TARGET, 1.0)
    store.close()


def test_those_nobody_uses_are_forgotten(journal: ChangeJournal) -> None:
    late = Consumer("late", "x", b"")
    journal.register(late, 1_000.0)
    assert journal.forget_unused(500.0) == [], "it was used by its last done"
    assert journal.forget_unused(5_000.0) == [late]
    assert journal.consumers == [TARGET]


def test_a_batch_that_is_out_stays_so_when_a_transaction_is_undone(tmp_path: Path) -> None:
    store = Store(tmp_path / "journal.db")
    journal = ChangeJournal(store)
    consumer = Consumer("job", "b:data", b"")
    journal.register(consumer, 1.0)
    first = journal.pending(consumer)
    assert first is not None
    journal.done(first)
    journal.add([Change(b"a", 2.0)])
    batch = journal.pending(consumer)
    assert batch is not None

    def undone() -> None:
        with store.transaction():
            raise KeyError

    with pytest.raises(KeyError):
        undone()
    journal.add([Change(b"a", 3.0)])
    journal.done(batch)
    again = journal.pending(consumer)
    assert again is not None, "it changed after the batch was made"
    assert [path for path, _ in again.paths] == [b"a"]
    store.close()
