"""A worker over HTTP, read only: health and metrics."""

import asyncio
from collections.abc import Callable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from wire.orders import WatchDescription


def make_app(
    *,
    orders_refused: Callable[[], int],
    sessions: Callable[[], int],
    watches: Callable[[], Mapping[str, WatchDescription]] = dict,
) -> Starlette:
    """Return the application; the numbers are asked for at every scrape, `watches` in a thread."""

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def metrics(_: Request) -> Response:
        registry = CollectorRegistry()
        refused = "Orders and calls refused for their token, deadline or caller, since the start."
        Gauge("baton_orders_refused", refused, registry=registry).set(orders_refused())
        held = Gauge("baton_sessions", "Jobs that this worker has a session of.", registry=registry)
        held.set(sessions())
        _add_watches(registry, await asyncio.to_thread(watches))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/healthz", healthz), Route("/metrics", metrics)])


def _add_watches(registry: CollectorRegistry, watches: Mapping[str, WatchDescription]) -> None:
    words = "Directories of a root that the kernel watches."
    directories = Gauge("baton_watched_directories", words, ["root"], registry=registry)
    words = "Changed paths that are not everywhere yet, summed over those who want them."
    pending = Gauge("baton_pending_changes", words, ["root"], registry=registry)
    words = "How a root is watched: 1 for the phase that holds."
    phases = Gauge("baton_watch_phase", words, ["root", "source", "phase"], registry=registry)
    for root, watch in watches.items():
        directories.labels(root).set(watch.directories)
        pending.labels(root).set(watch.pending)
        phases.labels(root, watch.source, watch.phase).set(1)
