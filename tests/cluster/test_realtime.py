"""Runs that follow changes, with real processes: what is written arrives, whoever is killed."""

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.restless import Restless
from cli.local_cluster import Member
from syncengine.failpoints import VARIABLE, Step
from tests.cluster.harness import Scene, paused, until
from tests.cluster.trees import check_equal, grow, picture, put
from tests.engine.trees import temporaries
from worker.watching.index import UNSURE

if TYPE_CHECKING:
    from collections.abc import Callable

REALTIME: dict[str, Any] = {"realtime": {"settle": "20ms", "audit": "1h"}}
TTL_S = 2


async def follow(scene: Scene, job: str, source: str, *targets: str, **spec: Any) -> None:
    """Apply a job that follows changes; return when its targets are in step."""
    fields = {"trigger": REALTIME, "lease_ttl": f"{TTL_S}s", **spec}
    await scene.apply(name=job, source=source, targets=list(targets), **fields)
    await in_step(scene, job)


async def in_step(scene: Scene, job: str, within_s: float = 60.0) -> dict[str, Any]:
    """Wait until nothing waits for any target, as `job show` says it."""

    async def is_in_step() -> dict[str, Any] | None:
        shown = await scene.show(job)
        is_there = all(age == 0 for age in shown["exposure_s"].values())
        return shown if shown["phase"] == "monitoring" and is_there else None

    found = await until(is_in_step, f"job {job} in step", within_s)
    assert isinstance(found, dict)
    return found


