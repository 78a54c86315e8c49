"""The stack of compose/ under a project name of its own, with what tests ask of it."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from wire.ports import quiet_address

TOP = Path(__file__).resolve().parents[2]
LOCAL_IMAGES = {
    "BASE_IMAGE": "baton-base:local",
    "ETCD_IMAGE": "baton-etcd:local",
    "BATON_IMAGE": "baton:local",
}


@cache
def missing() -> str:
    """Return why no container can be started here, or nothing."""
    command = compose_command()
    if not command:
        return "there is no docker-compose"
    if subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=30).returncode:
        return "no Docker engine answers"
    if os.geteuid() != 0:
        return "building a base image from Debian's packages needs root"
    if shutil.which("debootstrap") is None:
        return "debootstrap is not installed"
    return ""


@cache
def compose_command() -> list[str]:
    """Return how Compose is called here: its own command, or Docker's plugin."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    plugin = ["docker", "compose"]
    if shutil.which("docker"):
        asked = subprocess.run([*plugin, "version"], capture_output=True, check=False, timeout=30)
        if asked.returncode == 0:
            return plugin
    return []


async def call(*command: str, within_s: float = 60.0, env: Mapping[str, str] | None = None) -> str:
    """Run a command that must succeed; return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
        cwd=TOP,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), within_s)
    except BaseException:
        process.kill()
        raise
    assert process.returncode == 0, f"{command}: {process.returncode}\n{err.decode()[-3000:]}"
    return out.decode()


class Stack:
    """One project. `up` and `down` once each."""

    def __init__(self) -> None:
        self.project = f"baton-test-{os.getpid()}"
        ports = [quiet_address().rpartition(":")[2] for _ in range(3)]
        self.http = {f"c{n}": f"http://127.0.0.1:{port}" for n, port in enumerate(ports, 1)}
        self._containers: dict[str, str] = {}
        self._env = {
            **LOCAL_IMAGES,
            **{f"HTTP_C{n}": port for n, port in enumerate(ports, 1)},
        }

    async def compose(self, *arguments: str, within_s: float = 60.0) -> str:
        """Call Compose on this project."""
        file = TOP / "compose" / "docker-compose.yml"
        options = ["-f", str(file), "-p", self.project]
        return await call(
            *compose_command(), *options, *arguments, within_s=within_s, env=self._env
        )

    async def up(self) -> None:
        """Start everything, as the README says, until the example job is known."""
        await self.compose("up", "-d", "--no-build", within_s=240)
        assert (await call("docker", "wait", await self.container("setup"))).strip() == "0"

    async def down(self) -> None:
        """Remove everything, the data too."""
        await self.compose("down", "-v", "-t", "2", within_s=120)

    async def container(self, service: str) -> str:
        """Return the id of a service's container."""
        if service not in self._containers:
            label = "com.docker.compose"
            lines = await call(
                *("docker", "ps", "-a", "--filter", f"label={label}.project={self.project}"),
                *("--format", f'{{{{.Label "{label}.service"}}}} {{{{.ID}}}}'),
            )
            self._containers = dict(line.split() for line in lines.splitlines())
        return self._containers[service]

    async def inspect(self, service: str) -> Any:
        """Return what the engine says about a service's container."""
        return json.loads(await call("docker", "inspect", await self.container(service)))[0]

    async def baton(self, *arguments: str) -> Any:
        """Run a client command with the operator's certificate; return its JSON."""
        # In a coordinator's container: a coordinator may ask what an operator may.
        container = await self.container(await self._any_coordinator())
        said = await call("docker", "exec", container, "baton", *arguments, "-o", "json")
        return json.loads(said)

    async def sh(self, service: str, script: str) -> str:
        """Run a shell script in a service's container."""
        return await call("docker", "exec", await self.container(service), "sh", "-euc", script)

    async def volume(self, name: str) -> Path:
        """Return where this machine keeps a volume."""
        found = json.loads(await call("docker", "volume", "inspect", f"{self.project}_{name}"))
        return Path(found[0]["Mountpoint"])

    async def _any_coordinator(self) -> str:
        for name in self.http:
            if (await self.inspect(name))["State"]["Running"]:
                return name
        raise AssertionError("no coordinator runs")


def build() -> None:
    """Build the images that are missing, and Baton's anew; takes a minute or two."""
    subprocess.run(
        [str(TOP / "compose" / "local-images.sh")],
        check=True,
        timeout=600,
        stdout=sys.stderr,
        env={**os.environ, "PYTHON": sys.executable},
    )
