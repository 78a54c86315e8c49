"""TCP proxies between etcd members, so that one member's peer traffic can be cut without root."""

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def owner_of_port(port: int, pids: dict[str, int]) -> str | None:
    """Return which process has a connection from this local port, as the kernel tells it."""
    suffix = f":{port:04X}"
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(suffix):
            inodes.add(f"socket:[{fields[9]}]")
    for name, pid in pids.items():
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(link.readlink()) in inodes:
                        return name
    return None


class PeerNet:
    """The network between members: one listening port for each, and who is cut off."""

    def __init__(self) -> None:
        self._cut: set[str] = set()
        self._changed = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._relays: set[asyncio.Task[None]] = set()
        self.pids: Callable[[], dict[str, int]] = dict

    async def listen(self, port: int, member: str, target_port: int) -> None:
        """Pass on what comes to a port to the member that it stands for."""

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            relay = asyncio.create_task(self._relay(reader, writer, member, target_port))
            self._relays.add(relay)
            relay.add_done_callback(self._relays.discard)

        self._servers.append(await asyncio.start_server(accept, "127.0.0.1", port))

    def cut(self, member: str) -> None:
        """Let nothing pass from or to a member; connections stay open and silent."""
        self._cut.add(member)

    def heal(self) -> None:
        self._cut.clear()
        self._changed.set()

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        await asyncio.sleep(0)  # what was accepted last has its relay now
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        member: str,
        target_port: int,
    ) -> None:
        writers = [writer]
        try:
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", target_port)
            writers.append(their_writer)
            # Looked up only now: members call a dead one many times a second.
            source = owner_of_port(writer.get_extra_info("peername")[1], self.pids())
            ends = {member, source or member}
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, their_writer, ends))
                tasks.create_task(self._pump(their_reader, writer, ends))
        except* OSError:
            pass
        finally:
            for one in writers:
                one.close()
            for one in writers:
                with contextlib.suppress(OSError):
                    await one.wait_closed()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ends: set[str]
    ) -> None:
        while data := await reader.read(65536):
            while ends & self._cut:
                self._changed.clear()
                await self._changed.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # one side has closed: so does the other
