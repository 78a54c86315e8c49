"""The Worker service's messages to and from the values of `wire.orders`.

What comes in is checked here: a message that makes no sense raises `ProtocolError`, and what passes
can be used without a second look.
"""

import math
from enum import StrEnum
from typing import TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from baton.v1 import common_pb2, worker_pb2
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
from wire import orders
from wire.errors import ProtocolError
from wire.token import Token

E = TypeVar("E", bound=StrEnum)

_LONGEST_LEASE_S = 3_600.0
_LONGEST_WAIT_S = 100 * 366 * 86_400.0
"""Far beyond the longest lease TTL of a job, 60 s."""

_LARGEST_LIMIT = 2**63


def token_to_wire(token: Token) -> common_pb2.Token:
    """Return the token's message."""
    return common_pb2.Token(cluster_id=token.cluster_id, revision=token.revision)


def token_from_wire(message: common_pb2.Token) -> Token:
    """Return the token of a message; a token without a revision raises ProtocolError."""
    if message.revision <= 0:
        raise ProtocolError("a token without a create revision")
    return Token(message.cluster_id, message.revision)


def counts_to_wire(counts: Counts) -> common_pb2.Counts:
    """Return the message of a run's counts."""
    return common_pb2.Counts(**{name: getattr(counts, name) for name in Counts.__slots__})


def counts_from_wire(message: common_pb2.Counts) -> Counts:
    """Return the counts of a message; a negative one raises ProtocolError."""
    return Counts(**{name: _count(getattr(message, name), name) for name in Counts.__slots__})


def problem_to_wire(problem: Problem) -> common_pb2.Problem:
    """Return the message of a problem."""
    return common_pb2.Problem(
        path=problem.path, member=problem.member, what=problem.what.value, detail=problem.detail
    )


def problem_from_wire(message: common_pb2.Problem) -> Problem:
    """Return the problem of a message."""
    return Problem(message.path, message.member, _enum(What, message.what), message.detail)


def hold_to_wire(hold: Hold) -> common_pb2.Hold:
    """Return the message of a hold."""
    return common_pb2.Hold(reason=hold.reason.value, member=hold.member, detail=hold.detail)


def hold_from_wire(message: common_pb2.Hold) -> Hold:
    """Return the hold of a message."""
    return Hold(_enum(HoldReason, message.reason), message.member, message.detail)


def change_to_wire(change: orders.PlannedChange) -> common_pb2.PlannedChange:
    """Return the message of a planned change."""
    return common_pb2.PlannedChange(
        path=change.path,
        member=change.member,
        action=change.action,
        kind=change.kind,
        size=change.size,
        origin=change.origin,
    )


def change_from_wire(message: common_pb2.PlannedChange) -> orders.PlannedChange:
    """Return the planned change of a message."""
    return orders.PlannedChange(
        message.path,
        message.member,
        message.action,
        message.kind,
        _count(message.size, "size"),
        message.origin,
    )


def progress_to_wire(progress: orders.Progress) -> common_pb2.Progress:
    """Return the message of a run's progress."""
    return common_pb2.Progress(
        done=counts_to_wire(progress.done),
        files_total=progress.files_total,
        bytes_total=progress.bytes_total,
        phase=progress.phase,
    )


def progress_from_wire(message: common_pb2.Progress) -> orders.Progress:
    """Return the progress of a message."""
    return orders.Progress(
        counts_from_wire(message.done),
        _count(message.files_total, "files_total"),
        _count(message.bytes_total, "bytes_total"),
        message.phase,
    )


