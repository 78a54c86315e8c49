"""A cluster of real processes on this machine, made for a chaos run and removed after it."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.chaos import history as h
from cli.local_cluster import LocalCluster, Member, Part
from coordinator.embedded_etcd import EtcdCluster, EtcdMember, start_etcd
from coordinator.etcd_config import EtcdConfig
from coordinator.etcd_store import EtcdStore
from coordinator.keys import Family, Keys
from coordinator.ownership import Claim
from coordinator.store import Changed, Snapshot
from wire.ports import quiet_address
from wire.token import Token

COORDINATORS = ("c1", "c2", "c3")
WORKERS = ("w1", "w2", "w3")
ROOT = "data"
BESIDE = 50
"""Files that lie beside the roots, where nobody may touch them."""


@dataclass
class Local:
    """The cluster of one run."""

    directory: Path
    etcd: EtcdCluster
    cluster: LocalCluster
    store: EtcdStore
    keys: Keys
    now: Callable[[], float]
    note: Callable[[h.Any], None]
    _told: dict[str, int] = field(default_factory=dict)
    """By worker: how many of its log's events have been noted."""

    def root(self, worker: str) -> Path:
        """Where a worker has its root."""
        return self.directory / f"{worker}-files" / ROOT

    def member(self, name: str) -> Member:
        """Return a coordinator or worker."""
        return self.cluster.members[name]

    @property
    def etcd_members(self) -> dict[str, EtcdMember]:
        """The members of etcd by name."""
        return {f"etcd{number}": one for number, one in enumerate(self.etcd.members, 1)}

    async def leader(self) -> str:
        """Return which member of etcd leads; the first when none says so."""
        for name, member in self.etcd_members.items():
            with contextlib.suppress(OSError, ValueError, KeyError):
                status = await asyncio.to_thread(_status, member.endpoint)
                if status["leader"] == status["header"]["member_id"]:
                    return name
        return "etcd1"

    async def kill(self, name: str, part: Part = Part.WHOLE) -> None:
        """End a process with SIGKILL; of a coordinator its guardian, its child, or both."""
        if name in self.etcd_members:
            await self.etcd_members[name].kill()
            return
        member = self.member(name)
        if member.is_running:
            member.signal(signal.SIGKILL, part)
            await member.wait()
        self.harvest(name)

    def pause(self, name: str) -> None:
        """Stop a process where it is."""
        self._signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let it go on."""
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> None:
        if name in self.etcd_members:
            self.etcd_members[name].signal(number)
        elif self.member(name).is_running:
            self.member(name).signal(number)

    async def stop(self, name: str) -> None:
        """End a process as a service manager does."""
        if name in self.etcd_members:
            await self.etcd_members[name].stop()
        else:
            await self.member(name).stop()
            self.harvest(name)

    async def start(self, names: Iterable[str]) -> None:
        """Start what does not run, and wait until it serves."""
        names = list(names)
        etcd = [self.etcd_members[name] for name in names if name in self.etcd_members]
        for one in etcd:
            if not one.is_running:
                await one.start()
        await asyncio.gather(*(one.wait_healthy() for one in etcd))
        members = [self.member(name) for name in names if name not in self.etcd_members]
        starting = [one for one in members if not one.is_running]
        for member in starting:
            self.harvest(member.name)
            _keep_log(member)
            await member.start()
            self._told[member.name] = 0
        await asyncio.gather(*(one.wait_ready() for one in starting))

    def harvest(self, name: str) -> None:
        """Note what a worker's log says that it published under."""
        if name not in WORKERS or not self.member(name).log.exists():
            return
        events = self.member(name).events("publishes_under")
        for event in events[self._told.get(name, 0) :]:
            token = Token.parse(str(event["token"])).revision
            self.note(h.Published(at=self.now(), worker=name, job=str(event["job"]), token=token))
        self._told[name] = len(events)

    async def apply(self, spec: dict[str, Any]) -> None:
        """Apply a job by the real command."""
        await self.baton("job", "apply", "-f", "-", stdin=json.dumps(spec))

    async def baton(self, *arguments: str, stdin: str = "", within_s: float = 60.0) -> str:
        """Run a client command that must succeed; return what it printed."""
        code, out, err = await self.try_baton(*arguments, stdin=stdin, within_s=within_s)
        if code != 0:
            raise RuntimeError(f"baton {' '.join(arguments)}: {code}: {err.strip()}")
        return out

    async def try_baton(
        self, *arguments: str, stdin: str = "", within_s: float = 60.0
    ) -> tuple[int, str, str]:
        """Run a client command; return its exit code and what it printed and said."""
        clean = {key: value for key, value in os.environ.items() if key[:6] != "BATON_"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli.main", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**clean, **self.cluster.environment(), "HOME": str(self.directory)},
        )
        try:
            async with asyncio.timeout(within_s):
                out, err = await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, out.decode(), err.decode()

    async def watch_owners(self, jobs: frozenset[str]) -> None:
        """Note who owns these jobs, until cancelled."""
        prefix = self.keys.under(Family.OWNERS)
        known: dict[str, int] = {}

        def owned(job: str, value: bytes, token: int) -> None:
            if job in jobs and known.get(job) != token:
                known[job] = token
                node = Claim.from_json(value).node
                self.note(h.Owned(at=self.now(), job=job, node=node, token=token))

        def disowned(job: str) -> None:
            if known.pop(job, None) is not None:
                self.note(h.Disowned(at=self.now(), job=job))

        async with self.store.watch(prefix) as items:
            async for item in items:
                if isinstance(item, Snapshot):
                    there = {kv.key.removeprefix(prefix): kv for kv in item.kvs}
                    for job in set(known) - set(there):
                        disowned(job)
                    for job, kv in there.items():
                        owned(job, kv.value, kv.create_revision)
                    continue
                for event in item.events:
                    if isinstance(event, Changed):
                        job = event.kv.key.removeprefix(prefix)
                        owned(job, event.kv.value, event.kv.create_revision)
                    else:
                        disowned(event.key.removeprefix(prefix))

    def lay_out(self) -> None:
        """Put files beside every root that nothing may touch."""
        for worker in WORKERS:
            for number in range(BESIDE):
                file = self._beside(worker, number)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{worker} {number}\n")

    def look_beside(self) -> None:
        """Note which of those are not as they were."""
        changed = []
        for worker in WORKERS:
            for number in range(BESIDE):
                file = self._beside(worker, number)
                if not file.is_file() or file.read_text() != f"{worker} {number}\n":
                    changed.append(str(file))
        looked_at = BESIDE * len(WORKERS)
        self.note(h.Sentinel(at=self.now(), looked_at=looked_at, changed=changed))

    def _beside(self, worker: str, number: int) -> Path:
        return self.directory / f"{worker}-files" / "beside" / f"f{number % 12}.{number}.txt"


