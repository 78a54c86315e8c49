"""A cluster of real processes with one job that follows changes, for the soak and for latencies."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from baton.v1 import coordinator_pb2 as pb
from baton.v1.coordinator_pb2_grpc import CoordinatorStub
from benchmarks.errors import BenchmarkError
from cli.local_cluster import LocalCluster
from coordinator.embedded_etcd import EtcdCluster, start_etcd
from coordinator.job_file import encode_spec, spec_from_plain
from wire.channel import open_channel
from wire.credentials import load_tls
from wire.identity import Role
from wire.ports import quiet_address

JOB = "follow"
_ANSWER_S = 5.0
_POLL_S = 0.05


@dataclass
class Following:
    """The cluster, and everything that is asked of it."""

    etcd: EtcdCluster
    cluster: LocalCluster
    source: Path
    target: Path

    async def ask(self, method: str, request: Any, within_s: float = 60.0) -> Any:
        """Ask whichever coordinator answers; raises BenchmarkError when none does for so long."""
        tls = load_tls(self.cluster.operator_tls)
        deadline = time.monotonic() + within_s
        said = "nobody to ask"
        while time.monotonic() < deadline:
            for address in self.cluster.coordinators:
                async with open_channel(address, tls, Role.COORDINATOR) as channel:
                    try:
                        return await getattr(CoordinatorStub(channel), method)(
                            request, timeout=_ANSWER_S
                        )
                    except grpc.aio.AioRpcError as error:
                        said = f"{error.code().name}: {error.details()}"
            await asyncio.sleep(_POLL_S)
        raise BenchmarkError(f"{method}: {said}")

    async def exposure(self) -> tuple[str, float | None]:
        """Return the job's phase, and the exposure of its target in seconds; None when unknown."""
        shown = await self.ask("GetJob", pb.GetJobRequest(name=JOB))
        (one,) = shown.exposure
        return shown.phase, one.exposure_s if one.HasField("exposure_s") else None

    async def in_step(self, within_s: float) -> float:
        """Wait until nothing waits for the target; return how long that took."""
        began = time.monotonic()
        while await self.exposure() != ("monitoring", 0.0):
            if time.monotonic() - began > within_s:
                raise BenchmarkError(f"not in step after {within_s:g} s: {await self.exposure()}")
            await asyncio.sleep(_POLL_S)
        return time.monotonic() - began

    async def run(self) -> pb.Run:
        """Return the newest run."""
        found = await self.ask("ListRuns", pb.ListRunsRequest(job=JOB, limit=1))
        run: pb.Run = found.runs[0]
        return run

    async def audit(self, within_s: float) -> pb.Run:
        """Have everything compared once; return the run after that."""
        await self.ask("RunJob", pb.RunJobRequest(name=JOB))
        deadline = time.monotonic() + within_s
        while True:
            run = await self.run()
            if run.monitor.audits_answered >= run.monitor.audits_asked > 0:
                return run
            if time.monotonic() > deadline:
                raise BenchmarkError(f"no audit within {within_s:g} s")
            await asyncio.sleep(_POLL_S)

    def differences(self) -> list[str]:
        """Return what rsync, as a judge of its own, would still change. Blocks."""
        options = ("-ani", "--delete", "--checksum", "--exclude=.baton")
        done = subprocess.run(
            ["rsync", *options, f"{self.source}/", f"{self.target}/"],
            check=True,
            capture_output=True,
            text=True,
            errors="surrogateescape",
        )
        return done.stdout.splitlines()


@contextlib.asynccontextmanager
async def following(
    directory: Path, *, coordinators: int = 1, etcd_members: int = 1, settle: str = "50ms"
) -> AsyncIterator[Following]:
    """Start all of it below a directory; return once the target is in step."""
    source, target = directory / "source", directory / "target"
    source.mkdir(parents=True)
    target.mkdir()
    async with (
        start_etcd(directory / "etcd", etcd_members) as etcd,
        LocalCluster(directory / "cluster", etcd.endpoints, cluster="bench") as cluster,
    ):
        for number in range(1, coordinators + 1):
            cluster.add_coordinator(f"c{number}")
        for name, path in (("near", source), ("far", target)):
            cluster.add_worker(name, [f"files={path}"], listen=quiet_address())
        await cluster.start()
        one = Following(etcd, cluster, source, target)
        for name in ("near", "far"):
            address = cluster.members[name].listen
            await one.ask("AddWorker", pb.AddWorkerRequest(name=name, address=address))
        spec = spec_from_plain(
            {
                "name": JOB,
                "rule": "mirror",
                "source": "near:files",
                "targets": ["far:files"],
                "trigger": {"realtime": {"settle": settle, "audit": "24h"}},
                "lease_ttl": "2s",
                "safety": {"max_delete": "off", "max_delete_files": "off"},
            }
        )
        await one.ask("ApplyJobs", pb.ApplyJobsRequest(specs=[encode_spec(spec)]))
        await one.in_step(60)
        yield one
