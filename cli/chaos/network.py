"""A network of the run's own: every member in a network namespace, joined by a bridge in another.

We reach the members by one more link to the bridge; nothing of the machine's own network is changed.
Addresses are of 198.19.0.0/16, which is set aside for measuring. What happens to packets happens where
they arrive (cuts and losses, by iptables) or leave (narrow links by tc, delays by `cli.chaos.delay`).
"""

import asyncio
import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from cli.chaos.shell import ToolFailed, call, why_not
from wire.children import bound_to_us

_MARK = "baton-chaos"
_DEVICE = "eth0"
_SLOW = "slow0"
_TOOLS = {"ip": "iproute2", "tc": "iproute2", "iptables": "iptables", "nsenter": "util-linux"}
_numbers = itertools.count()
_TUN = "/dev/net/tun"
_TRIAL = """
ip link add eth0 type veth peer name other
ip link add br0 type bridge
iptables -w -A INPUT -m statistic --mode random --probability 0.5 -j DROP
tc qdisc replace dev eth0 root tbf rate 1mbit burst 16kb latency 200ms
"""
_READY_S = 20.0
_OUR_HOST = 254
_PROBE = """
import socket, sys, time
began = time.monotonic()
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])).close()
except ConnectionRefusedError:
    pass
except OSError:
    sys.exit("unreachable")
print(time.monotonic() - began)
"""


