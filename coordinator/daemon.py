"""The coordinator process: puts its parts together, says when it is ready, and stops in order."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from coordinator.api import Api, code_of
from coordinator.catalog import Catalog
from coordinator.clocks import Clocks, asks
from coordinator.cluster import Cluster
from coordinator.config import CoordinatorConfig
from coordinator.control_api import ControlApi
from coordinator.conversation import connect
from coordinator.errors import StoreDenied, StoreUnavailable
from coordinator.etcd_store import EtcdStore
from coordinator.flapping import Flapping, Hold
from coordinator.guardian_link import GuardianLink
from coordinator.job_owner import utc_now
from coordinator.keys import Keys
from coordinator.lease_session import LeasePool
from coordinator.ledger import Ledger
from coordinator.links import WorkerLinks
from coordinator.presence import Presence, PreviousLife
from coordinator.records import CoordinatorRecord
from coordinator.run_room import RunRoom
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
    flapping: Flapping


async def run(config: CoordinatorConfig) -> None:
    """Coordinate until SIGTERM or SIGINT.

    Raises CoordinatorError and WireError when it cannot begin: etcd not reachable, the name or the
    port in use, the state directory taken.
    """
    configure_logs(role="coordinator", name=config.name)
    with locked_state(config.state), stop_signals() as stop:
        clock = BootClock()
        store = EtcdStore(config.etcd, clock)
        guardian = GuardianLink.from_environment(lambda: store.serving)
        guardian.begin(config.name, config.etcd, orphaned=stop.set)
        try:
            await _coordinate(config, store, clock, guardian, stop)
        except StoreDenied as error:
            who = f"user {config.etcd.user}" if config.etcd.user else "whoever names no --etcd-user"
            raise StoreDenied(
                f"etcd does not let {who} read and write under {config.prefix}: {error}: 'etcdctl "
                f"role grant-permission ROLE readwrite --prefix=true {config.prefix}' for a role of "
                "that user, or another --etcd-user"
            ) from error
        finally:
            await store.close()
            guardian.leave()


async def _coordinate(
    config: CoordinatorConfig,
    store: EtcdStore,
    clock: Clock,
    guardian: GuardianLink,
    stop: asyncio.Event,
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
    leases.observe(guardian)
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
            record = await _begin_life(parts, record)
            await server.start()
            said = _said_when_ready(config, record, cluster_id)
            await _work(parts, record, guardian, said, stop)
    finally:
        log.info("stopping")
        guardian.notify("STOPPING=1")
        await parts.scheduler.stop()
        await parts.flapping.end()
        await server.stop(STOP_S)
        await parts.links.close()
        await leases.close()
        guardian.all_revoked()
        log.info("stopped")


def _said_when_ready(
    config: CoordinatorConfig, record: CoordinatorRecord, cluster_id: int
) -> dict[str, object]:
    return {
        "role": "coordinator",
        "name": config.name,
        "listen": record.address,
        "http": record.http,
        "etcd": list(config.etcd.endpoints),
        "cluster": f"{cluster_id:x}",
    }


async def _work(
    parts: _Parts,
    record: CoordinatorRecord,
    guardian: GuardianLink,
    said: dict[str, object],
    stop: asyncio.Event,
) -> None:
    """Run the tasks until one ends, which none does by itself, or the process is asked to stop."""

    def held_down(hold: Hold | None) -> None:
        parts.scheduler.hold_down(hold)
        parts.presence.say(_with_hold(record, hold))

    scheduling = _task("scheduler", parts.scheduler.run())
    others = [
        _task("catalog", parts.catalog.follow()),
        _task("presence", parts.presence.keep(record)),
        _task("flapping", parts.flapping.run(held_down)),
    ]
    tasks = [scheduling, *others]
    checks = _task("checks", check_store(parts.store, parts.scheduler.keys))
    stopping = _task("stop", stop.wait())
    try:
        ready = _task("ready", _ready(parts))
        await asyncio.wait({ready, stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            log.info("ready", **said)
            guardian.notify("READY=1")
        else:
            ready.cancel()
        await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        # The scheduler's own tasks go on until `stop`: they hand their jobs over then.
        ending = [checks, stopping, *others]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        scheduling.cancel()
        await asyncio.gather(scheduling, return_exceptions=True)


def _views(config: CoordinatorConfig, parts: _Parts) -> Views:
    return Views(
        node=config.name,
        status=parts.api.status,
        runs=parts.api.runs,
        is_ready=lambda: parts.scheduler.election.is_ready,
        owned=lambda: len(parts.scheduler.election.owned),
    )


async def _begin_life(parts: _Parts, record: CoordinatorRecord) -> CoordinatorRecord:
    """Find out whether this coordinator is held down, and let the others know before it claims."""
    await parts.flapping.begin()
    hold = parts.flapping.hold
    if hold is None:
        return record
    parts.scheduler.hold_down(hold)
    record = _with_hold(record, hold)
    await parts.presence.claim(record)
    return record


def _with_hold(record: CoordinatorRecord, hold: Hold | None) -> CoordinatorRecord:
    until, why = (None, "") if hold is None else (hold.until, str(hold))
    return msgspec.structs.replace(record, held_until=until, held=why)


async def _ready(parts: _Parts) -> None:
    await parts.catalog.ready()
    await parts.scheduler.election.ready()


def _task(name: str, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    return asyncio.create_task(work, name=name)


def _assemble(config: CoordinatorConfig, store: Store, clock: Clock, leases: LeasePool) -> _Parts:
    keys = Keys(config.prefix)
    catalog = Catalog(store, keys)
    ledger = Ledger(store, keys, clock)
    links = WorkerLinks(connect(config.name, config.credentials), clock)
    room = RunRoom(config.name, config.max_runs)
    scheduler = Scheduler(
        config.name,
        store,
        keys,
        clock,
        leases,
        catalog,
        links,
        ledger,
        room=room,
        claims_per_s=config.claims_per_s,
    )
    flapping = Flapping.of(store, keys, clock, config.name, config.flaps, wall=utc_now)
    scheduler.on_loss = flapping.jobs_lost
    cluster = Cluster(store, keys, ledger, config.credentials)
    clocks = Clocks(config.name, clock, asks(config.credentials, utc_now))
    api = ControlApi(config.name, cluster, scheduler, ledger, config.credentials, clocks)
    presence = Presence(store, keys, clock, leases, config.name)
    return _Parts(store, leases, presence, catalog, links, scheduler, api, flapping)
