"""Baton as a side: etcd, one coordinator and two workers as processes, mutual TLS everywhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc

from baton.v1 import coordinator_pb2 as pb
from benchmarks.errors import BenchmarkError, NotYet, WrongCopy
from benchmarks.sides import Area
from benchmarks.stopwatch import Measured, Stopwatch
from cli.client import Client, connect
from cli.local_cluster import LocalCluster
from cli.settings import Flags, resolve
from coordinator.embedded_etcd import start_etcd
from coordinator.job_file import JobFileInvalid, encode_spec, spec_from_plain

_READY_S = 30.0
_POLL_S = 0.02
_ANSWER_S = 10.0
_ALL_S = 24 * 3600.0


class Baton:
    """A job of one source and one or more targets, or of two members; run once for every copy."""

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        *,
        name: str = "baton",
        rule: str = "mirror",
        targets: int = 1,
        is_near: bool = False,
    ) -> None:
        """Run workers with these additions to the environment.

        One with another `name` is a scale for the first: it has a source of its own. One that
        `is_near` has all of its ends on the loopback, whatever lies between those of the others.
        """
        self._environment = dict(environment or {})
        self.name = name
        self.own_source = name != "baton"
        self._rule = rule
        self.targets = targets
        self._is_near = is_near

    @property
    def says(self) -> str:
        """What exactly is run."""
        workers = f"{1 + self.targets} workers" if self.targets > 1 else "two workers"
        where = ", all on the loopback" if self._is_near else ""
        return f"a {self._rule} job, {workers} and a coordinator, mutual TLS{where}"

    def missing(self) -> str | None:
        """It is here."""
        return None

    @contextlib.asynccontextmanager
    async def start(self, area: Area) -> AsyncIterator["_RunningBaton"]:
        """Start the cluster, and stop it at the end."""
        if self._is_near:
            area = replace(area, link=None)
        home = area.directory / f"cluster-{self.name}"
        home.mkdir()
        tops = [area.targets(self.name) / f"at-{one}" for one in range(1, self.targets + 1)]
        async with (
            start_etcd(home / "etcd") as etcd,
            LocalCluster(home, etcd.endpoints, cluster="bench") as cluster,
        ):
            cluster.add_coordinator("one")
            source = cluster.add_worker("from", [f"files={area.root(self.name)}"])
            source.environment = self._environment
            for number, top in enumerate(tops, 1):
                top.mkdir(parents=True, exist_ok=True)
                roots = [f"files={top}"]
                worker = cluster.add_worker(f"to-{number}", roots, listen=f"{area.far_host}:0")
                worker.environment = self._environment
                worker.prefix = area.far_prefix
            await cluster.start()
            settings = resolve(Flags(), cluster.environment())
            async with connect(settings, _ALL_S) as client:
                running = _RunningBaton(cluster, client, area, tops, self._rule)
                await running.introduce()
                yield running


class _RunningBaton:
    def __init__(
        self, cluster: LocalCluster, client: Client, area: Area, tops: list[Path], rule: str
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._area = area
        self._tops = tops
        self._rule = rule
        self._aimed_at = ""

    def places(self, target: str) -> list[Path]:
        """Return where the copies are then."""
        return [top / target for top in self._tops]

    @property
    def _far(self) -> list[str]:
        return [f"to-{number}" for number in range(1, len(self._tops) + 1)]

    async def introduce(self) -> None:
        """Make the workers known."""
        for name in ("from", *self._far):
            address = self._cluster.members[name].listen
            request = pb.AddWorkerRequest(name=name, address=address)
            await self._client.stub.AddWorker(request, timeout=_ANSWER_S)
        async with asyncio.timeout(_READY_S):
            while not await self._all_reachable():
                await asyncio.sleep(_POLL_S)

    async def _all_reachable(self) -> bool:
        stub = self._client.stub
        found = await stub.ListWorkers(pb.ListWorkersRequest(), timeout=_ANSWER_S)
        return all(worker.reachable for worker in found.workers)

    async def aim(self, target: str) -> None:
        """Make the job of this target, and wait until somebody owns it."""
        if target == self._aimed_at:
            return
        self._aimed_at = target
        there = [f"{name}:files/{target}" for name in self._far]
        ends: dict[str, object] = {"source": "from:files/tree", "targets": there}
        if self._rule in {"sync", "exchange"}:
            ends = {"members": ["from:files/tree", *there]}
        stub = self._client.stub
        try:
            spec = spec_from_plain(
                {
                    "name": target,
                    "rule": self._rule,
                    **ends,
                    "safety": {"max_delete": "100%"},
                    "transfer": {"durability": "strict" if self._area.strict else "fast"},
                }
            )
            jobs = pb.ApplyJobsRequest(specs=[encode_spec(spec)])
            await stub.ApplyJobs(jobs, timeout=_ANSWER_S)
        except JobFileInvalid as error:
            raise NotYet(str(error)) from error
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            raise NotYet(str(error.details())) from error
        async with asyncio.timeout(_READY_S):
            while not (await stub.GetJob(pb.GetJobRequest(name=target), timeout=_ANSWER_S)).owner:
                await asyncio.sleep(_POLL_S)

    async def copy(self, target: str) -> Measured:
        """Order a run, and wait until its outcome is in the ledger."""
        stub = self._client.stub
        members = self._cluster.members.values()
        watch = Stopwatch(lambda: [one.pid for one in members], self._area.passed_bytes)
        ordered = await stub.RunJob(pb.RunJobRequest(name=target), timeout=_ANSWER_S)
        run = await self._follow(pb.FollowRunRequest(job=target, run=ordered.run))
        measured = await watch.stop()
        if run.outcome != "succeeded":
            problems = "; ".join(f"{one.path!r}: {one.detail}" for one in run.problems[:3])
            raise WrongCopy(f"run {run.id}: {run.outcome} {run.reason} {problems}")
        return replace(measured, own_s=_seconds_between(run.started, run.ended))

    async def _follow(self, request: pb.FollowRunRequest) -> pb.Run:
        call: Any = self._client.stub.FollowRun(request, timeout=_ALL_S)
        try:
            async for answer in call:
                run: pb.Run = answer.run
                if run.outcome != "running":
                    return run
        except grpc.aio.AioRpcError as error:
            raise BenchmarkError(f"the run cannot be followed: {error.details()}") from error
        finally:
            call.cancel()
        raise BenchmarkError("the run's progress ended before the run")


def _seconds_between(started: str, ended: str) -> float | None:
    if not started or not ended:
        return None
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
