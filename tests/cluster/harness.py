"""One cluster of real processes under a prefix of its own, and everything that tests ask of it."""

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from baton.v1 import coordinator_pb2 as pb
from baton.v1.coordinator_pb2_grpc import CoordinatorStub
from cli.local_cluster import LocalCluster, Member
from coordinator.convert import job_from_wire, run_from_wire
from coordinator.embedded_etcd import EtcdCluster
from coordinator.etcd_config import EtcdConfig
from coordinator.etcd_store import EtcdStore
from coordinator.job_file import encode_spec, spec_from_plain
from coordinator.keys import Keys, parse_instant
from coordinator.ledger import Ledger
from coordinator.ownership import Claim
from coordinator.records import RunRecord, StateRecord
from wire.channel import open_channel
from wire.clock import BootClock
from wire.credentials import load_tls
from wire.identity import Role
from wire.ports import quiet_address

POLL_S = 0.02


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def run_baton(
    *arguments: str, env: dict[str, str], stdin: bytes = b"", within_s: float = 60
) -> Ended:
    """Run the real command to its end with only these of Baton's variables."""
    clean = {key: value for key, value in os.environ.items() if key[:6] != "BATON_"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**clean, **env},
    )
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ended(process.returncode or 0, out.decode(), err.decode())


async def until(
    condition: Callable[[], Any], what: str = "a condition", within_s: float = 60.0
) -> Any:
    """Poll a condition, plain or awaitable, and return its first true value."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {within_s:g} s"
        await asyncio.sleep(POLL_S)


@contextmanager
def paused(member: Member) -> Iterator[None]:
    """Hold a member still, so that what it takes part in cannot end meanwhile."""
    member.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        member.signal(signal.SIGCONT)


def plain(view: Any) -> dict[str, Any]:
    """Return a view as reading its JSON gives it."""
    read: dict[str, Any] = json.loads(json.dumps(asdict(view)))
    return read


@dataclass
class Scene:
    """The cluster of one test."""

    directory: Path
    etcd: EtcdCluster
    cluster: LocalCluster
    store: EtcdStore
    keys: Keys
    ledger: Ledger
    roots: dict[str, Path] = field(default_factory=dict)
    """By worker: the directory that it exports as `data`."""
    _channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    spare: list[str] = field(default_factory=list)
    """Roots that every worker exports and no test has used yet, for those that harm markers."""

    def worker(self, name: str) -> Member:
        """Prepare a worker that keeps its address over restarts and exports `data`."""
        home = self.directory / f"{name}-data"
        self.roots[name] = home / "data"
        exported = ["data", *self.spare]
        for root in exported:
            (home / root).mkdir(parents=True)
        roots = [f"{root}={home / root}" for root in exported]
        return self.cluster.add_worker(name, roots, listen=quiet_address())

    def root(self, worker: str, root: str) -> Path:
        """Where a worker has a root."""
        return self.directory / f"{worker}-data" / root

    async def baton(
        self, *arguments: str, env: dict[str, str] | None = None, stdin: bytes = b""
    ) -> Ended:
        """Run a client command against this cluster."""
        told = {**self.cluster.environment(), "HOME": str(self.directory), **(env or {})}
        return await run_baton(*arguments, env=told, stdin=stdin)

    async def ok(self, *arguments: str, stdin: bytes = b"") -> Ended:
        """Run a client command that must succeed."""
        ended = await self.baton(*arguments, stdin=stdin)
        assert ended.code == 0, f"{arguments}: {ended}"
        return ended

    # Without a process for every question: what the command does is tested by those who call `baton`.

    async def register(self, *names: str) -> None:
        """Make workers known."""
        for name in names:
            address = self.cluster.members[name].listen
            await self.ask("AddWorker", pb.AddWorkerRequest(name=name, address=address))

    async def apply(self, **spec: Any) -> None:
        """Apply one job; `trigger` is manual unless said otherwise."""
        document = {"rule": "mirror", "trigger": {"manual": True}, **spec}
        await self.ask(
            "ApplyJobs", pb.ApplyJobsRequest(specs=[encode_spec(spec_from_plain(document))])
        )

    async def delete(self, job: str) -> None:
        """Delete a job; its files stay."""
        await self.ask("DeleteJob", pb.DeleteJobRequest(name=job))

    async def show(self, job: str) -> dict[str, Any]:
        """Return a job as `job show -o json` prints it."""
        return plain(job_from_wire(await self.ask("GetJob", pb.GetJobRequest(name=job))))

    async def show_run(self, job: str, run: str) -> dict[str, Any]:
        """Return a run as `run show -o json` prints it."""
        return plain(run_from_wire(await self.ask("GetRun", pb.GetRunRequest(job=job, run=run))))

    async def request_run(self, job: str) -> str:
        """Ask for a run; return its id."""
        return str((await self.ask("RunJob", pb.RunJobRequest(name=job))).run)

    async def run(self, job: str, within_s: float = 60.0) -> dict[str, Any]:
        """Run a job until it has ended or is held; return the run."""
        run = await self.request_run(job)

        async def decided() -> dict[str, Any] | None:
            shown = await self.show_run(job, run)
            return shown if shown["outcome"] != "running" else None

        found = await until(decided, f"the end of run {run}", within_s)
        assert isinstance(found, dict)
        return found

    async def run_ok(self, job: str) -> dict[str, Any]:
        """Run a job to its success; return the run."""
        run = await self.run(job)
        assert run["outcome"] == "succeeded", run
        return run

    async def refusal_of(self, method: str, request: Any) -> str:
        """Ask for what is refused; return the sentence."""
        stub = CoordinatorStub(self._channel(self.cluster.coordinators[0]))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await getattr(stub, method)(request, timeout=30)
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        return refusal.value.details() or ""

    async def ask(self, method: str, request: Any, within_s: float = 60.0) -> Any:
        """Ask whichever coordinator answers, again while none does."""
        deadline = time.monotonic() + within_s
        said = "nobody to ask"
        while True:
            for address in self.cluster.coordinators:
                stub = CoordinatorStub(self._channel(address))
                try:
                    return await getattr(stub, method)(request, timeout=30)
                except grpc.aio.AioRpcError as error:
                    said = f"{error.code().name}: {error.details()}"
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise AssertionError(f"{method}: {said}") from error
            assert time.monotonic() < deadline, f"{method}: {said}"
            await asyncio.sleep(POLL_S)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            tls = load_tls(self.cluster.operator_tls)
            self._channels[address] = open_channel(address, tls, Role.COORDINATOR)
        return self._channels[address]

    async def close(self) -> None:
        """Hang up."""
        for channel in self._channels.values():
            await channel.close()
        await self.store.close()

    async def owner(self, job: str) -> tuple[str, int] | None:
        """Return who owns a job and the revision of its token, from etcd itself."""
        kv = await self.store.get(self.keys.owner(job))
        return None if kv is None else (Claim.from_json(kv.value).node, kv.create_revision)

    async def record(self, job: str, run: str) -> RunRecord | None:
        """Return a run from the ledger."""
        return await self.ledger.run(job, parse_instant(run))

    async def run_ended(self, job: str, run: str, within_s: float = 60.0) -> RunRecord:
        """Wait until a run has ended; return it."""

        async def ended() -> RunRecord | None:
            record = await self.record(job, run)
            return record if record is not None and record.ended is not None else None

        found = await until(ended, f"the end of run {run}", within_s)
        assert isinstance(found, RunRecord)
        return found

    async def state(self, job: str) -> StateRecord:
        return await self.ledger.state(job)


@asynccontextmanager
async def scene_on(
    etcd: EtcdCluster,
    directory: Path,
    *,
    coordinators: int,
    workers: Sequence[str],
    spare: int = 0,
    max_runs: int | None = None,
) -> AsyncIterator[Scene]:
    """Start a cluster with these members, its workers registered; stop it at the end."""
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    keys = Keys(f"/test/{uuid.uuid4().hex}/")
    store = EtcdStore(EtcdConfig(etcd.endpoints))
    cluster = LocalCluster(directory, etcd.endpoints, prefix=keys.prefix)
    scene = Scene(directory, etcd, cluster, store, keys, Ledger(store, keys, BootClock()))
    scene.spare = [f"spare{number}" for number in range(spare)]
    for number in range(coordinators):
        cluster.add_coordinator(f"c{number + 1}")
    for name in workers:
        member = scene.worker(name)
        if max_runs is not None:
            member.arguments += ["--max-runs", str(max_runs)]
    try:
        async with cluster:
            await cluster.start()
            await scene.register(*workers)
            yield scene
    finally:
        await scene.close()
