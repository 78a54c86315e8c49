import pytest

from coordinator.conflicts import conflicts, overlaps
from coordinator.job import JobSpec
from coordinator.job_file import spec_from_plain


def job(name: str, source: str, *targets: str) -> JobSpec:
    return spec_from_plain(
        {"name": name, "rule": "mirror", "source": source, "targets": list(targets)}
    )


@pytest.mark.parametrize("target", ["w2:r", "w2:r/a", "w2:r/a/b"])
def test_no_two_jobs_write_the_same_files(target: str) -> None:
    one, other = job("one", "w1:r", "w3:x", "w2:r/a"), job("other", "w4:r", target)
    assert overlaps(one, other) == [
        f"targets[1] w2:r/a overlaps {target}, which job other writes too"
    ]
    assert overlaps(other, one) != []


def test_reading_the_same_and_chains_are_fine() -> None:
    first = job("first", "w1:r", "w2:r")
    assert overlaps(first, job("also", "w1:r", "w3:r")) == []
    assert overlaps(first, job("chain", "w2:r/sub", "w3:r")) == []


def test_two_jobs_that_feed_each_other_are_a_loop() -> None:
    there, back = job("there", "w1:r", "w2:r"), job("back", "w2:r/a", "w1:r/b")
    assert "loop" in overlaps(there, back)[0]
    assert "loop" in overlaps(back, there)[0]


def test_a_longer_loop_is_found_and_named() -> None:
    jobs = [job("b", "w2:r", "w3:r"), job("c", "w3:r", "w4:r"), job("x", "w2:r", "w9:r")]
    assert conflicts(job("a", "w1:r", "w2:r"), jobs) == []
    (reason,) = conflicts(job("d", "w4:r/a", "w2:r"), jobs[:2])
    assert reason.endswith("d -> b -> c -> d")


def test_a_job_does_not_collide_with_what_it_replaces() -> None:
    assert conflicts(job("a", "w1:r", "w2:r/x"), [job("a", "w1:r", "w2:r")]) == []


def joint(name: str, *members: str, rule: str = "sync") -> JobSpec:
    return spec_from_plain({"name": name, "rule": rule, "members": list(members)})


@pytest.mark.parametrize("rule", ["sync", "exchange"])
def test_a_job_that_reads_what_it_writes_is_no_loop_and_may_be_read(rule: str) -> None:
    both = joint("both", "w1:r", "w2:r", rule=rule)
    chain = [job("out", "w2:r/sub", "w3:r"), job("further", "w3:r", "w4:r")]
    assert conflicts(both, chain) == []
    for one in chain:
        assert conflicts(one, [both, *(other for other in chain if other is not one)]) == []


@pytest.mark.parametrize("rule", ["sync", "exchange"])
def test_every_member_is_written_and_by_no_other_job(rule: str) -> None:
    both = joint("both", "w1:r", "w2:r/a", rule=rule)
    assert overlaps(job("into", "w3:r", "w1:r/sub"), both) == [
        "targets[0] w1:r/sub overlaps w1:r, which job both writes too"
    ]
    assert overlaps(joint("other", "w3:r", "w2:r"), both) == [
        "members[1] w2:r overlaps w2:r/a, which job both writes too"
    ]
    assert conflicts(job("back", "w3:r", "w2:r/a/b"), [both]) != []
