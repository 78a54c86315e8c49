"""From what a process was told to a configuration that is whole and checked.

Every wrong combination ends here, with exit code 2 and what would be right. Blocks on files
(certificates, the password file), at start only.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cli.exits import CommandFailed, Exit
from cli.settings import INSECURE_CLUSTER
from coordinator.config import CoordinatorConfig
from coordinator.etcd_config import EtcdConfig, EtcdTls
from coordinator.flapping import FlapLimits
from coordinator.keys import Keys
from coordinator.members import is_root_name
from coordinator.units import Duration
from wire.address import Address, parse_address
from wire.credentials import Credentials, Insecure, check_insecure, load_tls
from wire.identity import Identity, Role
from worker.config import DEFAULT_MAX_RUNS, WorkerConfig
from worker.roots import ExportedRoot
from worker.watching.state import WatchMode

ETCD_TOTAL_S = 6.0
"""How long a coordinator tries to reach etcd for one call: less than a client command waits for it, so
that the command can say what is wrong."""


_LONGEST_S = 86_400.0


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """How to reach etcd, as it was told."""

    urls: str | None
    """URL[,URL...]"""
    tls: Path | None = None
    user: str | None = None
    password_file: Path | None = None


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """What both kinds of processes are told."""

    name: str | None
    listen: str
    http: str | None
    state: Path | None
    tls: Path | None
    insecure: bool
    allow_insecure_network: bool
    advertise: str | None
    etcd: EtcdOptions
    max_runs: int | None = None


@dataclass(frozen=True, slots=True)
class TakeoverOptions:
    """How a coordinator takes jobs over, as it was told."""

    flap_losses: int = 3
    flap_within: str = "10m"
    hold_down: str = "5m"
    claims_per_second: int = 4000


def coordinator_config(
    options: ProcessOptions, prefix: str, takeover: TakeoverOptions
) -> CoordinatorConfig:
    """Check what a coordinator was told.

    Raises `CommandFailed`, or a `WireError`, `BadConfig` or `BadKey` that says what is wrong.
    """
    if options.http is None:
        raise _wrong("--http", "HOST:PORT is needed, for example 127.0.0.1:7080")
    _check_listeners(options)
    etcd = _etcd_config(options.etcd)
    if etcd is None:
        raise _wrong("--etcd", "URL[,URL...] is needed, for example http://127.0.0.1:2379")
    credentials = _credentials(Role.COORDINATOR, options)
    return CoordinatorConfig(
        name=credentials.identity.name,
        etcd=etcd,
        listen=options.listen,
        http=options.http,
        state=_state(options),
        credentials=credentials,
        advertise=_advertise(options),
        flaps=_flaps(takeover),
        claims_per_s=_claims_per_s(takeover),
        max_runs=_max_runs(options),
        prefix=Keys(prefix).prefix,
    )


def worker_config(
    options: ProcessOptions, roots: Sequence[str], group: str | None, modes: Sequence[str] = ()
) -> WorkerConfig:
    """Check what a worker was told. Raises as `coordinator_config` does."""
    _check_listeners(options)
    etcd = _etcd_config(options.etcd)
    if group is not None and etcd is None:
        raise _wrong("--group", "a member of a group needs --etcd URL[,URL...] too")
    if group is None and etcd is not None:
        raise _wrong("--etcd", "a worker uses etcd only as a member of a group: say --group NAME")
    credentials = _credentials(Role.WORKER, options)
    if group is not None:
        credentials.identity.colleague(Role.WORKER, group)  # a group is named like a worker
    state = _state(options)
    return WorkerConfig(
        name=credentials.identity.name,
        listen=options.listen,
        roots=with_modes(read_roots(roots, state), modes),
        state=state,
        credentials=credentials,
        http=options.http,
        advertise=_advertise(options),
        group=group,
        etcd=etcd,
        max_runs=_max_runs(options) or DEFAULT_MAX_RUNS,
    )


def _wrong(option: str, what: str) -> CommandFailed:
    return CommandFailed(Exit.USAGE, f"{option}: {what}")


def _flaps(takeover: TakeoverOptions) -> FlapLimits:
    if takeover.flap_losses < 0:
        raise _wrong("--flap-losses", f"{takeover.flap_losses}: use 0 for never, or 1 and more")
    within_s = _time("--flap-within", takeover.flap_within)
    return FlapLimits(takeover.flap_losses, within_s, _time("--hold-down", takeover.hold_down))


def _time(option: str, text: str) -> float:
    try:
        seconds = Duration.parse(text).seconds
    except ValueError as error:
        raise _wrong(option, str(error)) from error
    if not 1 <= seconds <= _LONGEST_S:
        raise _wrong(option, f"{text}: use 1s to 24h")
    return seconds


def _claims_per_s(takeover: TakeoverOptions) -> float:
    if takeover.claims_per_second < 1:
        raise _wrong(
            "--claims-per-second", f"{takeover.claims_per_second} would take no job: use 1 or more"
        )
    return float(takeover.claims_per_second)


def _max_runs(options: ProcessOptions) -> int | None:
    if options.max_runs is not None and options.max_runs < 1:
        raise _wrong(
            "--max-runs",
            f"{options.max_runs} would let nothing run: use 1 or more, or leave it out",
        )
    return options.max_runs


def _state(options: ProcessOptions) -> Path:
    if options.state is None:
        raise _wrong("--state", "a directory of this process alone is needed")
    if options.state.exists() and not options.state.is_dir():
        raise _wrong("--state", f"{options.state} is no directory")
    return options.state.absolute()


def _check_listeners(options: ProcessOptions) -> None:
    listen = parse_address(options.listen)
    if options.http is not None:
        http = parse_address(options.http)
        if http == listen and http.port:
            raise _wrong("--http", f"{options.http} is what --listen says: use another port")
    if options.advertise is not None and parse_address(options.advertise).port == 0:
        raise _wrong("--advertise", f"{options.advertise} names no port that others can call")


def _advertise(options: ProcessOptions) -> str:
    """Return where others reach us; listening everywhere, that is by this machine's name."""
    if options.advertise is not None:
        return options.advertise
    listen = parse_address(options.listen)
    if listen.host in {"0.0.0.0", "::"}:  # noqa: S104  (read, not bound)
        return str(Address(socket.gethostname(), listen.port))
    return ""


