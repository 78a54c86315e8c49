"""A worker's sessions: what each owner may make it do, and what it is doing.

A session belongs to the worker, not to the link that opened it. It carries the run through the death
of its owner; the next owner, with a higher token, finds it and goes on. Orders for one job are carried
out one after another, in the order in which they came.
"""

import asyncio
import functools
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from syncengine.model import Counts, Problem, Rule, What
from wire.clock import Clock
from wire.orders import (
    Assignment,
    CancelRun,
    CloseSession,
    Extend,
    Hello,
    LeaveRoom,
    Member,
    OpenSession,
    Order,
    Outcome,
    Pulse,
    RefusalReason,
    Refused,
    Report,
    RoomAt,
    RunEnded,
    SessionOpened,
    SettleRun,
    StartRun,
    WantRoom,
)
from wire.room import Room
from wire.token import Token
from worker.errors import OrderRefused, StartRefused
from worker.fence import PARK_LIMIT_S, Fence
from worker.journal import Journal
from worker.roots import Roots

log = structlog.get_logger()

REAP_S = 5.0
"""How often sessions that nobody owns any more are looked for."""


class ReportSink(Protocol):
    """Where reports go: a link."""

    def send(self, report: Report) -> None:
        """Queue a report."""


class Run(Protocol):
    """A run as its session sees it: `worker.run.MemberRun`."""

    async def execute(self) -> RunEnded:
        """Carry it out; every problem is in the result. Cancelling it leaves no half state."""

    def renew(self, token: Token) -> None:
        """Go on under a newer token."""

    def update(self, order: StartRun) -> None:
        """Take what is new in an order for this very run."""

    def cancelled(self) -> RunEnded:
        """Return how far it came, after `execute` was cancelled."""


@dataclass(slots=True)
class RunningRun:
    """A run of a session and, once it has ended, how."""

    id: str
    generation: int
    run: Run
    task: "asyncio.Task[None]"
    ended: RunEnded | None = None


@dataclass(slots=True)
class Session:
    """One job's work at this worker under one token."""

    assignment: Assignment
    token: Token
    lease: str
    fence: Fence
    link: ReportSink | None
    live_at: float
    running: RunningRun | None = None
    wants_room_for: str = ""
    """The run that waits for room here, or has it."""

    def report(self, report: Report) -> None:
        """Tell the owner, if its link stands."""
        if self.link is not None:
            self.link.send(report)


StartsRun = Callable[[Session, StartRun], Run]
"""Makes the run that an order asks for; nothing has begun when it returns."""


