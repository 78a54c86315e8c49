"""What coordinators and workers have in common as processes: logs, signals, readiness, one life a state.

Logs are events on standard error: one JSON object a line, or text when that is a terminal.
"""

import asyncio
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from wire.errors import StateInUse


def configure_logs(*, role: str, name: str) -> None:
    """Send events to standard error, each with this process's role and name."""
    is_terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if is_terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level()),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**{role: name})


def _level() -> str:
    return os.environ.get("BATON_LOG_LEVEL", "info").lower()


@contextmanager
def locked_state(directory: Path) -> Iterator[None]:
    """Make the state directory and keep other processes out of it; raises StateInUse.

    The lock goes with the process, however it ends. Blocks on the disk: for start-up.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StateInUse(
            f"the state directory {directory} cannot be used: {error.strerror}; choose another "
            "with --state"
        ) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateInUse(
                f"the state directory {directory} is in use by another process: every coordinator "
                "and every worker needs one of its own; is it running already?"
            ) from None
        yield
    finally:
        os.close(fd)


@contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """Give an event that is set when the process is asked to stop; needs the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def notify_service_manager(state: str) -> None:
    """Tell systemd, if it started us, as sd_notify(3) describes: `READY=1`, `STOPPING=1`."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
        try:
            to.connect(address)
            to.sendall(state.encode())
        except OSError as error:
            structlog.get_logger().warning("service_manager_not_told", why=str(error))


def version() -> str:
    """Return the version of this Baton."""
    from importlib.metadata import version as installed  # noqa: PLC0415 - slow, and asked once

    return installed("baton")