def order_to_wire(order: orders.Order) -> worker_pb2.Order:
    """Return the message of an order."""
    match order:
        case orders.Hello(coordinator):
            return worker_pb2.Order(hello=worker_pb2.Hello(coordinator=coordinator))
        case orders.OpenSession(assignment, token, lease):
            return worker_pb2.Order(
                open_session=worker_pb2.OpenSession(
                    job=assignment.job,
                    token=token_to_wire(token),
                    lease=lease,
                    generation=assignment.generation,
                    members=[_member_to_wire(member) for member in assignment.members],
                    options=_options_to_wire(assignment.options),
                    made=assignment.made,
                )
            )
        case orders.CloseSession(job, token):
            close = worker_pb2.CloseSession(job=job, token=token_to_wire(token))
            return worker_pb2.Order(close_session=close)
        case orders.Extend(lease, stamp_ns, remaining_s):
            extend = worker_pb2.Extend(lease=lease, stamp=stamp_ns, remaining_s=remaining_s)
            return worker_pb2.Order(extend=extend)
        case orders.StartRun(
            job, token, run, preview, approved, number, verify, monitor, time_limit_s
        ):
            return worker_pb2.Order(
                start_run=worker_pb2.StartRun(
                    job=job,
                    token=token_to_wire(token),
                    run=run,
                    preview=preview,
                    approved=approved,
                    number=number,
                    verify=verify,
                    monitor=None if monitor is None else _monitor_to_wire(monitor),
                    time_limit_s=time_limit_s,
                )
            )
        case orders.WantRoom(job, token, run, priority, waited_s, is_under_way):
            return worker_pb2.Order(
                want_room=worker_pb2.WantRoom(
                    job=job,
                    token=token_to_wire(token),
                    run=run,
                    priority=priority,
                    waited_s=waited_s,
                    is_under_way=is_under_way,
                )
            )
        case orders.LeaveRoom(job, token):
            leave = worker_pb2.LeaveRoom(job=job, token=token_to_wire(token))
            return worker_pb2.Order(leave_room=leave)
        case orders.CancelRun(job, token, run):
            cancel = worker_pb2.CancelRun(job=job, token=token_to_wire(token), run=run)
            return worker_pb2.Order(cancel_run=cancel)
        case orders.SettleRun(job, token, run):
            settle = worker_pb2.SettleRun(job=job, token=token_to_wire(token), run=run)
            return worker_pb2.Order(settle_run=settle)


def order_from_wire(message: worker_pb2.Order) -> orders.Order:
    """Return the order of a message; raise ProtocolError for one that makes no sense."""
    match message.WhichOneof("order"):
        case "hello":
            return orders.Hello(_named(message.hello.coordinator, "coordinator"))
        case "open_session":
            return _open_from_wire(message.open_session)
        case "close_session":
            close = message.close_session
            return orders.CloseSession(_named(close.job, "job"), token_from_wire(close.token))
        case "extend":
            return _extend_from_wire(message.extend)
        case "start_run":
            start = message.start_run
            return orders.StartRun(
                _named(start.job, "job"),
                token_from_wire(start.token),
                _named(start.run, "run"),
                start.preview,
                start.approved,
                _count(start.number, "number"),
                start.verify,
                _monitor_from_wire(start.monitor) if start.HasField("monitor") else None,
                _seconds(start.time_limit_s, "time limit"),
            )
        case "want_room":
            want = message.want_room
            return orders.WantRoom(
                _named(want.job, "job"),
                token_from_wire(want.token),
                _named(want.run, "run"),
                want.priority,
                _seconds(want.waited_s, "wait"),
                want.is_under_way,
            )
        case "leave_room":
            leave = message.leave_room
            return orders.LeaveRoom(_named(leave.job, "job"), token_from_wire(leave.token))
        case "cancel_run":
            cancel = message.cancel_run
            return orders.CancelRun(
                _named(cancel.job, "job"), token_from_wire(cancel.token), _named(cancel.run, "run")
            )
        case "settle_run":
            settle = message.settle_run
            return orders.SettleRun(
                _named(settle.job, "job"), token_from_wire(settle.token), _named(settle.run, "run")
            )
        case _:
            raise ProtocolError("an order of a kind that this version does not know")


