"""The matrix of who may talk to whom, with real servers on the loopback."""

import datetime as dt
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.wire.conftest import Cluster, ask, serve
from wire.authority import issue
from wire.channel import bind, check_insecure, make_server, open_channel
from wire.credentials import Insecure, Tls, load_tls
from wire.errors import (
    AddressInUse,
    BindFailed,
    CredentialsInvalid,
    IdentityInvalid,
    InsecureRefused,
)
from wire.identity import Identity, Role

LOCAL = Insecure(Identity("local", Role.OPERATOR, "cli"))


def forge(ca: Path, out: Path, uris: list[str], dns: list[str], **options: Any) -> Tls:
    """Sign what `issue` never would, with the cluster's own authority."""
    ca_key: Any = serialization.load_pem_private_key((ca / "ca.key").read_bytes(), None)
    authority = x509.load_pem_x509_certificate((ca / "ca.pem").read_bytes())
    now = dt.datetime.now(dt.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.UniformResourceIdentifier(uri) for uri in uris] + [x509.DNSName(d) for d in dns]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=9))
        .not_valid_after(now + options.get("life", dt.timedelta(days=9)))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage(
                options.get(
                    "purposes", [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                )
            ),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )
    out.mkdir()
    pem = serialization.Encoding.PEM
    cert_pem = certificate.public_bytes(pem)
    key_pem = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (out / "cert.pem").write_bytes(cert_pem)
    (out / "key.pem").write_bytes(key_pem)
    (out / "key.pem").chmod(0o600)
    (out / "ca.pem").write_bytes((ca / "ca.pem").read_bytes())
    claimed = Identity("prod", Role.WORKER, "forged")
    return Tls(claimed, now, (ca / "ca.pem").read_bytes(), cert_pem, key_pem)


async def refused(address: str, credentials: Any, expect: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(address, credentials, expect)
    return caught.value


@pytest.mark.parametrize("data", [False, True])
async def test_tls_names_both_sides(cluster: Cluster, data: bool) -> None:
    worker = cluster.tls(Role.WORKER, "w1")
    async with serve(worker) as address:
        mine = cluster.tls(Role.COORDINATOR, "c1")
        for expect in (worker.identity, (Role.WORKER, "w1")):
            assert await ask(address, mine, expect, data=data) == "coordinator/c1"


async def test_any_coordinator_is_good_for_a_client_that_knows_no_name(cluster: Cluster) -> None:
    operator = cluster.tls(Role.OPERATOR, "ann")
    async with serve(cluster.tls(Role.COORDINATOR, "c7")) as address:
        assert await ask(address, operator, Role.COORDINATOR) == "operator/ann"
    async with serve(cluster.tls(Role.WORKER, "w1")) as address:
        error = await refused(address, operator, Role.COORDINATOR)
        assert "Hostname" in str(error.details())


async def test_another_name_or_role_is_not_talked_to(cluster: Cluster) -> None:
    mine = cluster.tls(Role.COORDINATOR, "c1")
    async with serve(cluster.tls(Role.WORKER, "w1")) as address:
        for expect in ((Role.WORKER, "w2"), (Role.COORDINATOR, "w1"), (Role.WORKER, "w")):
            error = await refused(address, mine, expect)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "Hostname" in str(error.details())


async def test_another_authority_is_refused_by_both_sides(cluster: Cluster, tmp_path: Path) -> None:
    stranger = Cluster(tmp_path / "stranger")  # the same cluster name, another key
    ours, theirs = cluster.tls(Role.WORKER, "w1"), stranger.tls(Role.COORDINATOR, "c1")
    async with serve(ours) as address:
        await refused(address, theirs, (Role.WORKER, "w1"))
        trusting = replace(theirs, ca_pem=ours.ca_pem)  # believes our server; we do not believe it
        error = await refused(address, trusting, (Role.WORKER, "w1"))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_another_cluster_of_the_same_authority_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    visitor = forge(
        cluster.ca,
        tmp_path / "visitor",
        ["spiffe://staging/coordinator/c1"],
        ["c1.coordinator.staging.baton"],
    )
    async with serve(cluster.tls(Role.WORKER, "w1")) as address:
        error = await refused(address, visitor, (Role.WORKER, "w1"))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "cluster staging" in str(error.details())


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["spiffe://prod/worker/w2", "spiffe://prod/coordinator/c1"],
        ["spiffe://prod/worker/w2", "https://example.com"],
        ["spiffe://prod/worker/w2/extra"],
        ["https://prod/worker/w2"],
    ],
)
async def test_not_exactly_one_identity_is_refused(
    cluster: Cluster, tmp_path: Path, uris: list[str]
) -> None:
    names = ["w2.worker.prod.baton"]
    odd = forge(cluster.ca, tmp_path / "odd", uris, names)
    async with serve(cluster.tls(Role.WORKER, "w1")) as address:
        error = await refused(address, odd, (Role.WORKER, "w1"))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(CredentialsInvalid):
        load_tls(tmp_path / "odd")


