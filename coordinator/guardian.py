"""The guardian: the tiny parent of a coordinator, which sees it end or hang and frees its jobs at once.

It starts the coordinator proper as its only child, passes signals on, and learns over a socket which
leases it has. When the child ends without giving them back, or its event loop misses its beats, the
guardian kills what is left of it and revokes the leases at etcd, so that the others claim without
waiting for the TTL. It restarts nothing: it ends with its child, and a service manager sees that.

Imports almost nothing (no dataclasses, no typing, no pathlib), so that it stays small, and asks for no
memory once its child is in trouble. `guardian_link.py` is the other end.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time

from coordinator.bare_etcd import BareEtcd, EtcdRefused, EtcdSilent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ssl import SSLContext
    from typing import Any

LINK = "BATON_GUARDIAN_LINK"
"""The environment variable with the descriptor of the child's end."""
BEAT = b"."
BEAT_S = 0.1
"""How often the child's event loop says that it turns."""
HUNG_S = 1.2
"""Silence after which a child that does not even want the processor counts as hung."""
_BUSY_SHARE = 0.3
"""What a second of silence counts that the child computed in."""
_COMPUTES = 0.2
"""Share of a moment from which on a child computes, maybe in a thread that keeps its loop waiting."""
_AT_WORK = ("R", "D")
"""A main thread that runs, or would at its turn, or that waits for a disk, where it cannot be ended."""
_LONGEST_MOMENT_S = 2 * BEAT_S
"""A longer pause between two looks was ours: the machine slept, or we were stopped."""
_LEAVING_S = 10.0
"""How long a child that has given its leases back may take to end."""
_DEATH_S = 1.0
_ATTEMPT_S = 0.5
_AGAIN_S = 0.1
_MESSAGE_BYTES = 1 << 18
_PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGTERM,
}
_SCORE_STEP = 100
_TICKS = os.sysconf("SC_CLK_TCK")
_MCL_CURRENT_ON_FAULT = 1 | 4
"""mlock2(2): what is in memory now stays there, what is mapped and was never used costs nothing."""


class Silence:
    """How long a child has been silent, counted in moments that the guardian saw itself."""

    __slots__ = ("counted_s", "is_armed")

    def __init__(self) -> None:
        """Expect nothing before the first beat: loading its code, a process has no event loop yet."""
        self.is_armed = False
        self.counted_s = 0.0

    def beat(self) -> None:
        """The event loop turns."""
        self.is_armed = True
        self.counted_s = 0.0

    def disarm(self) -> None:
        """The event loop is about to end."""
        self.is_armed = False
        self.counted_s = 0.0

    def pass_by(self, moment_s: float, *, computed_s: float, is_ready: bool) -> bool:
        """Count a moment without a beat; say whether the child has hung.

        Of a child that is at work only what it computed counts: on a loaded machine it waits for its
        turn, or for its pages, most of the time. `is_ready`: its main thread is `_AT_WORK`.
        """
        moment_s = min(moment_s, _LONGEST_MOMENT_S)
        if is_ready or computed_s >= _COMPUTES * moment_s:
            self.counted_s += _BUSY_SHARE * min(computed_s, moment_s)
        else:
            self.counted_s += moment_s
        return self.is_armed and self.counted_s >= HUNG_S


class _Child:
    """What the guardian knows of its child."""

    def __init__(self, pid: int, link: socket.socket) -> None:
        """Know nothing yet."""
        self.pid = pid
        self.link = link
        self.silence = Silence()
        self.name = ""
        self.etcd: BareEtcd | None = None
        self.leases: dict[int, float] = {}
        """By id the TTL in seconds."""
        self.serving: tuple[str, int] | None = None
        """The member of etcd that it talked to last."""
        self.leaving_since: float | None = None
        self._computed_s = 0.0

    def hear(self) -> bool:
        """Take in everything that it has said; say whether it may say more."""
        while True:
            try:
                message = self.link.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not message:
                return False
            if message == BEAT:
                self.silence.beat()
            else:
                self._learn(json.loads(message))

    def _learn(self, told: dict[str, Any]) -> None:
        self.name = told.get("name", self.name)
        if "etcd" in told:
            self.etcd = etcd_of(told["etcd"])
        if "leases" in told:
            self.leases = {int(lease_id): ttl_s for lease_id, ttl_s in told["leases"]}
            self.serving = tuple(told["serving"]) if told["serving"] else None
        if "notify" in told:
            _notify(told["notify"])
        if told.get("leaving"):
            self.silence.disarm()
            self.leaving_since = _now()

    def has_hung(self, moment_s: float) -> bool:
        """Say whether it must be killed, `moment_s` after the last look."""
        if self.leaving_since is not None:
            return _now() - self.leaving_since > _LEAVING_S
        state, computed_s = _work(self.pid)
        before_s, self._computed_s = self._computed_s, computed_s
        is_ready = state in _AT_WORK
        return self.silence.pass_by(moment_s, computed_s=computed_s - before_s, is_ready=is_ready)


