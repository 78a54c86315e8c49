"""Several real workers in one process, each with a root of its own, and somebody who gives the orders.

Everything is real but the coordinator: sessions, fences, journals, the peers' calls over the loopback,
and the runs themselves. A worker can be away, and can be started again with what it has on its disk.
"""

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from syncengine.chunk_index import ChunkIndex
from syncengine.model import RunOptions
from tests.worker.workers import CLUSTER, Link
from wire.channel import bind, make_server
from wire.clock import BootClock
from wire.credentials import Insecure
from wire.identity import Identity, Role
from wire.orders import (
    Assignment,
    Extend,
    Member,
    OpenSession,
    Refused,
    RunEnded,
    SessionOpened,
    SettleRun,
    StartRun,
)
from wire.token import Token
from worker.agreed_store import AgreedStores
from worker.channels import Channels
from worker.journal import Journal
from worker.member_tree import MemberTrees
from worker.n_way import NWayRun
from worker.n_way_pass import NWayPasses
from worker.one_way import OneWayRun
from worker.one_way_pass import OneWayPasses
from worker.peers import PeerService
from worker.roots import ExportedRoot, Roots
from worker.run import MemberRun, Surroundings
from worker.sessions import Session, Sessions
from worker.uses import Uses

JOB = "job"
LEASE = "1f"
LIVE_S = 600.0
RUN_S = 60.0


class LocalWorker:
    """One worker: `root` is what it exports as `data`, `state` what it remembers."""

    def __init__(self, base: Path, name: str, root: Path | None = None) -> None:
        self.name = name
        self.base = base
        self.root, self.state = root or base / "root", base / "state"
        self.root.mkdir(parents=True, exist_ok=True)
        self.state.mkdir(parents=True, exist_ok=True)
        self.skew_s = 0
        """How much its clock is ahead of this machine's."""
        self.address = ""
        self.link = Link()
        self._closing: contextlib.AsyncExitStack | None = None
        self.sessions: Sessions
        self.around: Callable[[Session], Surroundings]

    @property
    def is_up(self) -> bool:
        return self._closing is not None

    @property
    def member(self) -> Member:
        return Member(self.name, "data", b"", self.address)

    async def start(self) -> None:
        """Begin to serve, with what is on the disk."""
        roots = Roots((ExportedRoot("data", self.root, read_only=False),))
        journal = Journal(self.state / "journal.db")
        chunks = ChunkIndex(self.state / "chunks.db")
        trees = MemberTrees(
            roots,
            journal,
            AgreedStores(self.state / "agreed"),
            chunks,
            wall=lambda: time.time() + self.skew_s,
        )
        credentials = Insecure(Identity("local", Role.WORKER, self.name))
        clock, uses = BootClock(), Uses()
        channels = Channels(credentials, clock)

        def around(session: Session) -> Surroundings:
            return Surroundings(
                worker=self.name,
                trees=trees,
                uses=uses,
                channels=channels,
                clock=clock,
                fence=session.fence,
                report=session.report,
            )

        def starts_run(session: Session, order: StartRun) -> MemberRun:
            is_one_way = session.assignment.options.rule.is_one_way
            return (OneWayRun if is_one_way else NWayRun)(
                session.assignment, order, around(session)
            )

        self.around = around
        self.link = Link()
        self.sessions = Sessions(
            worker=self.name,
            roots=roots,
            journal=journal,
            clock=clock,
            starts_run=starts_run,
        )
        peers = PeerService(self.sessions, trees, credentials, uses, host="127.0.0.1")
        server = make_server()
        peers.add_to_server(server)
        self.address = f"127.0.0.1:{bind(server, self.address or '127.0.0.1:0', credentials)}"
        await server.start()
        self._closing = contextlib.AsyncExitStack()
        self._closing.callback(roots.close)
        self._closing.callback(journal.close)
        self._closing.callback(chunks.close)
        self._closing.push_async_callback(channels.close)
        self._closing.push_async_callback(self.sessions.close)
        self._closing.push_async_callback(peers.close)
        self._closing.push_async_callback(server.stop, 0)

    async def stop(self) -> None:
        """Stop in order; what was not made durable is for the next start to see."""
        if self._closing is not None:
            await self._closing.aclose()
            self._closing = None

    def forget(self, what: str = "*") -> None:
        """Lose what a stopped worker remembers: all of it, or what matches."""
        assert not self.is_up
        for path in self.state.glob(what):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@dataclass
class Members:
    """All workers of one job. Drive it with one event loop."""

    base: Path
    names: Sequence[str]
    options: RunOptions
    places: dict[str, Path] = field(default_factory=dict)
    """Roots that lie elsewhere than below `base`."""
    workers: list[LocalWorker] = field(default_factory=list)
    runs: int = 0
    made: str = ""
    """As in Assignment: another one makes it another job of the same name."""

    async def open(self) -> None:
        for name in self.names:
            worker = LocalWorker(self.base / name, name, self.places.get(name))
            self.workers.append(worker)
            await worker.start()

    async def close(self) -> None:
        for worker in self.workers:
            await worker.stop()

    @property
    def roots(self) -> list[Path]:
        return [worker.root for worker in self.workers]

    async def run(self, runner: int = 0, *, approved: bytes = b"") -> RunEnded:
        """Run the job once, with the members that are up, carried out by one of these."""
        order = await self.ordered()
        first = self.workers[runner]
        first.sessions.take(replace(order, approved=approved), first.link)
        async with asyncio.timeout(RUN_S):
            while not (ended := [e for e in first.link.of(RunEnded) if e.run == order.run]):
                await asyncio.sleep(0.001)
        first.sessions.take(SettleRun(JOB, order.token, order.run), first.link)
        return ended[0]

    async def ordered(self) -> StartRun:
        """Open sessions for another run at the members that are up; return the order to start it."""
        self.runs += 1
        number = time.time_ns() // 1_000
        token = Token(CLUSTER, number)
        job = Assignment(JOB, 1, tuple(w.member for w in self.workers), self.options, self.made)
        for worker in self.workers:
            if worker.is_up:
                await self._session(worker, job, token)
        return StartRun(JOB, token, f"r{self.runs}", number=number)

    async def joint_passes(self, runner: int = 0) -> NWayPasses:
        """Open sessions and return passes among all members, carried out by one of them."""
        order = await self.ordered()
        first = self.workers[runner]
        session = first.sessions.get(JOB)
        assert session is not None
        return NWayPasses(session.assignment, order, first.around(session))

    async def passes(self, target: int = 1) -> OneWayPasses:
        """Open sessions and return passes from the first worker to one of the others."""
        order = await self.ordered()
        first = self.workers[0]
        session = first.sessions.get(JOB)
        assert session is not None
        to = self.workers[target].member
        return OneWayPasses(session.assignment, order, to, first.around(session))

    async def _session(self, worker: LocalWorker, job: Assignment, token: Token) -> None:
        count = len(worker.link.of(SessionOpened)) + 1
        worker.sessions.take(OpenSession(job, token, LEASE), worker.link)
        async with asyncio.timeout(RUN_S):
            while len(worker.link.of(SessionOpened)) < count:
                assert not worker.link.of(Refused), worker.link.of(Refused)
                await asyncio.sleep(0.001)
        now = BootClock().now()
        worker.sessions.take(Extend(LEASE, int(now * 1e9), LIVE_S), worker.link)
