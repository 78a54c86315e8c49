"""Names that come back as they went: keys, instants, tokens, the values of owner keys."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import BadKey, BadOwner
from coordinator.keys import Family, Keys, ParsedKey, check_name, parse_instant
from coordinator.ownership import Claim
from wire.token import BadToken, Token

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
instants = st.datetimes(timezones=st.just(UTC))
tokens = st.builds(Token, st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1))


@given(name=names, instant=instants)
def test_every_key_is_parsed_as_it_was_made(name: str, instant: datetime) -> None:
    keys = Keys("/some/where/")
    made = {
        Family.JOBS: keys.job(name),
        Family.OWNERS: keys.owner(name),
        Family.STATE: keys.state(name),
        Family.COORDINATORS: keys.coordinator(name),
        Family.WORKERS: keys.worker(name),
        Family.GROUPS: keys.group(name),
    }
    for family, key in made.items():
        assert key.startswith(keys.under(family))
        assert keys.parse(key) == ParsedKey(family, name)
    run = keys.run(name, instant)
    assert run.startswith(keys.runs(name))
    assert keys.parse(run) == ParsedKey(Family.RUNS, name, instant)


@given(first=instants, second=instants)
def test_runs_sort_by_instant(first: datetime, second: datetime) -> None:
    keys = Keys()
    assert (keys.run("j", first) < keys.run("j", second)) == (first < second)


def test_an_instant_in_another_zone_is_the_same_key() -> None:
    noon = datetime(2026, 7, 1, 12, tzinfo=UTC)
    there = noon.astimezone(timezone(timedelta(hours=2)))
    assert Keys().run("j", there) == Keys().run("j", noon)
    assert Keys().run("j", noon) == "/baton/v1/runs/j/2026-07-01T12:00:00.000000Z"
    with pytest.raises(BadKey):
        Keys().run("j", noon.replace(tzinfo=None))


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a.b", "a/b", "é", "a" * 64, "a\n", "a_b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(BadKey):
        check_name(name)


@pytest.mark.parametrize("prefix", ["", "/", "a/", "/a", "//", "/a//b/", "/a b/", "/ä/", "/a/\n"])
def test_prefixes_that_are_none(prefix: str) -> None:
    with pytest.raises(BadKey):
        Keys(prefix)


@pytest.mark.parametrize(
    "key",
    [
        "/other/jobs/a",
        "/baton/v1/",
        "/baton/v1/jobs/",
        "/baton/v1/jobs/a/b",
        "/baton/v1/nothing/a",
        "/baton/v1/runs/a",
        "/baton/v1/runs/a/yesterday",
        "/baton/v1/runs/a/2026-07-01T12:00:00.0Z",
    ],
)
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(BadKey):
        Keys().parse(key)
    with pytest.raises(BadKey):
        parse_instant(key)


@given(token=tokens)
def test_tokens_come_back_from_text(token: Token) -> None:
    assert Token.parse(str(token)) == token


@pytest.mark.parametrize("text", ["", ".", "1", "1.", ".1", "g.1", "1.-1", "01.1", "1.01", "1.1 "])
def test_texts_that_are_no_tokens(text: str) -> None:
    with pytest.raises(BadToken):
        Token.parse(text)


@given(first=tokens, second=tokens)
def test_tokens_are_ordered_within_one_cluster_only(first: Token, second: Token) -> None:
    beside = Token(first.cluster_id, second.revision)
    assert (first < beside) == (first.revision < second.revision)
    assert (first >= beside) == (first.revision >= second.revision)
    if first.cluster_id != second.cluster_id:
        with pytest.raises(BadToken):
            assert first < second


@given(node=names, reason=st.text(), since=instants)
def test_claims_come_back_from_json(node: str, reason: str, since: datetime) -> None:
    since = since.replace(microsecond=0)
    claim = Claim(node, since, reason, "nonce.1")
    assert Claim.from_json(claim.to_json()) == claim


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"node":"A","since":"2026-01-01T00:00:00Z","reason":"","nonce":""}',
        b'{"node":"a","since":"2026-01-01T00:00:00","reason":"","nonce":""}',
        b'{"node":"a","since":"2026-01-01T00:00:00Z","reason":1,"nonce":""}',
    ],
)
def test_values_that_no_coordinator_wrote(value: bytes) -> None:
    with pytest.raises(BadOwner):
        Claim.from_json(value)
