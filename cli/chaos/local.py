"""A cluster of real processes on this machine, made for a chaos run and removed after it.

Where it may (it takes root), every member has a network namespace and every worker a disk of its own.
"""

import asyncio
import contextlib
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.chaos import clocks, disks, etcd_gateway
from cli.chaos import history as h
from cli.chaos import network as networks
from cli.chaos.api import Api
from cli.chaos.checker import Job
from cli.chaos.network import Network
from cli.chaos.owners import watch_owners
from cli.chaos.slow import SlowDown
from cli.chaos.trees import versions_below
from cli.local_cluster import LocalCluster, Member, MemberFailed, Part
from coordinator.embedded_etcd import (
    ClusterOptions,
    EtcdCluster,
    EtcdMember,
    Place,
    start_etcd,
)
from coordinator.etcd_config import EtcdConfig
from coordinator.etcd_store import EtcdStore
from coordinator.keys import Keys
from wire.credentials import load_tls
from wire.ports import quiet_address
from wire.token import Token

ETCD = ("etcd1", "etcd2", "etcd3")
COORDINATORS = ("c1", "c2", "c3")
WORKERS = ("w1", "w2", "w3")
ROOT = "data"
BESIDE = 50
"""Files that lie beside the roots, where nobody may touch them."""
_QUOTA_BYTES = 24 << 20
_FILLER = "/filler/"
_FILLER_BYTES = 512 << 10
_ETCD_ARGUMENTS = (
    f"--quota-backend-bytes={_QUOTA_BYTES}",
    "--auto-compaction-mode=revision",
    "--auto-compaction-retention=1000",
)
_AGAIN_S = 0.2
_READY_S = 120.0
"""How long a start may take, on a machine that has other things to do."""
_COORDINATOR_PORT = 7070
_WORKER_PORT = 9033