@cache
def missing() -> str:
    """Return why there can be no such network here, nothing when there can. Blocks for a moment."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            return f"the command {tool} is missing (Debian: {package})"
    why = why_not("unshare", "--net", "sh", "-euc", _TRIAL)  # vanishes with the command
    return f"this machine gives no network of one's own: {why}" if why else ""


def no_delays() -> str:
    """Return why packets cannot be delayed here, nothing when they can."""
    return missing() or ("" if os.access(_TUN, os.R_OK | os.W_OK) else f"there is no {_TUN}")


class Network:
    """The namespaces of one run; `network` makes and removes them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._run = f"{os.getpid()}-{next(_numbers)}"
        self._subnet = _free_subnet(os.getpid())
        self._hosts = {name: f"{self._subnet}.{number}" for number, name in enumerate(names, 1)}
        self._delays: dict[str, asyncio.subprocess.Process] = {}

    def address(self, name: str) -> str:
        """Return a member's address."""
        return self._hosts[name]

    def prefix(self, name: str) -> tuple[str, ...]:
        """Return what runs a command at a member's place.

        Not `ip netns exec`, which gives it mounts of its own: roots are unmounted under it.
        """
        program = shutil.which("nsenter") or "nsenter"
        return (program, f"--net=/run/netns/{self._space(name)}", "--")

    async def cut(self, sender: str, receiver: str) -> None:
        """Let nothing that one member sends arrive at another."""
        await self._filter("-A", receiver, *self._from(sender))

    async def mend(self, sender: str, receiver: str) -> None:
        """End a cut."""
        await self._filter("-D", receiver, *self._from(sender))

    async def isolate(self, name: str) -> None:
        """Let nothing arrive at a member, nor anything leave it."""
        for chain in ("INPUT", "OUTPUT"):
            await self._inside(name, "iptables", "-w", "-A", chain, *self._all(chain))

    async def connect(self, name: str) -> None:
        """End an isolation."""
        for chain in ("INPUT", "OUTPUT"):
            await self._inside(name, "iptables", "-w", "-D", chain, *self._all(chain))

    async def lose(self, name: str, share: float) -> None:
        """Lose this share, 0 to 1, of the packets that arrive at a member."""
        await self._filter("-A", name, *_losing(share))

    async def lose_no_more(self, name: str, share: float) -> None:
        """End a loss of the same share."""
        await self._filter("-D", name, *_losing(share))

    async def lost(self, name: str) -> int:
        """Return how many packets a member's rules have dropped."""
        listed = await self._inside(name, "iptables", "-w", "-nvxL", "INPUT")
        return sum(int(line.split()[0]) for line in listed.splitlines() if " DROP " in line)

    async def narrow(self, name: str, rate: str) -> None:
        """Let a member send no more than a rate in the words of tc, such as 2mbit."""
        shape = ("tbf", "rate", rate, "burst", "16kb", "latency", "200ms")
        await self._inside(name, "tc", "qdisc", "replace", "dev", _DEVICE, "root", *shape)

    async def is_narrow(self, name: str) -> bool:
        """Say whether a member's link is narrow."""
        return "tbf" in await self._inside(name, "tc", "qdisc", "show", "dev", _DEVICE)

    async def widen(self, name: str) -> None:
        """End that."""
        await self._inside(name, "tc", "qdisc", "delete", "dev", _DEVICE, "root")

    async def delay(self, name: str, delay_s: float) -> None:
        """Let everything that a member sends arrive so much later."""
        process = await asyncio.create_subprocess_exec(
            *self.prefix(name),
            *bound_to_us([sys.executable, "-m", "cli.chaos.delay", _SLOW, _DEVICE, str(delay_s)]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        self._delays[name] = process
        assert process.stdout is not None
        async with asyncio.timeout(_READY_S):
            if await process.stdout.readline() != b"ready\n":
                raise ToolFailed(f"packets of {name} cannot be delayed")
        halves = (f"{self._subnet}.0/25", f"{self._subnet}.128/25")  # closer than the device's own
        routes = "".join(
            f"route add {half} dev {_SLOW} src {self.address(name)}\n" for half in halves
        )
        await self._ip(name, f"link set {_SLOW} mtu 1500 up\n{routes}")

    async def hurry(self, name: str) -> None:
        """End a delay; its device and routes vanish with its process."""
        process = self._delays.pop(name, None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def reach(self, sender: str, receiver: str, within_s: float = 1.0) -> float | None:
        """Return how long a first packet and its answer take in seconds; None: nothing comes back."""
        where = (self.address(receiver), "1", str(within_s))
        with contextlib.suppress(ToolFailed):
            said = await self._inside(sender, sys.executable, "-I", "-S", "-c", _PROBE, *where)
            return float(said)
        return None

    async def up(self) -> None:
        """Make the namespaces and links; `down` in any case afterwards."""
        switch = self._space("switch")
        await call("ip", "netns", "add", switch)
        await self._ip("switch", "link set lo up\nlink add br0 type bridge\nlink set br0 up\n")
        ours = f"btc{self._run}"
        await call("ip", "link", "add", ours, "type", "veth", "peer", "name", "us", "netns", switch)
        await self._ip("switch", "link set us master br0 up\n")
        await call(
            "ip", "-batch", "-",
            stdin=f"addr add {self._subnet}.{_OUR_HOST}/24 dev {ours}\nlink set {ours} up\n",
        )  # fmt: skip
        await asyncio.gather(*(self._place(name) for name in self._hosts))

    async def down(self) -> None:
        """Remove everything; what runs in it must have ended."""
        for name in list(self._delays):
            await self.hurry(name)
        there = _spaces()
        for name in ("switch", *self._hosts):
            if self._space(name) in there:
                await call("ip", "netns", "delete", self._space(name))

    async def _place(self, name: str) -> None:
        space = self._space(name)
        await call("ip", "netns", "add", space)
        ends = ("type", "veth", "peer", "name", _DEVICE, "netns", space)
        await call("ip", "-n", self._space("switch"), "link", "add", name, *ends)
        await self._ip("switch", f"link set {name} master br0 up\n")
        await self._ip(
            name,
            f"link set lo up\naddr add {self.address(name)}/24 dev {_DEVICE}\n"
            f"link set {_DEVICE} up\n",
        )
        # What is delayed leaves by another device than it comes in by.
        script = (
            "for one in all default eth0; do echo 0 > /proc/sys/net/ipv4/conf/$one/rp_filter; done"
        )
        await self._inside(name, "sh", "-euc", script)

    def _space(self, name: str) -> str:
        return f"{_MARK}-{self._run}-{name}"

    def _from(self, sender: str) -> tuple[str, ...]:
        return ("-s", self.address(sender))

    def _all(self, chain: str) -> tuple[str, ...]:
        return ("-i" if chain == "INPUT" else "-o", _DEVICE, "-j", "DROP")

    async def _filter(self, what: str, name: str, *rule: str) -> None:
        await self._inside(name, "iptables", "-w", what, "INPUT", *rule, "-j", "DROP")

    async def _inside(self, name: str, *command: str) -> str:
        return await call(*self.prefix(name), *command)

    async def _ip(self, name: str, batch: str) -> None:
        await call("ip", "-n", self._space(name), "-batch", "-", stdin=batch)


def _free_subnet(start: int) -> str:
    """Return 198.19.N that no device here has. RACE: another run may take it; its `up` fails then."""
    taken = Path("/proc/net/fib_trie").read_text()
    candidates = (f"198.19.{(start + step) % 256}" for step in range(256))
    return next(one for one in candidates if f"{one}." not in taken)


def _losing(share: float) -> tuple[str, ...]:
    return ("-m", "statistic", "--mode", "random", "--probability", f"{share:.3f}")


def _spaces() -> set[str]:
    return {space.name for space in Path("/run/netns").glob(f"{_MARK}-*-*")}


def _left_behind() -> list[str]:
    """Return the namespaces of runs that were killed."""
    return [name for name in _spaces() if not Path("/proc", name.split("-")[2]).exists()]


async def sweep() -> None:
    """Remove the namespaces of runs that were killed."""
    for name in _left_behind():
        with contextlib.suppress(ToolFailed):  # another run may sweep as well
            await call("ip", "netns", "delete", name)


@asynccontextmanager
async def network(names: Sequence[str]) -> AsyncIterator[Network]:
    """Make a network for these members until the block is left. Raises ToolFailed."""
    await sweep()
    made = Network(names)
    try:
        await made.up()
        yield made
    finally:
        await made.down()
