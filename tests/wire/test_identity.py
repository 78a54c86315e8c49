import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.address import Address, parse_address
from wire.errors import AddressInvalid, IdentityInvalid
from wire.identity import Identity, Role, is_label, parse_short, parse_uri, role_dns

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True).filter(
    lambda label: label != "any"
)
IDENTITIES = st.builds(Identity, LABELS, st.sampled_from(Role), LABELS)


@given(IDENTITIES)
def test_each_written_form_reads_back(identity: Identity) -> None:
    assert parse_uri(identity.uri) == identity
    assert parse_short(identity.cluster, str(identity)) == identity


@given(IDENTITIES, IDENTITIES)
def test_two_identities_never_share_a_name(one: Identity, other: Identity) -> None:
    assert (one.dns == other.dns) == (one == other)
    assert one.dns != role_dns(other.cluster, other.role)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://prod/worker",
        "spiffe://prod/worker/w1/",
        "spiffe://prod/worker/w1/x",
        "spiffe:///worker/w1",
        "spiffe://prod/admin/w1",
        "spiffe://prod/worker/W1",
        "spiffe://prod/worker/w1?x",
        "spiffe://prod/worker/../w1",
        "spiffe://prod/worker/any",
        "https://prod/worker/w1",
        "spiffe://prod/worker/w1\n",
        "spiffe://prod/worker/w\u00e9",
    ],
)
def test_a_uri_that_is_not_exactly_one_identity_is_refused(uri: str) -> None:
    with pytest.raises(IdentityInvalid):
        parse_uri(uri)


@pytest.mark.parametrize("label", ["", "-a", "a-", "a.b", "A", "a_b", "a" * 64, "a\n"])
def test_no_dns_label(label: str) -> None:
    assert not is_label(label)


def test_the_longest_label_is_63() -> None:
    assert is_label("a" * 63)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7070", Address("127.0.0.1", 7070)),
        ("nas.example.com:0", Address("nas.example.com", 0)),
        ("[::1]:9", Address("::1", 9)),
    ],
)
def test_addresses_read_back(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


def test_a_default_port_completes_a_bare_host() -> None:
    assert parse_address("c1", default_port=7070) == Address("c1", 7070)
    assert parse_address("[::1]", default_port=7070) == Address("::1", 7070)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7070",
        ":7070",
        "a:",
        "a:b",
        "a:65536",
        "a:-1",
        "::1:70",
        "[x]:1",
        "[1.2.3.4]:1",
        "a b:1",
        "a/b:1",
        "a:\u0663",
    ],
)
def test_what_is_no_address_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(AddressInvalid, match=r"HOST:PORT|brackets"):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert Address(host, 1).is_loopback is loopback
