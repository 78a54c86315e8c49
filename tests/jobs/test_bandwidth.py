"""`transfer.bandwidth` as job files say it."""

from typing import Any

import pytest

from coordinator.job import JobSpec
from coordinator.job_file import JobFileInvalid, decode_spec, encode_spec, spec_from_plain
from syncengine.model import RateTime


def job(bandwidth: object, **more: Any) -> JobSpec:
    plain = {"name": "j", "rule": "mirror", "source": "w1:r", "targets": ["w2:r"], **more}
    return spec_from_plain({**plain, "transfer": {"bandwidth": bandwidth}})


@pytest.mark.parametrize(("said", "rate"), [("100MB/s", 10**8), ("512KiB/s", 2**19), ("off", None)])
def test_one_rate(said: str, rate: int | None) -> None:
    spec = job(said)
    assert spec.run_options().bandwidth == rate
    assert spec.run_options().bandwidth_times == ()
    assert decode_spec(encode_spec(spec)) == spec


def test_a_timetable_with_a_rest() -> None:
    spec = job(
        [
            {"rate": "5MB/s", "days": "mon-fri", "from": "08:00", "to": "18:00"},
            {"rate": "off", "from": "22:00", "to": "06:00", "timezone": "Asia/Tokyo"},
            {"rate": "50MB/s"},
        ],
        trigger={"manual": True, "timezone": "Europe/Paris"},
    )
    options = spec.run_options()
    assert options.bandwidth == 50_000_000
    assert options.bandwidth_times == (
        RateTime((0, 1, 2, 3, 4), 480, 1080, "Europe/Paris", 5_000_000),
        RateTime((0, 1, 2, 3, 4, 5, 6), 1320, 1800, "Asia/Tokyo", None),
    )
    assert decode_spec(encode_spec(spec)) == spec


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("fast", "is no rate"),
        ([{"from": "08:00", "to": "18:00"}], "without a rate"),
        ([{"rate": "1MB/s"}, {"rate": "2MB/s", "days": "mon"}], "must be the last"),
        ([{"rate": "1MB/s", "from": "08:00"}], "belong together"),
        ([{"rate": "1MB/s", "from": "8 am", "to": "18:00"}], "no time of day"),
        ([{"rate": "1MB/s", "days": "someday"}], "no day of the week"),
        ([{"rate": "1MB/s", "until": "18:00"}], "unknown field 'until'"),
        ([{"rate": "1MB/s", "days": 3}], "put it in quotes"),
        ([{"rate": "1MB/s", "days": "mon", "timezone": "Mars/Base"}], "timezone"),
        (["1MB/s"], "is no entry"),
    ],
)
def test_what_is_wrong_is_said(said: object, why: str) -> None:
    with pytest.raises(JobFileInvalid) as refused:
        job(said)
    assert "transfer.bandwidth" in str(refused.value)
    assert why in str(refused.value)