def _keep_log(member: Member) -> None:
    """Put the log of a process that ended beside the one that begins."""
    if member.log.exists():
        with member.log.with_name("log.before").open("ab") as kept:
            kept.write(member.log.read_bytes())


def _status(endpoint: str) -> Any:
    request = urllib.request.Request(f"{endpoint}/v3/maintenance/status", data=b"{}")  # noqa: S310
    with urllib.request.urlopen(request, timeout=1) as answer:  # noqa: S310 - a loopback address
        return json.loads(answer.read())


@asynccontextmanager
async def local(
    directory: Path, *, now: Callable[[], float], note: Callable[[h.Any], None]
) -> AsyncIterator[Local]:
    """Run three members of etcd, three coordinators and three workers until the block is left."""
    async with start_etcd(directory / "etcd", 3) as etcd:
        keys = Keys(f"/chaos/{uuid.uuid4().hex}/")
        store = EtcdStore(EtcdConfig(etcd.endpoints))
        cluster = LocalCluster(directory, etcd.endpoints, cluster="chaos", prefix=keys.prefix)
        made = Local(directory, etcd, cluster, store, keys, now, note)
        for name in COORDINATORS:
            cluster.add_coordinator(name)
        for name in WORKERS:
            made.root(name).mkdir(parents=True)
            cluster.add_worker(name, [f"{ROOT}={made.root(name)}"], listen=quiet_address())
        made.lay_out()
        try:
            async with cluster:
                await cluster.start()
                for name in WORKERS:
                    await made.baton("worker", "add", name, made.member(name).listen)
                yield made
                for name in (*COORDINATORS, *WORKERS):
                    with contextlib.suppress(AssertionError):
                        made.resume(name)
        finally:
            await store.close()
