"""The fence: under concurrent publishing, takeovers and deadlines nothing passes that must not."""

import threading
from collections.abc import Callable

import pytest

from syncengine.errors import Fenced
from tests.worker.clocks import ManualClock
from wire.orders import RefusalReason
from wire.token import Token
from worker import fence as fence_module
from worker.errors import OrderRefused
from worker.fence import Fence, Gate

T1, T2, T3 = Token(7, 10), Token(7, 20), Token(7, 30)
JOIN_S = 10.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def fence(clock: ManualClock) -> Fence:
    return Fence("job", clock)


def accepted(fence: Fence, token: Token, deadline: float | None = None) -> Fence:
    fence.accept(token, None, None)
    if deadline is not None:
        fence.extend(deadline)
    return fence


class Publishing:
    """A thread that goes through a gate once and remembers how that ended."""

    def __init__(self, gate: Gate) -> None:
        self.is_inside = threading.Event()
        self.let_go = threading.Event()
        self.outcome = ""
        self._gate = gate
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._gate.publishing():
                self.is_inside.set()
                self.let_go.wait(JOIN_S)
                self.outcome = "published"
        except Fenced as error:
            self.outcome = f"fenced: {error}"

    def wait(self) -> str:
        self._thread.join(JOIN_S)
        assert not self._thread.is_alive()
        return self.outcome


def wait_for_waiter(fence: Fence) -> None:
    """Return once a thread is parked at the fence."""
    waiters = fence.changed._waiters  # type: ignore[attr-defined]
    deadline = threading.Event()
    for _ in range(2_000):
        if waiters:
            return
        deadline.wait(0.002)
    raise AssertionError("nobody parked")


def test_i4_accept_waits_for_the_slice_that_is_being_published(
    fence: Fence, clock: ManualClock
) -> None:
    accepted(fence, T1, clock.now() + 100)
    publishing = Publishing(Gate(fence, T1))
    assert publishing.is_inside.wait(JOIN_S)
    done = threading.Event()

    def accept() -> None:
        fence.accept(T2, None, None)
        done.set()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    assert not done.wait(0.05), "a slice under the older token is still going on"
    publishing.let_go.set()
    assert done.wait(JOIN_S)
    accepting.join(JOIN_S)
    assert publishing.wait() == "published", "what had begun before is whole"