@dataclass
class Local:
    """The cluster of one run."""

    directory: Path
    etcd: EtcdCluster
    cluster: LocalCluster
    api: Api
    store: EtcdStore
    keys: Keys
    disks: disks.Disks
    network: Network | None
    clocks: dict[str, clocks.WallClock]
    """Of coordinators; empty where wall clocks cannot be set."""
    now: Callable[[], float]
    note: Callable[[h.Any], None]
    _told: dict[str, int] = field(default_factory=dict)
    """By worker: how many of its log's events have been noted."""
    _slow: dict[str, SlowDown] = field(default_factory=dict)
    _starting: dict[str, asyncio.Lock] = field(default_factory=dict)
    _before: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    """By job and target: the versions there when the source's root was taken away."""

    @property
    def net(self) -> Network:
        """The network; there must be one."""
        assert self.network is not None, "asked for before"
        return self.network

    @property
    def why_no_network(self) -> str:
        """Why members have no network of their own, nothing when they have."""
        return "" if self.network is not None else networks.missing()

    @property
    def why_no_disks(self) -> str:
        """Why workers have no disk of their own, nothing when they have."""
        return "" if self.disks.is_mounted else disks.missing()

    def files(self, worker: str) -> Path:
        """Where the files of a worker's root are, whatever is done to that."""
        return self.disks.files(worker)

    def scratch(self, worker: str) -> Path:
        """A directory on the same file system, outside of every root."""
        return self.disks.disk(worker)

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
                if await etcd_gateway.leads(member.endpoint):
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
        await asyncio.gather(*(self._serve(one) for one in members if not one.is_running))

    async def _serve(self, member: Member) -> None:
        """Start a process until it serves, as a service manager does: what hangs at its start ends."""
        async with self._starting.setdefault(member.name, asyncio.Lock()):
            if not member.is_running:
                await self._start_until_ready(member)

    async def _start_until_ready(self, member: Member) -> None:
        deadline = time.monotonic() + _READY_S
        while True:
            self.harvest(member.name)
            _keep_log(member)
            await member.start()
            self._told[member.name] = 0
            try:
                return await member.wait_ready(max(0.0, deadline - time.monotonic()))
            except MemberFailed:
                if member.is_running or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_AGAIN_S)

    def is_running(self, name: str) -> bool:
        """Say whether a process has not ended, of a coordinator whether both have not."""
        if name in self.etcd_members:
            return self.etcd_members[name].is_running
        return self.member(name).is_running

    def is_still(self, name: str) -> bool:
        """Say whether a process is stopped where it is, or was ended for that."""
        if not self.is_running(name):
            return True
        status = Path(f"/proc/{self.identity(name)}/status").read_text()
        return "\nState:\tT" in status

    def identity(self, name: str) -> int:
        """Return the id of the process that does a member's work; it must be running."""
        return (
            self.etcd_members[name].pid if name in self.etcd_members else self.member(name).proper
        )

    # What else can be done to it

    async def slow_down(self, name: str) -> None:
        """Let every flush of a process take long."""
        self._slow[name] = await SlowDown.begin(self.identity(name))

    def is_slow(self, name: str) -> bool:
        """Say whether it is slow."""
        return name in self._slow and self._slow[name].has_bitten()

    async def speed_up(self, name: str) -> None:
        """End that."""
        if name in self._slow:
            await self._slow.pop(name).end()

    async def detach(self, name: str, jobs: Iterable[Job]) -> None:
        """Take a worker's root away, and look at what targets have of it."""
        self._before = {
            (job.name, target): self._versions(job, target)
            for job in jobs
            if job.is_one_way and job.members[0] == name
            for target in job.members[1:]
        }
        await self.disks.detach(name)

    async def attach(self, name: str) -> None:
        """Give it back, and note what its absence did."""
        for (job, target), before in self._before.items():
            after = await asyncio.to_thread(versions_below, self.files(target) / job)
            self.note(
                h.Doubted(
                    at=self.now(),
                    job=job,
                    source=name,
                    member=target,
                    looked_at=len(before),
                    vanished=sorted(before - set(after)),
                )
            )
        if not self.disks.root(name).is_mount():
            beneath = [str(file) for file in self.disks.root(name).rglob("*") if file.is_file()]
            self.note(h.Sentinel(at=self.now(), looked_at=1, changed=beneath))
        await self.disks.attach(name)

    def _versions(self, job: Job, member: str) -> set[str]:
        return set(versions_below(self.files(member) / job.name))

    async def fill_etcd(self) -> None:
        """Write until etcd takes no more."""
        endpoint = self.etcd.endpoints[0]
        for number in range(4 * _QUOTA_BYTES // _FILLER_BYTES):
            if not await etcd_gateway.put(endpoint, f"{_FILLER}{number}", bytes(_FILLER_BYTES)):
                return

    async def alarms(self) -> list[Any]:
        """Return the alarms of etcd."""
        return await etcd_gateway.alarms(self.etcd.endpoints[0])

    async def free_etcd(self) -> None:
        """Do what an operator does about a full etcd."""
        await etcd_gateway.make_room(list(self.etcd.endpoints), _FILLER)

    def harvest(self, name: str) -> None:
        """Note what a worker's log says that it published under."""
        if name not in WORKERS or not self.member(name).log.exists():
            return
        events = self.member(name).events("publishes_under")
        for event in events[self._told.get(name, 0) :]:
            token = Token.parse(str(event["token"])).revision
            self.note(h.Published(at=self.now(), worker=name, job=str(event["job"]), token=token))
        self._told[name] = len(events)

    async def watch_owners(self, jobs: frozenset[str]) -> None:
        """Note who owns these jobs, until cancelled."""
        await watch_owners(self.store, self.keys, jobs, self.now, self.note)

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


@asynccontextmanager
async def local(
    directory: Path, *, now: Callable[[], float], note: Callable[[h.Any], None]
) -> AsyncIterator[Local]:
    """Run three members of etcd, three coordinators and three workers until the block is left."""
    async with AsyncExitStack() as stack:
        net: Network | None = None
        if not await asyncio.to_thread(networks.missing):
            names = (*ETCD, *COORDINATORS, *WORKERS)
            net = await stack.enter_async_context(networks.network(names))
        roots = await stack.enter_async_context(disks.disks(directory, WORKERS, ROOT))
        options = ClusterOptions(places=_places(net), extra=_ETCD_ARGUMENTS, healthy_s=_READY_S)
        etcd = await stack.enter_async_context(start_etcd(directory / "etcd", 3, options=options))
        keys = Keys(f"/chaos/{uuid.uuid4().hex}/")
        store = EtcdStore(EtcdConfig(etcd.endpoints))
        stack.push_async_callback(store.close)
        cluster = LocalCluster(directory, etcd.endpoints, cluster="chaos", prefix=keys.prefix)
        api = Api(lambda: cluster.coordinators, load_tls(cluster.operator_tls))
        made = Local(
            directory, etcd, cluster, api, store, keys, roots, net, _clocks(directory), now, note
        )
        _add_members(made)
        made.lay_out()
        async with cluster:
            await made.start((*COORDINATORS, *WORKERS))
            for name in WORKERS:
                await api.add_worker(name, made.member(name).listen)
            yield made
            for name in (*COORDINATORS, *WORKERS):
                await made.speed_up(name)
                with contextlib.suppress(AssertionError):
                    made.resume(name)


def _places(net: Network | None) -> dict[str, Place]:
    if net is None:
        return {}
    return {
        f"m{number}": Place(net.address(name), net.prefix(name))
        for number, name in enumerate(ETCD, 1)
    }


def _clocks(directory: Path) -> dict[str, clocks.WallClock]:
    if clocks.library() is None:
        return {}
    return {name: clocks.WallClock(directory / f"clock-{name}") for name in COORDINATORS}


def _add_members(made: Local) -> None:
    def listen(name: str, port: int) -> str:
        return f"{made.network.address(name)}:{port}" if made.network else quiet_address()

    library = clocks.library()
    for name in COORDINATORS:
        member = made.cluster.add_coordinator(name, listen=listen(name, _COORDINATOR_PORT))
        if library is not None:
            member.environment = made.clocks[name].environment(library)
    for name in WORKERS:
        root = f"{ROOT}={made.disks.root(name)}"
        made.cluster.add_worker(name, [root], listen=listen(name, _WORKER_PORT))
    if made.network is not None:
        for name, member in made.cluster.members.items():
            member.prefix = made.network.prefix(name)
