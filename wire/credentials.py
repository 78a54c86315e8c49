"""What a process shows to prove who it is, and what it trusts: certificates, or nothing.

`Tls` is the form for everything that others can reach. `Insecure` merely claims an identity, and
`check_insecure` refuses it wherever an address is not on the loopback. Blocks on files, at start.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from wire.address import parse_address
from wire.errors import CredentialsInvalid, IdentityInvalid, InsecureRefused
from wire.identity import Identity, parse_uri

_HOW = "make one with 'baton ca issue CADIR ROLE NAME --out DIR'"


@dataclass(frozen=True, slots=True)
class Tls:
    """A key, its certificate and the authorities it trusts, as PEM, and the identity they prove."""

    identity: Identity
    not_after: datetime
    ca_pem: bytes = field(repr=False)
    cert_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Insecure:
    """A mere claim, good on the loopback only."""

    identity: Identity


Credentials = Tls | Insecure


def load_tls(directory: Path, *, now: datetime | None = None) -> Tls:
    """Read `ca.pem`, `cert.pem` and `key.pem` of a directory and check that they prove an identity.

    Raises `CredentialsInvalid` when a file is missing or unreadable, when the key can be read by
    others or is not the certificate's, when the certificate is not of that authority, is not valid
    at this time, or carries not exactly one identity.
    """
    ca_pem, cert_pem = (_read(directory, name) for name in ("ca.pem", "cert.pem"))
    key_pem = _read_key(directory)
    try:
        authorities = x509.load_pem_x509_certificates(ca_pem)
        chain = x509.load_pem_x509_certificates(cert_pem)
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CredentialsInvalid(
            f"{directory}: ca.pem, cert.pem or key.pem is no PEM without a password: {error}"
        ) from error
    leaf = chain[0]
    if key.public_key() != leaf.public_key():
        raise CredentialsInvalid(f"{directory}: key.pem is not the key of cert.pem")
    _check_issued(directory, chain, authorities)
    _check_times(directory, leaf, now or datetime.now(UTC))
    identity = _identity_of(directory, leaf)
    return Tls(identity, leaf.not_valid_after_utc, ca_pem, cert_pem, key_pem)


def check_insecure(addresses: Iterable[str], *, allowed: bool) -> None:
    """Refuse to work without certificates where others can listen in.

    `addresses` are HOST:PORT, listened on or called; `allowed` is the configuration's
    `allow_insecure_network`. Raises `InsecureRefused`, or `AddressInvalid`.
    """
    for text in addresses:
        if not parse_address(text).is_loopback and not allowed:
            raise InsecureRefused(
                f"--insecure is for the loopback, and {text} can be reached by others: "
                "use --tls DIR, or set allow_insecure_network in the configuration"
            )


def _read(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise CredentialsInvalid(
            f"cannot read {directory / name} ({error.strerror}): {_HOW}"
        ) from error


def _read_key(directory: Path) -> bytes:
    path = directory / "key.pem"
    key = _read(directory, "key.pem")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IWGRP | stat.S_IRWXO):
        raise CredentialsInvalid(
            f"{path} can be read or changed by others (mode {mode:o}): chmod 600 {path}"
        )
    return key


def _check_issued(
    directory: Path, chain: list[x509.Certificate], authorities: list[x509.Certificate]
) -> None:
    """Check each certificate against the next of the chain, the last against the authorities."""
    for below, above in pairwise(chain):
        if not _issued(below, above):
            raise CredentialsInvalid(f"{directory}: cert.pem is no chain, each issued by the next")
    if not any(_issued(chain[-1], authority) for authority in authorities):
        raise CredentialsInvalid(
            f"{directory}: cert.pem was not issued by the authority in ca.pem beside it"
        )


def _issued(below: x509.Certificate, above: x509.Certificate) -> bool:
    try:
        below.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_times(directory: Path, leaf: x509.Certificate, now: datetime) -> None:
    if now > leaf.not_valid_after_utc:
        raise CredentialsInvalid(
            f"{directory}: cert.pem has expired on {leaf.not_valid_after_utc.isoformat()}: "
            "issue it again with --replace"
        )
    if now < leaf.not_valid_before_utc:
        raise CredentialsInvalid(
            f"{directory}: cert.pem is valid only from {leaf.not_valid_before_utc.isoformat()}: "
            "is this machine's clock right?"
        )


def _identity_of(directory: Path, leaf: x509.Certificate) -> Identity:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise CredentialsInvalid(f"{directory}: cert.pem carries no identity: {_HOW}") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise CredentialsInvalid(
            f"{directory}: cert.pem carries {len(uris)} URIs instead of one identity: {_HOW}"
        )
    try:
        identity = parse_uri(uris[0])
    except IdentityInvalid as error:
        raise CredentialsInvalid(f"{directory}: cert.pem: {error}: {_HOW}") from error
    if identity.dns not in names.get_values_for_type(x509.DNSName):
        raise CredentialsInvalid(
            f"{directory}: cert.pem lacks the DNS name {identity.dns} that others demand: {_HOW}"
        )
    return identity