async def test_a_certificate_expired_or_for_another_purpose_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    uri, dns = ["spiffe://prod/worker/w2"], ["w2.worker.prod.baton"]
    expired = forge(cluster.ca, tmp_path / "1", uri, dns, life=dt.timedelta(days=-1))
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH]
    server_only = forge(cluster.ca, tmp_path / "2", uri, dns, purposes=purposes)
    good = cluster.tls(Role.COORDINATOR, "c1")
    async with serve(cluster.tls(Role.WORKER, "w1")) as address:
        for bad in (expired, server_only):
            error = await refused(address, bad, (Role.WORKER, "w1"))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
    async with serve(expired) as address:
        await refused(address, good, (Role.WORKER, "w2"))


async def test_no_certificate_at_all_is_refused(cluster: Cluster) -> None:
    worker = cluster.tls(Role.WORKER, "w1")
    async with serve(worker) as address:
        await refused(address, LOCAL, (Role.WORKER, "w1"))
        bare = grpc.aio.secure_channel(
            address,
            grpc.ssl_channel_credentials(worker.ca_pem),
            options=[("grpc.ssl_target_name_override", worker.identity.dns)],
        )
        async with bare:
            call: Any = bare.unary_unary("/test.Who/Am")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"", timeout=30)


async def test_nobody_of_another_cluster_can_even_be_expected(cluster: Cluster) -> None:
    with pytest.raises(IdentityInvalid):
        open_channel("127.0.0.1:1", LOCAL, Identity("prod", Role.WORKER, "w1"))


async def test_insecure_claims_are_carried_by_calls_of_every_kind() -> None:
    server = Insecure(Identity("local", Role.WORKER, "w1"))
    async with serve(server) as address:
        assert await ask(address, LOCAL, (Role.WORKER, "w1")) == "operator/cli"
        async with open_channel(address, LOCAL, Role.WORKER) as channel:
            call: Any = channel.stream_stream("/test.Who/AmStream")
            stream = call(iter([b"", b""]), timeout=30)
            assert [answer async for answer in stream] == [b"operator/cli"] * 2


@pytest.mark.parametrize(
    "metadata",
    [(), (("baton-peer", "root"),), (("baton-peer", "worker/a"), ("baton-peer", "worker/b"))],
)
async def test_insecure_without_one_claim_is_refused(metadata: Any) -> None:
    server = Insecure(Identity("local", Role.WORKER, "w1"))
    async with serve(server) as address, grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary("/test.Who/Am")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=30, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_message_beyond_the_cap_is_refused() -> None:
    server = Insecure(Identity("local", Role.WORKER, "w1"))
    async with (
        serve(server) as address,
        grpc.aio.insecure_channel(
            address, options=[("grpc.max_send_message_length", -1)]
        ) as channel,
    ):
        call: Any = channel.unary_unary("/test.Who/Am")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(bytes(4 * 1024 * 1024 + 1), timeout=30)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_port_in_use_is_said_so() -> None:
    async with serve(LOCAL) as address:
        with pytest.raises(AddressInUse, match="another process listens there"):
            bind(make_server(), address, LOCAL)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUse, match=str(port)):
            bind(make_server(), f"localhost:{port}", LOCAL)


async def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(BindFailed, match="no such address"):
        bind(make_server(), "192.0.2.1:0", LOCAL)


async def test_a_server_on_a_name_is_reached_by_it() -> None:
    async with serve(LOCAL, "localhost:0") as address:
        assert await ask(address, LOCAL, Role.OPERATOR) == "operator/cli"


def test_insecure_is_for_the_loopback_unless_allowed() -> None:
    check_insecure(["127.0.0.1:1", "[::1]:2", "localhost:3"], allowed=False)
    check_insecure(["0.0.0.0:1"], allowed=True)
    with pytest.raises(InsecureRefused, match=r"0\.0\.0\.0:1.*--tls"):
        check_insecure(["127.0.0.1:1", "0.0.0.0:1"], allowed=False)


def test_keys_do_not_show_in_what_is_printed(cluster: Cluster, tmp_path: Path) -> None:
    issue(cluster.ca, Role.WORKER, "w9", tmp_path / "w9")
    assert "PRIVATE" not in repr(load_tls(tmp_path / "w9"))