def guard(command: list[str]) -> int:
    """Start a coordinator by its command line and watch over it to its end; return the exit status.

    That is the child's own, or 128 and the number of the signal that ended it. Belongs to the main
    thread of a process that has no other children.
    """
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakes)
    for number in _PASSED_ON:
        signal.signal(number, lambda *_: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    os.set_inheritable(theirs.fileno(), True)
    environment = {**os.environ, LINK: str(theirs.fileno())}
    environment.pop("NOTIFY_SOCKET", None)  # the service manager believes its direct child only
    pid = os.posix_spawn(command[0], command, environment, setpgroup=0)
    theirs.close()
    _outlive(pid)
    child = _Child(pid, ours)
    ended = os.pidfd_open(pid)
    if not _watch(child, ended, woken):
        _say(child, "child_hung", "error", pid=pid, silent_s=round(child.silence.counted_s, 2))
        os.killpg(pid, signal.SIGKILL)
        select.select([ended], [], [], _DEATH_S)  # later it gives no orders that a worker takes
    child.hear()
    _free(child, woken)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _watch(child: _Child, ended: int, woken: int) -> bool:
    """Wait until the child has ended, which is True, or has hung."""
    poll = select.poll()
    for one in (child.link.fileno(), ended, woken):
        poll.register(one, select.POLLIN)
    looked = _now()
    is_locked = False
    while True:
        ready = [one for one, _ in poll.poll(BEAT_S * 1000)]
        if ended in ready:
            return True
        if woken in ready:
            for number in os.read(woken, 64):
                os.kill(child.pid, _PASSED_ON.get(signal.Signals(number), number))
        if child.link.fileno() in ready and not child.hear():
            poll.unregister(child.link)
        now = _now()
        if child.has_hung(now - looked):
            return False
        looked = now
        if child.silence.is_armed and not is_locked:
            is_locked = True
            _lock_memory()


def _free(child: _Child, woken: int) -> None:
    """Revoke the leases that the child still had, as long as they do not expire by themselves.

    Asked to stop, it tries every member once more at most.
    """
    if child.etcd is None or not child.leases:
        return
    began = _now()
    _say(child, "child_gone", "error", pid=child.pid, leases=len(child.leases))
    addresses = [one for one in child.etcd.addresses if one != child.serving]
    if child.serving is not None:
        addresses.insert(0, child.serving)
    left = dict(child.leases)
    said = ""
    while left:
        for address in addresses:
            said = _revoke_at(child, child.etcd, left, address)
            if not left:
                _say(child, "leases_revoked", "info", took_s=round(_now() - began, 3))
                return
        left = {one: ttl_s for one, ttl_s in left.items() if _now() - began < ttl_s}
        if left and select.select([woken], [], [], _AGAIN_S)[0]:
            break
    _say(child, "leases_not_revoked", "error", why=said, then="they expire by themselves")


def _revoke_at(
    child: _Child, etcd: BareEtcd, left: dict[int, float], address: tuple[str, int]
) -> str:
    """Revoke at one member what is left; return what it said when it gave no answer."""
    for lease_id in list(left):
        try:
            etcd.revoke(lease_id, address, _ATTEMPT_S)
        except EtcdSilent as silent:
            return str(silent)
        except EtcdRefused as refused:
            _say(child, "lease_not_revoked", "warning", lease=f"{lease_id:x}", why=str(refused))
        del left[lease_id]
    return ""


def etcd_of(told: dict[str, Any]) -> BareEtcd:
    """Return the etcd that a child described."""
    tls = None
    if told["ca"] is not None:
        import ssl  # noqa: PLC0415 - 5 MB that only https needs

        tls = ssl.create_default_context(cadata=told["ca"])
        tls.set_alpn_protocols(["h2"])
        if told["cert"] is not None:
            _load_certificate(tls, told["cert"] + "\n" + told["key"])
    addresses = tuple((host, int(port)) for host, port in told["addresses"])
    return BareEtcd(addresses, tls, told["user"], told["password"])


def _load_certificate(tls: SSLContext, pem: str) -> None:
    """Give a context a certificate and its key, which it takes from files only."""
    fd = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem.encode())
        tls.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _outlive(pid: int) -> None:
    """Have the kernel take the child, and not us, when memory runs out."""
    ours, theirs = "/proc/self/oom_score_adj", f"/proc/{pid}/oom_score_adj"
    try:
        score = int(_read(ours))
        try:
            _write(ours, max(-999, score - 5 * _SCORE_STEP))
        except OSError:  # lowering it takes a privilege, raising the child's does not
            _write(theirs, min(1000, score + _SCORE_STEP))
    except OSError:
        return


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 512)
    finally:
        os.close(fd)


def _write(path: str, number: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(number).encode())
    finally:
        os.close(fd)


def _lock_memory() -> None:
    """Stay in memory when others are swapped out, where the limit on locked memory lets us."""
    import ctypes  # noqa: PLC0415 - once, and before anything is wrong

    ctypes.CDLL(None).mlockall(_MCL_CURRENT_ON_FAULT)


def _work(pid: int) -> tuple[str, float]:
    """Return the state of a process's main thread, a letter of proc(5).

    And the seconds of processor time that all of its threads have used so far.
    """
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        return fields[0].decode(), (int(fields[11]) + int(fields[12])) / _TICKS
    except (OSError, IndexError):
        return "", 0.0


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _notify(state: str) -> None:
    """Tell the service manager, if there is one, as sd_notify(3) describes."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        try:
            to.connect("\0" + address[1:] if address.startswith("@") else address)
            to.send(state.encode())
        except OSError as error:
            sys.stderr.write(f"guardian: the service manager was not told: {error}\n")


def _say(child: _Child, event: str, level: str, **more: object) -> None:
    """Write an event like those of the child: JSON, or text when it is a terminal that reads it."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds // 1000:06}Z"
    if sys.stderr.isatty():
        text = f"{at} [{level}] {event} " + " ".join(
            f"{key}={value}" for key, value in more.items()
        )
    else:
        fields = {"coordinator": child.name, **more, "event": event, "level": level, "time": at}
        text = json.dumps(fields)
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        return
