"""A coordinator over HTTP, read only: a status page, health, metrics, and the API's views as JSON."""

import dataclasses
import html
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from coordinator.cluster import NotFound
from coordinator.errors import CoordinatorError
from coordinator.views import CoordinatorView, JobView, RunView, StatusView

_REFRESH_S = 5
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;
color:#1a1a1a;background:#fff}
table{border-collapse:collapse;width:100%;margin:.5rem 0 2rem}
th{text-align:left;font-weight:600;border-bottom:2px solid #ccc}
td,th{padding:.3rem .8rem .3rem 0;vertical-align:top}
tr+tr td{border-top:1px solid #eee}
.bad{color:#b00020;font-weight:600}.good{color:#0a6b2d}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}th{border-color:#444}
tr+tr td{border-color:#2a2a2a}.bad{color:#ff6b7d}.good{color:#5fd38a}}
"""
_PARTS = ("status", "jobs", "workers", "coordinators")
_BAD_PHASES = frozenset({"blocked", "failed", "waiting"})


@dataclass(frozen=True, slots=True)
class Views:
    """What the page shows, asked for at every request."""

    node: str
    status: Callable[[], Awaitable[StatusView]]
    runs: Callable[[str], Awaitable[list[RunView]]]
    is_ready: Callable[[], bool]
    owned: Callable[[], int]


def make_app(views: Views) -> Starlette:
    """Return the application."""

    async def page(_: Request) -> Response:
        return HTMLResponse(_page(views.node, await views.status()))

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        ready = views.is_ready()
        return PlainTextResponse("ok\n" if ready else "not yet\n", 200 if ready else 503)

    async def metrics(_: Request) -> Response:
        text = generate_latest(_metrics(await views.status(), views.owned()))
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def part(request: Request) -> Response:
        status = await views.status()
        name = request.url.path.rpartition("/")[2]
        return _json(status if name == "status" else getattr(status, name))

    async def runs(request: Request) -> Response:
        return _json(await views.runs(request.path_params["job"]))

    async def failed(_: Request, error: Exception) -> Response:
        code = 404 if isinstance(error, NotFound) else 503
        return JSONResponse({"error": str(error)}, code)

    routes = [
        Route("/", page),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        *(Route(f"/api/v1/{name}", part) for name in _PARTS),
        Route("/api/v1/jobs/{job}/runs", runs),
    ]
    return Starlette(routes=routes, exception_handlers={CoordinatorError: failed})


def _json(value: Any) -> Response:
    plain = (
        [dataclasses.asdict(one) for one in value]
        if isinstance(value, Sequence)
        else (dataclasses.asdict(value))
    )
    return Response(json.dumps(plain), media_type="application/json")


def _metrics(status: StatusView, owned: int) -> CollectorRegistry:
    """Return the numbers of this moment; nothing is kept between two scrapes."""
    registry = CollectorRegistry()
    Gauge("baton_jobs_owned", "Jobs that this coordinator owns.", registry=registry).set(owned)
    Gauge("baton_coordinators", "Live coordinators.", registry=registry).set(
        len(status.coordinators)
    )
    phases = Gauge("baton_jobs", "Jobs by phase.", ["phase"], registry=registry)
    for phase in ("idle", "waiting", "running", "monitoring", "paused", "blocked", "failed"):
        phases.labels(phase).set(sum(job.phase == phase for job in status.jobs))
    reachable = Gauge("baton_worker_up", "Whether a worker answers.", ["worker"], registry=registry)
    for worker in status.workers:
        reachable.labels(worker.name).set(worker.reachable)
    exposure = Gauge(
        "baton_exposure_seconds",
        "Age of the oldest change that may not be at a target.",
        ["job", "target"],
        registry=registry,
    )
    for job in status.jobs:
        for target, age in job.exposure_s.items():
            exposure.labels(job.name, target).set(float("nan") if age is None else age)
    return registry


def _page(node: str, status: StatusView) -> str:
    jobs = [
        [
            job.name,
            _Marked(job.phase, is_good=job.phase not in _BAD_PHASES),
            job.owner or "-",
            job.last_outcome or "-",
            job.last_success or "never",
            job.next_due or "-",
            _exposure(job),
            job.reason,
        ]
        for job in status.jobs
    ]
    coordinators = [
        [one.name, one.address, one.jobs_owned, one.version, one.since or "-", _state(one)]
        for one in status.coordinators
    ]
    workers = [
        [
            one.name,
            one.address,
            ", ".join(root.name for root in one.roots),
            _Marked("reachable" if one.reachable else "away", is_good=one.reachable),
            one.reason,
        ]
        for one in status.workers
    ]
    heads = ["job", "phase", "owner", "last run", "last success", "next due", "exposure", "reason"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Baton</title>'
        f'<meta http-equiv="refresh" content="{_REFRESH_S}">'
        f'<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style><h1>Baton</h1><p>Answered by {html.escape(node)}.</p>"
        f"<h2>Jobs</h2>{_table(heads, jobs)}"
        "<h2>Coordinators</h2>"
        f"{_table(['name', 'address', 'jobs', 'version', 'since', 'state'], coordinators)}"
        f"<h2>Workers</h2>{_table(['name', 'address', 'roots', 'state', 'reason'], workers)}</html>"
    )


def _state(view: CoordinatorView) -> "_Marked":
    if view.held_until:
        return _Marked(f"held down {view.held}", is_good=False)
    return _Marked("drains" if view.draining else "up", is_good=True)


@dataclass(frozen=True, slots=True)
class _Marked:
    """A word that is good or bad news."""

    text: str
    is_good: bool


def _exposure(job: JobView) -> str:
    ages = [
        f"{target}: {'unknown' if age is None else f'{age:.0f} s'}"
        for target, age in job.exposure_s.items()
    ]
    return ", ".join(ages)


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(f"<th>{html.escape(one)}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, _Marked):
        kind = "good" if value.is_good else "bad"
        return f'<td class="{kind}">{html.escape(value.text)}</td>'
    return f"<td>{html.escape(str(value))}</td>"
