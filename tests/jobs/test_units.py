import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.units import Duration, Limit, Quantity, Rate, Retention, Share, Size

ALL = (Duration, Retention, Share, Limit, Rate, Size)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("50ms", 0.05),
        ("5s", 5),
        ("15m", 900),
        ("24h", 86_400),
        ("30d", 2_592_000),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("0s", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration.parse(text).seconds == seconds


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "5",
        5,
        5.0,
        None,
        True,
        "5 s",
        "s",
        "-5s",
        "5s!",
        "0.5ms",
        "1e3s",
        "5S",
        "99999999999d",
        "\u0665s",
        [],
    ],
)
def test_what_is_no_duration_says_how_one_looks(raw: object) -> None:
    with pytest.raises(ValueError, match="15m"):
        Duration.parse(raw)


@given(st.integers(0, 10**11))
def test_a_duration_reads_what_it_writes(milliseconds: int) -> None:
    duration = Duration.parse(f"{milliseconds}ms")
    assert Duration.parse(str(duration)) == duration
    assert round(duration.seconds * 1000) == milliseconds


@given(st.integers(1, 10**15))
def test_a_rate_reads_what_it_writes(rate: int) -> None:
    parsed = Rate.parse(f"{rate}B/s") if rate < 10**12 else Rate.parse(f"{rate // 10**6}MB/s")
    assert Rate.parse(str(parsed)) == parsed


@given(st.integers(0, 2**62))
def test_a_size_reads_what_it_writes(size: int) -> None:
    parsed = Size.parse(f"{size % 10**12}B") if size % 2 else Size.parse(f"{size // 2**40}TiB")
    assert Size.parse(str(parsed)) == parsed


@given(st.decimals(0, 100, places=3))
def test_a_share_reads_what_it_writes(share: object) -> None:
    parsed = Share.parse(f"{share}%")
    assert Share.parse(str(parsed)) == parsed


@pytest.mark.parametrize("text", ["24h", "1h30m", "50ms", "30d", "90s"])
def test_texts_of_the_interface_stay_close_to_what_was_written(text: str) -> None:
    assert Duration.parse(str(Duration.parse(text))) == Duration.parse(text)


def test_canonical_texts() -> None:
    assert [str(Duration.parse(t)) for t in ("24h", "30d", "60s", "1500ms")] == [
        "24h",
        "30d",
        "1m",
        "1500ms",
    ]
    assert [str(Rate.parse(t)) for t in ("100MB/s", "512KiB/s", "7B/s", "1000kB/s")] == [
        "100MB/s",
        "512KiB/s",
        "7B/s",
        "1MB/s",
    ]
    assert [
        str(Size.parse(t)) for t in ("1B", "0B", "64KiB", "1000kB", "10GB", "2TiB", "1.5kB")
    ] == [
        "1B",
        "0B",
        "64KiB",
        "1MB",
        "10GB",
        "2TiB",
        "1500B",
    ]
    assert [str(Share.parse(t)) for t in ("50%", "0.5%", "100%", "off")] == [
        "50%",
        "0.5%",
        "100%",
        "off",
    ]


@pytest.mark.parametrize("unit", [Retention, Share, Limit, Rate, Size])
@pytest.mark.parametrize("raw", ["off", False])
def test_off_is_no_limit(unit: type[Quantity], raw: object) -> None:
    assert str(unit.parse(raw)) == "off"
    assert unit.parse(raw) == unit.parse(str(unit.parse(raw)))


def test_what_the_engine_gets() -> None:
    assert Share.parse("50%").limit == 0.5
    assert Share.parse("0%").limit == 0
    assert Share.parse("100%").limit is Share.parse("off").limit is None
    assert Retention.parse("off").whole_seconds is None
    assert Retention.parse("1500ms").whole_seconds == 2
    assert Limit.parse(0).count == 0
    assert Rate.parse("100MB/s").bytes_per_s == 100_000_000
    assert Size.parse("64KiB").bytes == 65_536
    assert Size.parse("off").bytes is None
    assert Retention.parse("1500ms").limit_s == 1.5
    assert Retention.parse("off").limit_s is None


@pytest.mark.parametrize(
    ("unit", "raw"),
    [
        (Share, "50"),
        (Share, 0.5),
        (Share, "101%"),
        (Share, "-1%"),
        (Share, True),
        (Share, None),
        (Limit, -1),
        (Limit, "5"),
        (Limit, 1.5),
        (Limit, True),
        (Limit, None),
        (Limit, 2**63),
        (Rate, "100"),
        (Rate, "0B/s"),
        (Rate, "100Mb/s"),
        (Rate, "100MB"),
        (Rate, 5),
        (Rate, "9999999999GB/s"),
        (Size, 10),
        (Size, "10"),
        (Size, "-1B"),
        (Size, "0.5B"),
        (Size, "10gb"),
        (Size, "99999999TB"),
        (Size, None),
        (Retention, "forever"),
        (Retention, 30),
    ],
)
def test_anything_else_says_what_would_be_right(unit: type[Quantity], raw: object) -> None:
    with pytest.raises(ValueError, match=r"use .*off"):
        unit.parse(raw)


def test_different_units_are_never_equal() -> None:
    assert Limit.parse(5) != Duration.parse("5ms")
    assert (
        len({Limit.parse("off"), Share.parse("off"), Rate.parse("off"), Retention.parse("off")})
        == 4
    )
