"""`python -m cli.chaos.delay TUN DEVICE SECONDS`: what is routed into TUN leaves by DEVICE, later.

For kernels without netem. Needs root; runs until it is killed, and TUN vanishes with it.
"""

import contextlib
import fcntl
import os
import select
import socket
import struct
import sys
import time
from collections import deque

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_MOST_BYTES = 65_536
_IPV4 = 4


def delay(tun: str, device: str, delay_s: float) -> None:
    """Pass packets on, each so many seconds after it came; never returns."""
    source = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(source, _TUNSETIFF, struct.pack("16sH14x", tun.encode(), _IFF_TUN | _IFF_NO_PI))
    target = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    target.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    waiting: deque[tuple[float, bytes]] = deque()
    poll = select.poll()
    poll.register(source, select.POLLIN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        poll.poll(max(0.0, (waiting[0][0] - time.monotonic()) * 1_000) if waiting else None)
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = os.read(source, _MOST_BYTES)
                if packet[0] >> 4 == _IPV4:  # of the other the kernel tells its neighbours only
                    waiting.append((time.monotonic() + delay_s, packet))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            packet = waiting.popleft()[1]
            with contextlib.suppress(OSError):  # no room: lost, as on any link
                target.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))


if __name__ == "__main__":
    delay(sys.argv[1], sys.argv[2], float(sys.argv[3]))
