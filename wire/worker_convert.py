"""The Worker service's messages to and from the values of `wire.orders`.

What comes in is checked here: a message that makes no sense raises `ProtocolError`, and what passes
can be used without a second look.
"""

import math
from enum import StrEnum
from typing import TypeVar

from baton.v1 import common_pb2, worker_pb2
from syncengine.model import (
    Compare,
    Counts,
    Durability,
    Hold,
    HoldReason,
    MirrorOptions,
    Problem,
    Safety,
    What,
)
from wire import orders
from wire.errors import ProtocolError
from wire.token import Token

E = TypeVar("E", bound=StrEnum)

_LONGEST_LEASE_S = 3_600.0
"""Far beyond the longest lease TTL of a job, 60 s."""


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
    )


def change_from_wire(message: common_pb2.PlannedChange) -> orders.PlannedChange:
    """Return the planned change of a message."""
    return orders.PlannedChange(
        message.path, message.member, message.action, message.kind, _count(message.size, "size")
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
                    source=_member_to_wire(assignment.source),
                    targets=[_member_to_wire(target) for target in assignment.targets],
                    options=_options_to_wire(assignment.options),
                )
            )
        case orders.CloseSession(job, token):
            close = worker_pb2.CloseSession(job=job, token=token_to_wire(token))
            return worker_pb2.Order(close_session=close)
        case orders.Extend(lease, stamp_ns, remaining_s):
            extend = worker_pb2.Extend(lease=lease, stamp=stamp_ns, remaining_s=remaining_s)
            return worker_pb2.Order(extend=extend)
        case orders.StartRun(job, token, run, preview, approved):
            return worker_pb2.Order(
                start_run=worker_pb2.StartRun(
                    job=job,
                    token=token_to_wire(token),
                    run=run,
                    preview=preview,
                    approved=approved,
                )
            )
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
            )
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
        case orders.SessionOpened(job, token, run, generation):
            return worker_pb2.Report(
                session_opened=worker_pb2.SessionOpened(
                    job=job, token=token_to_wire(token), run=run, generation=generation
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
            )
            for root in worker.roots
        ],
        orders_refused=worker.orders_refused,
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
                root.name, root.path, root.read_only, root.available, root.free_bytes
            )
            for root in message.roots
        ),
        orders_refused=message.orders_refused,
    )


def _open_from_wire(message: worker_pb2.OpenSession) -> orders.OpenSession:
    if not message.targets:
        raise ProtocolError(f"a session for job {message.job!r} without a target")
    assignment = orders.Assignment(
        job=_named(message.job, "job"),
        generation=message.generation,
        source=_member_from_wire(message.source),
        targets=tuple(_member_from_wire(target) for target in message.targets),
        options=_options_from_wire(message.options),
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


def _options_to_wire(options: MirrorOptions) -> worker_pb2.MirrorOptions:
    safety = options.safety
    return worker_pb2.MirrorOptions(
        compare=options.compare.value,
        durability=options.durability.value,
        keep_mode=options.keep_mode,
        keep_times=options.keep_times,
        keep_setuid=options.keep_setuid,
        max_delete=safety.max_delete,
        max_delete_files=safety.max_delete_files,
        trash_s=safety.trash_s,
        keep_replaced=safety.keep_replaced,
    )


def _options_from_wire(message: worker_pb2.MirrorOptions) -> MirrorOptions:
    if message.HasField("max_delete") and not 0 <= message.max_delete <= 1:
        raise ProtocolError(f"max_delete {message.max_delete} is no share")
    for name in ("max_delete_files", "trash_s"):
        _count(getattr(message, name), name)
    return MirrorOptions(
        compare=_enum(Compare, message.compare),
        durability=_enum(Durability, message.durability),
        keep_mode=message.keep_mode,
        keep_times=message.keep_times,
        keep_setuid=message.keep_setuid,
        safety=Safety(
            max_delete=message.max_delete if message.HasField("max_delete") else None,
            max_delete_files=(
                message.max_delete_files if message.HasField("max_delete_files") else None
            ),
            trash_s=message.trash_s if message.HasField("trash_s") else None,
            keep_replaced=message.keep_replaced,
        ),
    )


def _count(value: int, what: str) -> int:
    if value < 0:
        raise ProtocolError(f"a negative {what}: {value}")
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
