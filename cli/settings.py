"""Whom a client command talks to, and as whom: flags, then environment, then the user's file.

`BATON_COORDINATORS`, `BATON_TLS` and `BATON_INSECURE` are the environment's names; the file is
`~/.config/baton/config.toml` with `coordinators`, `tls`, `insecure` and `allow_insecure_network`.
When none of them says how a coordinator on this machine is protected, and `baton up` of the same user
runs it, its certificates are used: `up` leaves word of them below `~/.local/state/baton/up/`.
"""

import contextlib
import getpass
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.exits import CommandFailed, Exit
from wire.address import parse_address
from wire.credentials import Credentials, Insecure, check_insecure, load_tls
from wire.identity import Identity, Role, is_label

DEFAULT_COORDINATOR = "127.0.0.1:7070"
DEFAULT_PORT = 7070
INSECURE_CLUSTER = "local"
"""The name that a cluster without certificates has."""

_KEYS = {
    "coordinators": (str, list),
    "tls": (str,),
    "insecure": (bool,),
    "allow_insecure_network": (bool,),
}


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line says; None is nothing."""

    coordinator: str | None = None
    tls: Path | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Where coordinators may be, and what to show them."""

    coordinators: tuple[str, ...]
    """HOST:PORT, in the order in which they were named."""
    credentials: Credentials


def resolve(flags: Flags, environment: Mapping[str, str]) -> ClientSettings:
    """Find out whom to ask, and as whom. Blocks on files.

    Raises `CommandFailed`, or a `WireError` for addresses and certificates that are not valid.
    """
    file = _user_file(environment)
    named = flags.coordinator or environment.get("BATON_COORDINATORS") or file.get("coordinators")
    texts = named if isinstance(named, list) else (named or DEFAULT_COORDINATOR).split(",")
    addresses = tuple(
        str(parse_address(str(text).strip(), default_port=DEFAULT_PORT)) for text in texts
    )
    tls, insecure = _protection(flags, environment, file)
    if tls is None and not insecure:
        tls = _left_by_up(addresses[0], environment)
    if tls is not None:
        return ClientSettings(addresses, load_tls(tls))
    if not insecure and not all(parse_address(address).is_loopback for address in addresses):
        raise CommandFailed(
            Exit.USAGE,
            f"{', '.join(addresses)}: say --tls DIR with your certificates (or BATON_TLS), "
            "or --insecure for a cluster without any",
        )
    allowed = bool(file.get("allow_insecure_network")) or _is_true(
        environment.get("BATON_ALLOW_INSECURE_NETWORK")
    )
    check_insecure(addresses, allowed=allowed)
    return ClientSettings(addresses, Insecure(Identity(INSECURE_CLUSTER, Role.OPERATOR, _me())))


def _protection(
    flags: Flags, environment: Mapping[str, str], file: Mapping[str, Any]
) -> tuple[Path | None, bool]:
    """Return the certificates' directory or whether to go without, from the first that says."""
    if flags.tls and flags.insecure:
        raise CommandFailed(Exit.USAGE, "--tls and --insecure: use one of them")
    if flags.tls or flags.insecure:
        return flags.tls, flags.insecure
    for tls, insecure, where in (
        (
            environment.get("BATON_TLS"),
            _is_true(environment.get("BATON_INSECURE")),
            "BATON_TLS and BATON_INSECURE",
        ),
        (file.get("tls"), bool(file.get("insecure")), "tls and insecure in the configuration"),
    ):
        if tls and insecure:
            raise CommandFailed(Exit.USAGE, f"{where}: use one of them")
        if tls or insecure:
            return (Path(tls).expanduser() if tls else None), insecure
    return None, False


@contextlib.contextmanager
def word_of_certificates(address: str, tls: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Let client commands of this user find `tls` for a coordinator here, until the block is left.

    Best effort: where it cannot be written, commands need `--tls`.
    """
    path = _word_at(address, environment)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(tls), encoding="utf-8")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            if path.read_text(encoding="utf-8") == str(tls):  # else another's by now
                path.unlink()


def _left_by_up(address: str, environment: Mapping[str, str]) -> Path | None:
    try:
        found = Path(_word_at(address, environment).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if (found / "cert.pem").exists() else None


def _word_at(address: str, environment: Mapping[str, str]) -> Path:
    home = environment.get("XDG_STATE_HOME") or f"{environment.get('HOME', '~')}/.local/state"
    return Path(home).expanduser() / "baton" / "up" / address.replace("/", "_")


def _user_file(environment: Mapping[str, str]) -> dict[str, Any]:
    home = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '~')}/.config"
    path = Path(home).expanduser() / "baton" / "config.toml"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CommandFailed(Exit.USAGE, f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CommandFailed(Exit.USAGE, f"{path} is not TOML: {error}") from error
    for key, value in found.items():
        if key not in _KEYS or not isinstance(value, _KEYS[key]):
            raise CommandFailed(
                Exit.USAGE,
                f"{path}: {key} = {value!r} is not understood: use {', '.join(_KEYS)}",
            )
    return found


def _is_true(text: str | None) -> bool:
    return (text or "").lower() in {"1", "true", "yes", "on"}


def _me() -> str:
    """Return the name of the user as far as a label can carry it."""
    try:
        name = re.sub(r"[^a-z0-9]+", "-", getpass.getuser().lower()).strip("-")[:63]
    except (KeyError, OSError):
        name = ""
    return name if is_label(name) and name != "any" else "operator"
