"""The worker process: puts its parts together, says when it is ready, and stops in order."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

import structlog

from syncengine.chunk_index import ChunkIndex
from wire.address import Address, parse_address
from wire.channel import bind, make_server
from wire.clock import BootClock
from wire.http import serving_http
from wire.orders import StartRun, WorkerDescription
from wire.process import (
    configure_logs,
    locked_state,
    notify_service_manager,
    stop_signals,
    version,
)
from wire.room import Room
from worker.agreed_store import AgreedStores
from worker.channels import Channels
from worker.config import WorkerConfig
from worker.journal import Journal
from worker.link import Describe, WorkerService, add_to_server
from worker.member_tree import MemberTrees
from worker.memory import collect_seldom, keep_freed_memory
from worker.monitoring import MonitorRun
from worker.n_way import NWayRun
from worker.one_way import OneWayRun
from worker.peers import PeerService
from worker.roots import Roots
from worker.run import Surroundings
from worker.sessions import Run, Session, Sessions
from worker.status import make_app
from worker.uses import Uses
from worker.verifying import VerifyRun
from worker.watching.clocks import Clocks
from worker.watching.watching import Watching

log = structlog.get_logger()

STOP_S = 5.0
"""How long calls in flight may take to end when the worker stops."""


async def run(config: WorkerConfig) -> None:
    """Serve until SIGTERM or SIGINT; raises WireError and WorkerError when it cannot begin."""
    keep_freed_memory()
    collect_seldom()
    configure_logs(role="worker", name=config.name)
    with locked_state(config.state), stop_signals() as stop:
        roots = await asyncio.to_thread(Roots, config.roots)
        await asyncio.to_thread(roots.undo)
        journal = await asyncio.to_thread(Journal, config.state / "journal.db")
        chunks = await asyncio.to_thread(ChunkIndex, config.state / "chunks.db")
        trees = MemberTrees(roots, journal, AgreedStores(config.state / "agreed"), chunks)
        try:
            await _serve(config, roots, trees, journal, stop)
        finally:
            await asyncio.to_thread(chunks.close)
            await asyncio.to_thread(journal.close)
            roots.close()


@contextlib.asynccontextmanager
async def _metrics(
    config: WorkerConfig, sessions: Sessions, watching: Watching
) -> AsyncIterator[None]:
    """Serve health and metrics, where the configuration asks for that."""
    if config.http is None:
        yield
        return
    app = make_app(
        orders_refused=lambda: sessions.orders_refused,
        sessions=lambda: len(sessions),
        watches=watching.describe_all,
    )
    async with serving_http(config.http, app) as address:
        log.info("serves_metrics", http=address)
        yield


async def _serve(
    config: WorkerConfig, roots: Roots, trees: MemberTrees, journal: Journal, stop: asyncio.Event
) -> None:
    clock = BootClock()
    uses = Uses()
    channels = Channels(config.credentials, clock)
    watching = Watching(roots, config.state / "watching", Clocks(wall=trees.wall))

    def starts_run(session: Session, order: StartRun) -> Run:
        around = Surroundings(
            worker=config.name,
            trees=trees,
            uses=uses,
            channels=channels,
            clock=clock,
            fence=session.fence,
            report=session.report,
        )
        if order.monitor is not None:
            return MonitorRun(session.assignment, order, around, watching)
        if order.verify:
            return VerifyRun(session.assignment, order, around)
        is_one_way = session.assignment.options.rule.is_one_way
        kind = OneWayRun if is_one_way else NWayRun
        return kind(session.assignment, order, around)

    sessions = Sessions(
        worker=config.name,
        roots=roots,
        journal=journal,
        clock=clock,
        starts_run=starts_run,
        room=Room(config.max_runs),
    )
    host = parse_address(config.listen).host
    peers = PeerService(sessions, trees, config.credentials, uses, host=host)
    facts = WorkerDescription(
        name=config.name,
        identity=str(config.credentials.identity),
        instance=secrets.token_hex(8),
        version=version(),
        group=config.group or "",
        roots=(),
        orders_refused=0,
    )
    server = make_server()
    service = WorkerService(
        sessions, config.credentials, clock, Describe(facts, sessions, watching.describe)
    )
    add_to_server(service, server)
    peers.add_to_server(server)
    port = await asyncio.to_thread(bind, server, config.listen, config.credentials)
    await watching.start()
    await server.start()
    reaping = asyncio.create_task(sessions.reap())
    cleaning = asyncio.create_task(trees.leavings.clean(trees.open_target, sessions.fence, clock))
    listens = str(Address(host, port))
    log.info(
        "ready",
        role="worker",
        name=config.name,
        listen=listens,
        roots=[root.name for root in config.roots],
        identity=facts.identity,
    )
    try:
        async with _metrics(config, sessions, watching):
            notify_service_manager("READY=1")
            await stop.wait()
    finally:
        log.info("stopping")
        notify_service_manager("STOPPING=1")
        reaping.cancel()
        # First no new calls, then no links: else coordinators would keep them, and come back.
        ending = asyncio.create_task(server.stop(STOP_S))
        await asyncio.sleep(0)
        service.close()
        await peers.close()
        await sessions.close()
        await channels.close()
        await watching.close()
        await ending
        cleaning.cancel()
        await asyncio.gather(cleaning, return_exceptions=True)
        await asyncio.to_thread(trees.leavings.end)
        log.info("stopped")