def test_i4_after_accept_returned_nothing_publishes_under_a_lower_token(
    fence: Fence, clock: ManualClock
) -> None:
    """Many threads publish without a pause, each with a badge of its own, while tokens rise."""
    accepted(fence, Token(7, 1), clock.now() + 1e6)
    floor = [1]
    wrong: list[tuple[int, int]] = []
    published = [0]

    def publish(badge: int) -> None:
        gate = Gate(fence, Token(7, badge))
        gates.append(gate)
        try:
            while not pause.wait(0.0005):
                with gate.publishing():
                    # `floor` is what `accept` returned for: a badge below it must never be here.
                    if badge < floor[0]:
                        wrong.append((badge, floor[0]))
                    published[0] += 1
        except Fenced:
            return

    gates: list[Gate] = []
    pause = threading.Event()
    threads = [threading.Thread(target=publish, args=(n,), daemon=True) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for revision in range(2, 9):
        before = published[0]
        fence.accept(Token(7, revision), None, None)
        floor[0] = revision
        fence.extend(clock.now() + 1e6)
        for _ in range(5_000):
            if published[0] > before:
                break
            threading.Event().wait(0.001)
    for gate in gates:
        gate.close()
    for thread in threads:
        thread.join(JOIN_S)
        assert not thread.is_alive()
    assert not wrong
    assert published[0] >= 7


def test_i4_an_older_token_is_refused_and_changes_nothing(fence: Fence, clock: ManualClock) -> None:
    accepted(fence, T2, clock.now() + 5)
    with pytest.raises(OrderRefused) as refused:
        fence.accept(T1, None, lambda: pytest.fail("nothing may be written"))
    assert refused.value.reason is RefusalReason.STALE_TOKEN
    assert refused.value.highest == T2
    assert fence.highest == T2
    assert fence.is_live


def test_i4_a_token_on_disk_counts_though_this_process_never_accepted_it(fence: Fence) -> None:
    with pytest.raises(OrderRefused) as refused:
        fence.accept(T1, T2, None)
    assert refused.value.highest == T2
    assert fence.highest is None


def test_i5_a_token_that_could_not_be_made_durable_is_not_accepted(
    fence: Fence, clock: ManualClock
) -> None:
    accepted(fence, T1, clock.now() + 5)

    def full() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fence.accept(T2, None, full)
    assert fence.highest == T1
    assert fence.is_live, "the owner that we know goes on"


def test_i5_the_token_is_durable_before_anything_publishes_under_it(
    fence: Fence, clock: ManualClock
) -> None:
    seen: list[Token | None] = []
    fence.accept(T1, None, lambda: seen.append(fence.highest))
    assert seen == [None], "written first, then accepted"


def test_an_equal_token_again_keeps_the_deadline(fence: Fence, clock: ManualClock) -> None:
    accepted(fence, T1, clock.now() + 5)
    accepted(fence, T1)
    assert fence.is_live


def test_an_equal_token_again_after_the_deadline_begins_anew(
    fence: Fence, clock: ManualClock
) -> None:
    accepted(fence, T1, clock.now() + 5)
    clock.advance(6)
    assert (fence.is_expired, fence.is_live) == (True, False)
    accepted(fence, T1)
    assert (fence.is_expired, fence.is_live) == (False, False), "not refused, and not live yet"
    fence.extend(clock.now() + 5)
    assert (fence.is_expired, fence.is_live) == (False, True)


def test_a_higher_token_starts_without_a_deadline(fence: Fence, clock: ManualClock) -> None:
    accepted(fence, T1, clock.now() + 500)
    accepted(fence, T2)
    assert not fence.is_live
    assert not fence.is_expired
    assert not fence.may_publish(T2)


def test_the_deadline_is_counted_on_the_clock_that_was_given(
    fence: Fence, clock: ManualClock
) -> None:
    accepted(fence, T1, clock.now() + 5)
    gate = Gate(fence, T1)
    with gate.publishing():
        pass
    clock.advance(4.999)
    assert fence.may_publish(T1)
    clock.advance(0.001)
    assert not fence.may_publish(T1), "at the deadline itself it is over"


def test_extensions_never_shorten(fence: Fence, clock: ManualClock) -> None:
    accepted(fence, T1, clock.now() + 50)
    fence.extend(clock.now() + 1)
    clock.advance(20)
    assert fence.is_live


def test_i12_past_the_deadline_a_push_parks_until_it_is_extended(
    fence: Fence, clock: ManualClock
) -> None:
    accepted(fence, T1, clock.now() + 5)
    clock.advance(6)
    publishing = Publishing(Gate(fence, T1))
    wait_for_waiter(fence)
    assert not publishing.is_inside.is_set()
    publishing.let_go.set()
    fence.extend(clock.now() + 5)
    assert publishing.wait() == "published"


def test_after_a_takeover_a_push_parks_until_it_shows_the_new_badge(
    fence: Fence, clock: ManualClock
) -> None:
    accepted(fence, T1, clock.now() + 5)
    gate = Gate(fence, T1)
    accepted(fence, T2, clock.now() + 5)
    publishing = Publishing(gate)
    wait_for_waiter(fence)
    publishing.let_go.set()
    gate.renew(T2)
    assert publishing.wait() == "published"
    assert gate.badge == T2


@pytest.mark.parametrize("shown", [T1, T2])
def test_a_badge_never_goes_back(fence: Fence, clock: ManualClock, shown: Token) -> None:
    accepted(fence, T2, clock.now() + 5)
    gate = Gate(fence, T2)
    gate.renew(shown)
    assert gate.badge == T2
    with gate.publishing():
        pass


def test_a_badge_from_the_future_parks_too(
    fence: Fence, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that heard of a takeover first may not publish before this worker's session did."""
    monkeypatch.setattr(fence_module, "PARK_LIMIT_S", 0.01)
    accepted(fence, T2, clock.now() + 5)
    with pytest.raises(Fenced), Gate(fence, T3).publishing():
        pass


@pytest.mark.parametrize("when", ["before", "parked"])
def test_a_closed_gate_lets_nothing_through(fence: Fence, clock: ManualClock, when: str) -> None:
    gate = Gate(fence, T1)
    accepted(fence, T1)
    if when == "before":
        fence.extend(clock.now() + 5)
        gate.close()
        publishing = Publishing(gate)
    else:
        publishing = Publishing(gate)
        wait_for_waiter(fence)
        gate.close()
    assert publishing.wait().startswith("fenced")
    fence.extend(clock.now() + 50)
    assert Publishing(gate).wait().startswith("fenced"), "for ever"


def test_parking_has_an_end(
    fence: Fence, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence_module, "PARK_LIMIT_S", 0.01)
    accepted(fence, T1)
    with pytest.raises(Fenced, match="may publish no more"), Gate(fence, T1).publishing():
        pass


def test_end_lets_nothing_through_until_the_next_extension(
    fence: Fence, clock: ManualClock
) -> None:
    accepted(fence, T1, clock.now() + 500)
    fence.end()
    assert not fence.may_publish(T1)
    fence.extend(clock.now() + 5)
    assert fence.may_publish(T1)


OTHER = Token(8, 1)


def test_the_token_of_a_replaced_cluster_is_forgotten_on_demand(
    fence: Fence, clock: ManualClock
) -> None:
    accepted(fence, T3, clock.now() + 5)
    fence.forget()
    assert not fence.is_live
    accepted(fence, OTHER, clock.now() + 5)
    assert not fence.may_publish(T3)
    assert fence.may_publish(OTHER)


def test_a_gate_can_be_shown_a_badge_of_the_new_cluster(fence: Fence, clock: ManualClock) -> None:
    accepted(fence, T3, clock.now() + 5)
    gate = Gate(fence, T3)
    fence.forget()
    accepted(fence, OTHER, clock.now() + 5)
    gate.renew(OTHER)
    with gate.publishing():
        pass


Change = Callable[[Fence, Gate], None]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda fence, _: fence.extend(1e9), id="extend of another badge"),
        pytest.param(lambda _, gate: gate.renew(T1), id="the same badge"),
        pytest.param(lambda fence, _: fence.end(), id="end"),
    ],
)
def test_what_does_not_help_keeps_a_push_parked(
    fence: Fence, clock: ManualClock, change: Change
) -> None:
    accepted(fence, T2)
    gate = Gate(fence, T1)
    publishing = Publishing(gate)
    wait_for_waiter(fence)
    change(fence, gate)
    wait_for_waiter(fence)
    assert not publishing.is_inside.is_set()
    gate.close()
    publishing.wait()
