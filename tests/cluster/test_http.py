"""A coordinator over HTTP: the page, health, metrics, and the API's views as JSON."""

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

from tests.cluster.harness import Scene


async def get(scene: Scene, path: str) -> tuple[int, str]:
    """The status and the body that c1 answers."""
    ready = scene.cluster.members["c1"].events("ready")[-1]

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{ready['http']}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


async def test_the_page_and_the_views_show_a_job_and_escape_its_words(steady: Scene) -> None:
    (steady.roots["a"] / "page").mkdir()
    await steady.apply(name="page", source="a:data/page", targets=["b:data/page"])
    await steady.run_ok("page")
    assert await get(steady, "/healthz") == (200, "ok\n")
    assert await get(steady, "/readyz") == (200, "ok\n")
    status, page = await get(steady, "/")
    assert status == 200
    assert "<td>page</td>" in page
    assert "succeeded" in page
    status, text = await get(steady, "/api/v1/jobs")
    jobs: dict[str, Any] = {job["name"]: job for job in json.loads(text)}
    assert (status, jobs["page"]["phase"], jobs["page"]["owner"]) == (200, "idle", "c1")
    status, text = await get(steady, "/api/v1/jobs/page/runs")
    assert [run["outcome"] for run in json.loads(text)] == ["succeeded"]
    status, text = await get(steady, "/api/v1/status")
    assert json.loads(text)["answered_by"] == "c1"
    status, text = await get(steady, "/api/v1/jobs/nobody/runs")
    assert (status, "there is no job nobody" in json.loads(text)["error"]) == (404, True)
    assert (await get(steady, "/api/v1/nothing"))[0] == 404


async def test_metrics_count_jobs_and_say_how_old_targets_are(steady: Scene) -> None:
    (steady.roots["a"] / "metrics").mkdir()
    await steady.apply(name="metrics", source="a:data/metrics", targets=["b:data/metrics"])
    await steady.run_ok("metrics")
    _, text = await get(steady, "/metrics")
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert float(lines["baton_coordinators"]) == 1
    assert float(lines['baton_worker_up{worker="a"}']) == 1
    age = float(lines['baton_exposure_seconds{job="metrics",target="b:data/metrics"}'])
    assert 0 <= age < 60