def report_to_wire(report: orders.Report) -> worker_pb2.Report:
    """Return the message of a report."""
    match report:
        case orders.Pulse(stamp_ns):
            return worker_pb2.Report(pulse=worker_pb2.Pulse(stamp=stamp_ns))
        case orders.SessionOpened(job, token, run, generation, room_limit):
            return worker_pb2.Report(
                session_opened=worker_pb2.SessionOpened(
                    job=job,
                    token=token_to_wire(token),
                    run=run,
                    generation=generation,
                    room_limit=room_limit,
                )
            )
        case orders.Refused():
            return worker_pb2.Report(
                refused=worker_pb2.Refused(
                    job=report.job,
                    token=token_to_wire(report.token),
                    highest=token_to_wire(report.highest),
                    order=report.order,
                    reason=report.reason.value,
                    detail=report.detail,
                )
            )
        case orders.RoomAt(job, run, is_given, taken, limit):
            return worker_pb2.Report(
                room_at=worker_pb2.RoomAt(
                    job=job, run=run, is_given=is_given, taken=taken, limit=limit
                )
            )
        case orders.RunProgress(job, run, progress):
            return worker_pb2.Report(
                run_progress=worker_pb2.RunProgress(
                    job=job, run=run, progress=progress_to_wire(progress)
                )
            )
        case orders.RunPlanned(job, run, changes):
            return worker_pb2.Report(
                run_planned=worker_pb2.RunPlanned(
                    job=job, run=run, changes=[change_to_wire(change) for change in changes]
                )
            )
        case orders.RunEnded():
            return worker_pb2.Report(run_ended=_ended_to_wire(report))
        case orders.Monitored():
            return worker_pb2.Report(monitored=_monitored_to_wire(report))


def report_from_wire(message: worker_pb2.Report) -> orders.Report:
    """Return the report of a message; raise ProtocolError for one that makes no sense."""
    match message.WhichOneof("report"):
        case "pulse":
            return orders.Pulse(message.pulse.stamp)
        case "session_opened":
            opened = message.session_opened
            return orders.SessionOpened(
                _named(opened.job, "job"),
                token_from_wire(opened.token),
                opened.run,
                opened.generation,
                _count(opened.room_limit, "room limit"),
            )
        case "refused":
            refused = message.refused
            return orders.Refused(
                _named(refused.job, "job"),
                token_from_wire(refused.token),
                Token(refused.highest.cluster_id, _count(refused.highest.revision, "revision")),
                refused.order,
                _enum(orders.RefusalReason, refused.reason),
                refused.detail,
            )
        case "room_at":
            room = message.room_at
            return orders.RoomAt(
                _named(room.job, "job"),
                _named(room.run, "run"),
                room.is_given,
                _count(room.taken, "taken"),
                _count(room.limit, "limit"),
            )
        case "run_progress":
            progress = message.run_progress
            return orders.RunProgress(
                _named(progress.job, "job"),
                _named(progress.run, "run"),
                progress_from_wire(progress.progress),
            )
        case "run_planned":
            planned = message.run_planned
            changes = tuple(change_from_wire(change) for change in planned.changes)
            return orders.RunPlanned(
                _named(planned.job, "job"), _named(planned.run, "run"), changes
            )
        case "run_ended":
            return _ended_from_wire(message.run_ended)
        case "monitored":
            return _monitored_from_wire(message.monitored)
        case _:
            raise ProtocolError("a report of a kind that this version does not know")


def description_to_wire(worker: orders.WorkerDescription) -> worker_pb2.DescribeResponse:
    """Return the message in which a worker says who it is."""
    return worker_pb2.DescribeResponse(
        name=worker.name,
        identity=worker.identity,
        instance=worker.instance,
        version=worker.version,
        group=worker.group,
        roots=[
            worker_pb2.Root(
                name=root.name,
                path=root.path,
                read_only=root.read_only,
                available=root.available,
                free_bytes=root.free_bytes,
                watch=watch_to_wire(root.watch),
            )
            for root in worker.roots
        ],
        orders_refused=worker.orders_refused,
    )


