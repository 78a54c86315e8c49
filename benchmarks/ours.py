"""Baton as a side: etcd, one coordinator and two workers as processes, mutual TLS everywhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import grpc

from baton.v1 import coordinator_pb2 as pb
from benchmarks.errors import BenchmarkError, WrongCopy
from benchmarks.sides import Area, Measured, Stopwatch
from cli.client import Client, connect
from cli.local_cluster import LocalCluster
from cli.settings import Flags, resolve
from coordinator.embedded_etcd import start_etcd
from coordinator.job_file import encode_spec, spec_from_plain

_READY_S = 30.0
_POLL_S = 0.02
_ANSWER_S = 10.0
_ALL_S = 24 * 3600.0


class Baton:
    """A mirror job, run once for every copy."""

    name = "baton"

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Run workers with these additions to the environment."""
        self._environment = dict(environment or {})

    @property
    def says(self) -> str:
        """What exactly is run."""
        return "a mirror job, two workers and a coordinator on loopback, mutual TLS"

    def missing(self) -> str | None:
        """It is here."""
        return None

    @contextlib.asynccontextmanager
    async def start(self, area: Area) -> AsyncIterator["_RunningBaton"]:
        """Start the cluster, and stop it at the end."""
        targets = area.targets(self.name)
        targets.mkdir(parents=True, exist_ok=True)
        home = area.directory / "cluster"
        home.mkdir()
        async with (
            start_etcd(home / "etcd") as etcd,
            LocalCluster(home, etcd.endpoints, cluster="bench") as cluster,
        ):
            cluster.add_coordinator("one")
            for name, root in (("from", area.root), ("to", targets)):
                worker = cluster.add_worker(name, [f"files={root}"])
                worker.environment = self._environment
            await cluster.start()
            settings = resolve(Flags(), cluster.environment())
            async with connect(settings, _ALL_S) as client:
                running = _RunningBaton(cluster, client, area)
                await running.introduce()
                yield running


class _RunningBaton:
    def __init__(self, cluster: LocalCluster, client: Client, area: Area) -> None:
        self._cluster = cluster
        self._client = client
        self._area = area
        self._aimed_at = ""

    async def introduce(self) -> None:
        """Make the workers known."""
        for name in ("from", "to"):
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
        spec = spec_from_plain(
            {
                "name": target,
                "rule": "mirror",
                "source": "from:files/tree",
                "targets": [f"to:files/{target}"],
                "transfer": {"durability": "strict" if self._area.strict else "fast"},
            }
        )
        stub = self._client.stub
        await stub.ApplyJobs(pb.ApplyJobsRequest(specs=[encode_spec(spec)]), timeout=_ANSWER_S)
        async with asyncio.timeout(_READY_S):
            while not (await stub.GetJob(pb.GetJobRequest(name=target), timeout=_ANSWER_S)).owner:
                await asyncio.sleep(_POLL_S)

    async def copy(self, target: str) -> Measured:
        """Order a run, and wait until its outcome is in the ledger."""
        stub = self._client.stub
        watch = Stopwatch(lambda: [one.pid for one in self._cluster.members.values()])
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
