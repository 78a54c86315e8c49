"""A cluster of real processes on this machine: certificates, coordinators, workers.

For `baton up`, the demo, tests and benchmarks, which start, kill and restart its members. Each member is
a process that ends with us, with its state, its certificates and its log in one directory. etcd is not
ours: `coordinator.embedded_etcd` runs that.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Self

from coordinator.errors import CoordinatorError
from wire.authority import init_ca, issue
from wire.children import bound_to_us
from wire.identity import Role
from wire.ports import HOST, quiet_address

READY_S = 60.0
STOP_S = 10.0
_POLL_S = 0.02
_TAIL_BYTES = 3_000


class MemberFailed(CoordinatorError):
    """A process did not become ready, or ended by itself; the text has the end of its log."""


class Part(Enum):
    """Which process of a member a fault hits; a worker is only one."""

    WHOLE = auto()
    """All of it, as when its host dies."""
    GUARDIAN = auto()
    """What the service manager watches; of a coordinator that is its guardian."""
    PROPER = auto()
    """The guardian's child, which does the work."""


@dataclass(slots=True)
class Member:
    """One process of the cluster, running or not."""

    name: str
    kind: str
    """coordinator or worker."""
    arguments: list[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    """In front of its command line: what puts it elsewhere and becomes it, as `ip netns exec` does."""
    listen: str = ""
    """HOST:PORT once it is ready."""
    _process: asyncio.subprocess.Process | None = None

    _proper: int | None = None

    @property
    def pid(self) -> int:
        """The process's id, of a coordinator its guardian's; it must have been started."""
        assert self._process is not None, "started before"
        return self._process.pid

    @property
    def proper(self) -> int:
        """The id of the process that does the work; it must be running."""
        if self.kind != "coordinator":
            return self.pid
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        with contextlib.suppress(OSError, IndexError):  # ended, or still loading
            self._proper = int(children.read_text().split()[0])
        if self._proper is None:
            raise MemberFailed(self._say("has no child yet"))
        return self._proper

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it without waiting for anything; its log begins anew."""
        clean = {key: value for key, value in os.environ.items() if key[:6] != "BATON_"}
        command = [sys.executable, "-m", "cli.main", self.kind, "start", *self.arguments]
        self.listen, self._proper = "", None
        with self.log.open("ab") as log:
            log.truncate(0)
            self._process = await asyncio.create_subprocess_exec(
                *self.prefix,
                *bound_to_us(command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for us: the order matters
                env={**clean, **self.environment},
            )

    async def wait_ready(self, within_s: float = READY_S) -> None:
        """Wait for its event `ready`; raises MemberFailed when it ends first or takes longer."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    for event in self.events("ready"):
                        self.listen = str(event["listen"])
                        return
                    if not self.is_running:
                        raise MemberFailed(self._say("ended before it was ready"))
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise MemberFailed(self._say(f"was not ready within {within_s:g} s")) from None

    def events(self, name: str) -> list[dict[str, object]]:
        """Return the events of this name in its log since it was started, oldest first."""
        found = []
        needle = f'"event": "{name}"'.encode()
        for line in self.log.read_bytes().split(b"\n"):
            if needle in line:
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def signal(self, number: signal.Signals, part: Part = Part.WHOLE) -> None:
        """Send it a signal; to all of it, one that asks it to stop goes to the guardian alone."""
        assert self._process is not None, "started before"
        match part, number:
            case Part.PROPER, _:
                _send(self.proper, number)
            case Part.WHOLE, signal.SIGKILL if self._has_child:
                proper = self.proper
                _send(proper, signal.SIGSTOP)  # or it would hand over when it is alone
                _send(self.pid, number)
                _send(proper, number)
            case Part.WHOLE, signal.SIGSTOP | signal.SIGCONT if self._has_child:
                _send(self.pid, number)
                _send(self.proper, number)
            case _:
                _send(self.pid, number)

    @property
    def _has_child(self) -> bool:
        if self.kind != "coordinator" or not self.is_running:
            return False
        with contextlib.suppress(MemberFailed):
            return self.proper > 0
        return False

    async def kill(self) -> None:
        """End it with SIGKILL and wait for that."""
        self.signal(signal.SIGKILL)
        await self.wait()

    async def stop(self) -> int:
        """End it with SIGTERM, after 10 s with SIGKILL; return its exit status."""
        if self._process is None:
            return 0
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                return await self.wait()
        except TimeoutError:
            await self.kill()
            return await self.wait()

    async def wait(self) -> int:
        """Wait for its end; return its exit status, negative for a signal."""
        assert self._process is not None, "started before"
        status = await self._process.wait()
        while self._proper is not None and is_alive(self._proper):
            await asyncio.sleep(_POLL_S)
        return status

    def failure(self) -> MemberFailed:
        """Return the error that says how it ended by itself."""
        status = self._process.returncode if self._process is not None else None
        return MemberFailed(self._say(f"ended with status {status}"))

    def _say(self, what: str) -> str:
        tail = self.log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip()
        return f"{self.kind} {self.name} {what}; the end of {self.log}:\n{tail}"


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Say whether a process has not ended, whoever is to collect its status."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in {"Z", "X"}


class LocalCluster:
    """The members below one directory. A context manager: leaving it stops them all."""

    def __init__(
        self, directory: Path, etcd: Sequence[str], *, cluster: str = "local", prefix: str = ""
    ) -> None:
        """Use this directory; the same one gives the same certificates and states again.

        A `prefix` of its own keeps it apart from other clusters on the same etcd.
        """
        self.directory = directory
        self.members: dict[str, Member] = {}
        self._etcd = ",".join(etcd)
        self._prefix = ["--prefix", prefix] if prefix else []
        self._ca = directory / "ca"
        if not (self._ca / "ca.pem").exists():
            init_ca(self._ca, cluster)

    @property
    def coordinators(self) -> list[str]:
        """The addresses of the coordinators that are ready."""
        coordinators = [one for one in self.members.values() if one.kind == "coordinator"]
        return [one.listen for one in coordinators if one.listen and one.is_running]

    @property
    def operator_tls(self) -> Path:
        """The directory for `--tls` of client commands."""
        return self._certificates(Role.OPERATOR, "operator")

    def environment(self) -> dict[str, str]:
        """Return what makes client commands talk to this cluster."""
        return {
            "BATON_COORDINATORS": ",".join(self.coordinators),
            "BATON_TLS": str(self.operator_tls),
        }

    def add_coordinator(self, name: str, *, listen: str = "", http: str = f"{HOST}:0") -> Member:
        """Prepare a coordinator; start it by its `start`."""
        listen = listen or quiet_address()
        arguments = ["--name", name, "--etcd", self._etcd, "--listen", listen, "--http", http]
        arguments += self._prefix
        return self._add("coordinator", Role.COORDINATOR, name, arguments)

    def add_worker(self, name: str, roots: Sequence[str], *, listen: str = f"{HOST}:0") -> Member:
        """Prepare a worker that exports NAME=PATH[:ro]; start it by its `start`."""
        arguments = ["--name", name, "--listen", listen]
        for root in roots:
            arguments += ["--root", root]
        return self._add("worker", Role.WORKER, name, arguments)

    async def start(self, *names: str) -> None:
        """Start members, all when none is named, and wait until they are ready."""
        chosen = [self.members[name] for name in names or self.members]
        for member in chosen:
            await member.start()
        await asyncio.gather(*(member.wait_ready() for member in chosen))

    async def close(self) -> None:
        """Stop every member: workers first, so that runs end in order."""
        for kind in ("worker", "coordinator"):
            members = [one for one in self.members.values() if one.kind == kind]
            await asyncio.gather(*(one.stop() for one in members if one.is_running))

    async def __aenter__(self) -> Self:
        """Use it in a block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop what runs, also what was paused."""
        for member in self.members.values():
            if member.is_running:
                member.signal(signal.SIGCONT)
        await self.close()

    def _add(self, kind: str, role: Role, name: str, arguments: list[str]) -> Member:
        home = self.directory / f"{kind}-{name}"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        arguments += ["--state", str(home / "state")]
        arguments += ["--tls", str(self._certificates(role, name))]
        member = Member(name, kind, arguments, home / "log")
        self.members[name if name not in self.members else f"{kind}-{name}"] = member
        return member

    def _certificates(self, role: Role, name: str) -> Path:
        directory = self.directory / "tls" / f"{role}-{name}"
        if not (directory / "cert.pem").exists():
            issue(self._ca, role, name, directory)
        return directory
