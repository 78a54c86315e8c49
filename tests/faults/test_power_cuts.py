"""I1, I2, I3, I7: the power goes at any step of a push, and what is not flushed is lost or torn."""

import json
import os
import random
from collections.abc import Callable

import pytest

from syncengine.model import RunOptions, Safety
from tests.engine.trees import T0, Pair, Spec, grow
from tests.faults.disk import Nodes
from tests.faults.mount import FaultyMount
from tests.faults.pushes import (
    History,
    contents,
    cuts,
    fill,
    marker_of,
    push_noting,
    recover,
    violations,
    visible,
)

OLD: Spec = {
    "replaced": b"old" * 90,
    "big": b"old" * 1_000,
    "touched": b"touched",
    "gone/a": b"gone",
    "gone/b": b"gone too",
    "kind": b"a file",
    "way/in": b"in the way",
    "link": "old",
}
NEW: Spec = {
    "replaced": b"new" * 91,
    "big": b"new" * 1_001,
    "touched": b"touched",
    "kind/now": b"a directory",
    "way": b"now a file",
    "fresh/1": b"1",
    "fresh/deep/2": b"2" * 300,
    "fresh/deep/er/3": b"3",
    "also": b"new",
    "link": "new",
}


def by_dice(seed: int) -> tuple[Spec, Spec]:
    """Make two random trees that have much in common."""
    dice = random.Random(seed)

    def tree() -> Spec:
        spec: Spec = {}
        for number in range(dice.randrange(6, 14)):
            depth = dice.randrange(3)
            path = "/".join([*(f"d{dice.randrange(3)}" for _ in range(depth)), f"f{number}"])
            spec[path] = dice.randbytes(dice.choice([0, 5, 70, 2_000]))
        spec["turn" if dice.random() < 0.5 else "turn/ed"] = b"kind"
        spec["l"] = f"to{dice.randrange(2)}"
        return spec

    old, new = tree(), tree()
    for name in dice.sample(sorted(set(old) & set(new)), k=2):
        new[name] = old[name]
    return old, new


TREES: dict[str, tuple[Spec, Spec]] = {
    "chosen": (OLD, NEW),
    "few": ({"a": b"old", "gone": b"gone"}, {"a": b"new", "b": b"more"}),
    "dice 1": by_dice(1),
    "dice 2": by_dice(2),
}


@pytest.fixture(params=["one sweep", "one by one"])
def flushes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """How the engine flushes: as on FUSE, or by syncfs, which reaches this disk from here only."""

    def prepare(mount: FaultyMount) -> None:
        if request.param == "one sweep":
            monkeypatch.setattr("syncengine.flush.syncfs_reaches_disk", lambda _fd: True)
            monkeypatch.setattr("syncengine.flush.syncfs", lambda _fd: mount.syncfs())

    return prepare


def prepared(pair: Pair, mount: FaultyMount, trees: tuple[Spec, Spec]) -> None:
    old, new = trees
    grow(pair.source, new, T0 + 1)
    grow(pair.target, old)
    for name in set(old) & set(new):
        if old[name] == new[name] and not isinstance(old[name], str):
            os.chmod(pair.source / name, 0o600)
            os.utime(pair.source / name, ns=(T0, T0 + 5))
    fill(mount, pair.target)
    pair.target = mount.root


def key(nodes: Nodes) -> str:
    return repr(sorted(visible(nodes).items())) + repr(sorted(contents(nodes)))


@pytest.mark.parametrize("trees", list(TREES))
@pytest.mark.parametrize("trash", [True, False])
def test_i2_what_was_acknowledged_survives_a_power_cut_at_any_step(
    pair: Pair,
    mount: FaultyMount,
    flushes: Callable[[FaultyMount], None],
    monkeypatch: pytest.MonkeyPatch,
    *,
    trees: str,
    trash: bool,
) -> None:
    monkeypatch.setattr("syncengine.receiver.BATCH_FILES", 5)
    monkeypatch.setattr("syncengine.sender.SMALL_BYTES", 1_000)  # what is larger comes in parts
    pair.options = RunOptions(safety=Safety(trash_s=86_400 if trash else None, keep_replaced=trash))
    old, _ = TREES[trees]
    prepared(pair, mount, TREES[trees])
    flushes(mount)
    assert push_noting(pair, mount).problems == []
    history = History(mount.base(), mount.log())
    assert len(history.log) > 20, "the push was seen"
    met: dict[str, Nodes] = {}
    for step, how, nodes in cuts(history, chances=1):
        where = f"step {step}, {how} kept"
        assert list(history.faults_at(step, nodes)) == [], where
        found = marker_of(nodes)
        if history.generations[step]:
            assert found is not None, where
        if found is not None:
            assert json.loads(found)["generation"] >= history.generations[step], where
        if trash:
            lost = {c for c in old.values() if isinstance(c, bytes)} - contents(nodes)
            assert lost == set(), f"{where}: I7"
        met.setdefault(key(nodes), nodes)
    assert len(met) > 10
    # Going on is tried from a share of the different outcomes: each takes a while.
    for number, nodes in enumerate(list(met.values())[:: len(met) // 8]):
        recover(pair, nodes, pair.source.parent / f"recovered{number}")
    end = len(history.log)
    final = history.cut(end, lambda _record: None)
    assert visible(final, folder_times=True) == visible(
        history.cut(end, lambda record: record), folder_times=True
    ), "when the push has ended, nothing at all is at risk"


def forget_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncengine.flush.Flusher.contents", lambda *_: None)


def forget_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncengine.flush.Flusher.names", lambda *_: None)


def forget_one_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    from syncengine.flush import Flusher

    names = Flusher.names
    monkeypatch.setattr(
        Flusher, "names", lambda self, touched, trash: names(self, sorted(touched)[1:], trash)
    )


def forget_directories_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flush the files of a new directory, and not the names in it."""
    from syncengine import flush

    monkeypatch.setattr(flush.Flusher, "_directory", lambda *_: None)


@pytest.mark.parametrize(
    "forget", [forget_contents, forget_names, forget_one_directory, forget_directories_below]
)
def test_i2_an_engine_that_forgets_to_flush_is_found_out(
    pair: Pair,
    mount: FaultyMount,
    monkeypatch: pytest.MonkeyPatch,
    forget: Callable[[pytest.MonkeyPatch], None],
) -> None:
    """The oracle of the test above can fail."""
    forget(monkeypatch)
    prepared(pair, mount, (OLD, NEW))
    assert push_noting(pair, mount).problems == []
    assert violations(History(mount.base(), mount.log())) != []


def test_i2_syncfs_alone_would_lose_what_was_acknowledged_on_fuse(
    pair: Pair, mount: FaultyMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the engine asks what file system it is on: believing syncfs here is a lie."""
    monkeypatch.setattr("syncengine.flush.syncfs_reaches_disk", lambda _fd: True)
    prepared(pair, mount, (OLD, NEW))
    assert push_noting(pair, mount).problems == []
    assert violations(History(mount.base(), mount.log())) != []


def test_i1_fast_is_never_torn_by_a_killed_process(pair: Pair, mount: FaultyMount) -> None:
    """`durability: fast` promises nothing about power, but a process that dies tears nothing."""
    from tests.engine.trees import FAST

    pair.options = FAST
    prepared(pair, mount, (OLD, NEW))
    assert push_noting(pair, mount).problems == []
    history = History(mount.base(), mount.log())
    for step in history.steps:
        assert list(history.faults_at(step, history.cut(step, lambda record: record))) == []