def _credentials(role: Role, options: ProcessOptions) -> Credentials:
    if options.tls is not None and options.insecure:
        raise _wrong("--tls", "and --insecure exclude each other: use one of them")
    if options.tls is not None:
        tls = load_tls(options.tls)
        expected = tls.identity.colleague(role, options.name or tls.identity.name)
        if tls.identity != expected:
            raise _wrong("--tls", f"{options.tls} is for {tls.identity}, and this is {expected}")
        return tls
    if options.name is None:
        raise _wrong("--name", "is needed: a DNS label that no other process has")
    addresses = [
        text for text in (options.listen, options.http, options.advertise) if text is not None
    ]
    if not options.insecure and not all(parse_address(text).is_loopback for text in addresses):
        raise _wrong(
            "--tls",
            f"DIR is needed, since {', '.join(addresses)} is not all on the loopback; "
            "make one with 'baton ca issue' (or say --insecure and allow_insecure_network)",
        )
    check_insecure(addresses, allowed=options.allow_insecure_network)
    return Insecure(Identity(INSECURE_CLUSTER, role, options.name))


def _etcd_config(options: EtcdOptions) -> EtcdConfig | None:
    if options.urls is None:
        if options.tls or options.user or options.password_file:
            raise _wrong("--etcd", "is needed when --etcd-tls, --etcd-user or its password is said")
        return None
    password = None
    if options.password_file is not None:
        password = _read(options.password_file, "--etcd-password-file").decode().rstrip("\r\n")
    tls = None
    if options.tls is not None:
        ca = _read(options.tls / "ca.pem", "--etcd-tls")
        with_certificate = (options.tls / "cert.pem").exists()
        tls = EtcdTls(
            ca,
            _read(options.tls / "cert.pem", "--etcd-tls") if with_certificate else None,
            _read(options.tls / "key.pem", "--etcd-tls") if with_certificate else None,
        )
    urls = tuple(url.strip() for url in options.urls.split(",") if url.strip())
    return EtcdConfig(urls, tls, options.user, password, total_s=ETCD_TOTAL_S)


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _wrong(option, f"cannot read {path}: {error.strerror}") from error


def read_roots(texts: Sequence[str], state: Path) -> tuple[ExportedRoot, ...]:
    """Read NAME=PATH[:ro], at least one; raises `CommandFailed` when they do not fit together."""
    roots = tuple(_root(text) for text in texts)
    _check_roots(roots, state)
    return roots


def with_modes(roots: Sequence[ExportedRoot], texts: Sequence[str]) -> tuple[ExportedRoot, ...]:
    """Read NAME=MODE, how roots are watched; raises `CommandFailed` for other words and names."""
    modes: dict[str, WatchMode] = {}
    names = [root.name for root in roots]
    for text in texts:
        name, _, mode = text.partition("=")
        if name not in names:
            raise _wrong("--watch", f"{text!r}: there is no root {name!r}: use {', '.join(names)}")
        if mode not in set(WatchMode):
            raise _wrong("--watch", f"{text!r}: use NAME=auto, NAME=always or NAME=never")
        modes[name] = WatchMode(mode)
    return tuple(replace(root, watch=modes.get(root.name, root.watch)) for root in roots)


def _root(text: str) -> ExportedRoot:
    name, equals, path = text.partition("=")
    if not (equals and path):
        raise _wrong("--root", f"{text!r}: use NAME=PATH or NAME=PATH:ro")
    if not is_root_name(name):
        raise _wrong("--root", f"{name!r} is no name: use letters, digits, '.', '_' and '-'")
    read_only = path.endswith(":ro")
    return ExportedRoot(name, Path(path.removesuffix(":ro")).absolute(), read_only)


def _check_roots(roots: Sequence[ExportedRoot], state: Path) -> None:
    if not roots:
        raise _wrong("--root", "NAME=PATH is needed, at least one")
    real_state = state.resolve()
    seen: list[tuple[ExportedRoot, Path]] = []
    for root in roots:
        real = root.path.resolve()
        if real_state.is_relative_to(real):
            raise _wrong("--state", f"{state} lies in root {root.name}: keep it outside of all")
        for other, path in seen:
            if other.name == root.name:
                raise _wrong("--root", f"{root.name} is said twice: give each its own name")
            if real.is_relative_to(path) or path.is_relative_to(real):
                raise _wrong("--root", f"{root.name} and {other.name} overlap: export one of them")
        seen.append((root, real))
