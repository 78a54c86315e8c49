"""The checker of chaos runs accepts a sound history, and finds every promise that one breaks."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cli.chaos import history as h
from cli.chaos.checker import Job, Judgement, Limits, judge
from cli.chaos.versions import make_version, version_of

JOBS = (Job("m", ("a", "b"), is_one_way=True), Job("s", ("a", "b"), is_one_way=False))


def sound() -> list[h.Any]:
    """A history in which everything was exercised and nothing went wrong."""
    return [
        h.Owned(at=0.1, job="m", node="c1", token=5),
        h.Owned(at=0.1, job="s", node="c2", token=6),
        h.Changed(at=1.0, job="m", member="a", path="f", what="write", version="a.1"),
        h.Changed(at=1.1, job="s", member="a", path="g", what="write", version="a.2"),
        h.Changed(at=1.2, job="s", member="b", path="g", what="write", version="b.1"),
        h.Published(at=2.0, worker="b", job="m", token=5),
        h.Injected(at=3.0, number=1, fault="power-cut", target="all", stops_coordination=True),
        h.Disowned(at=3.1, job="m"),
        h.Healed(at=30.0, number=1),
        h.Owned(at=33.0, job="m", node="c2", token=9),
        h.Published(at=34.0, worker="b", job="m", token=9),
        h.Changed(
            at=35.0, job="m", member="a", path="f", what="write", version="a.3", displaced="a.1"
        ),
        h.Changed(at=36.0, job="m", member="a", path="old", what="delete", displaced="a.0"),
        h.ReadMany(at=40.0, member="b", files=100),
        h.Doubted(at=40.5, job="m", source="a", member="b", looked_at=2, vanished=["a.0"]),
        h.FinalRun(at=41.0, job="m", outcome="succeeded", moved=0, audits=1),
        h.FinalTree(at=42.0, job="m", member="a", entries={"f": "a.3"}, trash=[]),
        h.FinalTree(at=42.0, job="m", member="b", entries={"f": "a.3"}, trash=["a.1"]),
        h.FinalTree(at=42.0, job="s", member="a", entries={"g": "b.1", "g.c": "a.2"}, trash=[]),
        h.FinalTree(at=42.0, job="s", member="b", entries={"g": "b.1", "g.c": "a.2"}, trash=[]),
        h.Proved(at=43.0, job="m", records=7, findings=[]),
        h.Sentinel(at=44.0, looked_at=10, changed=[]),
    ]


def broken_by(change: Callable[[list[h.Any]], None]) -> dict[str, str]:
    """What a sound history breaks after a change, by invariant."""
    events = sound()
    change(events)
    verdicts = judge(events, JOBS, Limits(takeover_s=5))
    return {one.invariant: one.what for one in verdicts if one.judgement is Judgement.BROKEN}


def replaced(kind: type[h.Event], number: int, **fields: object) -> Callable[[list[h.Any]], None]:
    def change(events: list[h.Any]) -> None:
        at = [index for index, event in enumerate(events) if isinstance(event, kind)][number]
        events[at] = msgspec.structs.replace(events[at], **fields)

    return change


def test_a_sound_history_holds_and_says_on_what_it_rests() -> None:
    verdicts = judge(sound(), JOBS, Limits(takeover_s=5))
    assert {one.judgement for one in verdicts} == {Judgement.HOLDS}
    assert all(one.evidence for one in verdicts)


def test_an_empty_history_proves_nothing() -> None:
    assert {one.judgement for one in judge([], JOBS)} == {Judgement.UNSEEN}


@pytest.mark.parametrize(
    ("invariant", "what", "change"),
    [
        (
            "I1",
            "neither old nor new",
            lambda events: events.append(h.Read(at=9, member="b", path="f", size=3)),
        ),
        ("I4", "published for m under 4 after 5", replaced(h.Published, 1, token=4)),
        ("I4", "owns m under 5, after 5", replaced(h.Owned, 2, token=5)),
        ("I7", "a.1 of m", replaced(h.Changed, 3, displaced="")),
        ("I8", "b lost 1 files of m, a.3", replaced(h.Doubted, 0, vanished=["a.0", "a.3"])),
        ("I13", "found 2 changes", replaced(h.FinalRun, 0, audit_found=2)),
        ("I9", "double", replaced(h.Proved, 0, findings=["an instant is double"])),
        ("I10", "b nothing", replaced(h.FinalTree, 1, entries={})),
        ("I10", "moved 3", replaced(h.FinalRun, 0, moved=3)),
        ("I10", "ended failed", replaced(h.FinalRun, 0, outcome="failed")),
        ("I14", "/etc/passwd", replaced(h.Sentinel, 0, changed=["/etc/passwd"])),
        ("I15", "no owner for 7.0 s", replaced(h.Owned, 2, at=37.0)),
    ],
)
def test_what_is_broken_is_found(
    invariant: str, what: str, change: Callable[[list[h.Any]], None]
) -> None:
    # What a trash keeps of a mirror is kept: for I7 the version must be gone from there too.
    def and_gone(events: list[h.Any]) -> None:
        change(events)
        if invariant == "I7":
            replaced(h.FinalTree, 1, trash=[])(events)

    found = broken_by(and_gone)
    assert list(found) == [invariant]
    assert what in found[invariant]


def test_a_version_of_a_sync_must_stay_in_a_tree_not_only_in_a_trash() -> None:
    def deleted(events: list[h.Any]) -> None:
        for number in (2, 3):
            replaced(h.FinalTree, number, entries={"g": "b.1"}, trash=["a.2"])(events)

    assert "nobody had deleted it" in broken_by(deleted)["I7"]


def test_what_was_taken_out_of_a_trash_was_kept() -> None:
    def emptied(events: list[h.Any]) -> None:
        replaced(h.Changed, 3, displaced="")(events)
        replaced(h.FinalTree, 1, trash=[])(events)
        events.append(h.Trashed(at=36.0, job="m", member="b", versions=["a.1"]))

    assert broken_by(emptied) == {}


def test_targets_of_a_copy_may_have_more_than_their_source_and_not_less() -> None:
    (mirror, sync) = JOBS
    copy = Job("m", mirror.members, is_one_way=True, keeps_deleted=True)
    events = sound()
    replaced(h.FinalTree, 1, entries={"f": "a.3", "old": "a.0"})(events)
    verdicts = {one.invariant: one for one in judge(events, (copy, sync), Limits(takeover_s=5))}
    assert verdicts["I10"].judgement is Judgement.HOLDS
    replaced(h.FinalTree, 1, entries={"old": "a.0"})(events)
    verdicts = {one.invariant: one for one in judge(events, (copy, sync), Limits(takeover_s=5))}
    assert verdicts["I10"].judgement is Judgement.BROKEN


def test_the_shortest_history_is_shown() -> None:
    events = sound()
    events.append(h.Published(at=50.0, worker="b", job="m", token=1))
    (broken,) = [one for one in judge(events, JOBS) if one.judgement is Judgement.BROKEN]
    assert [event.at for event in broken.shown_by] == [34.0, 50.0]


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    h.save(tmp_path / "history.jsonl", sound())
    assert h.load(tmp_path / "history.jsonl") == sound()


def test_a_version_knows_when_it_is_whole() -> None:
    import random

    for seed in range(50):
        content = make_version(f"a.{seed}", random.Random(seed))
        assert version_of(content) == f"a.{seed}"
        assert version_of(content[:-1]) is None
        assert version_of(content + b"x") is None
        assert version_of(b"x" + content) is None
    assert version_of(b"") is None