def watch_to_wire(watch: orders.WatchDescription) -> common_pb2.Watch:
    """Return the message of how a root is watched."""
    return common_pb2.Watch(
        mode=watch.mode,
        source=watch.source,
        phase=watch.phase,
        reason=watch.reason,
        directories=watch.directories,
        pending=watch.pending,
    )


def watch_from_wire(message: common_pb2.Watch) -> orders.WatchDescription:
    """Return how a root is watched; a worker that does not say so watches nothing."""
    if not message.phase:
        return orders.NOT_WATCHED
    return orders.WatchDescription(
        message.mode,
        message.source,
        message.phase,
        message.reason,
        _count(message.directories, "directories"),
        _count(message.pending, "pending"),
    )


def description_from_wire(message: worker_pb2.DescribeResponse) -> orders.WorkerDescription:
    """Return who a worker says it is."""
    return orders.WorkerDescription(
        name=message.name,
        identity=message.identity,
        instance=message.instance,
        version=message.version,
        group=message.group,
        roots=tuple(
            orders.RootDescription(
                root.name,
                root.path,
                root.read_only,
                root.available,
                root.free_bytes,
                watch_from_wire(root.watch),
            )
            for root in message.roots
        ),
        orders_refused=message.orders_refused,
    )


def _open_from_wire(message: worker_pb2.OpenSession) -> orders.OpenSession:
    if len(message.members) < 2:
        raise ProtocolError(f"a session for job {message.job!r} without two members")
    assignment = orders.Assignment(
        job=_named(message.job, "job"),
        generation=message.generation,
        members=tuple(_member_from_wire(member) for member in message.members),
        options=_options_from_wire(message.options),
        made=message.made,
    )
    return orders.OpenSession(
        assignment, token_from_wire(message.token), _named(message.lease, "lease")
    )


def _extend_from_wire(message: worker_pb2.Extend) -> orders.Extend:
    """Return an extension; one without an end, or to nowhere, would undo the deadline."""
    if not (math.isfinite(message.remaining_s) and 0 < message.remaining_s <= _LONGEST_LEASE_S):
        raise ProtocolError(f"an extension of {message.remaining_s} s")
    return orders.Extend(
        _named(message.lease, "lease"), _count(message.stamp, "stamp"), message.remaining_s
    )


def _monitor_to_wire(monitor: orders.Monitor) -> worker_pb2.Monitor:
    return worker_pb2.Monitor(
        settle_s=monitor.settle_s, audit_s=monitor.audit_s, audits_asked=monitor.audits_asked
    )


def _monitor_from_wire(message: worker_pb2.Monitor) -> orders.Monitor:
    """Return how changes are followed; a settle time without an end would send nothing ever."""
    for name in ("settle_s", "audit_s"):
        value = getattr(message, name)
        if not (math.isfinite(value) and 0 <= value <= _LONGEST_WAIT_S):
            raise ProtocolError(f"a monitor with {name} {value}")
    asked = _count(message.audits_asked, "audits_asked")
    return orders.Monitor(message.settle_s, message.audit_s, asked)


def _monitored_to_wire(report: orders.Monitored) -> worker_pb2.Monitored:
    return worker_pb2.Monitored(
        job=report.job,
        run=report.run,
        life=report.life,
        counts=counts_to_wire(report.counts),
        members=[
            worker_pb2.Standing(member=one.member, behind_s=one.behind_s, why=one.why)
            for one in report.members
        ],
        problems=[problem_to_wire(problem) for problem in report.problems],
        problems_total=report.problems_total,
        holds=[hold_to_wire(hold) for hold in report.holds],
        plan=report.plan,
        audits=report.audits,
        audit_found=report.audit_found,
        audits_answered=report.audits_answered,
        degraded=report.degraded,
    )


