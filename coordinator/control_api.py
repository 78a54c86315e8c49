"""What operators do to running things: pause, resume, restart, drain, and proofs of the ledger."""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from baton.v1 import coordinator_pb2 as pb
from baton.v1 import coordinator_pb2_grpc
from coordinator import control_convert, convert, diagnosis, drill, ledger_proof, present
from coordinator.api import Api, asker
from coordinator.errors import StoreError
from coordinator.job_owner import JobOwner, utc_now
from coordinator.views import CheckView
from wire.identity import Identity
from wire.process import version

if TYPE_CHECKING:
    from baton.v1.coordinator_pb2_grpc import CoordinatorAsyncStub as Stub

log = structlog.get_logger()

DRILL_S = 180.0
"""How long a drill may take at most: twice the longest lease, and some."""
ADOPTION_S = 20.0
EXPOSURE_LOOK_S = 0.1
"""How often a drill looks how exposed the job is."""
NEW_OWNER_S = 5.0
"""How long an answer waits for a job that was given up to have an owner."""
_LOOK_S = 0.02


class ControlApi(Api):
    """The rest of one coordinator's answers."""

    __slots__ = ()

    async def pause_job(self, request: pb.PauseJobRequest, caller: Identity) -> pb.JobStatus:
        """Answer `baton job pause`."""
        await self._job(request.name)
        await self.cluster.pause(request.name, by=str(caller))
        return await self._shown_as(request.name, is_paused=True)

    async def resume_job(self, request: pb.ResumeJobRequest, _caller: Identity) -> pb.JobStatus:
        """Answer `baton job resume`."""
        await self._job(request.name)
        await self.cluster.resume(request.name)
        return await self._shown_as(request.name, is_paused=False)

    async def _shown_as(self, name: str, *, is_paused: bool) -> pb.JobStatus:
        """Return the job once this coordinator knows of the change, so that nobody sees it undone."""
        for _ in range(int(NEW_OWNER_S / _LOOK_S)):
            job = await self._job(name)
            if (job.record.paused is not None) is is_paused:
                break
            await asyncio.sleep(_LOOK_S)
        return convert.job_to_wire(self._job_view(job, await self.ledger.state(name)))

    async def restart_job(self, request: pb.RestartJobRequest, caller: Identity) -> pb.JobStatus:
        """Answer `baton job restart`."""
        by = asker(request, caller)
        before = self._owner_of(request.name)

        async def here(owner: JobOwner) -> pb.JobStatus:
            await self.scheduler.restart(owner.name, by)
            return await self._owned_anew(owner.name, str(owner.ownership.token))

        async def there(stub: "Stub") -> pb.JobStatus:
            passed_on = pb.RestartJobRequest(name=request.name, forwarded=True, by=by)
            return await stub.RestartJob(passed_on, timeout=2 * NEW_OWNER_S)

        answer = await self._at_owner(request.name, request.forwarded, here, there)
        # This coordinator may hear of the new owner later than the one that answered.
        if before is not None and answer.token:
            await self._owned_anew(request.name, str(before.token))
        return answer

    async def _owned_anew(self, name: str, before: str) -> pb.JobStatus:
        """Return the job as soon as it has an owner with another token, or when nobody takes it."""
        for _ in range(int(NEW_OWNER_S / _LOOK_S)):
            owner = self._owner_of(name)
            if owner is not None and str(owner.token) != before:
                break
            await asyncio.sleep(_LOOK_S)
        job = await self._job(name)
        return convert.job_to_wire(self._job_view(job, await self.ledger.state(name)))

    async def drill_job(self, request: pb.DrillJobRequest, caller: Identity) -> pb.DrillReport:
        """Answer `baton job drill`."""
        by = asker(request, caller)

        async def here(owner: JobOwner) -> pb.DrillReport:
            log.info("drill", job=owner.name, by=by)
            seen = drill.Exposure()
            watching = asyncio.create_task(self._watch_exposure(owner.name, seen))
            try:
                await seen.is_begun.wait()
                view = await self.scheduler.drill(owner.name)
                began = self.scheduler.clock.now()
                await drill.adopted(lambda: self._await_owner(owner.name), ADOPTION_S, owner.name)
                took_s = self.scheduler.clock.now() - began
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            view = replace(
                view,
                adoption_s=took_s,
                total_s=view.total_s + took_s,
                exposure_before_s=seen.before,
                exposure_s=seen.highest,
            )
            return control_convert.drill_to_wire(view)

        async def there(stub: "Stub") -> pb.DrillReport:
            passed_on = pb.DrillJobRequest(name=request.name, forwarded=True, by=by)
            return await stub.DrillJob(passed_on, timeout=DRILL_S)

        return await self._at_owner(request.name, request.forwarded, here, there)

    async def _watch_exposure(self, name: str, seen: drill.Exposure) -> None:
        """Look how exposed a job's targets are until cancelled."""
        while True:
            try:
                state = await self.ledger.state(name)
                job = self.scheduler.catalog.jobs.get(name)
                if job is not None:
                    seen.note(present.exposure_of(job, state, utc_now()))
            except StoreError as error:
                log.info("exposure_not_seen", job=name, why=str(error))
            seen.is_begun.set()
            await asyncio.sleep(EXPOSURE_LOOK_S)

    async def await_owner(
        self, request: pb.AwaitOwnerRequest, _caller: Identity
    ) -> pb.AwaitOwnerResponse:
        """Answer another coordinator that measures a takeover: the job's owner is here."""
        owner = await self._reach_owner(request.name, here_only=True)
        assert isinstance(owner, JobOwner), "asked for here only"
        await owner.until_adopted()
        return pb.AwaitOwnerResponse()

    async def _await_owner(self, name: str) -> None:
        owner = await self._reach_owner(name, here_only=False)
        if isinstance(owner, JobOwner):
            await owner.until_adopted()
            return
        async with self._channel_to(owner) as channel:
            stub = coordinator_pb2_grpc.CoordinatorStub(channel)
            await stub.AwaitOwner(pb.AwaitOwnerRequest(name=name), timeout=ADOPTION_S)

    async def diagnose(self, request: pb.DiagnoseRequest, _caller: Identity) -> pb.DiagnoseResponse:
        """Answer `baton doctor`."""
        checks = [] if request.clock_only else await self._checks()
        return pb.DiagnoseResponse(
            node=self.node,
            now=utc_now().isoformat(),
            version=version(),
            checks=[control_convert.check_to_wire(check) for check in checks],
        )

    async def _checks(self) -> list[CheckView]:
        store, scheduler = self.cluster.store, self.scheduler
        checks = await diagnosis.check_etcd(store, self.cluster.keys, scheduler.clock)
        owners, jobs = scheduler.election.owners, scheduler.catalog.jobs
        return [*checks, *diagnosis.check_jobs(jobs, owners, scheduler.decide)]

    async def verify_ledger(
        self, request: pb.VerifyLedgerRequest, _caller: Identity
    ) -> pb.VerifyLedgerResponse:
        """Answer `baton ledger verify`."""
        await self.scheduler.catalog.ready()
        if request.job:
            await self._job(request.job)
        jobs = self.scheduler.catalog.jobs
        names = [request.job] if request.job else sorted(jobs)
        proofs = []
        for name in names:
            state, raw = await self.ledger.whole(name)
            proof = ledger_proof.prove(name, jobs.get(name), state, raw, utc_now())
            proofs.append(control_convert.proof_to_wire(proof))
            await asyncio.sleep(0)  # long ledgers of many jobs must not hold up the loop
        return pb.VerifyLedgerResponse(jobs=proofs)

    async def drain_coordinator(
        self, request: pb.DrainCoordinatorRequest, caller: Identity
    ) -> pb.CoordinatorInfo:
        """Answer `baton coordinator drain`: the flag is durable when this returns."""
        await self.cluster.drain(request.name, by=str(caller))
        return await self._drained(request.name, is_drained=True)

    async def undrain_coordinator(
        self, request: pb.UndrainCoordinatorRequest, _caller: Identity
    ) -> pb.CoordinatorInfo:
        """Answer `baton coordinator undrain`."""
        await self.cluster.undrain(request.name)
        return await self._drained(request.name, is_drained=False)

    async def _drained(self, name: str, *, is_drained: bool) -> pb.CoordinatorInfo:
        drains = self.scheduler.catalog.drains
        for _ in range(int(NEW_OWNER_S / _LOOK_S)):
            if (name in drains) is is_drained:
                break
            await asyncio.sleep(_LOOK_S)
        known = [one for one in self._coordinators() if one.name == name]
        if not known:  # drained or undrained while it is away
            return pb.CoordinatorInfo(name=name, draining=is_drained)
        return convert.coordinator_to_wire(known[0])
