"""A slow link on one machine: a network namespace at its far end, and every packet some time on its way.

Two TUN devices, one here and one in a namespace of its own, and a process that passes packets between
them after a delay, or loses them. No kernel module is needed for it, only root. Addresses are of
198.18.0.0/15, which is set aside for measuring. What runs at the far end is started with `Link.prefix`
in front and is reached at `Link.far`; it reaches this end at `Link.near`.

`python -m benchmarks.delayed_link --delay-ms 25 -- COMMAND` runs a command at the far end.
"""

import argparse
import contextlib
import fcntl
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError
from wire.children import bound_to_us

_MTU = 65_000
_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_READY = b"ready\n"
_READY_S = 10.0


@dataclass(frozen=True, slots=True)
class Way:
    """What happens to packets in one direction."""

    delay_s: float = 0.0
    loss: float = 0.0
    """The share of packets that vanish, 0 to 1; 1 cuts this direction."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link that is up."""

    prefix: tuple[str, ...]
    """In front of a command line: runs it at the far end."""
    near: str
    far: str
    device: str
    """The device at this end; its counters count what passed."""

    def passed_bytes(self) -> int:
        """Return how many bytes have come and gone at this end, headers included."""
        return device_bytes(self.device)


def missing() -> str | None:
    """Return why there can be no such link here, None when there can."""
    if os.geteuid() != 0:
        return "a link with a delay needs root"
    if shutil.which("ip") is None:
        return "a link with a delay needs the command ip (iproute2)"
    try:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"a link with a delay needs {_TUN}: {error.strerror}"
    return None


def device_bytes(device: str) -> int:
    """Return how many bytes a network device has received and sent."""
    counters = Path("/sys/class/net") / device / "statistics"
    return sum(int((counters / name).read_text()) for name in ("rx_bytes", "tx_bytes"))


@contextlib.contextmanager
def delayed_link(there: Way, back: Way | None = None) -> Iterator[Link]:
    """Make a link and take it down again; `back` is like `there` unless given.

    For the main thread; blocks for some hundred ms. Raises BenchmarkError where it cannot be made.
    """
    why = missing()
    if why is not None:
        raise BenchmarkError(why)
    mark = f"{random.randrange(1 << 24):06x}"
    space, near_device, far_device = f"baton-{mark}", f"btn{mark}", f"btf{mark}"
    net = f"198.18.{random.randrange(256)}.{4 * random.randrange(64)}".rpartition(".")
    near, far = (f"{net[0]}.{int(net[2]) + host}" for host in (1, 2))
    _ip("netns", "add", space)
    forwarder = None
    try:
        forwarder = _start_forwarder((near_device, far_device), there, back or there)
        _ip("link", "set", far_device, "netns", space)
        for inside, device, address in (((), near_device, near), (("-n", space), far_device, far)):
            _ip(*inside, "addr", "add", f"{address}/30", "dev", device)
            _ip(*inside, "link", "set", device, "mtu", str(_MTU), "up")
        _ip("-n", space, "link", "set", "lo", "up")
        yield Link(("ip", "netns", "exec", space), near, far, near_device)
    finally:
        if forwarder is not None:
            forwarder.terminate()
            forwarder.wait()
            assert forwarder.stdout is not None
            forwarder.stdout.close()
        _ip("netns", "delete", space)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _start_forwarder(devices: tuple[str, str], there: Way, back: Way) -> "subprocess.Popen[bytes]":
    """Start the process that owns both devices; they vanish with it."""
    ways = [str(value) for way in (there, back) for value in (way.delay_s, way.loss)]
    process = subprocess.Popen(
        bound_to_us([sys.executable, "-m", __spec__.name, "--forward", *devices, *ways]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _READY_S)
    if not ready or process.stdout.readline() != _READY:
        process.kill()
        process.wait()
        process.stdout.close()
        raise BenchmarkError("the link's two devices could not be made")
    return process


class _Direction:
    """Packets from one device to the other, each some time later."""

    def __init__(self, source: int, target: int, way: Way) -> None:
        self.source = source
        self.target = target
        self.way = way
        self.waiting: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        """Read what there is."""
        due = time.monotonic() + self.way.delay_s
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                packet = os.read(self.source, _MTU + 100)
                if not self.way.loss or random.random() >= self.way.loss:
                    self.waiting.append((due, packet))

    def give(self, now: float) -> None:
        """Write what is due; a packet that the other end has no room for is lost."""
        while self.waiting and self.waiting[0][0] <= now:
            with contextlib.suppress(OSError):
                os.write(self.target, self.waiting.popleft()[1])


def _forward(names: Sequence[str], ways: tuple[Way, Way]) -> None:
    fds = [_tun(name) for name in names]
    directions = {
        fds[0]: _Direction(fds[0], fds[1], ways[0]),
        fds[1]: _Direction(fds[1], fds[0], ways[1]),
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    poll = select.epoll()
    for fd in fds:
        poll.register(fd, select.EPOLLIN)
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    while True:
        dues = [one.waiting[0][0] for one in directions.values() if one.waiting]
        wait_s = max(0.0, min(dues) - time.monotonic()) if dues else -1
        for fd, _ in poll.poll(wait_s):
            directions[fd].take()
        now = time.monotonic()
        for one in directions.values():
            one.give(now)


def _tun(name: str) -> int:
    fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


def _main() -> int:
    if sys.argv[1:2] == ["--forward"]:
        near, far, *numbers = sys.argv[2:]
        there_s, there_loss, back_s, back_loss = map(float, numbers)
        _forward((near, far), (Way(there_s, there_loss), Way(back_s, back_loss)))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.delayed_link",
        description="Run a command at the far end of a slow link.",
    )
    parser.add_argument("--delay-ms", type=float, default=25.0, help="each way [25]")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets lost, 0 to 1 [0]")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    with delayed_link(Way(arguments.delay_ms / 1000, arguments.loss)) as link:
        print(f"near {link.near}, far {link.far}", file=sys.stderr)
        return subprocess.run([*link.prefix, *arguments.command], check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(_main())
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