def _monitored_from_wire(message: worker_pb2.Monitored) -> orders.Monitored:
    return orders.Monitored(
        job=_named(message.job, "job"),
        run=_named(message.run, "run"),
        life=_named(message.life, "life"),
        counts=counts_from_wire(message.counts),
        members=tuple(map(_standing_from_wire, message.members)),
        problems=tuple(problem_from_wire(problem) for problem in message.problems),
        problems_total=_count(message.problems_total, "problems_total"),
        holds=tuple(hold_from_wire(hold) for hold in message.holds),
        plan=message.plan,
        audits=_count(message.audits, "audits"),
        audit_found=_count(message.audit_found, "audit_found"),
        audits_answered=_count(message.audits_answered, "audits_answered"),
        degraded=message.degraded,
    )


def _standing_from_wire(message: worker_pb2.Standing) -> orders.Standing:
    behind_s = message.behind_s if message.HasField("behind_s") else None
    if behind_s is not None and not (math.isfinite(behind_s) and behind_s >= 0):
        raise ProtocolError(f"a member that is {behind_s} s behind")
    return orders.Standing(_named(message.member, "member"), behind_s, message.why)


def _ended_to_wire(ended: orders.RunEnded) -> worker_pb2.RunEnded:
    return worker_pb2.RunEnded(
        job=ended.job,
        run=ended.run,
        outcome=ended.outcome.value,
        counts=counts_to_wire(ended.counts),
        problems=[problem_to_wire(problem) for problem in ended.problems],
        problems_total=ended.problems_total,
        holds=[hold_to_wire(hold) for hold in ended.holds],
        plan=ended.plan,
        behind=ended.behind,
        generation=ended.generation,
    )


def _ended_from_wire(message: worker_pb2.RunEnded) -> orders.RunEnded:
    return orders.RunEnded(
        job=_named(message.job, "job"),
        run=_named(message.run, "run"),
        outcome=_enum(orders.Outcome, message.outcome),
        counts=counts_from_wire(message.counts),
        problems=tuple(problem_from_wire(problem) for problem in message.problems),
        problems_total=_count(message.problems_total, "problems_total"),
        holds=tuple(hold_from_wire(hold) for hold in message.holds),
        plan=message.plan,
        behind=tuple(message.behind),
        generation=_count(message.generation, "generation"),
    )


def _member_to_wire(member: orders.Member) -> worker_pb2.Member:
    return worker_pb2.Member(
        worker=member.worker, root=member.root, path=member.path, address=member.address
    )


def _member_from_wire(message: worker_pb2.Member) -> orders.Member:
    return orders.Member(
        _named(message.worker, "worker"),
        _named(message.root, "root"),
        message.path,
        message.address,
    )


def _options_to_wire(options: RunOptions) -> worker_pb2.RunOptions:
    safety = options.safety
    return worker_pb2.RunOptions(
        compare=options.compare.value,
        durability=options.durability.value,
        keep_mode=options.keep_mode,
        keep_times=options.keep_times,
        keep_setuid=options.keep_setuid,
        max_delete=safety.max_delete,
        max_delete_files=safety.max_delete_files,
        trash_s=safety.trash_s,
        keep_replaced=safety.keep_replaced,
        rule=options.rule.value,
        copy_when=options.copy_when.value,
        conflict=options.conflict.value,
        keep_owner=options.keep_owner,
        keep_xattrs=options.keep_xattrs,
        keep_acls=options.keep_acls,
        keep_hardlinks=options.keep_hardlinks,
        keep_devices=options.keep_devices,
        symlinks=options.symlinks.value,
        compression=options.compression.value,
        delta=options.delta.value,
        bandwidth=options.bandwidth,
        bandwidth_times=[_rate_time_to_wire(one) for one in options.bandwidth_times],
        filters=options.filters,
        min_size=options.limits.min_size,
        max_size=options.limits.max_size,
        min_age_s=options.limits.min_age_s,
        max_age_s=options.limits.max_age_s,
    )


