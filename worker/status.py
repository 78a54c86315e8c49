"""A worker over HTTP, read only: health and metrics."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


def make_app(*, orders_refused: Callable[[], int], sessions: Callable[[], int]) -> Starlette:
    """Return the application; the numbers are asked for at every scrape."""

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def metrics(_: Request) -> Response:
        registry = CollectorRegistry()
        refused = "Orders and calls refused for their token, deadline or caller, since the start."
        Gauge("baton_orders_refused", refused, registry=registry).set(orders_refused())
        held = Gauge("baton_sessions", "Jobs that this worker has a session of.", registry=registry)
        held.set(sessions())
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/healthz", healthz), Route("/metrics", metrics)])
