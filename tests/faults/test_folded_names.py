"""A21: a file system that takes different names for the same. Nothing is merged, nothing is lost."""

import os
from pathlib import Path

import pytest

from syncengine.model import What
from syncengine.sender import SendResult
from tests.engine.trees import T0, Pair, Spec, grow, temporaries
from tests.faults.live_disk import Traits
from tests.faults.mount import FaultyMount

NFC, NFD = "caf\u00e9", "cafe\u0301"


def named(result: SendResult) -> set[str]:
    """Return the paths that a run says it could not carry out."""
    return {os.fsdecode(p) for p in [*result.retry, *(p.path for p in result.problems)]}


def found(root: Path) -> dict[str, bytes]:
    """Return every visible file by its name as the file system tells it."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".baton" not in path.relative_to(root).parts
    }


@pytest.fixture(params=["case", "form"])
def fold(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def names(fold: str) -> tuple[str, str]:
    return ("Name", "name") if fold == "case" else (NFC, NFD)


@pytest.fixture
def folding(pair: Pair, mount: FaultyMount, fold: str) -> Pair:
    mount.become(Traits(fold=fold))
    pair.target = mount.root
    return pair


def check_kept(pair: Pair, result: SendResult, names: tuple[str, str]) -> None:
    """Each file is there as at the source, or it is named; none has another's content."""
    told = named(result)
    there = found(pair.target)
    for path in found(pair.source):
        content = (pair.source / path).read_bytes()
        if path in there:
            assert there[path] == content, f"{path} holds what another name should"
        else:
            assert any(path == t or path.startswith(f"{t}/") for t in told), f"{path} is missing"
    assert there.keys() <= found(pair.source).keys(), "something was merged"
    assert temporaries(pair.target) == []


@pytest.mark.parametrize("where", ["", "new/", "new/deeper/"])
def test_a21_two_files_into_one_name(folding: Pair, names: tuple[str, str], where: str) -> None:
    spec: Spec = {f"{where}{names[0]}": b"one", f"{where}{names[1]}": b"two", "else": b"x"}
    grow(folding.source, spec)
    check_kept(folding, folding.run(), names)
    for _ in range(2):
        result = folding.run()
        check_kept(folding, result, names)
        assert named(result), "it is told in every run, not only in the first"
        assert result.retry == [], "trying again in the same run would not help"
        (problem,) = result.problems
        assert problem.what is What.NAME_CLASH
        other = {f"{where}{name}" for name in names} - {os.fsdecode(problem.path)}
        assert repr(other.pop().rpartition("/")[2]) in problem.detail, "with its partner"
    assert len(found(folding.target)) == 2


@pytest.mark.parametrize("where", ["", "new/", "new/deeper/"])
def test_a21_two_directories_into_one_name(
    folding: Pair, names: tuple[str, str], where: str
) -> None:
    spec: Spec = {f"{where}{names[0]}/a": b"one", f"{where}{names[1]}/b": b"two"}
    spec |= {f"{where}{names[0]}/both": b"1", f"{where}{names[1]}/both": b"2"}
    spec |= {f"{where}{names[1]}/sub/c": b"three", f"{where}{names[1]}/large": b"l" * 200_000}
    grow(folding.source, spec)
    for _ in range(3):
        result = folding.run()
        check_kept(folding, result, names)
        assert named(result)
    assert len(found(folding.target)) in {2, 4}, "one directory or the other"


@pytest.mark.parametrize("other", ["file", "directory", "link"])
def test_a21_a_name_of_another_kind(folding: Pair, names: tuple[str, str], other: str) -> None:
    second: Spec = {
        "file": {names[1]: b"two"},
        "directory": {f"{names[1]}/in": b"two"},
        "link": {names[1]: "two"},
    }[other]  # type: ignore[assignment]
    grow(folding.source, {names[0]: b"one", **second})
    for _ in range(2):
        result = folding.run()
        assert named(result)
        assert found(folding.target) in (
            {names[0]: b"one"},
            {names[1]: b"two"},
            {f"{names[1]}/in": b"two"},
            {},
        )


def test_a21_a_renamed_case_arrives_in_the_end(folding: Pair, names: tuple[str, str]) -> None:
    """Nothing is lost on the way, even though the old name is in the way of the new one."""
    grow(folding.target, {names[0]: b"old", f"{names[0]}d/x": b"old"})
    grow(folding.source, {names[1]: b"new", f"{names[1]}d/x": b"new"}, T0 + 1)
    for _ in range(3):
        result = folding.run()
        everything = {p.read_bytes() for p in folding.target.rglob("*") if p.is_file()}
        assert b"old" in everything
        assert b"new" in everything or named(result)
    assert found(folding.target) == {names[1]: b"new", f"{names[1]}d/x": b"new"}
    assert folding.run().problems == []


def test_a21_an_edit_under_the_other_name_is_not_overwritten(
    folding: Pair, names: tuple[str, str]
) -> None:
    grow(folding.source, {names[0]: b"source"})
    result = folding.run(before_push=lambda: grow(folding.target, {names[1]: b"mine"}))
    assert named(result) == {names[0]}
    assert found(folding.target) == {names[1]: b"mine"}
