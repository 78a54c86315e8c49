"""What a chaos run asks of its cluster: of any coordinator that answers, again and again."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from baton.v1 import coordinator_pb2 as pb
from cli.client import connect
from cli.exits import CommandFailed
from cli.settings import ClientSettings
from coordinator.job_file import encode_spec, spec_from_plain
from wire.credentials import Credentials

_ANSWER_S = 8.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Api:
    """The coordinators of one cluster."""

    addresses: Callable[[], Sequence[str]]
    """HOST:PORT of those that may answer now."""
    credentials: Credentials

    async def ask(self, method: str, request: Any, *, within_s: float = 60.0) -> Any:
        """Ask until somebody answers; raises CommandFailed with why nobody does."""
        deadline = time.monotonic() + within_s
        while True:
            settings = ClientSettings(tuple(self.addresses()), self.credentials)
            try:
                async with connect(settings, _ANSWER_S) as client:
                    return await client.ask(getattr(client.stub, method), request)
            except CommandFailed:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_POLL_S)

    async def add_worker(self, name: str, address: str) -> None:
        """Make a worker known."""
        await self.ask("AddWorker", pb.AddWorkerRequest(name=name, address=address))

    async def apply(self, spec: dict[str, Any]) -> None:
        """Define a job."""
        encoded = encode_spec(spec_from_plain(spec))
        await self.ask("ApplyJobs", pb.ApplyJobsRequest(specs=[encoded]))

    async def run(self, job: str, within_s: float) -> pb.Run:
        """Run a scheduled job, by hand and to its end; raises CommandFailed, TimeoutError."""
        async with asyncio.timeout(within_s):
            begun = await self.ask("RunJob", pb.RunJobRequest(name=job), within_s=within_s)
            while True:
                run: pb.Run = await self.ask("GetRun", pb.GetRunRequest(job=job, run=begun.run))
                if run.ended or run.outcome == "blocked":
                    return run
                await asyncio.sleep(_POLL_S)

    async def audit(self, job: str, within_s: float) -> pb.Run:
        """Have a real-time job compare everything; raises CommandFailed, TimeoutError."""
        async with asyncio.timeout(within_s):
            await self.ask("RunJob", pb.RunJobRequest(name=job), within_s=within_s)
            while True:
                listed = await self.ask("ListRuns", pb.ListRunsRequest(job=job, limit=1))
                run: pb.Run = listed.runs[0]
                if run.monitor.audits_answered >= run.monitor.audits_asked > 0:
                    return run
                await asyncio.sleep(_POLL_S)

    async def behind(self, job: str) -> str:
        """Return why a real-time job is not in step, nothing when it is."""
        shown = await self.ask("GetJob", pb.GetJobRequest(name=job))
        if shown.phase != "monitoring":
            return f"{shown.phase}: {shown.reason}"
        late = [
            f"{one.target} by {one.exposure_s:.1f} s"
            if one.HasField("exposure_s")
            else f"{one.target} since ever"
            for one in shown.exposure
            if not one.HasField("exposure_s") or one.exposure_s
        ]
        return f"behind: {', '.join(late)}" if late else ""

    async def exposure(self, job: str, within_s: float) -> dict[str, float]:
        """Return by target of a real-time job how old what waits for it is, in seconds."""
        shown = await self.ask("GetJob", pb.GetJobRequest(name=job), within_s=within_s)
        return {one.target: one.exposure_s for one in shown.exposure if one.HasField("exposure_s")}

    async def proofs(self) -> list[pb.LedgerProof]:
        """Have the ledgers of all jobs proved."""
        return list((await self.ask("VerifyLedger", pb.VerifyLedgerRequest())).jobs)
