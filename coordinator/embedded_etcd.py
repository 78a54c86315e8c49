"""An etcd of our own: one member or a small cluster on loopback, as child processes.

For one machine, the demo, tests and benchmarks; production runs on the operator's cluster. Members end
with their parent, keep their data and their ports in the data directory, and can be stopped, killed,
paused and started again.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.errors import EtcdNotHealthy
from coordinator.etcd_binary import EtcdBinary, choose_etcd, path_etcds, wheel_etcd, wheel_etcdctl
from coordinator.etcd_config import Endpoint, EtcdTls
from coordinator.etcd_connection import Connection, RpcFailed
from wire.children import bound_to_us
from wire.ports import HOST, is_free, quiet_ports

__all__ = [
    "ClusterOptions",
    "EtcdBinary",
    "EtcdCluster",
    "EtcdMember",
    "Place",
    "ServerTls",
    "choose_etcd",
    "path_etcds",
    "start_etcd",
    "wheel_etcd",
    "wheel_etcdctl",
]

_LOG_TAIL_BYTES = 3_000
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Files for the members' client ports; with `ca`, clients must show a certificate."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member runs when not on our own loopback."""

    host: str
    """The address at which it listens and others, we too, reach it."""
    prefix: tuple[str, ...] = ()
    """In front of its command line: what puts it there and becomes it, as `nsenter` does."""


_HERE = Place(HOST)


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """How the members run."""

    heartbeat_ms: int = 100
    election_ms: int = 1000
    tls: ServerTls | None = None
    client_tls: EtcdTls | None = None
    """What the health check shows when `tls` is given."""
    auth_token_ttl_s: int = 300
    peer_urls: Mapping[str, str] = field(default_factory=dict)
    """Peer URLs to advertise in place of a member's own, by member name (for proxies in between)."""
    places: Mapping[str, Place] = field(default_factory=dict)
    """By member name; loopback for those that are not named."""
    extra: tuple[str, ...] = ()
    """More arguments for every member."""
    healthy_s: float = 60.0
    """How long a start may take."""


@dataclass(frozen=True, slots=True)
class MemberPorts:
    """Where one member listens."""

    name: str
    client: int
    peer: int
    host: str = HOST


class EtcdMember:
    """One etcd process; starting it again keeps its data."""

    def __init__(
        self,
        binary: EtcdBinary,
        data_dir: Path,
        ports: MemberPorts,
        arguments: tuple[str, ...],
        options: ClusterOptions,
    ) -> None:
        # Fixed at construction.
        self.binary = binary
        self.name = ports.name
        scheme = "https" if options.tls else "http"
        self.peer_port = ports.peer
        self.endpoint = f"{scheme}://{ports.host}:{ports.client}"
        self.log_path = data_dir / f"{ports.name}.log"
        self._arguments = arguments
        self._options = options
        self._prefix = options.places.get(ports.name, _HERE).prefix
        # Owned by whoever starts and stops it.
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process id; raises ProcessLookupError when the member is not running."""
        if self._process is None or self._process.returncode is not None:
            raise ProcessLookupError(f"{self.name} is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the process; `wait_healthy` tells when it serves."""
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._prefix,
                *bound_to_us([str(self.binary.path), *self._arguments]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for us, not for etcd
                env={key: value for key, value in os.environ.items() if key[:5] != "ETCD_"},
            )

    async def wait_healthy(self) -> None:
        """Wait for an answer that needs a quorum; raises EtcdNotHealthy."""
        connection = Connection(Endpoint.parse(self.endpoint), self._options.client_tls)
        said = "no answer"
        try:
            async with asyncio.timeout(self._options.healthy_s):
                while self.is_running:
                    try:
                        await connection.probe(timeout_s=1.0)
                    except RpcFailed as failed:
                        said = failed.said
                    else:
                        return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            pass
        finally:
            await connection.close()
        ended = "" if self._process is None else f", exit status {self._process.returncode}"
        raise EtcdNotHealthy(
            f"{self.binary} is not healthy after {self._options.healthy_s:g} s: {said}{ended};"
            f" the end of {self.log_path}:\n{self.log_tail()}"
        )

    async def wait(self) -> None:
        """Wait for the end of the process; it must have been started."""
        assert self._process is not None, "started before"
        await self._process.wait()

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, self.log_path.stat().st_size - _LOG_TAIL_BYTES))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    async def stop(self, *, grace_s: float = 2.0) -> None:
        """End the member with SIGTERM, after `grace_s` with SIGKILL."""
        if self._process is None or not self.is_running:
            return
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End the member with SIGKILL."""
        if self._process is not None and self.is_running:
            self.signal(signal.SIGKILL)
            await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal (SIGSTOP and SIGCONT pause and resume); no error when it has ended."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


class EtcdCluster:
    """Members that know each other."""

    def __init__(self, members: list[EtcdMember]) -> None:
        self.members = members

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The client URLs of all members."""
        return tuple(member.endpoint for member in self.members)

    async def start(self) -> None:
        """Start all members and wait until each is healthy; raises EtcdNotHealthy."""
        for member in self.members:
            await member.start()
        await asyncio.gather(*(member.wait_healthy() for member in self.members))

    async def stop(self, *, grace_s: float = 2.0) -> None:
        """End all members."""
        await asyncio.gather(*(member.stop(grace_s=grace_s) for member in self.members))