async def same(source: Path, target: Path, within_s: float = 60.0) -> None:
    """Wait until the trees are equal; say how they differ if they do not become so."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            await asyncio.to_thread(check_equal, source, target)
        except (AssertionError, OSError):  # it changes while it is looked at
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            return


async def audited(scene: Scene, job: str) -> dict[str, Any]:
    """Have everything compared, and nothing found that no event had told; return the run."""
    ended = await scene.ok("job", "run", job, "--wait", "-o", "json")
    run: dict[str, Any] = ended.json
    assert run["monitor"]["audits"] >= 1, run
    assert run["monitor"]["audit_found"] == 0, run
    return run


def save_by_rename(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.swp")
    put(beside, text)
    beside.rename(path)


def append(path: Path, more: bytes) -> None:
    with path.open("ab") as file:
        file.write(more)


def into_a_file(directory: Path) -> None:
    shutil.rmtree(directory)
    put(directory, "a file now")


@pytest.mark.timeout(120)
async def test_every_kind_of_change_arrives(steady: Scene) -> None:
    source, target = steady.root("a", "data") / "kinds-rt", steady.root("b", "data") / "kinds-rt"
    source.mkdir()
    grow(source, 60, width=5)
    await follow(steady, "kinds-rt", "a:data/kinds-rt", "b:data/kinds-rt")
    check_equal(source, target)
    changes: list[Callable[[], object]] = [
        lambda: put(source / "new", "hello"),
        lambda: put(source / "new", "hello again"),
        lambda: append(source / "new", b" and more"),
        lambda: save_by_rename(source / "new", "saved"),
        lambda: (source / "new").rename(source / "d000" / "renamed"),
        lambda: (source / "d000").rename(source / "moved"),
        lambda: (source / "moved" / "renamed").chmod(0o600),
        lambda: (source / "link").symlink_to("moved"),
        lambda: (source / "hard").hardlink_to(source / "moved" / "renamed"),
        lambda: put(source / "one" / "two" / "three" / "four", "deep"),
        lambda: shutil.rmtree(source / "d001"),
        lambda: os.truncate(source / "moved" / "renamed", 3),
        (source / "moved" / "renamed").unlink,
        lambda: os.utime(source / "one", ns=(5 * 10**17, 5 * 10**17)),
        lambda: into_a_file(source / "one"),
        lambda: put(Path(os.fsdecode(bytes(source) + b"/no\xffutf8")), "bytes"),
    ]
    for number, change in enumerate(changes):
        change()
        try:
            await same(source, target, 20)
        except AssertionError as error:
            raise AssertionError(f"change {number}: {error}") from error
    run = await audited(steady, "kinds-rt")
    assert run["errors"] == []
    worker = (await steady.ok("worker", "show", "a", "-o", "json")).json
    (watch,) = [root["watch"] for root in worker["roots"] if root["name"] == "data"]
    assert (watch["mode"], watch["source"], watch["phase"]) == ("auto", "events", "watching")
    assert watch["directories"] > 1
    assert "by events" in (await steady.ok("worker", "show", "a")).out
    await steady.delete("kinds-rt")


@pytest.mark.timeout(120)
async def test_programs_that_change_much_at_once(steady: Scene) -> None:
    """git, tar, rm -rf, and a file that is written to all the time."""
    source, target = steady.root("a", "data") / "much", steady.root("b", "data") / "much"
    source.mkdir()
    await follow(steady, "much", "a:data/much", "b:data/much", safety={"max_delete": "off"})

    def shell(command: str) -> None:
        subprocess.run(["bash", "-ec", command], cwd=source, check=True, capture_output=True)

    with (source / "database").open("wb", buffering=0) as database:
        writing = asyncio.create_task(_write_on(database))
        await asyncio.to_thread(
            shell,
            "git init -q repo && cd repo && git config user.email a@b && git config user.name a &&"
            " for n in $(seq 60); do mkdir -p d$n; echo $n > d$n/f; done && git add -A &&"
            " git commit -qm one && git checkout -qb two && git rm -rq d1 d2 d3 && echo x > y &&"
            " git add -A && git commit -qm two && git checkout -q -",
        )
        await asyncio.to_thread(
            shell,
            "tar cf ../much.tar repo && mkdir -p x && tar xf ../much.tar -C x && rm -rf x/repo/.git",
        )
        (source.parent / "much.tar").unlink()
        await until((target / "database").exists, "a file that is never closed")
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    await same(source, target)
    await asyncio.to_thread(
        shell, "rm -rf repo x && mkdir -p again/and && echo 1 > again/and/again"
    )
    await same(source, target)
    await audited(steady, "much")
    await steady.delete("much")


async def _write_on(file: Any) -> None:
    while True:
        file.write(b"x" * 100)
        await asyncio.sleep(0.005)


@pytest.mark.timeout(120)
async def test_two_targets_of_which_one_is_away_get_just_the_journal(steady: Scene) -> None:
    source = steady.root("a", "data") / "away"
    targets = [steady.root(worker, "data") / "away" for worker in ("b", "c")]
    source.mkdir()
    grow(source, 400)
    await follow(steady, "away", "a:data/away", "b:data/away", "c:data/away")
    before = await steady.show_run("away", (await steady.show("away"))["last_run"])
    with paused(steady.cluster.members["c"]):
        put(source / "d000" / "meanwhile", "x")
        (source / "d001" / min(os.listdir(source / "d001"))).unlink()
        await same(source, targets[0], 20)

        async def is_behind() -> bool:
            ages = (await steady.show("away"))["exposure_s"]
            return bool(ages["c:data/away"] >= 2 and ages["b:data/away"] == 0)

        await until(is_behind, "exposure of the one that is away")
    await same(source, targets[1])
    shown = await in_step(steady, "away")
    run = await steady.show_run("away", shown["last_run"])
    assert run["id"] == before["id"]
    assert run["files_scanned"] - before["files_scanned"] < 100, "no whole scan"
    await steady.delete("away")


@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_a_steady_stream_of_writes_under_killed_owners(trio: Scene) -> None:
    source, target = trio.roots["a"], trio.roots["b"]
    grow(source, 200)
    await follow(trio, "stream", "a:data", "b:data")
    beats = Beats(source / "beat", target / "beat")
    beating = asyncio.create_task(beats.beat())
    try:
        await until(lambda: beats.seen > 20, "a stream")
        owner = await trio.owner("stream")
        assert owner is not None
        killed = trio.cluster.members[owner[0]]
        await killed.kill()
        await _owned_anew(trio, "stream", owner[1])
        await beats.some_more()
        # A takeover takes the lease and a second; the rest is for a machine that has more to do.
        assert beats.longest_gap_s < TTL_S + 3, "no gap longer than the takeover"
        await killed.start()
        await killed.wait_ready()
        owner = await trio.owner("stream")
        assert owner is not None
        beats.forget()
        await trio.ok("coordinator", "drain", owner[0])
        await _owned_anew(trio, "stream", owner[1])
        await beats.some_more()
        assert beats.longest_gap_s < TTL_S, "none for a graceful one"
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
    await in_step(trio, "stream")
    await same(source, target)
    runs = await trio.ledger.runs("stream")
    assert len(runs) == 1
    assert len(runs[0][1].attempts) == 3
    assert (await trio.ok("ledger", "verify", "stream")).code == 0
    await audited(trio, "stream")


async def _owned_anew(scene: Scene, job: str, revision: int) -> None:
    async def is_new() -> bool:
        owner = await scene.owner(job)
        return owner is not None and owner[1] > revision

    await until(is_new, "the next owner")


class Beats:
    """A file that is written fifty times a second at one place, and how late it is seen at another."""

    def __init__(self, written: Path, seen: Path) -> None:
        self._written, self._seen_at = written, seen
        self.seen = 0
        self.longest_gap_s = 0.0
        self._last_at = time.monotonic()

    def forget(self) -> None:
        self.longest_gap_s = 0.0

    async def some_more(self, count: int = 20) -> None:
        upto = self.seen + count
        await until(lambda: self.seen >= upto, "the stream going on")

    async def beat(self) -> None:
        number, shown = 0, b""
        while True:
            number += 1
            put(self._written, str(number))
            await asyncio.sleep(0.02)
            now = time.monotonic()
            try:
                found = self._seen_at.read_bytes()
            except OSError:
                found = shown
            if found != shown:
                shown = found
                self.seen += 1
                self._last_at = now
            self.longest_gap_s = max(self.longest_gap_s, now - self._last_at)


def unsettled(worker: Member) -> int:
    """How many entries of its root `data` a stat scan would find changed, whatever they look like."""
    file = worker.log.parent / "state" / "watching" / "data.db"
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        row = db.execute("SELECT count(*) FROM entries WHERE seen = ?", (UNSURE,)).fetchone()
    return int(row[0])


@pytest.mark.timeout(180)
async def test_workers_that_are_killed_catch_up_from_the_journal(pair: Scene) -> None:
    source, target = pair.roots["a"], pair.roots["b"]
    grow(source, 500)
    await follow(pair, "killed", "a:data", "b:data")
    run = (await pair.show("killed"))["last_run"]
    before = (await pair.show_run("killed", run))["files_scanned"]
    a, b = pair.cluster.members["a"], pair.cluster.members["b"]
    await b.kill()
    put(source / "d000" / "while the target was dead", "1")
    await b.start()
    await same(source, target)
    # A scan after its death tells apart what changed from what came to rest and was indexed before.
    await until(lambda: not unsettled(a), "an index of everything", 60)
    assert len(a.events("compares_everything")) == 1, "the first time, and for no target's death"
    await a.kill()
    put(source / "d001" / "while the source was dead", "2")
    shutil.rmtree(source / "d002")
    (source / "d003").rename(source / "moved")
    await a.start()
    await same(source, target)
    await in_step(pair, "killed")
    shown = await pair.show_run("killed", run)
    assert a.events("compares_everything") == []
    (watches,) = a.events("watches")
    # The new file and its directory, the two that went, the one that came and the 13 files in it.
    assert watches["found"] == 18, "what changed while it was dead, and nothing else"
    assert shown["files_scanned"] - before < 200, "no whole compare"
    await audited(pair, "killed")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("step", [Step.AFTER_STAGE, Step.BEFORE_RENAME, Step.BEFORE_DISPLACED])
async def test_i7_what_a_killed_target_left_goes_without_an_audit(pair: Scene, step: Step) -> None:
    source, target = pair.roots["a"], pair.roots["b"]
    grow(source, 100)
    await follow(pair, "left", "a:data", "b:data")
    b = pair.cluster.members["b"]
    await b.stop()
    b.environment = {VARIABLE: f"{step}:kill@2"}
    await b.start()
    await b.wait_ready()
    edited = sorted(path for path in source.rglob("*") if path.is_file() and "d00" in str(path))[:9]
    before = {path.read_bytes() for path in edited}
    for path in edited:
        put(path, "edited")
    await b.wait()
    left = temporaries(target)
    assert left, "it died in the middle"
    b.environment = {}
    await b.start()
    await b.wait_ready()
    await until(lambda: not temporaries(target), "a target without leavings", 60)
    await same(source, target)
    await in_step(pair, "left")
    await audited(pair, "left")
    if step is Step.BEFORE_DISPLACED:
        kept = [path for path in (target / ".baton/trash").rglob("*") if path.is_file()]
        assert any(path.read_bytes() in before for path in kept)


@pytest.mark.timeout(120)
async def test_i8_a_tree_that_is_deleted_is_held_and_approved_while_it_goes_on(
    steady: Scene,
) -> None:
    root = steady.spare.pop()
    source, target = steady.root("a", root), steady.root("b", root)
    grow(source, 100)
    await follow(steady, "held-rt", f"a:{root}", f"b:{root}")
    for path in list(source.iterdir()):
        if path.name != ".baton":
            shutil.rmtree(path)

    async def is_held() -> dict[str, Any] | None:
        shown = await steady.show("held-rt")
        return shown if shown["phase"] == "blocked" else None

    shown = await until(is_held, "the hold")
    assert len(picture(target)) > 60, "no more than half may go"
    # What was deleted after the first hold is a plan of its own.
    for _ in range(8):
        ended = await steady.baton("run", "approve", "held-rt", shown["last_run"], "--wait")
        if ended.code == 0 and not await is_held() and not (target / "d039").exists():
            break
    else:
        raise AssertionError(ended)
    await same(source, target)
    await in_step(steady, "held-rt")
    await steady.delete("held-rt")


@pytest.mark.timeout(120)
async def test_paused_it_tracks_and_sends_afterwards(steady: Scene) -> None:
    source, target = steady.root("a", "data") / "paused", steady.root("b", "data") / "paused"
    source.mkdir()
    grow(source, 300)
    await follow(steady, "paused", "a:data/paused", "b:data/paused")
    first = (await steady.show("paused"))["last_run"]
    await steady.ok("job", "pause", "paused")
    await steady.run_ended("paused", first)
    put(source / "while paused", "x")
    assert not (target / "while paused").exists()
    await steady.ok("job", "resume", "paused")
    await same(source, target)
    shown = await in_step(steady, "paused")
    assert shown["last_run"] != first
    assert (await steady.show_run("paused", shown["last_run"]))["files_scanned"] < 100
    verified = await steady.ok("verify", "paused", "-o", "json")
    assert verified.json["equal"] is True
    put(source / "after", "y")
    await same(source, target)
    assert (await steady.show("paused"))["last_run"] == shown["last_run"]
    await steady.delete("paused")


async def written(writer: Restless, count: int) -> None:
    await until(lambda: writer.done > count, "some changes", 60)


@pytest.mark.timeout(240)
async def test_a_restless_writer_while_everybody_is_killed(trio: Scene) -> None:
    """A short soak: see benchmarks.soak for the long one."""
    source, target = trio.roots["a"], trio.roots["b"]
    await follow(trio, "restless", "a:data", "b:data", safety={"max_delete": "off"})
    writer = Restless(source, seed=6)
    stop = asyncio.Event()

    def burst() -> None:
        for _ in range(25):
            writer.step()

    async def write() -> None:
        while not stop.is_set():
            await asyncio.to_thread(burst)
            await asyncio.sleep(0.05)

    writing = asyncio.create_task(write())
    try:
        for victim in ("b", "owner", "a", "owner"):
            name = victim
            if victim == "owner":
                owner = await until(lambda: trio.owner("restless"), "an owner")
                name = owner[0]
            member = trio.cluster.members[name]
            await written(writer, writer.done + 300)
            member.signal(signal.SIGKILL)
            await member.wait()
            await member.start()
            await member.wait_ready()
    finally:
        stop.set()
        await writing
    await in_step(trio, "restless", 120)
    await same(source, target)
    run = await audited(trio, "restless")
    assert run["errors"] == []
    assert (await trio.ok("ledger", "verify", "restless")).code == 0
