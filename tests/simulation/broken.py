"""Ways to break the program on purpose, so that the checks show that they see it.

Some are mistakes that anybody could make; some are those that the simulation has found.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

from coordinator import timetable
from coordinator.lease_session import LeaseSession
from coordinator.ledger import Ledger, LedgerMoved
from coordinator.links import WorkerLink
from coordinator.ownership import Ownership
from coordinator.store import Compare, Op
from worker.fence import Fence
from worker.sessions import Sessions

Break = Callable[[], AbstractContextManager[None]]


@contextmanager
def _in_place_of(target: Any, name: str, broken: Any) -> Iterator[None]:
    with mock.patch.object(target, name, broken):
        yield


def no_fence_check() -> AbstractContextManager[None]:
    """A worker takes any token, however low (I4)."""

    def accept(fence: Fence, token: Any, known: Any, persist: Callable[[], None] | None) -> None:
        if persist is not None:
            persist()
        if token != fence._highest or not fence.is_live:
            fence._highest, fence._deadline = token, None

    return _in_place_of(Fence, "accept", accept)


def gate_without_badge() -> AbstractContextManager[None]:
    """A push publishes under whatever badge it has, as long as somebody extends the session (I4)."""
    return _in_place_of(Fence, "may_publish", lambda fence, _badge: fence.is_live)


def token_not_durable() -> AbstractContextManager[None]:
    """A worker answers before the token is on its disk (I5)."""
    accept = Fence.accept
    return _in_place_of(
        Fence, "accept", lambda fence, token, known, _persist: accept(fence, token, known, None)
    )


def deadline_ignored_at_worker() -> AbstractContextManager[None]:
    """A worker goes on past the deadline of its session (I12)."""
    return _in_place_of(
        Fence, "may_publish", lambda fence, badge: badge == fence._highest and fence._deadline
    )


def deadline_ignored() -> AbstractContextManager[None]:
    """An owner goes by its own task, and not by the clock (I12)."""
    return _in_place_of(
        LeaseSession, "remaining_s", lambda session: 1.0 if session._reason is None else 0.0
    )


def orders_not_looked_at_again() -> AbstractContextManager[None]:
    """An order that waited in the queue of its link goes out, however late (I12)."""
    send = WorkerLink.send

    def trusting(link: WorkerLink, order: Any, lease: LeaseSession) -> None:
        if lease.remaining_s() > 0:
            send(link, order, mock.Mock(remaining_s=lambda: 1.0))

    return _in_place_of(WorkerLink, "send", trusting)


def ledger_without_owner() -> AbstractContextManager[None]:
    """The ledger is written by whoever thinks that it may (I9)."""

    async def careless(
        ledger: Ledger, owned: Ownership, compares: Sequence[Compare], ops: Sequence[Op]
    ) -> None:
        await ledger._store.txn(compares, ops)

    return _in_place_of(Ledger, "_commit", careless)


def run_without_compare() -> AbstractContextManager[None]:
    """A run is put into the ledger whether or not one of its instant is there (I9)."""
    commit = Ledger._commit

    async def careless(
        ledger: Ledger, owned: Ownership, compares: Sequence[Compare], ops: Sequence[Op]
    ) -> None:
        await commit(ledger, owned, [], ops)

    return _in_place_of(Ledger, "_commit", careless)


def late_write_overwritten() -> AbstractContextManager[None]:
    """What a write did that was given up is written over by somebody who has not read it (I9)."""
    was_done = Ledger._was_done

    async def believing(ledger: Ledger, owned: Ownership, compares: Any, ops: Any) -> bool:
        try:
            return await was_done(ledger, owned, compares, ops)
        except LedgerMoved:
            kv = await ledger._store.get(ledger._keys.state(owned.job))
            ledger._revisions[owned.job] = 0 if kv is None else kv.mod_revision
            return False

    return _in_place_of(Ledger, "_was_done", believing)


def unbegun_run_lost() -> AbstractContextManager[None]:
    """A run that is cancelled before its first step never ends (liveness)."""
    return _in_place_of(Sessions, "_settle_unbegun", lambda *_: None)


def ended_in_the_future() -> AbstractContextManager[None]:
    """A run that ended before the clock was set back hides all instants until then (liveness)."""

    def overlapped(state: Any, at: Any, _now: Any) -> bool:
        began, ended = state.last_began, state.last_ended
        return began is not None and ended is not None and began < at <= ended

    return _in_place_of(timetable, "_overlapped", overlapped)


BROKEN: dict[str, Break] = {
    broken.__name__.replace("_", "-"): broken
    for broken in (
        no_fence_check,
        gate_without_badge,
        token_not_durable,
        deadline_ignored_at_worker,
        deadline_ignored,
        orders_not_looked_at_again,
        ledger_without_owner,
        run_without_compare,
        late_write_overwritten,
        unbegun_run_lost,
        ended_in_the_future,
    )
}