def make_cluster(
    binary: EtcdBinary, data_dir: Path, members: int = 1, options: ClusterOptions | None = None
) -> EtcdCluster:
    """Describe a cluster in a data directory, with the ports that it had before if it had any."""
    options = options or ClusterOptions()
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    plan_path = data_dir / "cluster.json"
    if plan_path.exists():
        plan = json.loads(plan_path.read_text())
        if len(plan["ports"]) == 1 and not all(map(is_free, plan["ports"][0][1:])):
            plan["ports"] = _new_ports(1)  # a single member may move
    else:
        plan = {"token": secrets.token_hex(8), "ports": _new_ports(members)}
    plan_path.write_text(json.dumps(plan))
    ports = [
        MemberPorts(name, client, peer, options.places.get(name, _HERE).host)
        for name, client, peer in plan["ports"]
    ]
    peers = {
        one.name: options.peer_urls.get(one.name, f"http://{one.host}:{one.peer}") for one in ports
    }
    return EtcdCluster(
        [
            EtcdMember(
                binary,
                data_dir,
                one,
                _arguments(one, data_dir, peers, plan["token"], options),
                options,
            )
            for one in ports
        ]
    )


def _new_ports(members: int) -> list[tuple[str, int, int]]:
    numbers = quiet_ports(2 * members)
    return [(f"m{i + 1}", numbers[2 * i], numbers[2 * i + 1]) for i in range(members)]


def _arguments(
    ports: MemberPorts,
    data_dir: Path,
    peers: Mapping[str, str],
    token: str,
    options: ClusterOptions,
) -> tuple[str, ...]:
    scheme = "https" if options.tls else "http"
    client_url = f"{scheme}://{ports.host}:{ports.client}"
    arguments = [
        f"--name={ports.name}",
        f"--data-dir={data_dir / ports.name}",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
        f"--listen-peer-urls=http://{ports.host}:{ports.peer}",
        f"--initial-advertise-peer-urls={peers[ports.name]}",
        "--initial-cluster=" + ",".join(f"{name}={url}" for name, url in peers.items()),
        f"--initial-cluster-token={token}",
        "--initial-cluster-state=new",
        f"--heartbeat-interval={options.heartbeat_ms}",
        f"--election-timeout={options.election_ms}",
        f"--auth-token-ttl={options.auth_token_ttl_s}",
        "--logger=zap",
        "--log-level=warn",
        *options.extra,
    ]
    if options.tls:
        arguments += [
            f"--cert-file={options.tls.cert}",
            f"--key-file={options.tls.key}",
            f"--trusted-ca-file={options.tls.ca}",
            "--client-cert-auth",
        ]
    return tuple(arguments)


@contextlib.asynccontextmanager
async def start_etcd(
    data_dir: Path,
    members: int = 1,
    *,
    binary: EtcdBinary | None = None,
    options: ClusterOptions | None = None,
) -> AsyncIterator[EtcdCluster]:
    """Run an etcd of our own until the block is left; raises NoEtcdBinary, EtcdNotHealthy.

    Without `binary` it is the one of `choose_etcd`. The same directory gives the same data again.
    """
    if binary is None:
        binary = await asyncio.to_thread(choose_etcd)
    cluster = make_cluster(binary, data_dir, members, options)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()
