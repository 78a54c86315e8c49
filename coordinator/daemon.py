"""The coordinator process: puts its parts together, says when it is ready, and stops in order."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from coordinator.api import Api, code_of
from coordinator.catalog import Catalog
from coordinator.cluster import Cluster
from coordinator.config import CoordinatorConfig
from coordinator.errors import StoreUnavailable
from coordinator.etcd_store import EtcdStore
from coordinator.job_owner import utc_now
from coordinator.keys import Keys
from coordinator.lease_session import LeasePool
from coordinator.ledger import Ledger
from coordinator.links import WorkerLinks
from coordinator.presence import Presence, PreviousLife
from coordinator.records import CoordinatorRecord
from coordinator.scheduler import Scheduler
from coordinator.service import bind_service
from coordinator.startup_checks import check_store
from coordinator.status_page import Views, make_app
from coordinator.store import Store
from wire.address import Address, parse_address
from wire.channel import bind, make_server
from wire.clock import BootClock, Clock
from wire.http import serving_http
from wire.process import (
    configure_logs,
    locked_state,
    notify_service_manager,
    stop_signals,
    version,
)

log = structlog.get_logger()

STOP_S = 2.0
"""How long calls in flight may take to end when the coordinator stops."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a coordinator consists of."""

    store: Store
    leases: LeasePool
    presence: Presence
    catalog: Catalog
    links: WorkerLinks
    scheduler: Scheduler
    api: Api


async def run(config: CoordinatorConfig) -> None:
    """Coordinate until SIGTERM or SIGINT.

    Raises CoordinatorError and WireError when it cannot begin: etcd not reachable, the name or the
    port in use, the state directory taken.
    """
    configure_logs(role="coordinator", name=config.name)
    with locked_state(config.state), stop_signals() as stop:
        clock = BootClock()
        store = EtcdStore(config.etcd, clock)
        try:
            await _coordinate(config, store, clock, stop)
        finally:
            await store.close()


async def _coordinate(
    config: CoordinatorConfig, store: EtcdStore, clock: Clock, stop: asyncio.Event
) -> None:
    try:
        cluster_id = await store.cluster_id()
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"etcd cannot be reached: {error.what}. Is it running, is --etcd right, "
            "does it want --etcd-tls or --etcd-user?",
            error.answers,
        ) from error
    leases = LeasePool(store, clock)
    before = PreviousLife(config.state)
    await before.bury(store)
    leases.observe(before)
    parts = _assemble(config, store, clock, leases)
    server = make_server()
    bind_service(server, parts.api, config.credentials, code_of)
    port = await asyncio.to_thread(bind, server, config.listen, config.credentials)
    listens = str(Address(parse_address(config.listen).host, port))
    try:
        async with serving_http(config.http, make_app(_views(config, parts))) as http:
            record = CoordinatorRecord(
                address=config.advertise or listens,
                http=http,
                version=version(),
                since=utc_now(),
                instance=parts.presence.instance,
            )
            await parts.presence.claim(record)
            await server.start()
            await _work(config, parts, record, cluster_id, stop)
    finally:
        log.info("stopping")
        notify_service_manager("STOPPING=1")
        await parts.scheduler.stop()
        await server.stop(STOP_S)
        await parts.links.close()
        await leases.close()
        log.info("stopped")


async def _work(
    config: CoordinatorConfig,
    parts: _Parts,
    record: CoordinatorRecord,
    cluster_id: int,
    stop: asyncio.Event,
) -> None:
    """Run the tasks until one ends, which none does by itself, or the process is asked to stop."""
    tasks = [
        _task("catalog", parts.catalog.follow()),
        _task("scheduler", parts.scheduler.run()),
        _task("presence", parts.presence.keep(record)),
    ]
    checks = _task("checks", check_store(parts.store, parts.scheduler.keys))
    stopping = _task("stop", stop.wait())
    try:
        ready = _task("ready", _ready(parts))
        await asyncio.wait({ready, stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            log.info(
                "ready",
                role="coordinator",
                name=config.name,
                listen=record.address,
                http=record.http,
                etcd=list(config.etcd.endpoints),
                cluster=f"{cluster_id:x}",
            )
            notify_service_manager("READY=1")
        else:
            ready.cancel()
        await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        # The scheduler's own tasks go on until `stop`: they hand their jobs over then.
        for task in (checks, stopping, tasks[0], tasks[2]):
            task.cancel()
        await asyncio.gather(checks, stopping, tasks[0], tasks[2], return_exceptions=True)
        tasks[1].cancel()
        await asyncio.gather(tasks[1], return_exceptions=True)


def _views(config: CoordinatorConfig, parts: _Parts) -> Views:
    return Views(
        node=config.name,
        status=parts.api.status,
        runs=parts.api.runs,
        is_ready=lambda: parts.scheduler.election.is_ready,
        owned=lambda: len(parts.scheduler.election.owned),
    )


async def _ready(parts: _Parts) -> None:
    await parts.catalog.ready()
    await parts.scheduler.election.ready()


def _task(name: str, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    return asyncio.create_task(work, name=name)


def _assemble(config: CoordinatorConfig, store: Store, clock: Clock, leases: LeasePool) -> _Parts:
    keys = Keys(config.prefix)
    catalog = Catalog(store, keys)
    ledger = Ledger(store, keys, clock)
    links = WorkerLinks(config.name, config.credentials, clock)
    scheduler = Scheduler(config.name, store, keys, clock, leases, catalog, links, ledger)
    cluster = Cluster(store, keys, ledger, config.credentials)
    api = Api(config.name, cluster, scheduler, ledger, config.credentials)
    presence = Presence(store, keys, clock, leases, config.name)
    return _Parts(store, leases, presence, catalog, links, scheduler, api)
