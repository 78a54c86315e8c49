"""`python -m benchmarks.transport`: how fast Baton's own channels carry bytes that nobody reads.

A floor for every first copy: no file is touched, nothing is digested. Two processes, one stream, mutual
TLS as between workers.
"""

import argparse
import asyncio
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from wire.authority import init_ca, issue
from wire.channel import bind, make_server, open_channel
from wire.credentials import load_tls
from wire.identity import Role

_METHOD = "/baton.v1.Floor/Take"


def _serve(tls: Path, told: Connection) -> None:
    asyncio.run(_server(tls, told))


async def _server(tls: Path, told: Connection) -> None:
    async def take(requests: AsyncIterator[bytes], _: Any) -> bytes:
        size = 0
        async for frame in requests:
            size += len(frame)
        return size.to_bytes(8)

    server = make_server()
    handlers: Any = {"Take": grpc.stream_unary_rpc_method_handler(take)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("baton.v1.Floor", handlers),)
    )
    port = bind(server, "127.0.0.1:0", load_tls(tls))
    await server.start()
    told.send(port)
    await asyncio.to_thread(told.recv)
    told.send(_cpu_s())
    await server.stop(None)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _send(tls: Path, port: int, size: int, frame_bytes: int) -> float:
    frame = bytes(frame_bytes)
    channel = open_channel(f"127.0.0.1:{port}", load_tls(tls), (Role.WORKER, "b"), data=True)
    try:
        take: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(_METHOD)
        began = time.monotonic()
        call = take()
        for _ in range(size // frame_bytes):
            await call.write(frame)
        await call.done_writing()
        taken = int.from_bytes(await call)
        took_s = time.monotonic() - began
    finally:
        await channel.close()
    if taken != size // frame_bytes * frame_bytes:
        raise SystemExit(f"{taken} bytes arrived of {size}")
    return took_s


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport", description=__doc__)
    parser.add_argument("--mib", type=int, default=4096, help="how much [4096]")
    parser.add_argument("--frame-kib", type=int, default=2048, help="in frames of this size [2048]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        init_ca(home / "ca", "floor")
        for name in ("a", "b"):
            issue(home / "ca", Role.WORKER, name, home / name)
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(home / "b", theirs)
        )
        process.start()
        port = ours.recv()
        before = _cpu_s()
        size = arguments.mib * 1024 * 1024
        took_s = asyncio.run(_send(home / "a", port, size, arguments.frame_kib * 1024))
        ours.send(None)
        cpu_s = _cpu_s() - before + ours.recv()
        process.join()
    print(
        f"{arguments.mib} MiB in {took_s:.2f} s, {size / took_s / 1e9:.2f} GB/s, CPU {cpu_s:.2f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
