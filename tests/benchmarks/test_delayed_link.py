"""The link with a delay: how long a packet takes, and what a cut does."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks.delayed_link import Link, Way, delayed_link, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

PATIENCE_S = 10.0

# Answers every byte, and says when it listens; ends with its standard input.
_ECHO = """
import socket, sys, threading
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
def serve():
    while True:
        peer, _ = server.accept()
        while data := peer.recv(65536):
            peer.sendall(data)
threading.Thread(target=serve, daemon=True).start()
sys.stdin.read()
"""


@contextlib.contextmanager
def echo_at(link: Link) -> Iterator[int]:
    command = [*link.prefix, sys.executable, "-c", _ECHO, link.far]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


def test_a_round_trip_takes_both_delays() -> None:
    with delayed_link(Way(0.03), Way(0.02)) as link, echo_at(link) as port:
        before = link.passed_bytes()
        with socket.create_connection((link.far, port), timeout=PATIENCE_S) as peer:
            began = time.monotonic()
            peer.sendall(b"x" * 1_000)
            got = 0
            while got < 1_000:
                got += len(peer.recv(1_000))
            assert time.monotonic() - began >= 0.05
        assert link.passed_bytes() - before >= 2_000


def test_what_is_cut_one_way_does_not_connect() -> None:
    with (
        delayed_link(Way(), Way(loss=1.0)) as link,
        echo_at(link) as port,
        pytest.raises(TimeoutError),
    ):
        socket.create_connection((link.far, port), timeout=0.5)


def test_nothing_is_left_of_a_link() -> None:
    def spaces() -> str:
        done = subprocess.run(["ip", "netns"], check=True, capture_output=True, text=True)
        return done.stdout

    with delayed_link(Way()) as link:
        assert link.prefix[-1] in spaces()
    assert link.prefix[-1] not in spaces()
