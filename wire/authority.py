"""A cluster's own certificate authority: a directory with `ca.pem` and `ca.key`.

It makes the certificates that every process of a cluster and every operator shows. One certificate
carries exactly one URI (the identity), the DNS name made from it, for coordinators the name of the
role too, and the host names or IP addresses it is asked to carry. Blocks on files; no network.
"""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wire.errors import AuthorityInvalid, IdentityInvalid
from wire.identity import SUFFIX, Identity, Role, is_label, role_dns

CA_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=730)
_BACKDATED = timedelta(minutes=5)  # clocks of a cluster differ; a new certificate is valid at once


@dataclass(frozen=True, slots=True)
class Issued:
    """What `issue` wrote, for messages."""

    identity: Identity
    directory: Path
    not_after: datetime


def init_ca(directory: Path, cluster: str, *, now: datetime | None = None) -> Path:
    """Make the authority of `cluster` in `directory`; return the path of its certificate.

    Raises `AuthorityInvalid` when one is there already: a second one would void every certificate
    that the first has issued, so it is never replaced.
    """
    if not is_label(cluster):
        raise IdentityInvalid(
            f"cluster {cluster!r} is not a DNS label: use 1 to 63 of a-z, 0-9 and '-'"
        )
    key_path, cert_path = directory / "ca.key", directory / "ca.pem"
    for path in (key_path, cert_path):
        if path.exists():
            raise AuthorityInvalid(
                f"{path} is there already: choose another directory, or move this authority away "
                "if all its certificates may become void"
            )
    now = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Baton cluster {cluster}"[:64])])
    builder = _builder(name, name, key.public_key(), now, CA_LIFE)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{cluster}")]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    _make_directory(directory)
    _write(key_path, _key_pem(key), mode=0o600)
    _write(cert_path, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return cert_path


def issue(
    ca_directory: Path,
    role: Role,
    name: str,
    out: Path,
    *,
    hosts: Sequence[str] = (),
    replace: bool = False,
    now: datetime | None = None,
) -> Issued:
    """Write `key.pem`, `cert.pem` and `ca.pem` for one member into `out`, good for `--tls`.

    `hosts` are further host names or IP addresses to carry. Raises `AuthorityInvalid` when the
    authority cannot be read, when a host is none, or when `out` has a key and `replace` is not set.
    """
    authority = _read_authority(ca_directory)
    identity = Identity(authority.cluster, role, name)
    if not replace and (out / "key.pem").exists():
        raise AuthorityInvalid(
            f"{out / 'key.pem'} is there already: choose another directory, or say --replace"
        )
    now = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer = authority.certificate.subject
    leaf_end = min(now + LEAF_LIFE, authority.certificate.not_valid_after_utc)
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(subject, issuer, key.public_key(), now, leaf_end - now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
        .add_extension(_names_of(identity, hosts), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    _make_directory(out)
    # CRASH: between the two writes key and certificate do not fit; whoever loads them says so, and
    # issuing again mends it.
    _write(out / "key.pem", _key_pem(key), mode=0o600)
    _write(out / "cert.pem", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    ca_pem = authority.certificate.public_bytes(serialization.Encoding.PEM)
    _write(out / "ca.pem", ca_pem, mode=0o644)
    return Issued(identity, out, certificate.not_valid_after_utc)


@dataclass(frozen=True, slots=True)
class _Authority:
    cluster: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def _read_authority(directory: Path) -> _Authority:
    try:
        certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except OSError as error:
        raise AuthorityInvalid(
            f"no certificate authority in {directory} ({error.strerror}): "
            "make one with 'baton ca init CADIR --cluster NAME'"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise AuthorityInvalid(
            f"{directory} holds no certificate authority of 'baton ca init': {error}"
        ) from error
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    cluster = uris[0].removeprefix("spiffe://") if len(uris) == 1 else ""
    if not is_label(cluster) or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityInvalid(f"{directory} holds no certificate authority of 'baton ca init'")
    if key.public_key() != certificate.public_key():
        raise AuthorityInvalid(f"ca.key in {directory} is not the key of ca.pem beside it")
    return _Authority(cluster, certificate, key)


def _names_of(identity: Identity, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(identity.uri),
        x509.DNSName(identity.dns),
    ]
    if identity.role is Role.COORDINATOR:
        names.append(x509.DNSName(role_dns(identity.cluster, identity.role)))
    return x509.SubjectAlternativeName([*names, *(_host_name(host) for host in hosts)])


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.lower().rstrip(".").split(".")
    if not all(is_label(label) for label in labels):
        raise AuthorityInvalid(
            f"--host {host!r} is neither a host name nor an IP address (no wildcards, no port)"
        )
    if labels[-1] == SUFFIX:
        # INVARIANT: names below .baton say who somebody is, so only identities make them.
        raise AuthorityInvalid(f"--host {host!r}: names that end in .{SUFFIX} are identities")
    return x509.DNSName(".".join(labels))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AuthorityInvalid(f"cannot make {directory}: {error.strerror}") from error


def _write(path: Path, content: bytes, *, mode: int) -> None:
    """Put a whole file in place; a key is never readable by others, not even for a moment."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(temporary, flags, mode), "wb") as file:  # noqa: PTH123  (a descriptor)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise AuthorityInvalid(f"cannot write {path}: {error.strerror}") from error