def _options_from_wire(message: worker_pb2.RunOptions) -> RunOptions:
    if message.HasField("max_delete") and not 0 <= message.max_delete <= 1:
        raise ProtocolError(f"max_delete {message.max_delete} is no share")
    for name in ("max_delete_files", "trash_s", "bandwidth"):
        _count(getattr(message, name), name)
    return RunOptions(
        compare=_enum(Compare, message.compare),
        durability=_enum(Durability, message.durability),
        keep_mode=message.keep_mode,
        keep_times=message.keep_times,
        keep_setuid=message.keep_setuid,
        rule=_enum(Rule, message.rule),
        copy_when=_enum(CopyWhen, message.copy_when),
        conflict=_enum(Conflict, message.conflict),
        keep_owner=message.keep_owner,
        keep_xattrs=message.keep_xattrs,
        keep_acls=message.keep_acls,
        keep_hardlinks=message.keep_hardlinks,
        keep_devices=message.keep_devices,
        symlinks=_enum(Symlinks, message.symlinks),
        compression=_enum(Often, message.compression),
        delta=_enum(Often, message.delta),
        bandwidth=message.bandwidth if message.HasField("bandwidth") else None,
        bandwidth_times=tuple(_rate_time_from_wire(one) for one in message.bandwidth_times),
        filters=tuple(message.filters),
        limits=_limits_from_wire(message),
        safety=Safety(
            max_delete=message.max_delete if message.HasField("max_delete") else None,
            max_delete_files=(
                message.max_delete_files if message.HasField("max_delete_files") else None
            ),
            trash_s=message.trash_s if message.HasField("trash_s") else None,
            keep_replaced=message.keep_replaced,
        ),
    )


def _rate_time_to_wire(time: RateTime) -> worker_pb2.RateTime:
    return worker_pb2.RateTime(
        days=time.days,
        opens=time.opens,
        closes=time.closes,
        zone=time.zone,
        bandwidth=time.bandwidth,
    )


def _rate_time_from_wire(message: worker_pb2.RateTime) -> RateTime:
    days = tuple(message.days)
    if (
        not all(0 <= day < 7 for day in days)
        or not 0 <= message.opens < message.closes <= 2 * 24 * 60
    ):
        raise ProtocolError("an impossible span of time")
    try:
        ZoneInfo(message.zone)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ProtocolError(f"{message.zone!r} is no time zone known here") from None
    rate = _count(message.bandwidth, "bandwidth") if message.HasField("bandwidth") else None
    return RateTime(days, message.opens, message.closes, message.zone, rate)


def _limits_from_wire(message: worker_pb2.RunOptions) -> Limits:
    for name in ("min_size", "max_size", "min_age_s", "max_age_s"):
        if not 0 <= getattr(message, name) < _LARGEST_LIMIT:
            raise ProtocolError(f"{name} {getattr(message, name)} is no limit")
    return Limits(
        min_size=message.min_size if message.HasField("min_size") else None,
        max_size=message.max_size if message.HasField("max_size") else None,
        min_age_s=message.min_age_s if message.HasField("min_age_s") else None,
        max_age_s=message.max_age_s if message.HasField("max_age_s") else None,
    )


def _count(value: int, what: str) -> int:
    if value < 0:
        raise ProtocolError(f"a negative {what}: {value}")
    return value


def _seconds(value: float, what: str) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ProtocolError(f"a {what} of {value} s")
    return value


def _named(value: str, what: str) -> str:
    if not value:
        raise ProtocolError(f"a message without a {what}")
    return value


def _enum(kind: type[E], value: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise ProtocolError(f"{value!r} is not a {kind.__name__}") from None
