import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from tests.wire.conftest import Cluster
from wire.authority import init_ca, issue
from wire.credentials import load_tls
from wire.errors import AuthorityInvalid, CredentialsInvalid, IdentityInvalid
from wire.identity import Identity, Role


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_for_their_owner_only(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "w1"
    issue(cluster.ca, Role.WORKER, "w1", out)
    assert mode(cluster.ca / "ca.key") == 0o600
    assert mode(out / "key.pem") == 0o600
    assert sorted(path.name for path in out.iterdir()) == ["ca.pem", "cert.pem", "key.pem"]


def test_what_is_issued_proves_its_identity(cluster: Cluster) -> None:
    assert cluster.tls(Role.WORKER, "w1").identity == Identity("prod", Role.WORKER, "w1")


def test_hosts_are_carried_beside_the_identity(cluster: Cluster, tmp_path: Path) -> None:
    issue(cluster.ca, Role.COORDINATOR, "c1", tmp_path / "c1", hosts=["c1.lan", "10.0.0.1", "::1"])
    certificate = x509.load_pem_x509_certificate((tmp_path / "c1/cert.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        "c1.coordinator.prod.baton",
        "any.coordinator.prod.baton",
        "c1.lan",
    ]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://prod/coordinator/c1"
    ]


@pytest.mark.parametrize(
    "host", ["any.coordinator.prod.baton", "w2.worker.prod.BATON.", "*.lan", "a b", "", "h:1"]
)
def test_no_host_can_pass_for_an_identity_or_a_pattern(
    cluster: Cluster, tmp_path: Path, host: str
) -> None:
    with pytest.raises(AuthorityInvalid, match="--host"):
        issue(cluster.ca, Role.WORKER, "w1", tmp_path / "w1", hosts=[host])
    assert not (tmp_path / "w1").exists()


def test_an_authority_is_never_replaced(cluster: Cluster) -> None:
    before = (cluster.ca / "ca.key").read_bytes()
    with pytest.raises(AuthorityInvalid, match="there already"):
        init_ca(cluster.ca, "prod")
    assert (cluster.ca / "ca.key").read_bytes() == before


def test_a_key_is_replaced_only_on_demand(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "w1"
    issue(cluster.ca, Role.WORKER, "w1", out)
    before = (out / "key.pem").read_bytes()
    with pytest.raises(AuthorityInvalid, match="--replace"):
        issue(cluster.ca, Role.WORKER, "w1", out)
    assert (out / "key.pem").read_bytes() == before
    issue(cluster.ca, Role.WORKER, "w1", out, replace=True)
    assert (out / "key.pem").read_bytes() != before
    assert load_tls(out).identity.name == "w1"


def test_without_an_authority_the_message_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(AuthorityInvalid, match="baton ca init"):
        issue(tmp_path / "none", Role.WORKER, "w1", tmp_path / "out")


@pytest.mark.parametrize("name", ["W1", "w_1", "any", ""])
def test_a_name_that_is_no_label_gets_no_certificate(
    cluster: Cluster, tmp_path: Path, name: str
) -> None:
    with pytest.raises(IdentityInvalid):
        issue(cluster.ca, Role.WORKER, name, tmp_path / "out")


def test_an_expired_certificate_is_refused_where_it_is_loaded(
    cluster: Cluster, tmp_path: Path
) -> None:
    issue(
        cluster.ca, Role.WORKER, "w1", tmp_path / "w1", now=datetime.now(UTC) - timedelta(days=731)
    )
    with pytest.raises(CredentialsInvalid, match="expired"):
        load_tls(tmp_path / "w1")


def test_a_certificate_of_tomorrow_asks_about_the_clock(cluster: Cluster, tmp_path: Path) -> None:
    issue(cluster.ca, Role.WORKER, "w1", tmp_path / "w1", now=datetime.now(UTC) + timedelta(days=1))
    with pytest.raises(CredentialsInvalid, match="clock"):
        load_tls(tmp_path / "w1")


def test_a_key_that_others_can_read_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    issue(cluster.ca, Role.WORKER, "w1", tmp_path / "w1")
    (tmp_path / "w1/key.pem").chmod(0o644)
    with pytest.raises(CredentialsInvalid, match="chmod 600"):
        load_tls(tmp_path / "w1")


def test_parts_that_do_not_fit_together_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    other = Cluster(tmp_path / "other")
    for name in ("w1", "w2"):
        issue(cluster.ca, Role.WORKER, name, tmp_path / name)
    (tmp_path / "w1/ca.pem").write_bytes((other.ca / "ca.pem").read_bytes())
    with pytest.raises(CredentialsInvalid, match="not issued by"):
        load_tls(tmp_path / "w1")
    (tmp_path / "w2/cert.pem").write_bytes((tmp_path / "w1/cert.pem").read_bytes())
    with pytest.raises(CredentialsInvalid, match="not the key"):
        load_tls(tmp_path / "w2")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CredentialsInvalid, match=r"ca\.pem.*baton ca issue"):
        load_tls(tmp_path)
