"""Orders, reports and grants on the wire: nothing is lost on the way, and nonsense is refused."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.v1 import common_pb2, peer_pb2, worker_pb2
from syncengine.model import (
    Compare,
    Conflict,
    CopyWhen,
    Counts,
    Durability,
    Hold,
    HoldReason,
    Limits,
    Often,
    Problem,
    RateTime,
    Rule,
    RunOptions,
    Safety,
    Symlinks,
    What,
)
from syncengine.scope import Scope
from wire import orders
from wire.errors import ProtocolError
from wire.orders import (
    Assignment,
    Member,
    Order,
    Outcome,
    PeerGrant,
    PlannedChange,
    Progress,
    RefusalReason,
    Report,
)
from wire.peer_convert import (
    ListHeader,
    ListRequest,
    PushEnd,
    end_of_push,
    grant_from_bytes,
    grant_from_wire,
    grant_to_wire,
    header_from_bytes,
    header_to_bytes,
    list_request_from_bytes,
    list_request_to_bytes,
    read_end_of_push,
)
from wire.token import Token
from wire.worker_convert import (
    description_from_wire,
    description_to_wire,
    order_from_wire,
    order_to_wire,
    report_from_wire,
    report_to_wire,
)

text = st.text(st.characters(codec="utf-8"), max_size=12)
named = text.filter(bool)
path = st.binary(max_size=12)
count = st.integers(0, 2**63 - 1)
small = st.integers(-(2**31), 2**31 - 1)
tokens = st.builds(Token, st.integers(0, 2**64 - 1), st.integers(1, 2**63 - 1))
any_token = st.builds(Token, st.integers(0, 2**64 - 1), count)
members = st.builds(Member, named, named, path, text)
safeties = st.builds(
    Safety,
    max_delete=st.none() | st.floats(0, 1),
    max_delete_files=st.none() | count,
    trash_s=st.none() | count,
    keep_replaced=st.booleans(),
)
rate_times = st.builds(
    RateTime,
    st.lists(st.integers(0, 6), max_size=7).map(tuple),
    st.integers(0, 1_439),
    st.integers(1_440, 2_880),
    st.sampled_from(["UTC", "Europe/Paris"]),
    st.none() | count,
)
options = st.builds(
    RunOptions,
    rule=st.sampled_from(Rule),
    copy_when=st.sampled_from(CopyWhen),
    conflict=st.sampled_from(Conflict),
    compare=st.sampled_from(Compare),
    durability=st.sampled_from(Durability),
    keep_mode=st.booleans(),
    keep_times=st.booleans(),
    keep_owner=st.booleans(),
    keep_xattrs=st.booleans(),
    keep_acls=st.booleans(),
    keep_hardlinks=st.booleans(),
    keep_devices=st.booleans(),
    keep_setuid=st.booleans(),
    symlinks=st.sampled_from(Symlinks),
    compression=st.sampled_from(Often),
    delta=st.sampled_from(Often),
    bandwidth=st.none() | count,
    bandwidth_times=st.lists(rate_times, max_size=3).map(tuple),
    filters=st.lists(text, max_size=3).map(tuple),
    limits=st.builds(
        Limits,
        min_size=st.none() | count,
        max_size=st.none() | count,
        min_age_s=st.none() | st.floats(0, 1e10),
        max_age_s=st.none() | st.floats(0, 1e10),
    ),
    safety=safeties,
)
assignments = st.builds(
    Assignment,
    named,
    count,
    st.lists(members, min_size=2, max_size=5).map(tuple),
    options,
)
counts = st.builds(Counts, *([count] * len(Counts.__slots__)))
problems = st.builds(Problem, path, text, st.sampled_from(What), text)
holds = st.builds(Hold, st.sampled_from(HoldReason), text, text)
changes = st.builds(PlannedChange, path, text, text, text, count, path)
progresses = st.builds(Progress, counts, count, count, text)
remaining = st.floats(0, 60, exclude_min=True)


def several(what: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(what, max_size=3).map(tuple)


all_orders: dict[type[Order], st.SearchStrategy[Order]] = {
    orders.Hello: st.builds(orders.Hello, named),
    orders.OpenSession: st.builds(orders.OpenSession, assignments, tokens, named),
    orders.CloseSession: st.builds(orders.CloseSession, named, tokens),
    orders.Extend: st.builds(orders.Extend, named, count, remaining),
    orders.StartRun: st.builds(
        orders.StartRun,
        named,
        tokens,
        named,
        st.booleans(),
        path,
        count,
        st.booleans(),
        st.none() | st.builds(orders.Monitor, st.floats(0, 1e9), st.floats(0, 1e9), count),
        time_limit_s=st.floats(0, 1e9),
    ),
    orders.WantRoom: st.builds(
        orders.WantRoom, named, tokens, named, small, st.floats(0, 1e9), st.booleans()
    ),
    orders.LeaveRoom: st.builds(orders.LeaveRoom, named, tokens),
    orders.CancelRun: st.builds(orders.CancelRun, named, tokens, named),
    orders.SettleRun: st.builds(orders.SettleRun, named, tokens, named),
}
all_reports: dict[type[Report], st.SearchStrategy[Report]] = {
    orders.Pulse: st.builds(orders.Pulse, count),
    orders.SessionOpened: st.builds(
        orders.SessionOpened, named, tokens, text, count, st.integers(0, 2**31 - 1)
    ),
    orders.RoomAt: st.builds(
        orders.RoomAt,
        named,
        named,
        st.booleans(),
        st.integers(0, 2**31 - 1),
        st.integers(0, 2**31 - 1),
    ),
    orders.Refused: st.builds(
        orders.Refused, named, tokens, any_token, text, st.sampled_from(RefusalReason), text
    ),
    orders.RunProgress: st.builds(orders.RunProgress, named, named, progresses),
    orders.Monitored: st.builds(
        orders.Monitored,
        job=named,
        run=named,
        life=named,
        counts=counts,
        members=several(st.builds(orders.Standing, named, st.none() | st.floats(0, 1e9), text)),
        problems=several(problems),
        problems_total=count,
        holds=several(holds),
        plan=path,
        audits=count,
        audit_found=count,
        audits_answered=count,
        degraded=text,
    ),
    orders.RunPlanned: st.builds(orders.RunPlanned, named, named, several(changes)),
    orders.RunEnded: st.builds(
        orders.RunEnded,
        named,
        named,
        st.sampled_from(Outcome),
        counts,
        several(problems),
        count,
        several(holds),
        path,
        several(text),
    ),
}


def test_every_kind_is_covered() -> None:
    assert set(all_orders) == set(Order.__args__)
    assert set(all_reports) == set(Report.__args__)


@given(st.one_of(*all_orders.values()))
def test_orders_come_back_as_they_were(order: Order) -> None:
    raw = order_to_wire(order).SerializeToString()
    assert order_from_wire(worker_pb2.Order.FromString(raw)) == order


@given(st.one_of(*all_reports.values()))
def test_reports_come_back_as_they_were(report: Report) -> None:
    raw = report_to_wire(report).SerializeToString()
    assert report_from_wire(worker_pb2.Report.FromString(raw)) == report


watches = st.builds(orders.WatchDescription, text, text, st.text(min_size=1), text, count, count)
roots = st.builds(orders.RootDescription, text, text, st.booleans(), st.booleans(), count, watches)
descriptions = st.builds(
    orders.WorkerDescription, text, text, text, text, text, several(roots), count
)


@given(descriptions)
def test_descriptions_come_back_as_they_were(worker: orders.WorkerDescription) -> None:
    assert description_from_wire(description_to_wire(worker)) == worker


somewhere = st.lists(st.sampled_from([b"a", b"b", b"\xff"]), max_size=3).map(b"/".join)
scopes = st.builds(
    lambda deep, shallow: Scope(deep=deep, shallow=shallow), several(somewhere), several(somewhere)
)


@given(st.builds(PeerGrant, named, tokens, named, named), st.none() | scopes)
def test_a_listing_is_asked_for_in_the_scope_that_was_meant(
    grant: PeerGrant, scope: Scope | None
) -> None:
    request = ListRequest(grant, scope=scope)
    assert list_request_from_bytes(list_request_to_bytes(request)) == request


@given(
    st.builds(PeerGrant, named, tokens, named, named),
    st.sampled_from([b"..", b"/etc", b".baton", b"a/.baton~x", b"a//b", b"a/"]),
    st.booleans(),
)
def test_i14_a_scope_that_leaves_the_member_is_refused(
    grant: PeerGrant, path: bytes, deep: bool
) -> None:
    packed = msgspec.msgpack.encode(([path], []) if deep else ([], [path]))
    message = peer_pb2.ListRequest(grant=grant_to_wire(grant), scope=packed)
    with pytest.raises(ProtocolError, match="forbidden name"):
        list_request_from_bytes(message.SerializeToString())


@given(st.builds(PeerGrant, named, tokens, named, named))
def test_grants_come_back_as_they_were(grant: PeerGrant) -> None:
    assert grant_from_bytes(grant_to_wire(grant).SerializeToString()) == grant


@given(
    st.builds(
        ListHeader,
        several(holds),
        st.integers(-1, 2**63 - 1),
        count,
        st.integers(0, 2**63 - 2),
        st.booleans(),
        several(st.text(max_size=20)),
    )
)
def test_headers_come_back_as_they_were(header: ListHeader) -> None:
    assert header_from_bytes(header_to_bytes(header)) == header


@given(st.builds(PushEnd, st.none() | st.integers(0, 2**63 - 2)))
def test_the_end_of_a_push_comes_back_as_it_was(end: PushEnd) -> None:
    assert read_end_of_push(end_of_push(end)) == end


@given(st.binary(max_size=40))
def test_a_frame_is_no_end_of_a_push(frame: bytes) -> None:
    assert (read_end_of_push(frame) is None) == (frame[:1] != b"\0")


@given(st.binary(max_size=60))
def test_whatever_bytes_come_are_read_or_refused(raw: bytes) -> None:
    """Nothing but ProtocolError leaves the conversions, whoever sends."""
    for read in (grant_from_bytes, header_from_bytes):
        with suppress(ProtocolError):
            read(raw)


wild_int = st.integers(-(2**63), 2**63 - 1)
wild_token = st.builds(common_pb2.Token, cluster_id=st.integers(0, 2**64 - 1), revision=wild_int)
wild_counts = st.builds(common_pb2.Counts, files_copied=wild_int)
wild_float = st.floats(allow_nan=True, allow_infinity=True)
wild_member = st.builds(worker_pb2.Member, worker=text, root=text, path=path)
wild_orders = st.one_of(
    st.builds(
        lambda **extend: worker_pb2.Order(extend=worker_pb2.Extend(**extend)),
        lease=text,
        stamp=wild_int,
        remaining_s=wild_float,
    ),
    st.builds(
        lambda **start: worker_pb2.Order(start_run=worker_pb2.StartRun(**start)),
        job=text,
        token=wild_token,
        run=text,
        time_limit_s=wild_float,
    ),
    st.builds(
        lambda **want: worker_pb2.Order(want_room=worker_pb2.WantRoom(**want)),
        job=text,
        token=wild_token,
        run=text,
        priority=small,
        waited_s=wild_float,
    ),
    st.builds(
        lambda options, **opened: worker_pb2.Order(
            open_session=worker_pb2.OpenSession(options=worker_pb2.RunOptions(**options), **opened)
        ),
        options=st.fixed_dictionaries(
            {
                "compare": text | st.sampled_from([one.value for one in Compare]),
                "durability": text | st.sampled_from([one.value for one in Durability]),
                "max_delete": wild_float,
                "max_delete_files": wild_int,
                "trash_s": wild_int,
                "min_size": wild_int,
                "max_age_s": wild_float,
            }
        ),
        job=text,
        token=wild_token,
        lease=text,
        members=st.lists(wild_member, max_size=3),
    ),
)
wild_reports = st.one_of(
    st.builds(
        lambda **refused: worker_pb2.Report(refused=worker_pb2.Refused(**refused)),
        job=text,
        token=wild_token,
        highest=wild_token,
        reason=text | st.sampled_from([one.value for one in RefusalReason]),
    ),
    st.builds(
        lambda **ended: worker_pb2.Report(run_ended=worker_pb2.RunEnded(**ended)),
        job=text,
        run=text,
        outcome=text | st.sampled_from([one.value for one in Outcome]),
        counts=wild_counts,
        problems_total=wild_int,
    ),
)


@given(wild_orders)
def test_an_order_is_sound_or_refused(message: worker_pb2.Order) -> None:
    try:
        order = order_from_wire(message)
    except ProtocolError:
        return
    if isinstance(order, orders.Extend):
        assert 0 < order.remaining_s < math.inf
    if isinstance(order, orders.WantRoom):
        assert 0 <= order.waited_s < math.inf
    if isinstance(order, orders.StartRun):
        assert 0 <= order.time_limit_s < math.inf
    if isinstance(order, orders.OpenSession):
        assert 0 <= (order.assignment.options.safety.max_delete or 0) <= 1
    assert order_from_wire(order_to_wire(order)) == order


@given(wild_reports)
def test_a_report_is_sound_or_refused(message: worker_pb2.Report) -> None:
    try:
        report = report_from_wire(message)
    except ProtocolError:
        return
    assert report_from_wire(report_to_wire(report)) == report


def good_open() -> worker_pb2.Order:
    assignment = Assignment("job", 1, (Member("w1", "a"), Member("w2", "b")), RunOptions())
    return order_to_wire(orders.OpenSession(assignment, Token(1, 2), "1f"))


def spoil_open(**what: Any) -> worker_pb2.Order:
    message = good_open()
    for field, value in what.items():
        part: Any = message.open_session
        *way, last = field.split("__")
        for step in way:
            part = getattr(part, step)
        setattr(part, last, value)
    return message


def without_targets() -> worker_pb2.Order:
    message = good_open()
    del message.open_session.members[1:]
    return message


def nameless_source() -> worker_pb2.Order:
    message = good_open()
    message.open_session.members[0].worker = ""
    return message


def nameless_target() -> worker_pb2.Order:
    message = good_open()
    message.open_session.members[1].root = ""
    return message


NO_TOKEN = common_pb2.Token(cluster_id=5)
TOKEN = common_pb2.Token(cluster_id=5, revision=6)
BAD_ORDERS: dict[str, Callable[[], worker_pb2.Order]] = {
    "nothing": worker_pb2.Order,
    "hello from nobody": lambda: worker_pb2.Order(hello=worker_pb2.Hello()),
    "no job": lambda: spoil_open(job=""),
    "no lease": lambda: spoil_open(lease=""),
    "no revision": lambda: spoil_open(token__revision=0),
    "negative revision": lambda: spoil_open(token__revision=-1),
    "no source": nameless_source,
    "no targets": without_targets,
    "a target without a root": nameless_target,
    "unknown comparison": lambda: spoil_open(options__compare="smell"),
    "unknown durability": lambda: spoil_open(options__durability="maybe"),
    "more than all": lambda: spoil_open(options__max_delete=1.5),
    "no number": lambda: spoil_open(options__max_delete=math.nan),
    "less than none": lambda: spoil_open(options__max_delete_files=-1),
    "trash of the past": lambda: spoil_open(options__trash_s=-1),
    "close without a token": lambda: worker_pb2.Order(
        close_session=worker_pb2.CloseSession(job="job", token=NO_TOKEN)
    ),
    "start without a run": lambda: worker_pb2.Order(
        start_run=worker_pb2.StartRun(job="job", token=TOKEN)
    ),
    "cancel without a run": lambda: worker_pb2.Order(
        cancel_run=worker_pb2.CancelRun(job="job", token=TOKEN)
    ),
    "settle without a job": lambda: worker_pb2.Order(
        settle_run=worker_pb2.SettleRun(run="r", token=TOKEN)
    ),
    **{
        f"extension of {seconds}": lambda seconds=seconds: worker_pb2.Order(  # type: ignore[misc]
            extend=worker_pb2.Extend(lease="1f", stamp=1, remaining_s=seconds)
        )
        for seconds in (math.inf, math.nan, -1.0, 0.0, 1e9)
    },
    "extension of no lease": lambda: worker_pb2.Order(
        extend=worker_pb2.Extend(stamp=1, remaining_s=1)
    ),
    "extension from before the clock": lambda: worker_pb2.Order(
        extend=worker_pb2.Extend(lease="1f", stamp=-1, remaining_s=1)
    ),
}


def test_the_order_that_is_spoilt_is_good() -> None:
    assert isinstance(order_from_wire(good_open()), orders.OpenSession)


@pytest.mark.parametrize("case", BAD_ORDERS)
def test_orders_that_make_no_sense_are_refused(case: str) -> None:
    with pytest.raises(ProtocolError):
        order_from_wire(BAD_ORDERS[case]())


BAD_REPORTS: dict[str, worker_pb2.Report] = {
    "nothing": worker_pb2.Report(),
    "opened without a token": worker_pb2.Report(
        session_opened=worker_pb2.SessionOpened(job="job", token=NO_TOKEN)
    ),
    "refused for no reason": worker_pb2.Report(
        refused=worker_pb2.Refused(job="job", token=TOKEN, reason="because")
    ),
    "refused for a negative token": worker_pb2.Report(
        refused=worker_pb2.Refused(
            job="job",
            token=TOKEN,
            highest=common_pb2.Token(revision=-4),
            reason="stale-token",
        )
    ),
    "ended somehow": worker_pb2.Report(
        run_ended=worker_pb2.RunEnded(job="job", run="r", outcome="fine")
    ),
    "ended without a run": worker_pb2.Report(
        run_ended=worker_pb2.RunEnded(job="job", outcome="failed")
    ),
    "negative counts": worker_pb2.Report(
        run_ended=worker_pb2.RunEnded(
            job="job", run="r", outcome="failed", counts=common_pb2.Counts(bytes_sent=-1)
        )
    ),
    "progress of nothing": worker_pb2.Report(run_progress=worker_pb2.RunProgress(run="r")),
}


@pytest.mark.parametrize("case", BAD_REPORTS)
def test_reports_that_make_no_sense_are_refused(case: str) -> None:
    with pytest.raises(ProtocolError):
        report_from_wire(BAD_REPORTS[case])


@pytest.mark.parametrize("left_out", ["job", "run", "member", "token"])
def test_a_grant_names_everything(left_out: str) -> None:
    message = grant_to_wire(PeerGrant("job", Token(1, 2), "r", "w2:data"))
    message.ClearField(left_out)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError):
        grant_from_wire(message)
    with pytest.raises(ProtocolError):
        grant_from_bytes(message.SerializeToString())


def test_a_hold_of_a_kind_unknown_here_is_refused() -> None:
    raw = peer_pb2.ListHeader(holds=[common_pb2.Hold(reason="mood")]).SerializeToString()
    with pytest.raises(ProtocolError, match="mood"):
        header_from_bytes(raw)