class Sessions:
    """All sessions of one worker. Belongs to the event loop; disk goes to threads."""

    def __init__(
        self,
        *,
        worker: str,
        roots: Roots,
        journal: Journal,
        clock: Clock,
        starts_run: StartsRun,
        room: Room | None = None,
    ) -> None:
        """Begin with none; `room` is for how many runs this worker takes part in at once."""
        self.worker = worker
        self.roots = roots
        self.journal = journal
        self.room = room or Room()
        self.orders_refused = 0
        self.refused_opens: dict[str, tuple[Token, str]] = {}
        """By job the session that was last refused, and why: its source need not wait for it."""
        self._clock = clock
        self._accepted_cluster = journal.accepted_cluster()
        self._starts_run = starts_run
        self._sessions: dict[str, Session] = {}
        self._fences: dict[str, Fence] = {}
        self._order: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    def __len__(self) -> int:
        """How many jobs have a session here."""
        return len(self._sessions)

    def get(self, job: str) -> Session | None:
        """Return the session of a job, if there is one."""
        return self._sessions.get(job)

    def fence(self, job: str) -> Fence:
        """Return the fence of a job, whether it has a session or not."""
        return self._fences.setdefault(job, Fence(job, self._clock))

    def take(self, order: Order, link: ReportSink) -> None:
        """Begin to carry out an order; returns at once, and the link hears how it went."""
        if isinstance(order, Extend):
            self._extend(order, link)
            return
        if self._is_closing:
            return  # the link is about to break, and whoever connects anew will open sessions
        task = asyncio.create_task(self._carry_out(order, link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def link_gone(self, link: ReportSink) -> None:
        """The coordinator hung up: its sessions go on until their deadline."""
        for session in self._sessions.values():
            if session.link is link:
                session.link = None

    async def reap(self) -> None:
        """Drop sessions whose deadline passed long ago; runs until it is cancelled."""
        while True:
            await self._clock.sleep(REAP_S)
            now = self._clock.now()
            for job, session in list(self._sessions.items()):
                if session.fence.is_live:
                    session.live_at = now
                elif now - session.live_at > PARK_LIMIT_S:
                    log.warning("session_dropped", job=job, token=str(session.token))
                    await self._drop(session)
            self._give_out_room()

    async def accept_cluster(self, cluster_id: int, revision: int) -> int:
        """Let owners of this etcd cluster in, and no others; return how many tokens were forgotten.

        An operator says so after etcd was replaced or set back to a backup. Tokens of other clusters,
        and those of this one that it has not come to, are forgotten, on disk first; what goes on under
        them publishes nothing more, and waits for the next owner. Raises sqlite3.Error.
        """
        gone = await asyncio.to_thread(self.journal.accept_cluster, cluster_id, revision)
        self._accepted_cluster = cluster_id

        def is_void(token: Token | None) -> bool:
            return token is not None and (
                token.cluster_id != cluster_id or token.revision > revision
            )

        for job, fence in list(self._fences.items()):
            async with self._order.setdefault(job, asyncio.Lock()):
                if is_void(fence.highest):
                    await asyncio.to_thread(fence.forget)
        log.warning(
            "cluster_accepted", cluster=f"{cluster_id:x}", revision=revision, forgotten=gone
        )
        return gone

    async def close(self) -> None:
        """Stop every run at a safe point and wait for it; take no more orders."""
        self._is_closing = True
        for session in list(self._sessions.values()):
            # That a run stops because its worker does is no outcome: its owner gives it again.
            session.link = None
            await self._drop(session)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _extend(self, order: Extend, link: ReportSink) -> None:
        deadline = order.stamp_ns / 1e9 + order.remaining_s
        for session in self._sessions.values():
            if session.link is link and session.lease == order.lease:
                session.fence.extend(deadline)

    async def _carry_out(self, order: Order, link: ReportSink) -> None:
        if isinstance(order, Hello | Extend):
            return
        job = order.assignment.job if isinstance(order, OpenSession) else order.job
        async with self._order.setdefault(job, asyncio.Lock()):  # first come, first served
            try:
                await self._dispatch(order, link)
            except OrderRefused as refusal:
                self.orders_refused += 1
                if isinstance(order, OpenSession):
                    self.refused_opens[job] = (order.token, str(refusal))
                name = type(order).__name__
                log.warning(
                    "order_refused",
                    job=job,
                    order=name,
                    token=str(order.token),
                    reason=refusal.reason.value,
                    highest=str(refusal.highest),
                )
                link.send(
                    Refused(job, order.token, refusal.highest, name, refusal.reason, str(refusal))
                )

    async def _dispatch(self, order: Order, link: ReportSink) -> None:
        match order:
            case OpenSession():
                await self._open(order, link)
            case StartRun():
                await self._start(self._checked(order.job, order.token), order)
            case WantRoom():
                self._want_room(self._checked(order.job, order.token), order)
            case LeaveRoom(job, token):
                session = self._checked(job, token)
                session.wants_room_for = ""
                self.room.give_back(job)
                self._give_out_room()
            case CancelRun(job, token, run):
                session = self._checked(job, token)
                running = session.running
                if running is not None and running.id == run and running.ended is None:
                    running.task.cancel()
            case SettleRun(job, token, run):
                session = self._checked(job, token)
                running = session.running
                if running is not None and running.id == run and running.ended is not None:
                    session.running = None
            case CloseSession(job, token):
                await self._drop(self._checked(job, token))
            case _:
                raise AssertionError(order)

    async def _open(self, order: OpenSession, link: ReportSink) -> None:
        assignment, token = order.assignment, order.token
        roots = self._roots_here(assignment)
        fence = self.fence(assignment.job)
        try:
            await asyncio.to_thread(self._accept, token, fence, roots)
        except sqlite3.Error as error:
            raise OrderRefused(
                RefusalReason.STATE_FAILED,
                f"worker {self.worker} cannot use its journal: {error}; look at its disk",
            ) from error
        session = self._sessions.get(assignment.job)
        if session is None:
            session = Session(assignment, token, order.lease, fence, link, self._clock.now())
            self._sessions[assignment.job] = session
        else:
            session.assignment, session.token = assignment, token
            session.lease, session.link = order.lease, link
            session.live_at = self._clock.now()  # not dropped before the first extension
        self.refused_opens.pop(assignment.job, None)
        running = session.running
        log.info(
            "session_opened",
            job=assignment.job,
            token=str(token),
            adopted=running.id if running else None,
        )
        doing = ("", 0) if running is None else (running.id, running.generation)
        if running is not None:
            running.run.renew(token)
        session.report(SessionOpened(assignment.job, token, *doing, self.room.limit or 0))
        session.report(Pulse(0))
        if running is not None and running.ended is not None:
            session.report(running.ended)

    def _accept(self, token: Token, fence: Fence, roots: list[str]) -> None:
        """Make the token the highest, durably; raises OrderRefused and sqlite3.Error.

        Blocks on the disk, and on a slice that is being published.
        """
        on_disk = self.journal.tokens(fence.job, roots)
        before = [*on_disk.values(), *([fence.highest] if fence.highest is not None else [])]
        self._check_cluster(fence.job, token, before)
        if fence.highest is not None and fence.highest.cluster_id != token.cluster_id:
            fence.forget()
        known = [t for t in on_disk.values() if t.cluster_id == token.cluster_id]
        is_on_disk = len(on_disk) == len(roots) and set(on_disk.values()) == {token}
        persist = functools.partial(self.journal.accept, fence.job, roots, token)
        fence.accept(token, max(known, default=None), None if is_on_disk else persist)

    def _roots_here(self, assignment: Assignment) -> list[str]:
        mine = [m for m in assignment.members if m.worker == self.worker]
        if not mine:
            raise OrderRefused(
                RefusalReason.WRONG_WORKER,
                f"this is worker {self.worker}, which job {assignment.job} does not name: "
                "check the address with 'baton worker test'",
            )
        for member in mine:
            if member.root not in self.roots:
                raise OrderRefused(
                    RefusalReason.NO_SUCH_ROOT,
                    f"worker {self.worker} exports no root {member.root!r}; it has "
                    f"{', '.join(self.roots.names) or 'none'}: start it with --root {member.root}=PATH",
                )
            try:
                root = self.roots[member.root]
            except StartRefused as error:
                raise OrderRefused(RefusalReason.NO_SUCH_ROOT, str(error)) from error
            if root.read_only and (role := _writes(assignment, member)):
                raise OrderRefused(
                    RefusalReason.READ_ONLY,
                    f"root {member.root} of worker {self.worker} is exported read-only "
                    f"and cannot be {role}",
                )
        return sorted({member.root for member in mine})

    def _check_cluster(self, job: str, token: Token, before: list[Token]) -> None:
        foreign = [t for t in before if t.cluster_id != token.cluster_id]
        accepted = self._accepted_cluster
        if accepted is not None and token.cluster_id != accepted:
            known = f"{accepted:x}, which an operator accepted"
        elif foreign:
            known = f"{foreign[0].cluster_id:x}, that of {foreign[0]}, accepted before"
        else:
            return
        raise OrderRefused(
            RefusalReason.FOREIGN_CLUSTER,
            f"token {token} of job {job} is not of etcd cluster {known}. If etcd was replaced or set "
            f"back to a backup on purpose, say 'baton worker accept {self.worker}'",
            foreign[0] if foreign else None,
        )

    def _checked(self, job: str, token: Token) -> Session:
        """Return the session under exactly this token, or refuse the order."""
        fence = self._fences.get(job)
        highest = fence.highest if fence else None
        session = self._sessions.get(job)
        if highest is not None and _is_newer(token, highest):
            raise OrderRefused(
                RefusalReason.NO_SESSION,
                f"no session of job {job} is open under token {token}: open it first",
                highest,
            )
        if highest is not None and token != highest:
            raise OrderRefused(
                RefusalReason.STALE_TOKEN,
                f"token {token} of job {job} is not {highest}, the one accepted last",
                highest,
            )
        if session is None or fence is None or highest is None:
            raise OrderRefused(
                RefusalReason.NO_SESSION, f"no session is open for job {job}", highest
            )
        if fence.is_expired:
            raise OrderRefused(
                RefusalReason.EXPIRED,
                f"the session of job {job} is past its deadline: open it anew",
                highest,
            )
        return session

    async def _start(self, session: Session, order: StartRun) -> None:
        running = session.running
        generation = session.assignment.generation
        is_same = running is not None and (running.id, running.generation) == (
            order.run,
            generation,
        )
        if running is not None and is_same and not running.ended:
            running.run.update(order)
            return
        await self._stop_quietly(session)
        run = self._starts_run(session, order)
        task = asyncio.create_task(self._run(session, order, run))
        task.add_done_callback(functools.partial(self._settle_unbegun, session, run))
        session.running = RunningRun(order.run, generation, run, task)

    def _want_room(self, session: Session, order: WantRoom) -> None:
        """Put a run in the queue, or count one that goes on already."""
        session.wants_room_for = order.run
        if order.is_under_way:
            self.room.take(order.job)
        else:
            self.room.ask(order.job, order.priority, self._clock.now() - order.waited_s)
        if self.room.has(order.job):
            self._tell_of_room(session)
            return
        self._give_out_room()
        if not self.room.has(order.job):
            self._tell_of_room(session)

    def _give_out_room(self) -> None:
        """Let those in that wait, but for sessions that nobody keeps alive: their owner is gone."""
        for job in self.room.give_out(self._is_kept):
            self._tell_of_room(self._sessions[job])

    def _is_kept(self, job: str) -> bool:
        session = self._sessions.get(job)
        return session is not None and not session.fence.is_expired

    def _tell_of_room(self, session: Session) -> None:
        job, room = session.assignment.job, self.room
        run = session.wants_room_for
        session.report(RoomAt(job, run, room.has(job), room.taken, room.limit or 0))

    async def _run(self, session: Session, order: StartRun, run: Run) -> None:
        with structlog.contextvars.bound_contextvars(job=order.job, run=order.run):
            log.info("run_started", token=str(order.token), preview=order.preview)
            try:
                async with asyncio.timeout(order.time_limit_s or None):
                    ended = await run.execute()
            except TimeoutError:
                ended = _over_time(session.assignment, run.cancelled(), order.time_limit_s)
            except asyncio.CancelledError:
                # The owner's order, or the worker's end: the run itself has cleaned up.
                ended = run.cancelled()
            except Exception as error:
                # An error of our own. Unsaid, the owner would wait for this run for ever.
                log.exception("run_broke")
                ended = _broken(session.assignment, order.run, error)
            log.info("run_ended", outcome=ended.outcome.value, problems=ended.problems_total)
        self._note_end(session, run, ended)

    def _settle_unbegun(self, session: Session, run: Run, task: "asyncio.Task[None]") -> None:
        """Give a run its end whose task was cancelled before its first step.

        RACE: its order and the one that cancels it may come in one turn of the loop.
        """
        if task.cancelled():
            self._note_end(session, run, run.cancelled())

    def _note_end(self, session: Session, run: Run, ended: RunEnded) -> None:
        running = session.running
        if running is not None and running.run is run:
            running.ended = replace(ended, generation=running.generation)
            session.report(running.ended)

    async def _stop_quietly(self, session: Session) -> None:
        """Stop what the session does, and wait for it; the owner did not ask how it ended.

        It must not hear that the run was cancelled: one that a stopping worker or a newer definition
        ends is begun again.
        """
        running, session.running = session.running, None
        if running is not None:
            running.task.cancel()
            await asyncio.gather(running.task, return_exceptions=True)

    async def _drop(self, session: Session) -> None:
        job = session.assignment.job
        if self._sessions.get(job) is session:
            del self._sessions[job]
        session.fence.end()
        await self._stop_quietly(session)
        if job not in self._sessions:
            self.room.give_back(job)
            self._give_out_room()


def _writes(assignment: Assignment, member: Member) -> str:
    """Say as what a job writes to a member; empty when it only reads there."""
    rule = assignment.options.rule
    if not rule.is_one_way:
        return f"a member of a job of rule {rule}"
    if member in assignment.targets:
        return "a target"
    return f"the source of a job of rule {rule}" if rule is Rule.MOVE else ""


def _is_newer(token: Token, highest: Token) -> bool:
    return token.cluster_id == highest.cluster_id and token > highest


def _over_time(assignment: Assignment, stopped: RunEnded, limit_s: float) -> RunEnded:
    """Return how a run ended that its time limit stopped: failed, with what it did."""
    detail = f"the run reached its time limit of {limit_s:g} s and was stopped"
    problem = Problem(b"", str(assignment.source), What.OUT_OF_TIME, detail)
    behind = tuple(str(member) for member in assignment.written)
    return replace(
        stopped,
        outcome=Outcome.FAILED,
        problems=(problem, *stopped.problems),
        problems_total=stopped.problems_total + 1,
        behind=behind,
    )


def _broken(assignment: Assignment, run: str, error: Exception) -> RunEnded:
    detail = f"an error of Baton's own: {type(error).__name__}: {error}; the worker's log has more"
    problem = Problem(b"", str(assignment.source), What.INTERNAL, detail)
    behind = tuple(str(member) for member in assignment.written)
    return RunEnded(assignment.job, run, Outcome.FAILED, Counts(), (problem,), 1, behind=behind)
