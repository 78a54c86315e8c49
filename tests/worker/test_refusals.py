"""Every reason for which a worker refuses an order: what is said, and that nothing was done."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from syncengine.model import Rule
from tests.worker.workers import CLUSTER, LEASE, T1, T2, T3, Link, Workbench, assignment
from wire.orders import (
    CancelRun,
    CloseSession,
    Member,
    OpenSession,
    Order,
    RefusalReason,
    Refused,
    SessionOpened,
    SettleRun,
    StartRun,
)
from wire.token import Token
from worker.roots import ExportedRoot, Roots

FOREIGN = Token(CLUSTER + 1, 5)


def open_of(token: Token = T1, **what: object) -> OpenSession:
    return OpenSession(assignment(**what), token, LEASE)  # type: ignore[arg-type]


async def fresh(_: Workbench) -> None:
    pass


async def owned(bench: Workbench) -> None:
    await bench.opened(T2)


async def expired(bench: Workbench) -> None:
    await bench.opened(T2, live_s=5)
    bench.clock.advance(6)


async def closed(bench: Workbench) -> None:
    await bench.opened(T2)
    bench.tell(CloseSession("job", T2))
    await bench.settled_down()


async def no_journal(bench: Workbench) -> None:
    bench.journal._db.close()


async def root_taken(bench: Workbench) -> None:
    (bench.directory / "later").mkdir()
    Roots((ExportedRoot("theirs", bench.directory / "later", read_only=False),))


def target(root: str, worker: str = "w1") -> tuple[Member, ...]:
    return (Member(worker, root),)


SOURCE_ELSEWHERE = Member("w9", "data")
REASON = RefusalReason
Setup = Callable[[Workbench], Awaitable[None]]

CASES: dict[str, tuple[Setup, Order, RefusalReason, str]] = {
    "open under a lower token": (owned, open_of(T1), REASON.STALE_TOKEN, "another coordinator"),
    "start under a lower token": (
        owned,
        StartRun("job", T1, "r"),
        REASON.STALE_TOKEN,
        "is not",
    ),
    "cancel under a lower token": (owned, CancelRun("job", T1, "r"), REASON.STALE_TOKEN, "is not"),
    "settle under a lower token": (owned, SettleRun("job", T1, "r"), REASON.STALE_TOKEN, "is not"),
    "close under a lower token": (owned, CloseSession("job", T1), REASON.STALE_TOKEN, "is not"),
    "start of a foreign cluster": (
        owned,
        StartRun("job", FOREIGN, "r"),
        REASON.STALE_TOKEN,
        "is not",
    ),
    "start under a token not yet accepted": (
        owned,
        StartRun("job", T3, "r"),
        REASON.NO_SESSION,
        "open it first",
    ),
    "open of a foreign cluster": (
        owned,
        open_of(FOREIGN),
        REASON.FOREIGN_CLUSTER,
        "baton worker accept w1",
    ),
    "open of a foreign cluster for other roots": (
        owned,
        open_of(FOREIGN, source=Member("w1", "more")),
        REASON.FOREIGN_CLUSTER,
        "on purpose",
    ),
    "start past the deadline": (expired, StartRun("job", T2, "r"), REASON.EXPIRED, "open it anew"),
    "cancel past the deadline": (expired, CancelRun("job", T2, "r"), REASON.EXPIRED, "anew"),
    "start without a session": (fresh, StartRun("job", T1, "r"), REASON.NO_SESSION, "no session"),
    "start after close": (closed, StartRun("job", T2, "r"), REASON.NO_SESSION, "no session"),
    "no such root": (
        fresh,
        open_of(source=Member("w1", "nope")),
        REASON.NO_SUCH_ROOT,
        "--root nope=PATH",
    ),
    "root of another worker process": (
        root_taken,
        open_of(source=Member("w1", "later")),
        REASON.NO_SUCH_ROOT,
        "served by another worker process",
    ),
    "read-only target": (
        fresh,
        open_of(source=SOURCE_ELSEWHERE, targets=target("ro")),
        REASON.READ_ONLY,
        "exported read-only",
    ),
    "read-only member of sync": (
        fresh,
        open_of(source=Member("w1", "ro"), rule=Rule.SYNC),
        REASON.READ_ONLY,
        "a member of a job of rule sync",
    ),
    "read-only source of move": (
        fresh,
        open_of(source=Member("w1", "ro"), rule=Rule.MOVE),
        REASON.READ_ONLY,
        "the source of a job of rule move",
    ),
    "not this worker": (
        fresh,
        open_of(source=SOURCE_ELSEWHERE),
        REASON.WRONG_WORKER,
        "this is worker w1",
    ),
    "journal gone": (no_journal, open_of(), REASON.STATE_FAILED, "look at its disk"),
}


@pytest.mark.parametrize("case", CASES)
async def test_refusals(bench: Workbench, case: str) -> None:
    setup, order, reason, text = CASES[case]
    await setup(bench)
    session = bench.sessions.get("job")
    token = session.token if session else None
    opened = len(bench.link.of(SessionOpened))
    asker = Link()
    refused = await bench.refusal(order, asker)
    assert refused.reason is reason
    assert text in refused.detail
    assert refused.job == "job"
    assert refused.order == type(order).__name__
    assert refused.token == getattr(order, "token", None)
    assert bench.sessions.get("job") is session
    assert (session.token if session else None) == token
    assert not bench.runs
    assert len(bench.link.of(SessionOpened)) == opened
    assert asker.reports == [refused]


def test_every_reason_has_its_case() -> None:
    assert {reason for _, _, reason, _ in CASES.values()} == set(RefusalReason)


async def test_a_read_only_root_can_be_a_source(bench: Workbench) -> None:
    await bench.opened(source=Member("w1", "ro"), targets=target("data", "w2"))


async def test_a_root_may_come_after_the_worker(bench: Workbench) -> None:
    (bench.directory / "later").mkdir()
    await bench.opened(source=Member("w1", "later"))
    assert bench.journal.tokens("job", ["later"]) == {"later": T1}


async def test_a_foreign_cluster_that_the_operator_accepted_replaces_the_other(
    tmp_path: Path,
) -> None:
    first = Workbench(tmp_path)
    await first.opened(T3)
    assert await first.sessions.accept_cluster(FOREIGN.cluster_id, 10**6) == 1
    await first.close()
    bench = Workbench(tmp_path)
    old = await bench.refusal(open_of(Token(CLUSTER, 99)))
    assert old.reason is RefusalReason.FOREIGN_CLUSTER, "the old one is the foreign one now"
    assert "an operator accepted" in old.detail
    session = await bench.opened(FOREIGN)
    assert session.fence.highest == FOREIGN
    refused: Refused = await bench.refusal(open_of(Token(CLUSTER, 99)))
    assert refused.reason is RefusalReason.FOREIGN_CLUSTER
    assert await bench.sessions.accept_cluster(FOREIGN.cluster_id, 10**6) == 0
    assert session.fence.highest == FOREIGN, "nothing of it was beyond"
    await bench.close()


async def test_a_run_waits_while_the_cluster_is_replaced_and_is_adopted(bench: Workbench) -> None:
    session = await bench.opened(T3)
    run = await bench.started(T3)
    assert await bench.sessions.accept_cluster(FOREIGN.cluster_id, 10**6) == 1
    bench.extend(60)
    with session.fence.changed:
        assert not session.fence.may_publish(T3)
    for order in (StartRun("job", T3, "r2"), CancelRun("job", T3, "r1")):
        assert (await bench.refusal(order)).reason is RefusalReason.NO_SESSION
    await bench.opened(FOREIGN)
    assert run.tokens == [FOREIGN]
    assert not run.was_cancelled
    assert bench.journal.tokens("job", ["data"]) == {"data": FOREIGN}


async def test_i4_a_cluster_that_was_set_back_is_obeyed_when_accepted_and_fences_again(
    bench: Workbench,
) -> None:
    await bench.opened(T3)
    assert (await bench.refusal(open_of(T1))).reason is RefusalReason.STALE_TOKEN
    assert await bench.sessions.accept_cluster(CLUSTER, T3.revision) == 0, "it has come to T3"
    assert (await bench.refusal(open_of(T1), bench.link)).reason is RefusalReason.STALE_TOKEN
    assert await bench.sessions.accept_cluster(CLUSTER, T2.revision) == 1
    await bench.opened(T2)
    assert (await bench.refusal(open_of(T1), bench.link)).reason is RefusalReason.STALE_TOKEN
