"""Room for so many runs: never too many, the highest priority first, of equals who waits longest."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wire.room import Room


def test_the_highest_priority_goes_first_and_of_equals_who_waits_longest() -> None:
    room = Room(1)
    room.ask("first", 0, 0.0)
    assert room.give_out() == ["first"]
    for job, priority, since in (("late", 5, 9.0), ("long", 0, 1.0), ("early", 5, 8.0)):
        room.ask(job, priority, since)
        assert room.give_out() == []
    given_to = []
    for _ in range(4):
        given_to += [job for job in ("first", "late", "long", "early") if room.has(job)]
        room.give_back(given_to[-1])
        room.give_out()
    assert given_to == ["first", "early", "late", "long"]


def test_asking_again_keeps_the_place() -> None:
    room = Room(1)
    room.take("busy")
    room.ask("a", 0, 1.0)
    room.ask("b", 0, 2.0)
    room.ask("a", 0, 3.0)  # of another owner, that knows less of how long it waits
    room.give_back("busy")
    assert room.give_out() == ["a"]


def test_what_goes_on_is_counted_even_beyond_the_limit() -> None:
    room = Room(1)
    room.take("a")
    room.take("b")
    room.ask("c", 0, 0.0)
    room.give_back("a")
    assert (room.give_out(), room.taken) == ([], 1)
    room.give_back("b")
    assert room.give_out() == ["c"]


def test_who_may_not_have_it_keeps_its_place() -> None:
    room = Room(1)
    room.ask("a", 0, 0.0)
    room.ask("b", 0, 1.0)
    assert room.give_out(lambda job: job != "a") == ["b"]
    room.give_back("b")
    room.ask("b", 0, 2.0)
    assert room.give_out() == ["a"]


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 5)), max_size=12))
def test_without_a_limit_nobody_waits(asks: list[tuple[int, int]]) -> None:
    room = Room(None)
    for number, (priority, since) in enumerate(asks):
        room.ask(str(number), priority, since)
    assert len(room.give_out()) == len(asks)
    assert room.waiting == 0


class Rooms(RuleBasedStateMachine):
    """Against a list in the order of right."""

    limit = 2

    def __init__(self) -> None:
        super().__init__()
        self.room = Room(self.limit)
        self.queue: dict[str, tuple[int, float]] = {}
        self.inside: set[str] = set()

    @rule(job=st.sampled_from("abcdef"), priority=st.integers(-1, 1), since=st.integers(0, 3))
    def ask(self, job: str, priority: int, since: int) -> None:
        self.room.ask(job, priority, since)
        if job not in self.inside:
            before = self.queue.get(job, (0, float(since)))
            self.queue[job] = -priority, min(before[1], since)
        self.give_out()

    @rule(job=st.sampled_from("abcdef"))
    def give_back(self, job: str) -> None:
        self.room.give_back(job)
        self.queue.pop(job, None)
        self.inside.discard(job)
        self.give_out()

    @precondition(lambda self: self.queue)
    @rule()
    def nothing_changed(self) -> None:
        assert self.room.give_out() == []

    def give_out(self) -> None:
        free = self.limit - len(self.inside)
        first = sorted(self.queue, key=lambda job: (*self.queue[job], job))[:free]
        assert self.room.give_out() == first
        for job in first:
            del self.queue[job]
            self.inside.add(job)

    @invariant()
    def as_expected(self) -> None:
        assert {job for job in "abcdef" if self.room.has(job)} == self.inside
        assert len(self.inside) <= self.limit
        assert self.room.waiting == len(self.queue)
        assert not self.queue or len(self.inside) == self.limit, "room stays free while one waits"


TestRooms = Rooms.TestCase
